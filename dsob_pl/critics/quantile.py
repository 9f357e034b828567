"""Implicit quantile network: a critic whose noise is the level of the quantile that it returns."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dsob_pl.critics.base import check_sizes
from dsob_pl.critics.modulated import ModulatedCritic
from dsob_pl.errors import UsageError
from dsob_pl.networks.mlp import EnsembleLinear, EnsembleMLP, with_slope


class QuantileCritic(ModulatedCritic):
    """``Z(s, a, xi) = f(psi(s, a) * phi(tau))``, the quantile of level ``tau = Phi(xi)`` (IQN, Dabney et al. 2018).

    ``phi_j = relu(sum_i cos(pi i tau) w_ij + b_j)``, i = 0..n-1 (eq. 4). psi is all of the network before its last
    hidden layer, f that layer and the output, so that ``hidden`` means the same sizes as in the other critics. psi and
    f are smooth, and a sample's derivative in (s, a) at a fixed level is the sample's gradient. phi is differentiated
    in its parameters alone, so the kinks of its ReLU do no harm.

    Args:
        observation_size: S.
        action_size: A.
        members: ensemble size E.
        hidden: widths of the hidden layers, at least two.
        activation: name of a twice differentiable activation, of psi and f.
        frequencies: n.

    Raises:
        UsageError: a size is not positive, or there are fewer than two hidden layers.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        members: int = 2,
        hidden: Sequence[int] = (256, 256),
        activation: str = "silu",
        frequencies: int = 64,
    ) -> None:
        check_sizes(members, 1, hidden, layers=2)
        if frequencies < 1:
            raise UsageError(f"critic: expected frequencies >= 1, got {frequencies}")
        *before, width, last = hidden
        super().__init__(
            EnsembleMLP(members, observation_size + action_size, before, width, activation),
            EnsembleMLP(members, width, (last,), 1, activation),
            noise_size=1,
        )
        self.frequencies = frequencies
        self.embedding = EnsembleLinear(members, frequencies, width)

    def levels(self, noise: Tensor) -> Tensor:
        """``tau = Phi(xi)``, uniform in (0, 1): ``noise [..., 1] -> [...]``."""
        return torch.special.ndtr(noise.squeeze(-1))

    def _embed(self, noise: Tensor) -> Tensor:
        """``phi``: ``[E, ..., 1] -> [E, ..., H]``."""
        multiples = torch.arange(self.frequencies, dtype=noise.dtype, device=noise.device)
        return self.embedding(torch.cos(math.pi * multiples * self.levels(noise).unsqueeze(-1))).relu()

    def modulate(self, u: Tensor, noise: Tensor) -> Tensor:
        """``act(u) * phi``: ``u [E, ..., H], noise [E, ..., 1] -> [E, ..., H]``."""
        return self.trunk.activation(u) * self._embed(noise)

    def modulate_with_slope(self, u: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """``act(u) * phi`` and ``act'(u) * phi``."""
        value, slope = with_slope(self.trunk.activation, u)
        phi = self._embed(noise)
        return value * phi, slope * phi
