"""Generative critics: a network that turns noise into samples of the return."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dsob_pl.critics.base import Critic
from dsob_pl.errors import UsageError
from dsob_pl.networks import EnsembleMLP


class GenerativeCritic(Critic):
    """``Z(s, a, xi) = MLP([s, a, xi])``: the noise is concatenated to the inputs, as in Debes and Tuytelaars (2026).

    Noise inputs begin quiet: the first layer is initialised for the fan-in of (s, a) alone and its noise columns are
    multiplied by ``noise_gain``. A noise input as loud as a state variable was measured to halve the speed of learning.

    Args:
        observation_size: S.
        action_size: A.
        members: ensemble size E.
        hidden: widths of the hidden layers.
        noise_size: K; two dimensions were measured to be too few for the law of the gradient. 0 is deterministic.
        noise_gain: initial size of the noise columns relative to those of (s, a).
        activation: name of a twice differentiable activation.

    Raises:
        UsageError: a size is not positive.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        members: int = 2,
        hidden: Sequence[int] = (256, 256),
        noise_size: int = 8,
        noise_gain: float = 0.1,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        if members < 1 or noise_size < 0 or not hidden or min(hidden) < 1:
            raise UsageError(
                "critic: expected members >= 1, noise_size >= 0 and positive hidden widths, "
                f"got members={members}, noise_size={noise_size}, hidden={list(hidden)}"
            )
        self.ensemble_size = members
        self.noise_size = noise_size
        inputs = observation_size + action_size
        self.mlp = EnsembleMLP(members, inputs + noise_size, hidden, 1, activation)
        bound = 1 / math.sqrt(inputs)
        with torch.no_grad():
            first = self.mlp.layers[0]
            first.weight.uniform_(-bound, bound)
            first.bias.uniform_(-bound, bound)
            first.weight[:, inputs:].mul_(noise_gain)

    def forward(self, s: Tensor, a: Tensor, noise: Tensor) -> Tensor:
        """``s [E, ..., S], a [E, ..., A], noise [E, ..., K] -> [E, ...]``."""
        return self.mlp(torch.cat([s, a, noise], -1)).squeeze(-1)

    def value_and_gradient(self, s: Tensor, a: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Critic.value_and_gradient`."""
        value, gradient = self.mlp.value_and_input_gradient(torch.cat([s, a, noise], -1))
        ds, da, _ = gradient.split([s.shape[-1], a.shape[-1], noise.shape[-1]], -1)
        return value, ds, da
