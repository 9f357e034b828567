"""Measures by moments of the returns: mean, mean and standard deviation, exponential utility."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dsob_pl.risk.base import RiskMeasure, check_finite, check_returns


class Mean(RiskMeasure):
    """The mean: risk-neutral. Unbiased in value and gradient."""

    def weights(self, returns: Tensor) -> Tensor:
        """``1/n`` each: ``[..., n] -> [..., n]``."""
        return torch.full_like(returns, 1 / check_returns("Mean", returns))

    def __call__(self, returns: Tensor) -> Tensor:
        """``[..., n] -> [...]``."""
        check_returns("Mean", returns)
        return returns.mean(-1)


class MeanStd(RiskMeasure):
    """``mean - std_weight * std``, std being that of the samples' own law (divisor n).

    Positively homogeneous, but neither monotone nor coherent: it also counts against a law that some of its returns are
    very high. The weight of sample i is ``(1 - std_weight (z_i - mean) / std) / n``, negative for samples farther above
    the mean than ``std / std_weight``. Equal samples have weight 1/n each (subgradient 0 of the std).

    Bias: the value is too high by ``std_weight (std - E std_n)``, for Gaussian returns about ``3/(4n)`` of the second
    term; 0 at n = 1, where only the mean is left. Of the gradient: of order 1/n.

    Args:
        std_weight: factor lambda on the standard deviation; negative is risk-seeking.

    Raises:
        UsageError: std_weight not finite.
    """

    def __init__(self, std_weight: float = 1.0) -> None:
        self.std_weight = check_finite("MeanStd.std_weight", std_weight)

    def weights(self, returns: Tensor) -> Tensor:
        """``[..., n] -> [..., n]``; they sum to one and may be negative."""
        count = check_returns("MeanStd", returns)
        deviation = returns - returns.mean(-1, keepdim=True)
        length = torch.linalg.vector_norm(deviation, dim=-1, keepdim=True)  # sqrt(n) std
        direction = deviation / length.masked_fill(length == 0, 1)
        # The mean of equal numbers may be off by their last digit, and the direction of all of them the same.
        direction = direction - direction.mean(-1, keepdim=True)
        return 1 / count - self.std_weight * direction / math.sqrt(count)

    def __call__(self, returns: Tensor) -> Tensor:
        """``[..., n] -> [...]``."""
        count = check_returns("MeanStd", returns)
        mean = returns.mean(-1, keepdim=True)
        # A norm, and not the root of a variance, whose derivative is not finite where samples coincide.
        std = torch.linalg.vector_norm(returns - mean, dim=-1) / math.sqrt(count)
        return mean.squeeze(-1) - self.std_weight * std


class Entropic(RiskMeasure):
    """Entropic risk: ``-log E exp(-beta Z) / beta``, the certainty equivalent of exponential utility.

    Of a Gaussian it is ``mean - beta variance / 2``. Monotone, but not positively homogeneous: beta is per unit of
    return. The weight of sample i is ``softmax(-beta z)_i``: it depends on the samples and is never negative.

    Bias: too close to the mean (Jensen), for beta > 0 too high, by about ``Var(y) / (2 n beta E[y]^2)`` with
    ``y = exp(-beta Z)``; the gradient's is of order 1/n as well. Where ``beta std`` is well above 1, it rests on tails
    that n samples lack and is about the smallest sample.

    Args:
        beta: risk aversion per unit of return; negative is risk-seeking, 0 the mean. The agent's returns are those of
            scaled rewards, whose possible values are ``return_range`` wide.

    Raises:
        UsageError: beta not finite.
    """

    def __init__(self, beta: float = 1.0) -> None:
        self.beta = check_finite("Entropic.beta", beta)

    def weights(self, returns: Tensor) -> Tensor:
        """``softmax(-beta z)``: ``[..., n] -> [..., n]``."""
        check_returns("Entropic", returns)
        return torch.softmax(-self.beta * returns, -1)

    def __call__(self, returns: Tensor) -> Tensor:
        """``[..., n] -> [...]``."""
        check_returns("Entropic", returns)
        if self.beta == 0:
            return returns.mean(-1)
        # From the sample of largest weight, no exponential overflows; by expm1 and log1p a small beta costs no digits.
        # That sample is a constant: what it adds to the derivative is 0.
        first = (returns.amin(-1, keepdim=True) if self.beta > 0 else returns.amax(-1, keepdim=True)).detach()
        above = torch.expm1(-self.beta * (returns - first)).mean(-1)
        return first.squeeze(-1) - torch.log1p(above) / self.beta
