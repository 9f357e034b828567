"""Overestimation correction: which samples of the target critics become the target."""

from __future__ import annotations

import math

from torch import Tensor

from dsob_pl.errors import UsageError


def _check_drop(name: str, drop: float) -> None:
    if not 0 <= drop < 1:
        raise UsageError(f"{name}.drop: expected a fraction in [0, 1), got {drop}")


def truncate(samples: Tensor, drop: float) -> Tensor:
    """Drops the samples of largest return, whole vectors at a time.

    Args:
        samples: ``[..., M, D]`` with the return in component 0.
        drop: fraction dropped, rounded down to whole samples.

    Returns:
        ``[..., K, D]`` with ``K = M - floor(drop M)``, in ascending order of the return.
    """
    count = samples.shape[-2]
    kept = count - math.floor(drop * count + 1e-9)
    if kept == count:
        return samples
    # The order is that of the return, but whole rows are gathered: a return that lost its own gradient would be
    # paired with somebody else's, and E[dG/da | G] with it.
    order = samples[..., 0].argsort(-1)[..., :kept]
    return samples.gather(-2, order.unsqueeze(-1).expand(*order.shape, samples.shape[-1]))


class OverestimationCorrection:
    """Turns the samples of E target critics into one target sample set. Subclasses override one or both steps."""

    def choose(self, returns: Tensor) -> Tensor:
        """Before derivatives are taken: ``[E, B, M] -> [P, B, M]``, the critics that take part for each transition."""
        return returns

    def combine(self, samples: Tensor) -> Tensor:
        """After derivatives are taken: ``[P, B, M, D] -> [B, K, D]``."""
        return samples.transpose(0, 1).flatten(1, 2)


class Truncation(OverestimationCorrection):
    """Pools the samples of all critics and drops the largest returns (TQC, Kuznetsov et al. 2020, in sample form).

    Args:
        drop: fraction of the pooled samples that is dropped.
    """

    def __init__(self, drop: float = 0.1) -> None:
        _check_drop("overestimation", drop)
        self.drop = drop

    def combine(self, samples: Tensor) -> Tensor:
        """``[E, B, M, D] -> [B, E*M - floor(drop*E*M), D]``."""
        return truncate(super().combine(samples), self.drop)


class LowerMean(OverestimationCorrection):
    """The whole sample set of the critic with the lower mean return, for each transition (min of two, Fujimoto 2018).

    Args:
        drop: fraction of the largest returns of that set dropped on top.
    """

    def __init__(self, drop: float = 0.0) -> None:
        _check_drop("overestimation", drop)
        self.drop = drop

    def choose(self, returns: Tensor) -> Tensor:
        """``[E, B, M] -> [1, B, M]``."""
        lowest = returns.detach().mean(-1, keepdim=True).argmin(0, keepdim=True)
        return returns.gather(0, lowest.expand(1, *returns.shape[1:]))

    def combine(self, samples: Tensor) -> Tensor:
        """``[1, B, M, D] -> [B, M - floor(drop*M), D]``."""
        return truncate(super().combine(samples), self.drop)


class NoCorrection(OverestimationCorrection):
    """All samples of all critics, pooled: ``[E, B, M, D] -> [B, E*M, D]``."""


__all__ = ["LowerMean", "NoCorrection", "OverestimationCorrection", "Truncation", "truncate"]
