"""SUMMIT: the best place throws the mass off in a random direction, which a mean next state cannot say."""

from __future__ import annotations

import math

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


class Summit(PlanarProblem):
    """``y = p + step_size a``, ``p' = y + kick exp(-|y|^2 / (2 width^2)) u_k + noise eps``, paid by two bumps at p.

    At every step k is drawn uniformly from N equally spaced directions ``u_k = (cos 2 pi k / N, sin 2 pi k / N)``. The
    reward ``exp(-|p|^2 / (2 width^2)) + side_height exp(-|p - c|^2 / (2 width^2))`` is that of the position before the
    step, so that a model of the mean next state and mean reward has the reward right. The lesser bump stands at ``c``,
    at ``side_distance`` from the origin, halfway between the directions ``u_0`` and ``u_1`` (opposite to ``u_0`` for
    N = 1): no kick lands on it.

    For N >= 2 the directions sum to zero, so that the mean next state of the origin is the origin: a deterministic
    model, though perfect, promises the full height of the summit for ever, while the mass that goes there is thrown
    off. The best policy stays at the lesser bump. For N = 1 the mean says all there is to say. An episode has no end
    of its own.

    Args:
        directions: N.
        step_size: distance that the largest action goes along one axis.
        kick: distance of the throw at the origin.
        width: standard deviation of the bumps and of the throw's.
        noise: standard deviation of the position's noise per step and axis.
        side_height: of the lesser bump.
        side_distance: from the origin to it.
        spread: first positions are uniform in ``[-spread, spread]^2``.

    Raises:
        UsageError: a number that is not finite or out of its range.
    """

    noise_size = 3
    side: Tensor
    _directions: Tensor
    _thresholds: Tensor

    def __init__(
        self,
        directions: int = 5,
        step_size: float = 0.3,
        kick: float = 1.2,
        width: float = 0.35,
        noise: float = 0.05,
        side_height: float = 0.6,
        side_distance: float = 1.0,
        spread: float = 0.25,
    ) -> None:
        super().__init__()
        n = self.directions = integer("Summit.directions", directions, 1)
        self.step_size = real("Summit.step_size", step_size)
        self.kick = real("Summit.kick", kick)
        self.width = real("Summit.width", width, "above 0", lambda x: x > 0)
        self.noise = not_negative("Summit.noise", noise)
        self.side_height = real("Summit.side_height", side_height)
        self.side_distance = not_negative("Summit.side_distance", side_distance)
        self.spread = not_negative("Summit.spread", spread)
        angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
        constants = {
            "_directions": torch.stack([angle.cos(), angle.sin()], -1),
            "side": self.side_distance * torch.tensor([math.cos(math.pi / n), math.sin(math.pi / n)]).double(),
            "_thresholds": choice_thresholds(torch.full((n,), 1 / n)),
        }
        for name, value in constants.items():
            self.register_buffer(name, value.to(torch.get_default_dtype()), persistent=False)

    @property
    def reach(self) -> float:
        """Where throws and first positions end, and some room."""
        return max(self.spread, abs(self.kick) + self.width, self.side_distance + self.width) + 10 * self.noise

    def forward(self, s: Tensor, a: Tensor, eps: Tensor) -> Outcome:
        """``s [..., 2], a [..., 2], eps [..., 3] -> Outcome``."""
        y = s + self.step_size * a
        k = (eps[..., 2:3] > self._thresholds).sum(-1)
        # Not _directions[k]: without batch dimensions that asks for k's value, which vmap does not have.
        throw = self.kick * self._bump(y).unsqueeze(-1) * embedding(k, self._directions)
        r = self.present_reward(s)
        return Outcome(y + throw + self.noise * eps[..., :2], r, torch.zeros_like(r))

    def present_reward(self, s: Tensor) -> Tensor:
        """All of the reward: ``s [..., 2] -> [...]``."""
        return self._bump(s) + self.side_height * self._bump(s - self.side)

    def noise_nodes(self, order: int) -> tuple[Tensor, Tensor]:
        """As in ``PlanarProblem``, with ``Q = order^2 N``."""
        axis = gaussian_nodes(order)
        return product_nodes(axis, axis, choice_nodes(torch.full((self.directions,), 1 / self.directions)))

    def _bump(self, x: Tensor) -> Tensor:
        return (x.square().sum(-1) / (-2 * self.width**2)).exp()
