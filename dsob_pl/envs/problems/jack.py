"""JACK: a rare jackpot of the larger mean against a sure payment, told apart by where the mass goes."""

from __future__ import annotations

import torch
from torch import Tensor

from dsob_pl.envs.problems.arguments import integer, not_negative, real
from dsob_pl.envs.problems.base import Outcome
from dsob_pl.envs.problems.planar import (
    PlanarProblem,
    choice_nodes,
    choice_thresholds,
    gaussian_nodes,
    product_nodes,
)


class Jack(PlanarProblem):
    """``p' = p + step_size a + noise eps``, paid ``J b(p' - (distance, 0)) + sure b(p' + (distance, 0))``.

    ``b(x) = exp(-|x|^2 / (2 width^2))``, and at every step the jackpot J is N with probability 1/N and else 0, drawn
    apart from position and action: with the noise held fixed it is a constant. Its mean is 1 for every N, and so are
    mean return and best policy the same for every N: the mass belongs on the right. What learns from the likeliest
    reward, or from the median, goes to the left; from N = 2 on the median of J is below the sure payment.

    Who minds risk belongs on the left. Discounted returns of 10 steps at gamma 0.9 and N = 10, by ``risk_plan``, 20,000
    episodes (standard errors 0.035 or less of means, 0.006 of CVaR): the best policy for the mean has mean 4.99 and
    CVaR_0.1 0.00, the one for CVaR_0.1 from each step on 2.99 and 1.76, the one for CVaR_0.1 of the episode 2.04 and
    1.80, where 1.91 is promised: what is best for CVaR takes the sure payment.

    An episode has no end of its own; the registered environment stops after 10 steps.

    Args:
        rarity: N.
        sure: payment on the left.
        distance: of either bump from the origin.
        width: standard deviation of a bump.
        step_size: distance that the largest action goes along one axis.
        noise: standard deviation of the position's noise per step and axis.
        spread: first positions are uniform in ``[-spread, spread]^2``.

    Raises:
        UsageError: a number that is not finite or out of its range.
    """

    noise_size = 3
    centre: Tensor
    _threshold: Tensor

    def __init__(
        self,
        rarity: int = 10,
        sure: float = 0.6,
        distance: float = 1.0,
        width: float = 0.4,
        step_size: float = 0.3,
        noise: float = 0.05,
        spread: float = 1.0,
    ) -> None:
        super().__init__()
        self.rarity = integer("Jack.rarity", rarity, 1)
        self.sure = real("Jack.sure", sure)
        self.distance = not_negative("Jack.distance", distance)
        self.width = real("Jack.width", width, "above 0", lambda x: x > 0)
        self.step_size = real("Jack.step_size", step_size)
        self.noise = not_negative("Jack.noise", noise)
        self.spread = not_negative("Jack.spread", spread)
        centre, threshold = torch.tensor([self.distance, 0.0]), choice_thresholds(self._probabilities)
        self.register_buffer("centre", centre.to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("_threshold", threshold.to(torch.get_default_dtype()), persistent=False)

    @property
    def _probabilities(self) -> Tensor:
        """Of no jackpot and of one ``[2]``; of one alone where it is sure ``[1]``."""
        hit = 1 / self.rarity
        return torch.tensor([1 - hit, hit] if self.rarity > 1 else [1.0], dtype=torch.float64)

    @property
    def reach(self) -> float:
        """Where bumps and first positions end, and some room."""
        return max(self.spread, self.distance + self.width) + 10 * self.noise

    def forward(self, s: Tensor, a: Tensor, eps: Tensor) -> Outcome:
        """``s [..., 2], a [..., 2], eps [..., 3] -> Outcome``."""
        p = s + self.step_size * a + self.noise * eps[..., :2]
        hit = (eps[..., 2:3] > self._threshold).all(-1)  # for N = 1 there is no threshold to exceed
        r = self.rarity * hit * self._bump(p - self.centre) + self.sure * self._bump(p + self.centre)
        return Outcome(p, r, torch.zeros_like(r))

    def noise_nodes(self, order: int) -> tuple[Tensor, Tensor]:
        """As in ``PlanarProblem``, with ``Q = 2 order^2``, for N = 1 half of that."""
        axis = gaussian_nodes(order)
        return product_nodes(axis, axis, choice_nodes(self._probabilities))

    def _bump(self, x: Tensor) -> Tensor:
        return (x.square().sum(-1) / (-2 * self.width**2)).exp()
