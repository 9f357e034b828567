"""The plain form of what an environment is made of: numbers, tensors, containers of them, and their kinds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import Enum
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from torch import Tensor, nn

from dsob_pl.envs.state.kinds import FUNCTIONS, KIND, CannotSave, is_a
from dsob_pl.envs.state.simulation import arrays_of, simulation_state

_PLAIN = (type(None), bool, int, float, str, bytes)
_CONSTANT = (
    gymnasium.Space,
    EnvSpec,
    np.dtype,
    slice,
    type,
    ModuleType,
)
# Put back as new objects: whatever is bound to them stays with the old ones.
_REPLACED = (
    np.random.Generator,
    np.random.RandomState,
    torch.Generator,
    np.ndarray,
    Tensor,
    dict,
    list,
    set,
    deque,
)
_DRAWING = ("pygame", "glfw", "gymnasium.envs.mujoco.mujoco_rendering")  # modules whose objects only draw
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE
# Set by the constructor or by the registry; arguments of constructors may hold anything.
_LEFT_OUT = ("env", "spec", "metadata", "_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs", "_cached_spec")


class Once:
    """What has been met so far, in the order in which it was: what is met again comes back as the same thing."""

    def __init__(self) -> None:
        self._objects: dict[int, tuple[Any, str, int]] = {}  # kept, so that no other gets its id
        self._arrays: list[tuple[np.ndarray, str]] = []

    def met(self, value: Any, where: str) -> int | None:
        """The number of what has been met before; None, and a number from now on, for what is new.

        Raises:
            CannotSave: it is new and shares memory with something else, or it is what it stands in.
        """
        if id(value) in self._objects:
            _, place, number = self._objects[id(value)]
            if where.startswith((f"{place}.", f"{place}[")):
                raise CannotSave(f"{where} refers to what holds it")
            return number
        for array in _memory_of(value):
            for other, place in self._arrays:
                if np.may_share_memory(array, other) and _share_memory(array, other):
                    raise CannotSave(f"{where} shares memory with {place}")
            self._arrays.append((array, where))
        self._objects[id(value)] = value, where, len(self._objects)
        return None

    def take_arrays(self, arrays: Iterable[tuple[str, np.ndarray]], where: str) -> None:
        """Takes those of one thing, which may share memory with each other."""
        self._arrays += [(array, f"{where}.{name}") for name, array in arrays]


def _memory_of(value: Any) -> list[np.ndarray]:
    if isinstance(value, np.ndarray):
        return [value]
    if not isinstance(value, Tensor) or value.device.type != "cpu":
        return []
    try:
        return [value.detach().numpy()]
    except (TypeError, RuntimeError):  # of a kind that numpy has not, such as bfloat16 or a sparse one
        return []


def _share_memory(one: np.ndarray, other: np.ndarray) -> bool:
    try:
        return np.shares_memory(one, other, max_work=10_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def attributes(holder: object, where: str, once: Once) -> dict[str, Any]:
    """The attributes of an object that can change, encoded."""
    simulation = getattr(holder, "model", None) if isinstance(holder, gymnasium.Env) else None
    result = {}
    for name, value in vars(holder).items():
        if name in _LEFT_OUT and isinstance(holder, gymnasium.Env):
            continue
        if is_a(value, "mujoco", "MjData"):
            result[name] = {KIND: "mujoco", **simulation_state(simulation, value)}
            once.take_arrays(arrays_of(value), f"{where}.{name}")
            once.take_arrays(arrays_of(simulation), f"{where}.model")
        elif not _is_constant(value):
            result[name] = encoded(value, f"{where}.{name}", once)
    return result


def _is_constant(value: Any) -> bool:
    if isinstance(value, _CONSTANT) or is_a(value, "mujoco", "MjModel"):
        return True
    return type(value).__module__.startswith(_DRAWING) or isinstance(value, gymnasium.Env)


def encoded(value: Any, where: str, once: Once) -> Any:
    """The plain form of a value that stands at ``where``.

    Raises:
        CannotSave: it has none.
    """
    if isinstance(value, _PLAIN) and type(value) in _PLAIN:
        return value
    if isinstance(value, Enum):
        return {KIND: "enum", "value": value.name}
    if isinstance(value, FUNCTIONS):
        owner = getattr(value, "__self__", None)
        if isinstance(owner, _REPLACED):
            raise CannotSave(f"{where} is a function of a {type(owner).__name__}")
        return {KIND: "function", "value": f"{value.__module__}.{value.__qualname__}"}
    if _is_constant(value):
        return {KIND: "constant"}
    if isinstance(value, tuple | np.generic | nn.Module):  # which are put back as they are, or in their place
        return _content(value, where, once)
    number = once.met(value, where)
    if number is not None:
        return {KIND: "same", "value": number}
    return {KIND: "new", "value": _content(value, where, once)}


def _content(value: Any, where: str, once: Once) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray | np.generic):
        return {KIND: "array", "value": _tensor(value, where), "scalar": isinstance(value, np.generic)}
    if isinstance(value, np.random.Generator):
        return {KIND: "generator", "value": encoded(value.bit_generator.state, where, Once())}
    if isinstance(value, np.random.RandomState):
        return {KIND: "random_state", "value": encoded(value.get_state(legacy=False), where, Once())}
    if isinstance(value, torch.Generator):
        return {KIND: "torch_generator", "value": value.get_state()}
    if isinstance(value, nn.Module):
        return {KIND: "module", "value": {k: v.detach().clone() for k, v in value.state_dict().items()}}
    if isinstance(value, dict):
        pairs = [(encoded(k, where, Once()), encoded(v, f"{where}[{k!r}]", once)) for k, v in value.items()]
        return {KIND: "dict", "value": pairs}
    if isinstance(value, list | tuple | set | deque) and type(value) in (list, tuple, set, deque):
        items = [encoded(item, f"{where}[{i}]", once) for i, item in enumerate(value)]
        return {KIND: type(value).__name__, "value": items, "limit": getattr(value, "maxlen", None)}
    if _is_of_python(value):
        return {KIND: "object", "value": attributes(value, where, once)}
    raise CannotSave(f"{where} is a {type(value).__module__}.{type(value).__qualname__}")


def _is_of_python(value: object) -> bool:
    """Whether all that the object holds stands in its ``__dict__``: its class and bases are written in Python."""
    classes = type(value).__mro__[:-1]
    written = all(vars(c).get("__module__") != "builtins" and c.__flags__ & _HEAP_TYPE for c in classes)
    return hasattr(value, "__dict__") and written and not any(vars(c).get("__slots__") for c in classes)


def _tensor(value: np.ndarray | np.generic, where: str) -> Tensor:
    try:
        return torch.from_numpy(np.array(value))
    except TypeError as error:
        raise CannotSave(f"{where} is an array of {value.dtype}") from error
