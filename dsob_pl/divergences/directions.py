"""Directions on the sphere along which samples are projected; components come first, the batch after them."""

from __future__ import annotations

import torch
from torch import Tensor


def start_direction(difference: Tensor, shared: bool) -> Tensor:
    """Where the search for the direction of largest distance starts: along the differences of the means.

    Args:
        difference: of the mean samples of a transition, ``[D, ...]``.
        shared: one direction for the last batch dimension.

    Returns:
        ``[D, ...]``, or ``[D, ..., 1]`` where it is shared; a fixed vector where the means are equal.
    """
    # Unequal entries: a law that is symmetric in two components has a critical point where they are equal.
    fallback = 1 / torch.arange(1, difference.shape[0] + 1, dtype=difference.dtype, device=difference.device)
    fallback = (fallback / fallback.norm()).reshape(-1, *[1] * (difference.ndim - 1))
    if not shared:
        return unit(difference, otherwise=fallback)
    theta = unit(difference.mean(-1, keepdim=True), otherwise=fallback)
    # Three power iterations of mean_b difference_b difference_b^T. A distance is the same for theta and -theta, but the
    # differences of transitions that are off in opposite directions cancel in their mean.
    for _ in range(3):
        along = (difference * theta).sum(0)
        theta = unit((along * difference).mean(-1, keepdim=True), otherwise=theta)
    return theta


def unit(v: Tensor, otherwise: Tensor) -> Tensor:
    """``v / |v|`` along the first dimension, or ``otherwise`` where the norm vanishes or is not finite."""
    norm = torch.linalg.vector_norm(v, dim=0)
    return torch.where((norm > torch.finfo(v.dtype).tiny ** 0.5) & (norm < torch.inf), v / norm, otherwise)
