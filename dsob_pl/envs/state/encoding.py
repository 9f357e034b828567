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
_OF_MODULES = frozenset(vars(nn.Module()))  # tensors, modules and hooks
_EXACT = (Tensor, np.ndarray, dict)
# Modules whose objects only draw; pygame has others (vectors, rectangles, sprites) that may say where things are.
_DRAWING = (
    "pygame.surface",
    "pygame.time",
    "pygame.font",
    "pygame.freetype",
    "pygame.mixer",
    "glfw",
    "gymnasium.envs.mujoco.mujoco_rendering",
)
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE
# Set by the constructor or by the registry; arguments of constructors may hold anything.
_LEFT_OUT = ("spec", "metadata", "_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs", "_cached_spec")


class Once:
    """What has been met so far, in the order in which it was: what is met again comes back as the same thing."""

    def __init__(self, layers: Iterable[gymnasium.Env] = ()) -> None:
        self.layers = {id(layer) for layer in layers}  # saved by themselves
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
    result = {}
    for name, value in vars(holder).items():
        if _is_left_out(name, holder):
            continue
        if is_a(value, "mujoco", "MjData"):
            result[name] = {KIND: "mujoco", **simulation_state(value.model, value)}
            once.take_arrays(arrays_of(value), f"{where}.{name}")
            once.take_arrays(arrays_of(value.model), f"{where}.model")
        elif not _is_constant(value) and id(value) not in once.layers:
            result[name] = encoded(value, f"{where}.{name}", once)
    return result


def _is_left_out(name: str, holder: object) -> bool:
    if isinstance(holder, nn.Module):
        return name in _OF_MODULES
    if name == "env":  # of a wrapper: the next layer; an environment's own is something of its own
        return isinstance(holder, gymnasium.Wrapper)
    return name in _LEFT_OUT and isinstance(holder, gymnasium.Env)


def _is_constant(value: Any) -> bool:
    if isinstance(value, _CONSTANT) or is_a(value, "mujoco", "MjModel"):
        return True
    return type(value).__module__.startswith(_DRAWING)


def encoded(value: Any, where: str, once: Once) -> Any:
    """The plain form of a value that stands at ``where``.

    Raises:
        CannotSave: it has none.
    """
    if isinstance(value, _PLAIN) and type(value) in _PLAIN:
        return value
    if isinstance(value, slice):
        return {KIND: "slice", "value": [encoded(x, where, Once()) for x in (value.start, value.stop, value.step)]}
    if isinstance(value, Enum):
        return {KIND: "enum", "value": value.name}
    if isinstance(value, FUNCTIONS):
        owner = getattr(value, "__self__", None)
        if isinstance(owner, _REPLACED):
            raise CannotSave(f"{where} is a function of a {type(owner).__name__}")
        return {KIND: "function", "value": f"{value.__module__}.{value.__qualname__}"}
    if _is_constant(value) or id(value) in once.layers:
        return {KIND: "constant"}
    if isinstance(value, gymnasium.Env):
        raise CannotSave(f"{where} is another environment")
    if isinstance(value, tuple | np.generic | nn.Module):  # which are put back as they are, or in their place
        return _content(value, where, once)
    number = once.met(value, where)
    if number is not None:
        return {KIND: "same", "value": number}
    return {KIND: "new", "value": _content(value, where, once)}


def _content(value: Any, where: str, once: Once) -> Any:
    if isinstance(value, _EXACT) and type(value) not in _EXACT:  # what the subclass adds would be lost
        raise CannotSave(f"{where} is a {type(value).__module__}.{type(value).__qualname__}")
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
        tensors = [*value.named_parameters(), *value.named_buffers()]  # state_dict lacks what is not persistent
        own = [attributes(part, f"{where}.{name}".rstrip("."), once) for name, part in value.named_modules()]
        return {KIND: "module", "value": {k: v.detach().clone() for k, v in tensors}, "own": own}
    if isinstance(value, dict):
        pairs = [(encoded(k, where, Once()), encoded(v, f"{where}[{k!r}]", once)) for k, v in value.items()]
        return {KIND: "dict", "value": pairs}
    if isinstance(value, list | tuple | set | deque) and type(value) in (list, tuple, set, deque):
        items = [encoded(item, f"{where}[{i}]", once) for i, item in enumerate(value)]
        return {KIND: type(value).__name__, "value": items, "limit": getattr(value, "maxlen", None)}
    if _is_of_python(value):
        return {KIND: "object", "value": attributes(value, where, once)}
    raise CannotSave(f"{where} is a {type(value).__module__}.{type(value).__qualname__}")


class _Bare:
    """Holds its ``__dict__`` and nothing else."""


def _is_of_python(value: object) -> bool:
    """Whether all that the object holds stands in its ``__dict__``: its class and bases are written in Python."""
    if type(value).__basicsize__ > _Bare.__basicsize__ or type(value).__itemsize__:  # memory of a base in C
        return False
    classes = type(value).__mro__[:-1]
    written = all(vars(c).get("__module__") != "builtins" and c.__flags__ & _HEAP_TYPE for c in classes)
    return hasattr(value, "__dict__") and written and not any(vars(c).get("__slots__") for c in classes)


def _tensor(value: np.ndarray | np.generic, where: str) -> Tensor:
    try:
        return torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:  # the latter of another byte order
        raise CannotSave(f"{where} is an array of {value.dtype}") from error
