"""Critics whose noise modulates the features of one layer, so that the network before it needs no noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dsob_pl.critics.base import Critic, check_sizes, full_rows
from dsob_pl.networks.mlp import EnsembleMLP, jacobian, pull_back, value_and_slopes


class ModulatedCritic(Critic):
    """``Z(s, a, xi) = head(m(trunk(s, a), xi))`` with an elementwise modulation m of the trunk's pre-activations.

    The trunk, and its Jacobian where that is cheaper than one backward sweep per sample, is evaluated once per
    transition; only modulation and head are evaluated per sample.

    Args:
        trunk: ``[s, a] -> [E, ..., H]``, without an activation behind its last layer.
        head: ``[E, ..., H] -> [E, ..., 1]``.
        noise_size: K; 0 is deterministic.
    """

    def __init__(self, trunk: EnsembleMLP, head: EnsembleMLP, noise_size: int) -> None:
        super().__init__()
        self.ensemble_size = trunk.layers[0].weight.shape[0]
        self.noise_size = noise_size
        self.trunk = trunk
        self.head = head

    def modulate(self, u: Tensor, noise: Tensor) -> Tensor:
        """``m(u, xi)``: ``u [E, ..., H], noise [E, ..., K] -> [E, ..., H]``."""
        raise NotImplementedError

    def modulate_with_slope(self, u: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """``m(u, xi)`` and ``dm/du``, elementwise: ``[E, ..., H], [E, ..., H]``."""
        raise NotImplementedError

    def forward(self, s: Tensor, a: Tensor, noise: Tensor) -> Tensor:
        """``s [E, ..., S], a [E, ..., A], noise [E, ..., K] -> [E, ...]``."""
        return self.head(self.modulate(self.trunk(torch.cat(full_rows(s, a), -1)), noise)).squeeze(-1)

    def value_and_gradient(
        self, s: Tensor, a: Tensor, noise: Tensor, state: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Critic.value_and_gradient`."""
        u, slopes = value_and_slopes(self.trunk.layers, self.trunk.activation, torch.cat(full_rows(s, a), -1))
        features, slope = self.modulate_with_slope(u, noise)
        value, gradient = self.head.value_and_input_gradient(features)
        gradient = gradient * slope  # dZ/du [E, ..., H]
        first, *rest = self.trunk.weights
        asked = first if state else first[:, s.shape[-1] :]
        once_per_transition = u.shape[-2] == 1 and u.dim() > 2
        # Through the trunk: one sweep for every input of a transition or one for every sample, whichever are fewer.
        if rest and once_per_transition and asked.shape[1] < gradient.shape[-2]:
            gradient = gradient @ jacobian([asked, *rest], [x.squeeze(-2) for x in slopes]).mT
        else:
            gradient = pull_back([asked, *rest], slopes, gradient)
        return value, *gradient.split([asked.shape[1] - a.shape[-1], a.shape[-1]], -1)


def second_layer_networks(
    inputs: int, members: int, hidden: Sequence[int], noise_size: int, activation: str, head: int | None
) -> tuple[EnsembleMLP, EnsembleMLP]:
    """Trunk up to the second pre-activation and the head behind its activation, both of E members.

    Args:
        inputs: S+A.
        members: E.
        hidden: widths of at least two hidden layers, the first two of them the trunk's.
        noise_size: K, checked only.
        activation: name of a twice differentiable activation.
        head: width of one more hidden layer of the head.

    Raises:
        UsageError: a size is not positive, or there are fewer than two hidden layers.
    """
    check_sizes(members, noise_size, hidden, head, layers=2)
    behind = [*hidden[2:], *([] if head is None else [head])]
    return (
        EnsembleMLP(members, inputs, hidden[:1], hidden[1], activation),
        EnsembleMLP(members, hidden[1], behind, 1, activation),
    )


def quiet_weight(members: int, in_features: int, out_features: int, gain: float) -> nn.Parameter:
    """A linear map ``[E, K, H]`` of the noise whose outputs begin about as large as ``gain``, whatever K is."""
    bound = gain / math.sqrt(max(in_features, 1))
    return nn.Parameter(torch.empty(members, in_features, out_features).uniform_(-bound, bound))
