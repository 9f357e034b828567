"""Linear dynamics whose noise grows with state and action: the best mean, and mean minus variance, of the return."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from dsob_pl.envs.problems.arguments import discount, not_negative, tensor
from dsob_pl.envs.problems.base import Outcome, Problem
from dsob_pl.envs.problems.linear_quadratic import LinearQuadratic, Matrix
from dsob_pl.envs.problems.planar import gaussian_nodes, product_nodes
from dsob_pl.errors import UsageError

_ITERATIONS = 100_000
_TOLERANCE = 1e-13


class MultiplicativeReturn(NamedTuple):
    """Mean and variance of the return under a linear policy, in float64 inside.

    Attributes:
        problem: a copy in float64.
        gamma: discount.
        second: ``[S+1, S+1]``; ``-z' second z`` with ``z = (s, 1)`` is the mean return of the policy from s.
        fourth: ``[(S+1)^4]``; the mean of the squared return from s is ``fourth . z(x)z(x)z(x)z``.
    """

    problem: MultiplicativeLinearQuadratic
    gamma: float
    second: Tensor
    fourth: Tensor

    def mean_return(self, s: Tensor, a: Tensor) -> Tensor:
        """``E[G | s, a]``: ``s [..., S], a [..., A] -> [...]``, in the type of ``s`` and differentiable."""
        return self._moments(s, a)[0].to(s.dtype)

    def variance(self, s: Tensor, a: Tensor) -> Tensor:
        """``Var[G | s, a]``, as ``mean_return``."""
        mean, square = self._moments(s, a)
        return (square - mean.square()).to(s.dtype)

    def of_first_states(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of the return of an episode, over first states too: ``[], []``."""
        axis = np.polynomial.legendre.leggauss(3)  # exact to degree 5
        nodes, weights = torch.from_numpy(axis[0]), torch.from_numpy(axis[1] / 2)
        s, weights = product_nodes(*[(self.problem.spread * nodes, weights)] * self.problem.observation_size)
        second, fourth = _values(s, self.second, self.fourth)
        mean = -(weights * second).sum()
        return mean, (weights * fourth).sum() - mean.square()

    def _moments(self, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """``E[G | s, a]`` and ``E[G^2 | s, a]``."""
        nodes, weights = self.problem.noise_nodes()
        s64, a64 = s.double().unsqueeze(-2), a.double().unsqueeze(-2)
        s_next, r, _ = self.problem(s64, a64, nodes)
        second, fourth = _values(s_next, self.second, self.fourth)
        second, fourth, r = (weights * second).sum(-1), (weights * fourth).sum(-1), r[..., 0]
        return r - self.gamma * second, r.square() - 2 * self.gamma * r * second + self.gamma**2 * fourth


class MultiplicativeLinearQuadratic(Problem):
    """``s' = A s + B a + (C s + D a) eps_0 + noise eps``, paid ``-(s'Qs + a'Ra)`` of the present state and action.

    Large states and actions are risky here, not only costly. What is known in closed form:

    - the policy of the best mean, linear, by a Riccati equation with the noise in it (``best_gain``);
    - mean and variance of the return of any linear policy, from any state and action: polynomials of degree 2 and 4,
      by linear systems (``exact``), and so the linear policy that is best for mean minus weight times variance of the
      episode's return, up to a search over the entries of its gain (``mean_variance_gain``).

    The best policy of all for mean minus variance has no closed form here: the variance of the return is of fourth
    degree in the state and has no Bellman equation of its own, so that the best policy is neither linear nor consistent
    in time. An episode has no end of its own; the registered environment stops after 20 steps.

    Args:
        A: as B, Q, R, noise and spread those of ``LinearQuadratic``.
        B: ``[S, A]``.
        Q: ``[S, S]``.
        R: ``[A, A]``.
        C: ``[S, S]``; by default half the identity.
        D: ``[S, A]``; by default 0: the noise depends on the state alone.
        noise: standard deviation of the noise that is added.
        spread: of the first states.

    Raises:
        UsageError: as ``LinearQuadratic``.
    """

    C: Tensor
    D: Tensor

    def __init__(
        self,
        A: Matrix | None = None,
        B: Matrix | None = None,
        Q: Matrix | None = None,
        R: Matrix | None = None,
        C: Matrix | None = None,
        D: Matrix | None = None,
        noise: float | Sequence[float] = 0.2,
        spread: float = 1.0,
    ) -> None:
        super().__init__()
        self.additive = LinearQuadratic(A, B, Q, R, noise, spread)
        size, actions = self.additive.observation_size, self.additive.action_size
        self.observation_size, self.action_size, self.noise_size = size, actions, 1 + size
        self.spread = self.additive.spread
        c, d = 0.5 * torch.eye(size) if C is None else C, torch.zeros(size, actions) if D is None else D
        name = type(self).__name__
        self.register_buffer("C", tensor(f"{name}.C", c, (size, size)), persistent=False)
        self.register_buffer("D", tensor(f"{name}.D", d, (size, actions)), persistent=False)

    def forward(self, s: Tensor, a: Tensor, eps: Tensor) -> Outcome:
        """``s [..., S], a [..., A], eps [..., 1+S] -> Outcome``."""
        s_next, r, terminated = self.additive(s, a, eps[..., 1:])
        return Outcome(s_next + eps[..., :1] * (linear(s, self.C) + linear(a, self.D)), r, terminated)

    def initial_state(self, eps: Tensor) -> Tensor:
        """``eps [..., S] -> s [..., S]``: uniform in the cube."""
        return self.additive.initial_state(eps)

    def noise_nodes(self) -> tuple[Tensor, Tensor]:
        """A quadrature of the noise, exact for polynomials of degree 5: ``[Q, 1+S], [Q]``, ``Q = 3^(1+S)``."""
        nodes, weights = product_nodes(*[gaussian_nodes(3)] * self.noise_size)
        return nodes.to(self.C.device), weights.to(self.C.device)

    def best_gain(self, gamma: float) -> Tensor:
        """K ``[A, S]`` float64 of ``a = K s``, the policy of the largest mean return from every state and action.

        ``P = Q + gamma (A'PA + C'PC) + gamma L'K`` with ``L = B'PA + D'PC`` and ``K = -gamma (R + gamma (B'PB +
        D'PD))^-1 L``, by iteration from 0 (value iteration).

        Raises:
            UsageError: gamma outside [0, 1), or no policy has a finite mean.
        """
        gamma = discount(gamma)
        a, b, q, r, c, d = (x.double() for x in (*self._plain, self.C, self.D))
        p = torch.zeros_like(q)
        for _ in range(_ITERATIONS):
            mixed = b.mT @ p @ a + d.mT @ p @ c
            gain = -gamma * torch.linalg.solve(r + gamma * (b.mT @ p @ b + d.mT @ p @ d), mixed)
            before, p = p, q + gamma * (a.mT @ p @ a + c.mT @ p @ c + mixed.mT @ gain)
            p = (p + p.mT) / 2  # what rounding leaves of an antisymmetric part would grow
            if not p.isfinite().all():
                break
            if (p - before).abs().max() <= _TOLERANCE * p.abs().max():
                return gain
        raise UsageError(f"{type(self).__name__}: no linear policy keeps the mean return finite at gamma {gamma}")

    def exact(self, gain: Any, gamma: float) -> MultiplicativeReturn:
        """Mean and variance of the return of the policy ``a = K s``; differentiable in a gain that is a tensor.

        With ``z = (s, 1)`` a step is ``z' = Z z`` with a random matrix Z. A product of 2 or 4 components of z then
        has a linear law of motion, that of ``E Z(x)Z`` or ``E Z(x)Z(x)Z(x)Z``.

        Args:
            gain: K ``[A, S]``.
            gamma: discount.

        Raises:
            UsageError: gain of the wrong shape or not finite, gamma outside [0, 1), or an infinite variance.
        """
        gamma, shape = discount(gamma), (self.action_size, self.observation_size)
        k = gain if isinstance(gain, Tensor) and gain.shape == shape else tensor("gain", gain, shape)
        k, size = k.to(self.C.device, torch.float64), self.observation_size
        problem = copy.deepcopy(self).double()
        a, b, q, r = problem._plain
        nodes, weights = problem.noise_nodes()
        closed = a + b @ k + nodes[:, :1, None] * (problem.C + problem.D @ k)  # [Q, S, S]
        added = (problem.additive.noise * nodes[:, 1:]).unsqueeze(-1)
        last = torch.cat([torch.zeros(size), torch.ones(1)]).to(closed).expand(len(nodes), 1, -1)
        z = torch.cat([torch.cat([closed, added], -1), last], 1).mT
        pairs = _kron(z, z)
        second, fourth = (gamma * torch.einsum("q,qij->ij", weights, x) for x in (pairs, gamma * _kron(pairs, pairs)))
        # The last component stands still, and so do products of it alone: they have the eigenvalue gamma.
        for power, motion in (("mean", second), ("variance", fourth)):
            if torch.linalg.eigvals(motion.detach()).abs().max() >= 1:
                raise UsageError(f"{type(self).__name__}: the return's {power} is infinite under this gain")
        cost = torch.zeros(size + 1, size + 1).to(closed)
        cost = torch.cat([torch.cat([q + k.mT @ r @ k, cost[:size, size:]], 1), cost[size:]]).flatten()
        p = torch.linalg.solve(torch.eye(len(second)).to(second) - second, cost)
        # G^2 = c^2 + 2 gamma c G' + gamma^2 G'^2 with G = c + gamma G', and p = c + gamma E p'.
        square = torch.kron(cost, 2 * p - cost)
        f = torch.linalg.solve(torch.eye(len(fourth)).to(fourth) - fourth, square)
        return MultiplicativeReturn(problem, gamma, p.view(size + 1, size + 1), f)

    def mean_variance_gain(self, weight: float, gamma: float) -> Tensor:
        """K ``[A, S]`` float64 of the linear policy with the largest mean minus ``weight`` times variance.

        Both are those of the return of an episode from the problem's first states. Newton's method from ``best_gain``,
        which is the answer for the weight 0, on the closed form of ``exact``; a local optimum.

        Raises:
            UsageError: a negative weight, gamma outside [0, 1), or an infinite variance under ``best_gain``.
        """
        weight, gain = not_negative("weight", weight), self.best_gain(gamma)
        shape = gain.shape

        def loss(flat: Tensor) -> Tensor:
            mean, variance = self.exact(flat.view(shape), gamma).of_first_states()
            return weight * variance - mean

        flat = gain.flatten()
        value = loss(flat)
        for _ in range(100):
            slope = torch.autograd.functional.jacobian(loss, flat)
            values, vectors = torch.linalg.eigh(torch.autograd.functional.hessian(loss, flat))
            move = -vectors @ ((vectors.mT @ slope) / values.abs().clamp_min(1e-6))
            rate = 1.0
            while True:
                try:
                    reached = loss(flat + rate * move)
                except UsageError:
                    reached = torch.full_like(value, torch.inf)  # unstable: too far
                if reached <= value or rate < 1e-8:
                    break
                rate /= 2
            if not value - reached > _TOLERANCE * value.abs():
                break
            flat, value = flat + rate * move, reached
        return flat.view(shape)

    @property
    def _plain(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A, B, Q and R."""
        return self.additive.A, self.additive.B, self.additive.Q, self.additive.R


def _kron(x: Tensor, y: Tensor) -> Tensor:
    """Kronecker products of rows of matrices: ``[Q, n, n], [Q, m, m] -> [Q, nm, nm]``."""
    size = x.shape[-1] * y.shape[-1]
    return torch.einsum("qij,qkl->qikjl", x, y).reshape(len(x), size, size)


def _values(s: Tensor, second: Tensor, fourth: Tensor) -> tuple[Tensor, Tensor]:
    """The two polynomials at ``s [..., S]``: ``[...], [...]``."""
    z = torch.cat([s, torch.ones_like(s[..., :1])], -1)
    pairs = (z.unsqueeze(-1) * z.unsqueeze(-2)).flatten(-2)
    square = fourth.view(pairs.shape[-1], -1)
    return (pairs * second.flatten()).sum(-1), (linear(pairs, square) * pairs).sum(-1)
