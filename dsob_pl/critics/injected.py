"""Critic whose noise enters behind the first hidden layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dsob_pl.critics.modulated import ModulatedCritic, quiet_weight, second_layer_networks
from dsob_pl.networks.mlp import ensemble_product, with_slope


class InjectedCritic(ModulatedCritic):
    """``Z(s, a, xi) = head(act(W2 act(W1 [s, a] + b1) + b2 + V xi))``: noise is added at the second pre-activation.

    The derivative of that pre-activation in (s, a) is the same for all samples of a transition. With two hidden layers
    and no head the noise sets only which of H fixed gradients is taken by how much.

    Args:
        observation_size: S.
        action_size: A.
        members: ensemble size E.
        hidden: widths of the hidden layers, at least two.
        noise_size: K; 0 is deterministic.
        noise_gain: initial size of ``V xi``, the noise's shift of the pre-activation.
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
        self.injection = quiet_weight(members, noise_size, hidden[1], noise_gain)

    def modulate(self, u: Tensor, noise: Tensor) -> Tensor:
        """``act(u + V xi)``: ``u [E, ..., H], noise [E, ..., K] -> [E, ..., H]``."""
        return self.trunk.activation(u + ensemble_product(noise, self.injection))

    def modulate_with_slope(self, u: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """``act(u + V xi)`` and ``act'(u + V xi)``."""
        return with_slope(self.trunk.activation, u + ensemble_product(noise, self.injection))
