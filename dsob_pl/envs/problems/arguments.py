"""Checks of a problem's arguments: what is wrong in one line that names the argument."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dsob_pl.errors import UsageError


def real(name: str, value: Any, expected: str = "", valid: Callable[[float], bool] = lambda x: True) -> float:
    """``value`` as a finite number that is ``valid``, which ``expected`` puts in words (``"above 0"``).

    Raises:
        UsageError: it is not.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not float("-inf") < value < float("inf") or not valid(float(value)):
        raise UsageError(f"{name}: expected a finite number {expected}".rstrip() + f", got {value!r}")
    return float(value)


def not_negative(name: str, value: Any) -> float:
    """``value`` as a finite number of at least 0.

    Raises:
        UsageError: it is not.
    """
    return real(name, value, "of at least 0", lambda x: x >= 0)


def integer(name: str, value: Any, least: int) -> int:
    """``value`` as an integer of at least ``least``.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise UsageError(f"{name}: expected an integer of at least {least}, got {value!r}")
    return int(value)


def discount(gamma: Any) -> float:
    """``gamma`` as a number in [0, 1).

    Raises:
        UsageError: it is not.
    """
    return real("gamma", gamma, "in [0, 1)", lambda x: 0 <= x < 1)


def tensor(name: str, value: Any, shape: tuple[int | None, ...]) -> Tensor:
    """Nested lists or a tensor as finite numbers of the default type, of ``shape`` with None for any positive size.

    Raises:
        UsageError: not numbers, another shape, or an entry that is not finite.
    """
    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    try:
        result = torch.as_tensor(value, dtype=torch.get_default_dtype()).detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{name}: expected numbers of shape [{sizes}], got {value!r}") from error
    if result.dim() != len(shape) or not all(n > 0 and size in (None, n) for n, size in zip(result.shape, shape)):
        raise UsageError(f"{name}: expected shape [{sizes}], got {list(result.shape)}")
    if not result.isfinite().all():
        raise UsageError(f"{name}: expected finite numbers, got {result.tolist()}")
    return result
