"""Independent rewards with independent action gradients: the true spreads are known, so that estimators show theirs."""

from __future__ import annotations

import torch
from torch import Tensor

from dsob_pl.envs.problems.arguments import discount, integer, not_negative
from dsob_pl.envs.problems.base import Outcome, Problem


class RewardChain(Problem):
    """``s' = eps_0`` and ``r = reward_std eps_1 + gradient_std sum_j a_j eps_(2+j)``, S = 1.

    States carry nothing over. Under the zero policy the rewards after the first are independent and normal with mean
    0, and the action gradient of the return is that of the first reward: normal, with mean 0, and independent of the
    return at a = 0. An episode has no end of its own.

    Args:
        action_size: A.
        reward_std: standard deviation of the reward at a = 0.
        gradient_std: standard deviation of each component of dr/da.

    Raises:
        UsageError: a number that is not finite or out of its range.
    """

    observation_size = 1

    def __init__(self, action_size: int = 2, reward_std: float = 1.0, gradient_std: float = 1.0) -> None:
        super().__init__()
        self.action_size = integer("RewardChain.action_size", action_size, 1)
        self.noise_size = 2 + self.action_size
        self.reward_std = not_negative("RewardChain.reward_std", reward_std)
        self.gradient_std = not_negative("RewardChain.gradient_std", gradient_std)

    def forward(self, s: Tensor, a: Tensor, eps: Tensor) -> Outcome:
        """``s [..., 1], a [..., A], eps [..., 2+A] -> Outcome``."""
        # The derivative in s is zero, not absent: autograd refuses an input that plays no part at all.
        s_next = eps[..., :1] + 0 * s
        r = self.reward_std * eps[..., 1] + self.gradient_std * (a * eps[..., 2:]).sum(-1)
        return Outcome(s_next, r, torch.zeros_like(r))

    def initial_state(self, eps: Tensor) -> Tensor:
        """``eps [..., 1] -> s [..., 1]``: standard normal, as all later states."""
        return eps

    def exact_std(self, a: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
        """Standard deviations of G and of dG/da under the zero policy: ``a [..., A] -> [...], [..., A]``.

        ``sqrt(gradient_std^2 |a|^2 + reward_std^2 / (1 - gamma^2))`` and ``gradient_std``; both means are 0.

        Raises:
            UsageError: gamma outside [0, 1).
        """
        later = self.reward_std**2 / (1 - discount(gamma) ** 2)
        variance = self.gradient_std**2 * a.square().sum(-1) + later
        return variance.sqrt(), torch.full_like(a, self.gradient_std)
