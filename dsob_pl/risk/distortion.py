"""Measures that weight samples by their rank: CVaR, distortions of the levels, quantiles (L-estimators)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor

from dsob_pl.errors import UsageError, nearest
from dsob_pl.risk.base import RiskMeasure, check_finite, check_fraction, check_level, check_returns

Tail = Literal["lower", "upper"]


class Distortion(RiskMeasure):
    """``int_0^1 F^-1(u) dg(u)``: quantiles of all levels u, weighted by a distortion g (spectral risk measure).

    g grows from g(0) = 0 to g(1) = 1. A concave g weights low returns more and is averse; the measure is then coherent
    (Acerbi 2002). Of n samples the i-th smallest has the weight ``g(i/n) - g((i-1)/n)``, which is the integral over the
    empirical quantile function without error. Among equal samples the first counts as the smallest.

    Bias, against the value of the law that the samples are drawn from: for a concave g too high, for a convex g too
    low, that is too close to the mean (the value is convex, or concave, in the law). It is of order 1/n, as is the
    gradient's, where the quantile function is bounded.
    """

    @abstractmethod
    def distort(self, level: Tensor) -> Tensor:
        """g for levels in [0, 1]: ``[...] -> [...]``."""

    def rank_weights(self, count: int, like: Tensor) -> Tensor:
        """Weights ``[count]`` from the smallest sample to the largest; ``like`` gives dtype and device."""
        levels = torch.arange(count + 1, dtype=like.dtype, device=like.device) / count
        return self.distort(levels).diff()

    def weights(self, returns: Tensor) -> Tensor:
        """``[..., n] -> [..., n]``; not negative."""
        count = check_returns(type(self).__name__, returns)
        # The rank of a sample is its place in the permutation that sorts the sorting permutation.
        ranks = returns.argsort(dim=-1, stable=True).argsort(-1)
        return self.rank_weights(count, returns)[ranks]


class CVaR(Distortion):
    """Conditional value at risk: mean of the worst part ``alpha`` of the outcomes (Rockafellar and Uryasev 2000).

    Of n samples those are the ``n alpha`` smallest, the last of which counts by the fraction that is left. Its gradient
    is ``E[dZ/da | Z below its alpha-quantile]`` (Tamar et al. 2015). Coherent for the lower tail.

    Bias: the lower tail's value is too high and the upper tail's too low. Where ``n alpha < 1`` one sample, the
    smallest or largest, is all that it rests on.

    Args:
        alpha: part of the outcomes, in (0, 1]; 1 is the mean.
        tail: 'lower' for the worst, averse; 'upper' for the best, risk-seeking.

    Raises:
        UsageError: alpha outside of (0, 1], or another tail.
    """

    def __init__(self, alpha: float = 0.1, tail: Tail = "lower") -> None:
        self.alpha = check_level("CVaR.alpha", alpha)
        if tail not in get_args(Tail):
            close = nearest(str(tail), get_args(Tail))
            raise UsageError(f"CVaR.tail: expected one of lower, upper, got '{tail}'{close}")
        self.tail = tail

    def softened(self, fraction: float) -> CVaR:
        """The CVaR of ``alpha ** fraction``: the level falls by the same factor in every equal part of the way."""
        return CVaR(self.alpha ** check_fraction(fraction), self.tail)

    def distort(self, level: Tensor) -> Tensor:
        """``min(u / alpha, 1)``, and for the upper tail its mirror image."""
        if self.tail == "lower":
            return (level / self.alpha).clamp(max=1)
        return 1 - ((1 - level) / self.alpha).clamp(max=1)


class Wang(Distortion):
    """Wang's transform: ``g(u) = Phi(Phi^-1(u) + eta)`` (Wang 2000). Of a Gaussian it is mean - eta * std.

    Every sample keeps a positive weight. Coherent for eta >= 0. Dabney et al. (2018, IQN) write eta with the other
    sign: their Wang(-0.75) is ``eta=0.75`` here.

    Bias: as of every :class:`Distortion`, and slow to go for large eta, where it rests on tails that n samples lack.

    Args:
        eta: more is more averse, 0 the mean, negative risk-seeking.

    Raises:
        UsageError: eta not finite.
    """

    def __init__(self, eta: float = 0.75) -> None:
        self.eta = check_finite("Wang.eta", eta)

    def distort(self, level: Tensor) -> Tensor:
        """``Phi(Phi^-1(u) + eta)``."""
        return torch.special.ndtr(torch.special.ndtri(level) + self.eta)


class Power(Distortion):
    """Power distortion: ``g(u) = 1 - (1 - u)^(1 + eta)``, and ``u^(1 + |eta|)`` for a negative eta.

    For a whole eta the averse one is the expected smallest of 1 + eta independent outcomes. Coherent for eta >= 0.
    Dabney et al. (2018, IQN) write eta with the other sign: their Pow(-2) is ``eta=2`` here.

    Bias: as of every :class:`Distortion`.

    Args:
        eta: more is more averse, 0 the mean, negative risk-seeking.

    Raises:
        UsageError: eta not finite.
    """

    def __init__(self, eta: float = 2.0) -> None:
        self.eta = check_finite("Power.eta", eta)

    def distort(self, level: Tensor) -> Tensor:
        """``1 - (1 - u)^(1 + eta)``, or ``u^(1 + |eta|)``."""
        exponent = 1 + abs(self.eta)
        return 1 - (1 - level) ** exponent if self.eta >= 0 else level**exponent


class Quantile(Distortion):
    """The alpha-quantile (value at risk) ``inf {z : F(z) >= alpha}``: the ``ceil(n alpha)``-th smallest of n samples.

    Not coherent. All of the weight is on one sample, so the gradient is that sample's own: its bias vanishes with n,
    its variance does not.

    Bias of the value: of order 1/n and of either sign.

    Args:
        alpha: level in (0, 1]; 0.5 is the (lower) median, 1 the largest sample.

    Raises:
        UsageError: alpha outside of (0, 1].
    """

    def __init__(self, alpha: float = 0.25) -> None:
        self.alpha = check_level("Quantile.alpha", alpha)

    def distort(self, level: Tensor) -> Tensor:
        """0 below alpha, 1 from there on."""
        return (level >= self.alpha).to(level.dtype)

    def rank_weights(self, count: int, like: Tensor) -> Tensor:
        """One for the ``ceil(n alpha)``-th smallest, else 0 ``[count]``."""
        position = quantile_position(self.alpha, count)
        return (torch.arange(count, device=like.device) == position).to(like.dtype)


def quantile_position(level: float, count: int) -> int:
    """Place, from 0, of the quantile of ``level`` among ``count`` sorted samples: ``ceil(n level) - 1``, at least 0."""
    # A little below a whole number is rounded down to the one before, as it should be; 0.07 * 100 is a little above 7.
    return int(level * count * (1 - 1e-12))
