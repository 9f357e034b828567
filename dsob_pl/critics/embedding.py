"""Critic that multiplies its features by an embedding of the noise, as implicit quantile networks do."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dsob_pl.critics.base import check_sizes
from dsob_pl.critics.modulated import ModulatedCritic, quiet_weight
from dsob_pl.errors import UsageError
from dsob_pl.networks.mlp import EnsembleMLP, ensemble_product, with_slope


class EmbeddingCritic(ModulatedCritic):
    """``Z(s, a, xi) = head(psi(s, a) * phi(tau))`` with ``tau = Phi(xi)`` uniform in each of K components.

    ``phi_j = 1 + sum_{k, i} V_kij cos(pi i tau_k)``, i = 1..n, is the cosine embedding of Dabney et al. (2018, eq. 4)
    with several quantile levels in place of one, without their ReLU, which would stop gradients where phi is negative,
    and around 1 in place of a learned constant, so that it begins quiet.

    Args:
        observation_size: S.
        action_size: A.
        members: ensemble size E.
        hidden: widths of the hidden layers of psi, all of them before the product.
        noise_size: K; 0 is deterministic.
        noise_gain: initial size of phi - 1.
        activation: name of a twice differentiable activation.
        head: width of the hidden layer between the product and the output; None has the output linear in the product.
        frequencies: n, for each component. Dabney et al. have 64 for their one.

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
        head: int | None = 32,
        frequencies: int = 8,
    ) -> None:
        check_sizes(members, noise_size, hidden, head)
        if frequencies < 1:
            raise UsageError(f"critic: expected frequencies >= 1, got {frequencies}")
        super().__init__(
            EnsembleMLP(members, observation_size + action_size, hidden[:-1], hidden[-1], activation),
            EnsembleMLP(members, hidden[-1], () if head is None else (head,), 1, activation),
            noise_size,
        )
        self.frequencies = frequencies
        self.embedding = quiet_weight(members, noise_size * frequencies, hidden[-1], noise_gain)

    def _embed(self, noise: Tensor) -> Tensor:
        """``phi``: ``[E, ..., K] -> [E, ..., H]``."""
        tau = torch.special.ndtr(noise).unsqueeze(-1)
        multiples = torch.arange(1, self.frequencies + 1, dtype=noise.dtype, device=noise.device)
        cosines = torch.cos(math.pi * multiples * tau).flatten(-2)  # [E, ..., K * n]
        return 1 + ensemble_product(cosines, self.embedding)

    def modulate(self, u: Tensor, noise: Tensor) -> Tensor:
        """``act(u) * phi``: ``u [E, ..., H], noise [E, ..., K] -> [E, ..., H]``."""
        return self.trunk.activation(u) * self._embed(noise)

    def modulate_with_slope(self, u: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """``act(u) * phi`` and ``act'(u) * phi``."""
        value, slope = with_slope(self.trunk.activation, u)
        phi = self._embed(noise)
        return value * phi, slope * phi
