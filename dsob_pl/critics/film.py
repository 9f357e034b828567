"""Critic whose noise scales and shifts the features of its second layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dsob_pl.critics.modulated import ModulatedCritic, quiet_weight, second_layer_networks
from dsob_pl.networks.mlp import ensemble_product, with_slope


class FiLMCritic(ModulatedCritic):
    """``Z(s, a, xi) = head(act((1 + V xi) * u + W xi))``, u being the second layer's pre-activation of (s, a).

    Feature-wise linear modulation (Perez et al. 2018, eq. 1 and 2) with the noise as the conditioning input. With V = 0
    it is :class:`InjectedCritic`.

    Args:
        observation_size: S.
        action_size: A.
        members: ensemble size E.
        hidden: widths of the hidden layers, at least two.
        noise_size: K; 0 is deterministic.
        noise_gain: initial size of V xi and W xi; the scale begins at about 1.
        activation: name of a twice differentiable activation.
        head: width of one more hidden layer behind the last one (32, say), which lets the noise bend the gradient more;
            None has the output linear in the last hidden layer.

    Raises:
        UsageError: a size is not positive, or there are fewer than two hidden layers.
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
        head: int | None = None,
    ) -> None:
        trunk, last = second_layer_networks(
            observation_size + action_size, members, hidden, noise_size, activation, head
        )
        super().__init__(trunk, last, noise_size)
        self.film = quiet_weight(members, noise_size, 2 * hidden[1], noise_gain)

    def _scale_and_shift(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = ensemble_product(noise, self.film).chunk(2, -1)
        return 1 + scale, shift

    def modulate(self, u: Tensor, noise: Tensor) -> Tensor:
        """``act(scale * u + shift)``: ``u [E, ..., H], noise [E, ..., K] -> [E, ..., H]``."""
        scale, shift = self._scale_and_shift(noise)
        return self.trunk.activation(scale * u + shift)

    def modulate_with_slope(self, u: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """``act(scale * u + shift)`` and ``scale * act'(scale * u + shift)``."""
        scale, shift = self._scale_and_shift(noise)
        value, slope = with_slope(self.trunk.activation, scale * u + shift)
        return value, scale * slope
