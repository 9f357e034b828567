"""A rotation of the plane whose expansion sets gamma*kappa: the smoothness trade-off with a bounded reward."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import linear

from dsob_pl.envs.problems.arguments import not_negative, real
from dsob_pl.envs.problems.base import Outcome, Problem

# The origin, where a contracting rotation leads, is neither the best state nor one without a slope.
_CENTRE = (1.0, 0.5)


class Rotation(Problem):
    """``s' = rho Rot(phi) s + action_gain a + noise eps`` with ``r = exp(-|s' - c|^2 / 2)``, ``c = (1, 0.5)``.

    The return is bounded by ``1 / (1 - gamma)`` whatever rho is; its gradient is not. Under a constant policy K has the
    norm ``sqrt(rho^2 + action_gain^2)`` at every state, so that
    ``gamma*kappa = gamma max(1, sqrt(rho^2 + action_gain^2))``; the part of K that leads from state gradient to state
    gradient has the norm rho. An episode has no end of its own.

    Args:
        rho: expansion per step; the noise adds up without bound from 1 on.
        phi: angle per step in rad.
        action_gain: effect of the action.
        noise: standard deviation of the noise.
        initial_std: standard deviation of the first states.

    Raises:
        UsageError: a number that is not finite or out of its range.
    """

    observation_size = 2
    action_size = 2
    noise_size = 2
    matrix: Tensor
    centre: Tensor

    def __init__(
        self,
        rho: float = 0.9,
        phi: float = 0.5,
        action_gain: float = 0.5,
        noise: float = 0.1,
        initial_std: float = 1.0,
    ) -> None:
        super().__init__()
        self.rho = not_negative("Rotation.rho", rho)
        self.phi = real("Rotation.phi", phi)
        self.action_gain = real("Rotation.action_gain", action_gain)
        self.noise = not_negative("Rotation.noise", noise)
        self.initial_std = not_negative("Rotation.initial_std", initial_std)
        cos, sin = math.cos(self.phi), math.sin(self.phi)
        self.register_buffer("matrix", self.rho * torch.tensor([[cos, -sin], [sin, cos]]), persistent=False)
        self.register_buffer("centre", torch.tensor(_CENTRE), persistent=False)

    def forward(self, s: Tensor, a: Tensor, eps: Tensor) -> Outcome:
        """``s [..., 2], a [..., 2], eps [..., 2] -> Outcome``."""
        s_next = linear(s, self.matrix) + self.action_gain * a + self.noise * eps
        r = (-0.5 * (s_next - self.centre).square().sum(-1)).exp()
        return Outcome(s_next, r, torch.zeros_like(r))

    def initial_state(self, eps: Tensor) -> Tensor:
        """``eps [..., 2] -> s [..., 2]``: normal around the origin."""
        return self.initial_std * eps

    def infer_noise(self, s: Tensor, a: Tensor, r: Tensor, s_next: Tensor) -> Tensor:
        """``[..., 2]``, exact; 0 where there is no noise."""
        residual = s_next - linear(s, self.matrix) - self.action_gain * a
        return residual / self.noise if self.noise else torch.zeros_like(residual)
