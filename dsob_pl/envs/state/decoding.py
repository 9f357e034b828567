"""What an environment is made of, back from its plain form, in place of what stands there."""

from __future__ import annotations

import copy
from collections import deque
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dsob_pl.envs.state.kinds import FUNCTIONS, KIND, CannotSave, is_a
from dsob_pl.envs.state.simulation import restore_simulation

_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")


class Made:
    """What has been put back so far, in the order in which it was met."""

    def __init__(self) -> None:
        self.things: list[Any] = []
        self._in_place: dict[int, Any] = {}

    def in_place(self, own: Any) -> None:
        """Raises CannotSave where a second thing would be put in the place of one that has been put back."""
        if id(own) in self._in_place:
            raise CannotSave(f"the environment has one {type(own).__name__} in the place of two saved ones")
        self._in_place[id(own)] = own


def restore_attributes(holder: object, saved: dict[str, Any], made: Made) -> None:
    """Gives an object the attributes that ``encoding.attributes`` made of those of the saved one.

    Raises:
        CannotSave: it is made of other parts.
    """
    for name, value in saved.items():
        own = getattr(holder, name, None)
        if isinstance(value, dict) and value.get(KIND) == "mujoco":
            if own is None or not is_a(own, "mujoco", "MjData"):
                raise CannotSave("the environment has no simulation in the place of a saved one")
            restore_simulation(own.model, own, value)
        elif not (isinstance(value, dict) and value.get(KIND) == "constant"):
            vars(holder)[name] = decoded(value, own, made)  # as it was read: a frozen class refuses setattr


def decoded(value: Any, own: Any, made: Made) -> Any:
    """The value, made from its plain form; ``own`` is what stands in its place so far."""
    if not isinstance(value, dict):
        return value.clone() if isinstance(value, Tensor) else value
    kind = value[KIND]
    content: Any = value.get("value")
    if kind == "same":
        return made.things[content]
    if kind == "new":
        place = len(made.things)
        made.things.append(None)  # numbers are given on the way in, before those of what is inside
        made.things[place] = decoded(content, own, made)
        return made.things[place]
    there: Any
    if kind == "array":
        array = content.numpy().copy()
        return array[()] if value["scalar"] else array
    if kind == "generator":
        state = decoded(content, None, Made())
        generator = np.random.Generator(_bit_generator(state["bit_generator"]))
        generator.bit_generator.state = state
        return generator
    if kind == "random_state":
        random = np.random.RandomState()
        random.set_state(decoded(content, None, Made()))
        return random
    if kind == "torch_generator":
        restored = torch.Generator()
        restored.set_state(content)
        return restored
    if kind == "dict":
        there = own if isinstance(own, dict) else {}
        pairs = [(decoded(k, None, Made()), v) for k, v in content]
        return {k: decoded(v, there.get(k), made) for k, v in pairs}
    if kind in ("list", "tuple", "set"):
        there = list(own) if isinstance(own, list | tuple) and len(own) == len(content) else [None] * len(content)
        return {"list": list, "tuple": tuple, "set": set}[kind](decoded(v, o, made) for v, o in zip(content, there))
    if kind == "slice":
        return slice(*(decoded(x, None, Made()) for x in content))
    if kind == "deque":
        return deque((decoded(item, None, made) for item in content), maxlen=value["limit"])
    if own is None:
        raise CannotSave(f"the environment has no {kind} in the place of a saved one")
    if kind == "constant":
        return own
    if kind == "enum":
        if not isinstance(own, Enum) or content not in type(own).__members__:
            raise CannotSave(f"the environment has no place for the saved constant '{content}'")
        return type(own)[content]
    if kind == "function":
        if not isinstance(own, FUNCTIONS) or f"{own.__module__}.{own.__qualname__}" != content:
            raise CannotSave(f"the environment has another function in the place of '{content}'")
        return own
    if kind == "module":
        _restore_tensors(own, content)
        for part, saved in zip(own.modules(), value.get("own", ())):
            restore_attributes(part, saved, made)
    else:
        if _is_frozen(own):
            own = copy.copy(own)  # it may be that of every environment
        made.in_place(own)
        restore_attributes(own, content, made)
    return own


def _restore_tensors(module: nn.Module, saved: dict[str, Tensor]) -> None:
    """In place; of a buffer that is not saved with a state_dict earlier checkpoints have nothing."""
    tensors = dict((*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)))
    if any(name not in tensors or tensors[name].shape != value.shape for name, value in saved.items()):
        raise CannotSave(f"the environment has another {type(module).__name__} in the place of a saved one")
    with torch.no_grad():
        for name, value in saved.items():
            tensors[name].copy_(value)


def _is_frozen(value: object) -> bool:
    parameters = getattr(type(value), "__dataclass_params__", None)
    return parameters is not None and bool(parameters.frozen)


def _bit_generator(name: str) -> np.random.BitGenerator:
    if name not in _BIT_GENERATORS:
        raise CannotSave(f"there is no generator of numpy called '{name}'")
    generator: np.random.BitGenerator = getattr(np.random, name)()
    return generator
