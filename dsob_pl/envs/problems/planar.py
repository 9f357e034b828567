"""Problems of a point in the plane that an action moves, and the noise nodes that a brute force sums over."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dsob_pl.envs.problems.base import Problem


class PlanarProblem(Problem):
    """A position p in the plane; an action moves it to ``y = p + step_size a``, and what follows depends on y alone.

    That is, next position, end and reward are functions of (y, noise), but for ``present_reward(p)``, a part of the
    reward that is a function of p. First positions are uniform in ``[-spread, spread]^2``.

    Attributes:
        step_size: distance that the largest action goes along one axis.
        spread: of the first positions.
        width: standard deviation of the narrowest bump; values change little over a small part of it.
        reach: half-width of a square that is hardly ever left.
    """

    observation_size = 2
    action_size = 2
    step_size: float
    spread: float
    width: float

    @property
    def reach(self) -> float:
        """See above."""
        raise NotImplementedError

    def present_reward(self, s: Tensor) -> Tensor:
        """The part of the reward that depends on the position before the step: ``s [..., 2] -> [...]``; here none."""
        return torch.zeros_like(s[..., 0])

    def noise_nodes(self, order: int) -> tuple[Tensor, Tensor]:
        """A quadrature of the noise of a step, float64: nodes ``[Q, noise_size]`` and weights ``[Q]``, their sum 1.

        Args:
            order: nodes along each axis of Gaussian noise; draws among finitely many take one node each.
        """
        raise NotImplementedError

    def initial_state(self, eps: Tensor) -> Tensor:
        """``eps [..., 2] -> s [..., 2]``: uniform in the square."""
        return self.spread * (2 * torch.special.ndtr(eps) - 1)


def choice_thresholds(probabilities: Tensor) -> Tensor:
    """Thresholds ``[N-1]`` of a normal number; choice k is how many of them it exceeds: ``probabilities [N]``."""
    return torch.special.ndtri(probabilities.double().cumsum(0)[:-1].clamp(0, 1))


def choice_nodes(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """One normal number for each of N choices, the median of those that lead there, and its weight: ``[N], [N]``."""
    weights = probabilities.double()
    return torch.special.ndtri(weights.cumsum(0) - weights / 2), weights


def gaussian_nodes(order: int) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes ``[order]`` of a standard normal number and their weights; exact to degree 2 order - 1."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


def product_nodes(*axes: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """All combinations of the nodes of independent axes: nodes ``[Q, axes]`` and weights ``[Q]``."""
    grids = torch.meshgrid(*(nodes for nodes, _ in axes), indexing="ij")
    weights = torch.meshgrid(*(weights for _, weights in axes), indexing="ij")
    return torch.stack(grids, -1).flatten(0, -2), torch.stack(weights).prod(0).flatten()
