"""A point mass in the plane with several possible reward locations, of which one is drawn: a multimodal return."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import embedding

from dsob_pl.envs.problems.arguments import integer, not_negative, real
from dsob_pl.envs.problems.base import Outcome
from dsob_pl.envs.problems.planar import (
    PlanarProblem,
    choice_nodes,
    choice_thresholds,
    gaussian_nodes,
    product_nodes,
)
from dsob_pl.errors import UsageError, nearest

_DRAWS = ("step", "end")


class PointMass(PlanarProblem):
    """``p' = p + step_size a + noise eps`` in the plane, paid by a bump around one of N locations, drawn each time.

    Location k is drawn with probability ``weights[k]`` and pays ``b_k = heights[k] exp(-|p' - centres[k]|^2 / (2
    width^2))``. Both ways of drawing are Markov, since nothing but p is carried from step to step:

    - ``"step"``: at every step k is drawn and the reward is b_k; an episode has no end of its own.
    - ``"end"``: every step ends the episode with probability ``end_probability``; then k is drawn and the reward is
      b_k. All other steps pay 0.

    Neither draw depends on position or action: with the noise held fixed they are constants. Centres lie at distances
    0.8 to 1.6 from the origin and in all directions. Distances, weights and heights are all distinct, so that no
    symmetry maps the set of N >= 3 locations to itself; one or two points are their own mirror image. A mass that
    stays at the origin is paid by all locations a little, so that the best place is a compromise between the likely,
    the high and the near.

    Args:
        locations: N.
        width: standard deviation of a bump.
        seed: of the locations, their weights and heights.
        draw: when a location is drawn, see above.
        end_probability: probability that a step is the last, with ``draw="end"``.
        step_size: distance that the largest action goes along one axis.
        noise: standard deviation of the position's noise per step and axis.
        spread: first positions are uniform in ``[-spread, spread]^2``.

    Attributes:
        weights: probability of each location ``[N]``.

    Raises:
        UsageError: a number that is not finite or out of its range, or another ``draw``.
    """

    weights: Tensor
    _locations: Tensor
    _thresholds: Tensor
    _end: Tensor

    def __init__(
        self,
        locations: int = 5,
        width: float = 0.8,
        seed: int = 0,
        draw: Literal["step", "end"] = "step",
        end_probability: float = 0.1,
        step_size: float = 0.3,
        noise: float = 0.1,
        spread: float = 1.5,
    ) -> None:
        super().__init__()
        n = integer("PointMass.locations", locations, 1)
        if draw not in _DRAWS:
            raise UsageError(f"PointMass.draw: expected 'step' or 'end', got {draw!r}{nearest(str(draw), _DRAWS)}")
        self.width = real("PointMass.width", width, "above 0", lambda x: x > 0)
        self.draw = draw
        self.step_size = real("PointMass.step_size", step_size)
        self.noise = not_negative("PointMass.noise", noise)
        self.spread = not_negative("PointMass.spread", spread)
        self.end_probability = real("PointMass.end_probability", end_probability, "in (0, 1]", lambda x: 0 < x <= 1)
        # Of a step: position, location and, where it can end, the end.
        self.noise_size = 3 if draw == "step" else 4

        generator = torch.Generator().manual_seed(integer("PointMass.seed", seed, 0))

        def jittered(order: Tensor) -> Tensor:
            """Numbers in [0, 1), one from the inner part of each of n equal cells: distinct by construction."""
            return (order + 0.1 + 0.8 * torch.rand(n, generator=generator, dtype=torch.float64)) / n

        # One direction per n-th of the circle, so that locations stay apart; all else in an order of its own.
        angle = 2 * math.pi * (jittered(torch.arange(n)) + torch.rand((), generator=generator, dtype=torch.float64))
        radius, weight, height = (jittered(torch.randperm(n, generator=generator)) for _ in range(3))
        radius, weight, height = 0.8 + 0.8 * radius, 0.5 + weight, 0.5 + height
        weight = weight / weight.sum()
        # As thresholds of the normal number itself: eps is above the k-th where Phi(eps) is above the k-th probability.
        thresholds = choice_thresholds(weight)
        end = torch.special.ndtri(torch.tensor(self.end_probability, dtype=torch.float64))
        constants = {
            "_locations": torch.stack([radius * angle.cos(), radius * angle.sin(), height], -1),
            "weights": weight,
            "_thresholds": thresholds,
            "_end": end,
        }
        for name, value in constants.items():
            self.register_buffer(name, value.to(torch.get_default_dtype()), persistent=False)

    @property
    def centres(self) -> Tensor:
        """``[N, 2]``."""
        return self._locations[:, :2]

    @property
    def heights(self) -> Tensor:
        """Largest payment of each location, between 0.5 and 1.5 ``[N]``."""
        return self._locations[:, 2]

    def forward(self, s: Tensor, a: Tensor, eps: Tensor) -> Outcome:
        """``s [..., 2], a [..., 2], eps [..., noise_size] -> Outcome``."""
        p = s + self.step_size * a + self.noise * eps[..., :2]
        k = (eps[..., 2:3] > self._thresholds).sum(-1)
        # Not _locations[k]: without batch dimensions that asks for k's value, which vmap does not have.
        drawn = embedding(k, self._locations)
        squared_distance = (p - drawn[..., :2]).square().sum(-1)
        r = drawn[..., 2] * (squared_distance / (-2 * self.width**2)).exp()
        if self.draw == "step":
            return Outcome(p, r, torch.zeros_like(r))
        terminated = (eps[..., 3] < self._end).to(r.dtype)
        return Outcome(p, terminated * r, terminated)

    @property
    def reach(self) -> float:
        """Where the locations and first positions end, and some room."""
        return max(self.spread, float(self.centres.norm(dim=-1).max())) + 10 * self.noise

    def noise_nodes(self, order: int) -> tuple[Tensor, Tensor]:
        """As in ``PlanarProblem``, with ``Q = order^2 N``, twice that with ``draw="end"``."""
        axis, location = gaussian_nodes(order), choice_nodes(self.weights.cpu())
        if self.draw == "step":
            return product_nodes(axis, axis, location)
        end = choice_nodes(torch.tensor([self.end_probability, 1 - self.end_probability], dtype=torch.float64))
        return product_nodes(axis, axis, location, end)
