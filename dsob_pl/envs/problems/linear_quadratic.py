"""Linear dynamics, quadratic reward: mean return and mean gradient of a linear policy in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from dsob_pl.envs.problems.arguments import discount, not_negative, tensor
from dsob_pl.envs.problems.base import Outcome, Problem
from dsob_pl.errors import UsageError

Matrix = Sequence[Sequence[float]]


class LinearQuadraticReturn(NamedTuple):
    """Mean of the return and of its gradients under a linear policy, in float64.

    With ``y = A s + B a`` the mean return is ``-(s'Qs + a'Ra + gamma y'Py) - constant``.

    Attributes:
        A, B, Q, R: of the problem.
        P: ``[S, S]``, the solution of ``P = Q + K'RK + gamma (A+BK)'P(A+BK)``.
        constant: what the noise costs.
        gamma: discount.
    """

    A: Tensor
    B: Tensor
    Q: Tensor
    R: Tensor
    P: Tensor
    constant: float
    gamma: float

    def mean_return(self, s: Tensor, a: Tensor) -> Tensor:
        """``E[G | s, a]``: ``s [..., S], a [..., A] -> [...]``, in the type of ``s``."""
        s64, a64 = s.double(), a.double()
        y = linear(s64, self.A) + linear(a64, self.B)
        cost = _quadratic(s64, self.Q) + _quadratic(a64, self.R) + self.gamma * _quadratic(y, self.P)
        return (-cost - self.constant).to(s.dtype)

    def mean_gradient(self, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """``E[dG/ds], E[dG/da]``: ``s [..., S], a [..., A] -> [..., S], [..., A]``, in the type of ``s``.

        The noise is added, so that the mean of the sampled gradient is the gradient of the mean.
        """
        s64, a64 = s.double(), a.double()
        carried = self.gamma * linear(linear(s64, self.A) + linear(a64, self.B), self.P)
        ds = -2 * (linear(s64, self.Q) + linear(carried, self.A.mT))
        da = -2 * (linear(a64, self.R) + linear(carried, self.B.mT))
        return ds.to(s.dtype), da.to(s.dtype)


class LinearQuadratic(Problem):
    """``s' = A s + B a + noise * eps`` with the reward ``-(s'Qs + a'Ra)`` of the present state and action.

    An episode has no end of its own.

    Args:
        A: ``[S, S]``, as nested lists or a tensor; by default the rotation of the plane by 0.3 rad.
        B: ``[S, A]``; by default the identity.
        Q: ``[S, S]``, symmetric; by default the identity.
        R: ``[A, A]``, symmetric; by default 0.3 times the identity.
        noise: standard deviation of the noise, one for all components or one for each ``[S]``.
        spread: first states are uniform in ``[-spread, spread]^S``.

    Raises:
        UsageError: a matrix of the wrong shape, not symmetric where it has to be, or with entries that are not finite.
    """

    A: Tensor
    B: Tensor
    Q: Tensor
    R: Tensor
    noise: Tensor

    def __init__(
        self,
        A: Matrix | None = None,
        B: Matrix | None = None,
        Q: Matrix | None = None,
        R: Matrix | None = None,
        noise: float | Sequence[float] = 0.4,
        spread: float = 1.0,
    ) -> None:
        super().__init__()
        rotation = [[math.cos(0.3), -math.sin(0.3)], [math.sin(0.3), math.cos(0.3)]]
        a = tensor("LinearQuadratic.A", rotation if A is None else A, (None, None))
        size = self.observation_size = a.shape[0]
        a = tensor("LinearQuadratic.A", a, (size, size))
        b = tensor("LinearQuadratic.B", torch.eye(size) if B is None else B, (size, None))
        self.action_size = b.shape[1]
        self.noise_size = size
        self.spread = not_negative("LinearQuadratic.spread", spread)
        self.register_buffer("A", a, persistent=False)
        self.register_buffer("B", b, persistent=False)
        self.register_buffer("Q", _symmetric("Q", torch.eye(size) if Q is None else Q, size), persistent=False)
        r = 0.3 * torch.eye(self.action_size) if R is None else R
        self.register_buffer("R", _symmetric("R", r, self.action_size), persistent=False)
        self.register_buffer("noise", _noise(noise, size), persistent=False)

    def forward(self, s: Tensor, a: Tensor, eps: Tensor) -> Outcome:
        """``s [..., S], a [..., A], eps [..., S] -> Outcome``."""
        s_next = linear(s, self.A) + linear(a, self.B) + self.noise * eps
        r = -(_quadratic(s, self.Q) + _quadratic(a, self.R))
        return Outcome(s_next, r, torch.zeros_like(r))

    def initial_state(self, eps: Tensor) -> Tensor:
        """``eps [..., S] -> s [..., S]``: uniform in the cube."""
        return self.spread * (2 * torch.special.ndtr(eps) - 1)

    def infer_noise(self, s: Tensor, a: Tensor, r: Tensor, s_next: Tensor) -> Tensor:
        """``[..., S]``, exact; 0 for a component without noise."""
        residual = s_next - linear(s, self.A) - linear(a, self.B)
        return torch.where(self.noise > 0, residual / self.noise, 0.0)

    def check_stable(self, gain: Any, gamma: float) -> float:
        """Spectral radius of ``sqrt(gamma) (A + B K)``, below 1.

        Args:
            gain: K ``[A, S]`` of the policy ``a = K s``.
            gamma: discount.

        Raises:
            UsageError: gain of the wrong shape or not finite, gamma outside [0, 1), or a radius of at least 1, with
                which squared states outgrow the discount.
        """
        closed = self._closed_loop(self._gain(gain))
        radius = math.sqrt(discount(gamma)) * torch.linalg.eigvals(closed).abs().max().item()
        if radius >= 1:
            raise UsageError(
                "LinearQuadratic: the closed loop is unstable and the return's mean infinite: sqrt(gamma) (A + B gain) "
                f"has the spectral radius {radius:.6g}, expected below 1"
            )
        return radius

    def exact(self, gain: Any, gamma: float) -> LinearQuadraticReturn:
        """Mean return and mean gradient of the policy ``a = K s``, by the discounted Lyapunov equation.

        Solved as one linear system of S^2 unknowns, which suits the small S of such problems.

        Args:
            gain: K ``[A, S]``.
            gamma: discount.

        Raises:
            UsageError: see :meth:`check_stable`.
        """
        self.check_stable(gain, gamma)
        k = self._gain(gain)
        a, b, q, r = (x.double() for x in (self.A, self.B, self.Q, self.R))
        closed, size = self._closed_loop(k), self.observation_size
        # With rows stacked, vec(X P Y) = kron(X, Y') vec(P).
        system = torch.eye(size * size).to(closed) - gamma * torch.kron(closed.mT.contiguous(), closed.mT.contiguous())
        p = torch.linalg.solve(system, (q + k.mT @ r @ k).flatten()).unflatten(0, (size, size))
        constant = gamma / (1 - gamma) * (p.diagonal() * self.noise.double().square()).sum().item()
        return LinearQuadraticReturn(a, b, q, r, p, constant, gamma)

    def _gain(self, gain: Any) -> Tensor:
        return tensor("gain", gain, (self.action_size, self.observation_size)).to(self.A.device, torch.float64)

    def _closed_loop(self, gain: Tensor) -> Tensor:
        return self.A.double() + self.B.double() @ gain


def _quadratic(x: Tensor, matrix: Tensor) -> Tensor:
    """``x'Mx`` for a symmetric M: ``[..., n] -> [...]``."""
    return (linear(x, matrix) * x).sum(-1)


def _symmetric(name: str, value: Any, size: int) -> Tensor:
    matrix = tensor(f"LinearQuadratic.{name}", value, (size, size))
    if not torch.allclose(matrix, matrix.mT, rtol=1e-5, atol=0):
        raise UsageError(f"LinearQuadratic.{name}: expected a symmetric matrix, got {matrix.tolist()}")
    return matrix


def _noise(value: Any, size: int) -> Tensor:
    is_list = isinstance(value, Sequence | Tensor) and not isinstance(value, str)
    std = value if is_list else [not_negative("LinearQuadratic.noise", value)] * size
    noise = tensor("LinearQuadratic.noise", std, (size,))
    if (noise < 0).any():
        raise UsageError(f"LinearQuadratic.noise: expected numbers of at least 0, got {noise.tolist()}")
    return noise
