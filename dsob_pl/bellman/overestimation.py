"""Overestimation correction: which samples of the target critics become the target."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from dsob_pl.errors import UsageError


def _check_drop(name: str, drop: float) -> None:
    if not 0 <= drop < 1:
        raise UsageError(f"{name}.drop: expected a fraction in [0, 1), got {drop}")


def _kept(count: int, drop: float) -> int:
    """How many of ``count`` samples are left; what is dropped is rounded down to whole ones."""
    return count - math.floor(drop * count + 1e-9)


def truncate(samples: Tensor, drop: float) -> Tensor:
    """Drops the samples of largest return, whole vectors at a time.

    Args:
        samples: ``[..., M, D]`` with the return in component 0.
        drop: fraction dropped, rounded down to whole samples.

    Returns:
        ``[..., K, D]`` with ``K = M - floor(drop M)``, in ascending order of the return, or as they came where none
        is dropped.
    """
    count = samples.shape[-2]
    kept = _kept(count, drop)
    if kept == count:
        return samples
    # The order is that of the return, but whole rows are gathered: a return that lost its own gradient would be
    # paired with somebody else's, and E[dG/da | G] with it.
    order = samples[..., 0].argsort(-1)[..., :kept]
    return samples.gather(-2, order.unsqueeze(-1).expand(*order.shape, samples.shape[-1]))


def pooled(samples: Tensor, drop: float = 0.0) -> Tensor:
    """The samples of all critics in one set, less those of largest return, those of a draw where halving keeps them.

    Sample i of every critic is of the same draw of the model, so the E of them are nearly one. Where every other sample
    chooses the direction in which the rest is judged (cross-fitting), a draw with a sample in either half is judged by
    itself. So samples of even draws stand at even positions, of odd draws at odd ones, as far as their numbers go.

    Args:
        samples: ``[E, ..., M, D]`` with the return in component 0.
        drop: fraction dropped, rounded down to whole samples.

    Returns:
        ``[..., K, D]`` with ``K = E*M - floor(drop E*M)``.
    """
    members, draws = samples.shape[0], samples.shape[-2]
    count = members * draws
    kept = _kept(count, drop)
    together = samples.movedim(0, -3).flatten(-3, -2)  # [..., E*M, D]
    odd = torch.arange(count, device=samples.device) % draws % 2
    if kept == count:
        return together[..., _alternating(odd), :]
    order = together[..., 0].argsort(-1)[..., :kept]
    order = order.gather(-1, _alternating(odd[order]))
    return together.gather(-2, order.unsqueeze(-1).expand(*order.shape, samples.shape[-1]))


def _alternating(odd: Tensor) -> Tensor:
    """The order in which ``odd [..., K]``, numbers 0 and 1, is 0, 1, 0, 1, ... until one kind is used up."""
    rank = torch.where(odd == 1, odd.cumsum(-1), (1 - odd).cumsum(-1)) - 1
    return (2 * rank + odd).argsort(-1)


class OverestimationCorrection(ABC):
    """Turns the samples of E target critics into one target sample set, value and gradient of a sample together."""

    @abstractmethod
    def __call__(self, samples: Tensor) -> Tensor:
        """``[E, B, M, D] -> [B, K, D]``, component 0 being the return."""


class NoCorrection(OverestimationCorrection):
    """All samples of all critics, pooled: ``[E, B, M, D] -> [B, E*M, D]``."""

    def __call__(self, samples: Tensor) -> Tensor:
        """``[E, B, M, D] -> [B, E*M, D]``."""
        return pooled(samples)


class Truncation(OverestimationCorrection):
    """Pools the samples of all critics and drops the largest returns (TQC, Kuznetsov et al. 2020, in sample form).

    Args:
        drop: fraction of the pooled samples that is dropped.
    """

    def __init__(self, drop: float = 0.1) -> None:
        _check_drop("overestimation", drop)
        self.drop = drop

    def __call__(self, samples: Tensor) -> Tensor:
        """``[E, B, M, D] -> [B, E*M - floor(drop*E*M), D]``."""
        return pooled(samples, self.drop)


class LowerMean(OverestimationCorrection):
    """The whole sample set of the critic with the lower mean return, for each transition (min of two, Fujimoto 2018).

    Args:
        drop: fraction of the largest returns of that set dropped on top.
    """

    def __init__(self, drop: float = 0.0) -> None:
        _check_drop("overestimation", drop)
        self.drop = drop

    def __call__(self, samples: Tensor) -> Tensor:
        """``[E, B, M, D] -> [B, M - floor(drop*M), D]``."""
        lowest = samples[..., 0].mean(-1).argmin(0)[None, :, None, None]
        chosen = samples.gather(0, lowest.expand(1, *samples.shape[1:])).squeeze(0)
        return truncate(chosen, self.drop)


__all__ = ["LowerMean", "NoCorrection", "OverestimationCorrection", "Truncation", "pooled", "truncate"]
