"""Parts that every learned world model shares: scale of the targets, learned sigma, termination head."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from dsob_pl.errors import UsageError
from dsob_pl.networks import MLP, RunningNormalizer

# Ends are rare: a head that starts at one half would shorten every imagined horizon until it has learned that.
_INITIAL_TERMINATION_LOGIT = -4.0
_SQRT_2 = math.sqrt(2)
_LOG_2PI = math.log(2 * math.pi)


class TargetScale(RunningNormalizer):
    """Running scale of what a world model regresses on: ``(s' - s, r)``, joined as ``[..., S+1]``.

    Args:
        observation_size: S.
        minimum_std: lower bound of the standard deviation. A component that never moves has standard deviation
            zero, and is then predicted as its mean, up to a noise of this size.
    """

    def __init__(self, observation_size: int, minimum_std: float = 1e-3) -> None:
        super().__init__(observation_size + 1, minimum_std=minimum_std)

    def update_from(self, s: Tensor, s_next: Tensor, r: Tensor) -> None:
        """Takes in transitions ``s [..., S], s_next [..., S], r [...]``."""
        self.update(join_target(s, s_next, r))

    def encode(self, s: Tensor, s_next: Tensor, r: Tensor) -> Tensor:
        """``s [..., S], s_next [..., S], r [...] ->`` normalised target ``[..., S+1]``."""
        return self(join_target(s, s_next, r))

    def decode(self, s: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of :meth:`encode`: ``s [..., S], target [..., S+1] -> (s_next [..., S], r [...])``."""
        target = self.inverse(target)
        return s + target[..., :-1], target[..., -1]


def gaussian_log_density(residual: Tensor, log_sigma: Tensor) -> Tensor:
    """Log density of ``residual [..., D]`` under N(0, sigma^2), log sigma ``[..., D]``, summed over components."""
    squares = (residual * (-log_sigma).exp()).square()
    return -(0.5 * (squares + _LOG_2PI) + log_sigma).sum(-1)


def check_weight(name: str, weight: float) -> float:
    """``weight``, the factor of a part of the loss. Raises UsageError where it is not a finite number of at least 0."""
    if not 0 <= weight < math.inf:
        raise UsageError(f"world_model.{name}: expected a number of at least 0, got {weight}")
    return weight


class LearnedSigma(nn.Module):
    """Standard deviation of a Gaussian output with one learned value per component, softly bounded.

    A sigma that is learned finds the weight between reconstruction and KL divergence by itself; fixed at one it
    collapses the posterior (Rybkin et al. 2021). Noiseless components would drive it to zero, hence the lower bound.

    Args:
        size: number of components D.
        initial: sigma at the start.
        minimum: lower bound.
        maximum: upper bound.
    """

    def __init__(self, size: int, initial: float = 0.3, minimum: float = 0.01, maximum: float = 2.0) -> None:
        super().__init__()
        if not 0 < minimum < initial < maximum < math.inf:
            given = f"{minimum}, {initial}, {maximum}"
            raise UsageError(f"world_model: expected 0 < minimum_sigma < initial_sigma < maximum_sigma, got {given}")
        self.low, self.range = math.log(minimum), math.log(maximum / minimum)
        start = math.log(initial / minimum) / self.range
        self.logit = nn.Parameter(torch.full((size,), math.log(start / (1 - start))))

    def forward(self) -> Tensor:
        """Logarithm of sigma ``[D]``."""
        return self.low + self.range * self.logit.sigmoid()

    def log_prob(self, residual: Tensor) -> Tensor:
        """Log density of ``residual [..., D]`` under N(0, sigma^2), summed over components: ``[...]``."""
        return gaussian_log_density(residual, self())


def join_target(s: Tensor, s_next: Tensor, r: Tensor) -> Tensor:
    """``(s' - s, r)`` as one vector ``[..., S+1]``."""
    return torch.cat([s_next - s, r.unsqueeze(-1)], -1)


class TerminationHead(nn.Module):
    """Bernoulli probability that the step (s, a, s') ends the task, its logit an MLP of the three.

    Args:
        observation_size: S.
        action_size: A.
        hidden: widths of the hidden layers.
        activation: name of a twice differentiable activation.
        differentiate: the probability in :meth:`continuation` is a function of (s, a, s'); otherwise a constant.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden: Sequence[int] = (64, 64),
        activation: str = "silu",
        differentiate: bool = True,
    ) -> None:
        super().__init__()
        self.mlp = MLP(2 * observation_size + action_size, hidden, 1, activation)
        self.differentiate = differentiate
        with torch.no_grad():
            self.mlp[-1].weight.mul_(0.1)  # type: ignore[operator]
            self.mlp[-1].bias.fill_(_INITIAL_TERMINATION_LOGIT)  # type: ignore[operator]

    def forward(self, s: Tensor, a: Tensor, s_next: Tensor) -> Tensor:
        """Logit of termination ``[...]`` for ``s [..., S], a [..., A], s_next [..., S]``."""
        return self.mlp(torch.cat([s, a, s_next], -1)).squeeze(-1)

    def continuation(self, s: Tensor, a: Tensor, s_next: Tensor) -> Tensor:
        """One minus the probability of termination ``[...]``."""
        logit = self(s, a, s_next)
        return (-(logit if self.differentiate else logit.detach())).sigmoid()

    def sample_continuation(self, s: Tensor, a: Tensor, s_next: Tensor, eps: Tensor) -> Tensor:
        """A constant 0 or 1 ``[...]``: zero with the probability of termination, drawn by ``eps [...] ~ N(0, 1)``."""
        # A uniform number from the normal one keeps all of a model's noise in one Gaussian vector.
        uniform = 0.5 * (1 + torch.erf(eps / _SQRT_2))
        return (uniform >= self(s, a, s_next).detach().sigmoid()).to(s_next.dtype)

    def loss(self, s: Tensor, a: Tensor, s_next: Tensor, terminated: Tensor) -> Tensor:
        """Mean binary cross entropy on real next states; ``terminated [...]`` is 0 or 1."""
        return binary_cross_entropy_with_logits(self(s, a, s_next), terminated.to(s_next.dtype))
