"""The protocol of a critic."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dsob_pl.errors import UsageError


class Critic(nn.Module):
    """An ensemble of E return models ``Z_e(s, a, xi)`` with ``xi ~ N(0, I)``, one scalar sample per row.

    Member e sees slab e of the inputs, so that the derivative of its samples in (s, a) can be taken for all members
    in one pass. Give every member the same inputs by ``expand``. Activations must be twice differentiable.

    Leading dimensions broadcast: ``s [E, B, 1, S]`` and ``a [E, B, 1, A]`` with ``noise [E, B, N, K]`` are N samples
    at each of B transitions, and what does not depend on the noise can be done once per transition. A critic whose
    rows must all be there calls :func:`full_rows` first.

    Attributes:
        ensemble_size: E.
        noise_size: K; 0 is a deterministic critic.
    """

    ensemble_size: int
    noise_size: int

    def forward(self, s: Tensor, a: Tensor, noise: Tensor) -> Tensor:
        """``s [E, ..., S], a [E, ..., A], noise [E, ..., K] -> [E, ...]``."""
        raise NotImplementedError

    def value_and_gradient(
        self, s: Tensor, a: Tensor, noise: Tensor, state: bool = True
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Samples with their derivatives in s and a written out: ``[E, ...], [E, ..., S], [E, ..., A]``.

        Optional. ``None``, the default, has them taken by automatic differentiation.

        Args:
            s: ``[E, ..., S]``.
            a: ``[E, ..., A]``.
            noise: ``[E, ..., K]``.
            state: False says that the state derivative is not asked for; it may then come back as ``[E, ..., 0]``.
        """
        return None

    def levels(self, noise: Tensor) -> Tensor | None:
        """Quantile levels ``[...]`` of the samples drawn with ``noise [..., K]``; None for samples that have none."""
        return None


def full_rows(*inputs: Tensor) -> list[Tensor]:
    """Inputs ``[E, ..., size]`` expanded (without a copy) to the leading dimensions that they have in common."""
    shape = torch.broadcast_shapes(*(x.shape[:-1] for x in inputs))
    return [x.expand(*shape, x.shape[-1]) for x in inputs]


def check_sizes(members: int, noise_size: int, hidden: Sequence[int], head: int | None = None, layers: int = 1) -> None:
    """Refuses sizes of which no critic can be made.

    Args:
        members: E, at least 1.
        noise_size: K, at least 0.
        hidden: widths, at least 1.
        head: width, at least 1, or None.
        layers: how many hidden layers there must be.

    Raises:
        UsageError: one of them is out of its range.
    """
    if members < 1 or noise_size < 0 or len(hidden) < layers or min(hidden) < 1 or (head is not None and head < 1):
        raise UsageError(
            f"critic: expected members >= 1, noise_size >= 0, at least {layers} hidden width(s), all "
            f"positive, and head null or positive, "
            f"got members={members}, noise_size={noise_size}, hidden={list(hidden)}, head={head}"
        )
