"""The whole state of an environment in mid-episode, as plain numbers and tensors: wrappers, generators, simulator.

What an environment is made of is walked through: numbers, arrays, generators and containers of them, and objects made
of those. A MuJoCo simulation is saved by MuJoCo itself. What the constructor sets and nothing moves (spaces, models)
and what only draws is left out. What stands in several places comes back as one thing. Whatever else an environment
holds cannot be saved, and neither can an array and a view of it, which would come back as two. A resumed run then
begins a new episode.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from torch import Tensor, nn

from dsob_pl.envs.stepping import env_name

log = logging.getLogger(__name__)

_PLAIN = (type(None), bool, int, float, str, bytes)
_CONSTANT = (
    gymnasium.Space,
    EnvSpec,
    np.dtype,
    slice,
    type,
    ModuleType,
)
_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType)
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
_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")
_KIND = "__kind__"
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE
# Set by the constructor or by the registry; arguments of constructors may hold anything.
_LEFT_OUT = ("env", "spec", "metadata", "_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs", "_cached_spec")


class CannotSave(Exception):
    """An environment holds something that has no plain form; the message names it."""


def environment_state(env: gymnasium.Env) -> dict[str, Any]:
    """All that decides how ``env`` goes on, so that ``torch.load(weights_only=True)`` reads it.

    An unwrapped environment with ``state_dict`` and ``load_state_dict`` is asked for its own.

    Raises:
        CannotSave: names the attribute that has no plain form.
    """
    layers, once = list(_layers(env)), _Once()
    states = [_layer_state(layer, once) for layer in layers]
    return {"layers": states, "names": [type(layer).__name__ for layer in layers]}


def restore_environment(env: gymnasium.Env, state: dict[str, Any]) -> None:
    """Puts ``env``, made with the same arguments, where the saved one was.

    Raises:
        CannotSave: it is made of other parts.
    """
    layers = list(_layers(env))
    names = [type(layer).__name__ for layer in layers]
    if names != state["names"]:
        raise CannotSave(f"it is made of {', '.join(names)}, the saved one was of {', '.join(state['names'])}")
    made = _Made()
    for layer, saved in zip(layers, state["layers"]):
        if saved.get(_KIND) == "own":
            layer.load_state_dict(_decoded(saved["state"], None, _Made()))  # type: ignore[attr-defined]
        else:
            _restore_attributes(layer, saved, made)


def saved_environment(env: gymnasium.Env) -> dict[str, Any] | None:
    """``environment_state``; None, with a warning, for an environment that has none."""
    try:
        return environment_state(env)
    except CannotSave as error:
        log.warning("%s cannot be saved in mid-episode (%s); a resumed run begins a new one", env_name(env), error)
        return None


def put_back(env: gymnasium.Env, state: dict[str, Any] | None) -> bool:
    """``restore_environment``; False, with a warning where there is a state, if that cannot be done."""
    if state is None:
        return False
    try:
        restore_environment(env, state)
    except CannotSave as error:
        log.warning("%s cannot be put back in mid-episode (%s); a new one begins", env_name(env), error)
        return False
    return True


def _layers(env: gymnasium.Env) -> Iterator[gymnasium.Env]:
    yield env
    while isinstance(env, gymnasium.Wrapper):
        env = env.env
        yield env


class _Once:
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


def _layer_state(layer: gymnasium.Env, once: _Once) -> dict[str, Any]:
    if hasattr(layer, "state_dict") and hasattr(layer, "load_state_dict") and not isinstance(layer, gymnasium.Wrapper):
        return {_KIND: "own", "state": _encoded(layer.state_dict(), type(layer).__name__, _Once())}
    return _attributes(layer, type(layer).__name__, once)


def _attributes(holder: object, where: str, once: _Once) -> dict[str, Any]:
    """The attributes of an object that can change, encoded."""
    simulation = getattr(holder, "model", None) if isinstance(holder, gymnasium.Env) else None
    result = {}
    for name, value in vars(holder).items():
        if name in _LEFT_OUT and isinstance(holder, gymnasium.Env):
            continue
        if _is_a(value, "mujoco", "MjData"):
            result[name] = {_KIND: "mujoco", **_simulation_state(simulation, value)}
            once.take_arrays(_arrays_of(value), f"{where}.{name}")
            once.take_arrays(_arrays_of(simulation), f"{where}.model")
        elif not _is_constant(value):
            result[name] = _encoded(value, f"{where}.{name}", once)
    return result


def _is_constant(value: Any) -> bool:
    if isinstance(value, _CONSTANT) or _is_a(value, "mujoco", "MjModel"):
        return True
    return type(value).__module__.startswith(_DRAWING) or isinstance(value, gymnasium.Env)


def _encoded(value: Any, where: str, once: _Once) -> Any:
    if isinstance(value, _PLAIN) and type(value) in _PLAIN:
        return value
    if isinstance(value, Enum):
        return {_KIND: "enum", "value": value.name}
    if isinstance(value, _FUNCTIONS):
        owner = getattr(value, "__self__", None)
        if isinstance(owner, _REPLACED):
            raise CannotSave(f"{where} is a function of a {type(owner).__name__}")
        return {_KIND: "function", "value": f"{value.__module__}.{value.__qualname__}"}
    if _is_constant(value):
        return {_KIND: "constant"}
    if isinstance(value, tuple | np.generic | nn.Module):  # which are put back as they are, or in their place
        return _content(value, where, once)
    number = once.met(value, where)
    if number is not None:
        return {_KIND: "same", "value": number}
    return {_KIND: "new", "value": _content(value, where, once)}


def _content(value: Any, where: str, once: _Once) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray | np.generic):
        return {_KIND: "array", "value": _tensor(value, where), "scalar": isinstance(value, np.generic)}
    if isinstance(value, np.random.Generator):
        return {_KIND: "generator", "value": _encoded(value.bit_generator.state, where, _Once())}
    if isinstance(value, np.random.RandomState):
        return {_KIND: "random_state", "value": _encoded(value.get_state(legacy=False), where, _Once())}
    if isinstance(value, torch.Generator):
        return {_KIND: "torch_generator", "value": value.get_state()}
    if isinstance(value, nn.Module):
        return {_KIND: "module", "value": {k: v.detach().clone() for k, v in value.state_dict().items()}}
    if isinstance(value, dict):
        pairs = [(_encoded(k, where, _Once()), _encoded(v, f"{where}[{k!r}]", once)) for k, v in value.items()]
        return {_KIND: "dict", "value": pairs}
    if isinstance(value, list | tuple | set | deque) and type(value) in (list, tuple, set, deque):
        items = [_encoded(item, f"{where}[{i}]", once) for i, item in enumerate(value)]
        return {_KIND: type(value).__name__, "value": items, "limit": getattr(value, "maxlen", None)}
    if _is_of_python(value):
        return {_KIND: "object", "value": _attributes(value, where, once)}
    raise CannotSave(f"{where} is a {type(value).__module__}.{type(value).__qualname__}")


def _is_of_python(value: object) -> bool:
    """Whether all that the object holds stands in its ``__dict__``: its class and bases are written in Python."""
    classes = type(value).__mro__[:-1]
    written = all(vars(c).get("__module__") != "builtins" and c.__flags__ & _HEAP_TYPE for c in classes)
    return hasattr(value, "__dict__") and written and not any(vars(c).get("__slots__") for c in classes)


class _Made:
    """What has been put back so far, in the order in which it was met."""

    def __init__(self) -> None:
        self.things: list[Any] = []
        self._in_place: dict[int, Any] = {}

    def in_place(self, own: Any) -> None:
        """Raises CannotSave where a second thing would be put in the place of one that has been put back."""
        if id(own) in self._in_place:
            raise CannotSave(f"the environment has one {type(own).__name__} in the place of two saved ones")
        self._in_place[id(own)] = own


def _restore_attributes(holder: object, saved: dict[str, Any], made: _Made) -> None:
    for name, value in saved.items():
        own = getattr(holder, name, None)
        if isinstance(value, dict) and value.get(_KIND) == "mujoco":
            _restore_simulation(holder.model, own, value)  # type: ignore[attr-defined]
        elif not (isinstance(value, dict) and value.get(_KIND) == "constant"):
            setattr(holder, name, _decoded(value, own, made))


def _decoded(value: Any, own: Any, made: _Made) -> Any:
    """The value, made from its plain form; ``own`` is what stands in its place so far."""
    if not isinstance(value, dict):
        return value.clone() if isinstance(value, Tensor) else value
    kind = value[_KIND]
    content: Any = value.get("value")
    if kind == "same":
        return made.things[content]
    if kind == "new":
        place = len(made.things)
        made.things.append(None)  # numbers are given on the way in, before those of what is inside
        made.things[place] = _decoded(content, own, made)
        return made.things[place]
    there: Any
    if kind == "array":
        array = content.numpy().copy()
        return array[()] if value["scalar"] else array
    if kind == "generator":
        state = _decoded(content, None, _Made())
        generator = np.random.Generator(_bit_generator(state["bit_generator"]))
        generator.bit_generator.state = state
        return generator
    if kind == "random_state":
        random = np.random.RandomState()
        random.set_state(_decoded(content, None, _Made()))
        return random
    if kind == "torch_generator":
        restored = torch.Generator()
        restored.set_state(content)
        return restored
    if kind == "dict":
        there = own if isinstance(own, dict) else {}
        pairs = [(_decoded(k, None, _Made()), v) for k, v in content]
        return {k: _decoded(v, there.get(k), made) for k, v in pairs}
    if kind in ("list", "tuple", "set"):
        there = list(own) if isinstance(own, list | tuple) and len(own) == len(content) else [None] * len(content)
        return {"list": list, "tuple": tuple, "set": set}[kind](_decoded(v, o, made) for v, o in zip(content, there))
    if kind == "deque":
        return deque((_decoded(item, None, made) for item in content), maxlen=value["limit"])
    if own is None:
        raise CannotSave(f"the environment has no {kind} in the place of a saved one")
    if kind == "constant":
        return own
    if kind == "enum":
        if not isinstance(own, Enum) or content not in type(own).__members__:
            raise CannotSave(f"the environment has no place for the saved constant '{content}'")
        return type(own)[content]
    if kind == "function":
        if not isinstance(own, _FUNCTIONS) or f"{own.__module__}.{own.__qualname__}" != content:
            raise CannotSave(f"the environment has another function in the place of '{content}'")
        return own
    if kind == "module":
        own.load_state_dict(content)
    else:
        made.in_place(own)
        _restore_attributes(own, content, made)
    return own


def _tensor(value: np.ndarray | np.generic, where: str) -> Tensor:
    try:
        return torch.from_numpy(np.array(value))
    except TypeError as error:
        raise CannotSave(f"{where} is an array of {value.dtype}") from error


def _bit_generator(name: str) -> np.random.BitGenerator:
    if name not in _BIT_GENERATORS:
        raise CannotSave(f"there is no generator of numpy called '{name}'")
    generator: np.random.BitGenerator = getattr(np.random, name)()
    return generator


# MuJoCo ---------------------------------------------------------------------------------------------------------------


def _simulation_state(model: Any, data: Any) -> dict[str, Any]:
    """The state that decides the next step, and what was derived from the one before.

    Some rewards are differences of derived positions, which lag one step of integration behind the state: computing
    them anew would move them.
    """
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, state, kind)
    fresh = mujoco.MjData(model)  # contacts and constraints, which every step finds anew, have no fixed size
    derived = {
        name: torch.from_numpy(array.copy())
        for name, array in _arrays_of(data)
        if array.shape == getattr(fresh, name).shape
    }
    return {"state": torch.from_numpy(state), "derived": derived}


def _arrays_of(data: Any) -> Iterator[tuple[str, np.ndarray]]:
    for name in dir(data):
        array = None if name.startswith("_") else getattr(data, name, None)
        if isinstance(array, np.ndarray) and array.size:
            yield name, array


def _restore_simulation(model: Any, data: Any, saved: dict[str, Any]) -> None:
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = saved["state"].numpy()
    if len(state) != mujoco.mj_stateSize(model, kind):
        raise CannotSave("the simulation has another size, or MuJoCo another version")
    mujoco.mj_setState(model, data, state, kind)
    for name, tensor in saved["derived"].items():
        array = getattr(data, name, None)
        if isinstance(array, np.ndarray) and array.shape == tuple(tensor.shape) and array.flags.writeable:
            array[...] = tensor.numpy()


def _is_a(value: Any, module: str, name: str) -> bool:
    """Whether it is an instance of a class, without importing what no environment has needed so far."""
    return module in sys.modules and isinstance(value, getattr(sys.modules[module], name))
