"""What a divergence is, and the checks that all of them share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dsob_pl.errors import UsageError, nearest


class Divergence(ABC):
    """How far N predicted vectors are from M target vectors, one number for each transition.

    Component 0 of a vector is the return, the others are its derivatives. A subclass with this one method can be
    configured in place of the ones in this room. It must be pure and free of control flow that depends on data, so
    that ``torch.func`` can differentiate and vectorise it and ``torch.compile`` can trace it. Training differentiates
    it in ``x`` only.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """A subclass with a call of its own does not inherit what another class left out of its objective."""
        super().__init_subclass__(**options)
        if "__call__" in vars(cls) and "objective" not in vars(cls):
            cls.objective = Divergence.objective  # type: ignore[method-assign]

    # A base class and not a Protocol: jsonargparse takes a protocol whose __call__ returns a class, here Tensor, for a
    # factory of instances of that class, and would refuse every divergence.
    @abstractmethod
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """``(x [..., N, D] predicted, y [..., M, D] target) -> [...]``."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """What training minimises: its first derivative in x is the divergence's, its value may be another by y alone.

        By default the divergence. A subclass may leave out what costs time and depends on the targets only.
        """
        return self(x, y)

    def at_levels(self, tau: Tensor | None) -> Divergence:
        """This divergence for predicted samples that are quantiles of levels ``tau [..., N]``, None where they are not.

        By default levels do not matter.
        """
        return self


def check_samples(name: str, x: Tensor, y: Tensor) -> None:
    """Raises ValueError unless ``x`` is ``[..., N, D]`` and ``y`` is ``[..., M, D]`` with N, M, D at least 1.

    Batch shapes must be equal, not merely broadcastable: ``y [B, D]`` given where ``[B, M, D]`` is meant would
    otherwise pass for one set of B samples shared by all transitions, and train on it.
    """
    shapes = f"x {list(x.shape)} and y {list(y.shape)}"
    if x.ndim < 2 or y.ndim < 2:
        raise ValueError(f"{name}: expected x [..., N, D] and y [..., M, D], got {shapes}")
    if x.shape[:-2] != y.shape[:-2]:
        raise ValueError(f"{name}: batch dimensions differ (all but the last two): {shapes}; expand them explicitly")
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"{name}: vectors differ in size (last dimension): {shapes}")
    if 0 in (*x.shape[-2:], y.shape[-2]):
        raise ValueError(f"{name}: needs at least one sample and one component, got {shapes}")


def check_positive(name: str, value: float) -> float:
    """``value`` as a float. Raises UsageError unless it is a finite number above zero."""
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{name}: expected a positive number, got {value}")
    return float(value)


def check_weight(name: str, value: float) -> float:
    """``value`` as a float. Raises UsageError unless it is a finite number of at least zero."""
    if not (math.isfinite(value) and value >= 0):
        raise UsageError(f"{name}: expected a number of at least 0, got {value}")
    return float(value)


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises UsageError, with the nearest valid name, unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise UsageError(f"{name}: expected one of {', '.join(choices)}, got '{value}'{nearest(str(value), choices)}")
