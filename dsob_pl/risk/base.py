"""What a risk measure is, and the checks that all of them share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor

from dsob_pl.errors import UsageError


class RiskMeasure(ABC):
    """One number for a law of returns that is given by n samples of equal probability; larger is better.

    A subclass with ``weights`` alone can be configured in place of the ones in this room, if it is positively
    homogeneous (of c times the returns the value is c times as large, c > 0); any other gives ``__call__`` as well. It
    must be pure and free of control flow that depends on data, so that ``torch.func`` can vectorise it over agents and
    ``torch.compile`` can trace it.
    """

    # A base class and not a Protocol, for jsonargparse; see Divergence.
    @abstractmethod
    def weights(self, returns: Tensor) -> Tensor:
        """Derivative of the value in each sample, the others fixed: ``[..., n] -> [..., n]``.

        They sum to one: a constant that is added to all returns is added to the value.
        """

    def __call__(self, returns: Tensor) -> Tensor:
        """``[..., n] -> [...]``, differentiable: the gradient is that of the samples, times ``weights``."""
        # Euler: a homogeneous function is the sum of its arguments times its derivatives in them. The weights are
        # constants here, or their own derivatives, which cancel in theory, would come back as noise.
        return (self.weights(returns).detach() * returns).sum(-1)

    def softened(self, fraction: float) -> RiskMeasure:
        """The measure that lies ``fraction`` of the way from the mean, at 0, to this one, at 1.

        Here ``(1 - fraction) mean + fraction measure``; a subclass whose parameter leads to the mean may use that.

        Raises:
            ValueError: a fraction outside of [0, 1].
        """
        check_fraction(fraction)
        return self if fraction == 1 else Softened(self, fraction)


class Softened(RiskMeasure):
    """``(1 - fraction) mean + fraction measure``, as ``RiskMeasure.softened`` gives it: ``[..., n] -> [...]``.

    Args:
        measure: any.
        fraction: in [0, 1].
    """

    def __init__(self, measure: RiskMeasure, fraction: float) -> None:
        self.measure = measure
        self.fraction = check_fraction(fraction)

    def weights(self, returns: Tensor) -> Tensor:
        """``[..., n] -> [..., n]``."""
        count = check_returns("Softened", returns)
        return (1 - self.fraction) / count + self.fraction * self.measure.weights(returns)

    def __call__(self, returns: Tensor) -> Tensor:
        """``[..., n] -> [...]``."""
        return (1 - self.fraction) * returns.mean(-1) + self.fraction * self.measure(returns)


def check_fraction(fraction: float) -> float:
    """``fraction``. Raises ValueError unless it is in [0, 1]."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction: expected a number in [0, 1], got {fraction}")
    return fraction


def check_returns(name: str, returns: Tensor) -> int:
    """n of ``returns [..., n]``. Raises ValueError unless there is a last dimension, with a sample in it."""
    if returns.ndim < 1 or not returns.shape[-1]:
        raise ValueError(f"{name}: expected returns [..., n] with at least one sample, got {list(returns.shape)}")
    return returns.shape[-1]


def check_level(name: str, value: float) -> float:
    """``value`` as a float. Raises UsageError unless it is a number in (0, 1]."""
    if not 0 < value <= 1:
        raise UsageError(f"{name}: expected a number in (0, 1], got {value}")
    return float(value)


def check_finite(name: str, value: float) -> float:
    """``value`` as a float. Raises UsageError unless it is a finite number."""
    if not math.isfinite(value):
        raise UsageError(f"{name}: expected a finite number, got {value}")
    return float(value)
