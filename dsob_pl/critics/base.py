"""The protocol of a critic."""

from __future__ import annotations

from torch import Tensor, nn


class Critic(nn.Module):
    """An ensemble of E return models ``Z_e(s, a, xi)`` with ``xi ~ N(0, I)``, one scalar sample per row.

    Member e sees slab e of the inputs, so that the derivative of its samples in (s, a) can be taken for all members
    in one pass. Give every member the same inputs by ``expand``. Activations must be twice differentiable.

    Attributes:
        ensemble_size: E.
        noise_size: K; 0 is a deterministic critic.
    """

    ensemble_size: int
    noise_size: int

    def forward(self, s: Tensor, a: Tensor, noise: Tensor) -> Tensor:
        """``s [E, ..., S], a [E, ..., A], noise [E, ..., K] -> [E, ...]``."""
        raise NotImplementedError

    def value_and_gradient(self, s: Tensor, a: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Samples with their derivatives in s and a written out: ``[E, ...], [E, ..., S], [E, ..., A]``.

        Optional. ``None``, the default, has them taken by automatic differentiation.
        """
        return None
