"""What encoding and decoding of an environment's state have in common."""

from __future__ import annotations

import sys
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

KIND = "__kind__"
FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType)


class CannotSave(Exception):
    """An environment holds something that has no plain form; the message names it."""


def is_a(value: Any, module: str, name: str) -> bool:
    """Whether it is an instance of a class, without importing what no environment has needed so far."""
    return module in sys.modules and isinstance(value, getattr(sys.modules[module], name))
