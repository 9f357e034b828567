"""Generative critics: a network that turns noise into samples of the return."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dsob_pl.critics.base import Critic, check_sizes, full_rows
from dsob_pl.errors import UsageError
from dsob_pl.networks.mlp import (
    EnsembleMLP,
    ensemble_product,
    one_per_member,
    pull_back,
    value_and_slopes,
    with_slope,
)


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
        UsageError: a size is not positive, or the gain negative.
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
        check_sizes(members, noise_size, hidden)
        if not 0 <= noise_gain < math.inf:
            raise UsageError(f"critic.noise_gain: expected a number of at least 0, got {noise_gain}")
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

    def _first_layer(self, s: Tensor, a: Tensor, noise: Tensor) -> Tensor:
        """Pre-activation ``[E, ..., H]`` of the first hidden layer, its (s, a) part once per transition."""
        first, x = self.mlp.layers[0], torch.cat(full_rows(s, a), -1)
        if x.shape[:-1] == noise.shape[:-1]:  # nothing is shared: one product is cheaper than two and their sum
            return first(torch.cat([x, noise], -1))
        of_inputs, of_noise = first.weight.split([x.shape[-1], noise.shape[-1]], 1)
        return ensemble_product(x, of_inputs, first.bias) + ensemble_product(noise, of_noise)

    def forward(self, s: Tensor, a: Tensor, noise: Tensor) -> Tensor:
        """``s [E, ..., S], a [E, ..., A], noise [E, ..., K] -> [E, ...]``."""
        z = self._first_layer(s, a, noise)
        for layer in self.mlp.layers[1:]:
            z = layer(self.mlp.activation(z))
        return z.squeeze(-1)

    def value_and_gradient(
        self, s: Tensor, a: Tensor, noise: Tensor, state: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Critic.value_and_gradient`."""
        h, slope = with_slope(self.mlp.activation, self._first_layer(s, a, noise))
        value, slopes = value_and_slopes(self.mlp.layers[1:], self.mlp.activation, h)
        start, end = 0 if state else s.shape[-1], s.shape[-1] + a.shape[-1]
        first, *rest = self.mlp.weights
        gradient = pull_back([first[:, start:end], *rest], [slope, *slopes], one_per_member(value))
        return value.squeeze(-1), *gradient.split([end - start - a.shape[-1], a.shape[-1]], -1)
