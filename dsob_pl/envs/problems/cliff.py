"""CLIFF: under gusts, the short way past a cliff has the larger mean return and the long one the larger CVaR."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dsob_pl.envs.problems.arguments import not_negative, real
from dsob_pl.envs.problems.base import Outcome
from dsob_pl.envs.problems.planar import (
    PlanarProblem,
    choice_nodes,
    choice_thresholds,
    gaussian_nodes,
    product_nodes,
)


class Cliff(PlanarProblem):
    """``y = p + step_size a``, ``p' = y - hit gust B(y) across + noise eps``, paid ``goal(p') - depth fall(p')``.

    Positions are also told by u, their distance ``along`` the diagonal (1, 1) from start to goal, and by v, that
    ``across`` it, the direction (-1, 1). Actions are limited along the axes, so that the straight way from start to
    goal is the one short way: each unit across costs one along.

    - ``B(p) = exp(-u^2 / (2 width^2))`` is the gap in the middle, where gusts blow and the ground ends.
    - With probability ``gust_probability`` a step is hit by a gust, drawn apart from position and action: with the
      noise held fixed it is a constant. It throws a mass in the gap by ``gust`` towards negative v.
    - ``fall(p) = B(p) sigmoid(-(v + edge) / softness)``: beyond the edge each step costs up to ``depth``.
    - ``goal(p) = 1 / (1 + |p - g|^2 / goal_width^2)``, which has a slope everywhere.

    The cliff is a cost and not an end of the episode: an end whose probability depends on the position has no pathwise
    derivative, and a Sobolev Bellman operator needs one. All of a step is a smooth function of (s, a). An episode has
    no end of its own; the registered environment stops after 30 steps.

    The straight way is the best on average, and falls often enough for a bad CVaR_0.1; what maximises CVaR_0.1 goes
    around at a height that gusts do not reach. Discounted returns of 30 steps at gamma 0.9, by ``risk_plan`` and 20,000
    episodes (standard error of CVaR in brackets):

    - best for the mean: mean 6.48, CVaR_0.1 2.65 (0.05);
    - best for CVaR_0.1 from each step on, nested: 5.78 and 5.13 (0.01), without a clock 5.86 and 5.21 (0.01);
    - best for CVaR_0.1 of the episode: 5.82 and 5.48 (0.02), where 5.61 is promised.

    Args:
        distance: of start and goal from the origin, along each axis.
        width: standard deviation of the gap, along the diagonal.
        edge: distance of the cliff from the diagonal.
        softness: of the edge, the scale of the sigmoid.
        depth: what one step beyond the edge costs.
        gust: length of the throw in the middle of the gap.
        gust_probability: in (0, 1), of a gust at a step.
        goal_width: distance from the goal at which half of it is paid.
        step_size: distance that the largest action goes along one axis.
        noise: standard deviation of the position's noise per step and axis.
        spread: first positions are uniform in the square of this half-width around the start.

    Raises:
        UsageError: a number that is not finite or out of its range.
    """

    noise_size = 3
    goal: Tensor
    _across: Tensor
    _threshold: Tensor

    def __init__(
        self,
        distance: float = 0.75,
        width: float = 0.35,
        edge: float = 0.35,
        softness: float = 0.1,
        depth: float = 4.0,
        gust: float = 0.8,
        gust_probability: float = 0.1,
        goal_width: float = 0.8,
        step_size: float = 0.3,
        noise: float = 0.05,
        spread: float = 0.2,
    ) -> None:
        super().__init__()
        positive = "above 0", lambda x: x > 0
        self.distance = not_negative("Cliff.distance", distance)
        self.width = real("Cliff.width", width, *positive)
        self.edge = real("Cliff.edge", edge)
        self.softness = real("Cliff.softness", softness, *positive)
        self.depth = real("Cliff.depth", depth)
        self.gust = real("Cliff.gust", gust)
        self.gust_probability = real("Cliff.gust_probability", gust_probability, "in (0, 1)", lambda x: 0 < x < 1)
        self.goal_width = real("Cliff.goal_width", goal_width, *positive)
        self.step_size = real("Cliff.step_size", step_size)
        self.noise = not_negative("Cliff.noise", noise)
        self.spread = not_negative("Cliff.spread", spread)
        constants = {
            "goal": torch.tensor([self.distance, self.distance]).double(),
            "_across": torch.tensor([-math.sqrt(0.5), math.sqrt(0.5)]).double(),
            "_threshold": choice_thresholds(self._probabilities),
        }
        for name, value in constants.items():
            self.register_buffer(name, value.to(torch.get_default_dtype()), persistent=False)

    @property
    def _probabilities(self) -> Tensor:
        """Of no gust and of one ``[2]``."""
        return torch.tensor([1 - self.gust_probability, self.gust_probability], dtype=torch.float64)

    @property
    def reach(self) -> float:
        """Where start, goal and gusts end, and some room."""
        return max(self.distance + self.spread, abs(self.gust) + self.width) + 10 * self.noise

    def initial_state(self, eps: Tensor) -> Tensor:
        """``eps [..., 2] -> s [..., 2]``: uniform in the square around the start."""
        return super().initial_state(eps) - self.goal

    def forward(self, s: Tensor, a: Tensor, eps: Tensor) -> Outcome:
        """``s [..., 2], a [..., 2], eps [..., 3] -> Outcome``."""
        y = s + self.step_size * a
        hit = (eps[..., 2:3] > self._threshold).to(y.dtype)
        p = y - self.gust * hit * self.gap(y).unsqueeze(-1) * self._across + self.noise * eps[..., :2]
        squared_distance = (p - self.goal).square().sum(-1)
        r = 1 / (1 + squared_distance / self.goal_width**2) - self.depth * self.fall(p)
        return Outcome(p, r, torch.zeros_like(r))

    def gap(self, p: Tensor) -> Tensor:
        """B, 1 in the middle: ``p [..., 2] -> [...]``."""
        # (1, 1) / sqrt(2) is along, so that u^2 is half the square of the sum.
        return (p.sum(-1).square() / (-4 * self.width**2)).exp()

    def fall(self, p: Tensor) -> Tensor:
        """Between 0 on the ground and 1 beyond the edge: ``p [..., 2] -> [...]``."""
        v = (p * self._across).sum(-1)
        return self.gap(p) * torch.sigmoid(-(v + self.edge) / self.softness)

    def noise_nodes(self, order: int) -> tuple[Tensor, Tensor]:
        """As in ``PlanarProblem``, with ``Q = 2 order^2``."""
        axis = gaussian_nodes(order)
        return product_nodes(axis, axis, choice_nodes(self._probabilities))
