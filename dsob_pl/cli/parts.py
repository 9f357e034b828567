"""Parts named by class paths: finding the class, or the nearest one there is, and checking its arguments' names."""

from __future__ import annotations

import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from dsob_pl.errors import UsageError, nearest

ROOMS = (
    "agents",
    "bellman",
    "critics",
    "data",
    "divergences",
    "envs",
    "ground_truth",
    "networks",
    "risk",
    "tracking",
    "training",
    "world_models",
)
_SPECIAL = ("class_path", "init_args", "dict_kwargs")


def public_parts() -> dict[str, type]:
    """Full class path of every public class of the package."""
    parts = {}
    for room in ROOMS:
        module = importlib.import_module(f"dsob_pl.{room}")
        for name in getattr(module, "__all__", ()):
            if inspect.isclass(getattr(module, name)):
                parts[f"dsob_pl.{room}.{name}"] = getattr(module, name)
    return parts


def find_part(class_path: str, key: str) -> Any:
    """The class or function at ``class_path``.

    A bare name is one of this package's, or a callback or logger of Lightning's, as on Lightning's own command line.

    Raises:
        UsageError: there is none; names the nearest.
    """
    module_name, _, name = class_path.rpartition(".")
    if not module_name:
        known = {path.rpartition(".")[2]: path for path in public_parts()}
        if name in known:
            return public_parts()[known[name]]
        for module_name in ("lightning.pytorch.callbacks", "lightning.pytorch.loggers"):
            if hasattr(module := importlib.import_module(module_name), name):
                return getattr(module, name)
        close = nearest(name, known)
        path = next((known[n] for n in known if f"'{n}'" in close), None)
        raise UsageError(f"{key}: unknown class '{class_path}'" + (f"; did you mean '{path}'?" if path else ""))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise UsageError(f"{key}: importing '{module_name}' failed: {error}") from error
        hint = nearest(class_path, public_parts()) if module_name.startswith("dsob_pl") else ""
        raise UsageError(
            f"{key}: no module '{error.name}' for the class '{class_path}'"
            + (hint or "; is it installed, or in the folder you run from?")
        ) from error
    except Exception as error:
        raise UsageError(f"{key}: importing '{module_name}' failed: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        names = getattr(module, "__all__", [n for n in dir(module) if inspect.isclass(getattr(module, n))])
        raise UsageError(f"{key}: '{module_name}' has no class '{name}'{nearest(name, names)}")
    return getattr(module, name)


def check_part(value: Any, key: str, parts: dict[str, Any]) -> None:
    """Raises UsageError where ``value`` names a class that is not there, or an argument that its class lacks.

    Args:
        value: what a source gives for ``key``.
        key: dotted key.
        parts: the class at each dotted key (without init_args) as defaults and earlier sources have it, None where
            a class is expected but not known; updated.
    """
    place = key.replace(".init_args", "")
    if isinstance(value, list):
        for i, item in enumerate(value):
            check_part(item, f"{key}.{i}", parts)
    elif isinstance(value, str) and place in parts and not _is_plain(value) and not value.endswith((".yaml", ".json")):
        _put(find_part(value, key), place, parts)
    elif isinstance(value, dict):
        if isinstance(value.get("class_path"), str):
            _put(find_part(value["class_path"], f"{key}.class_path"), place, parts)
        if parts.get(place) is not None:
            _check_arguments(value, key, parts)


def _is_plain(value: str) -> bool:
    """Whether YAML reads it as null, true or false, and not as a name."""
    return value.lower() in ("", "null", "~", "true", "false")


def _put(part: Any, place: str, parts: dict[str, Any]) -> None:
    if parts.get(place) is not part:  # another class: what is known of the old one's arguments does not apply
        for old in [name for name in parts if name.startswith(f"{place}.")]:
            del parts[old]
    parts[place] = part


def _check_arguments(value: dict[str, Any], key: str, parts: dict[str, Any]) -> None:
    place = key.replace(".init_args", "")
    part = parts[place]
    accepted = _arguments(part)
    init_args = value.get("init_args")
    nested: dict[str, Any] = init_args if isinstance(init_args, dict) else {}
    beside = {name: argument for name, argument in value.items() if name not in _SPECIAL}
    for prefix, arguments in ((key, beside), (f"{key}.init_args", nested)):
        for name, argument in arguments.items():
            if accepted is not None and name not in accepted:
                valid = accepted if prefix != key or not nested else [*accepted, *_SPECIAL]
                raise UsageError(
                    f"{prefix}.{name}: {part.__name__} has no argument '{name}'{nearest(str(name), valid)}"
                )
            if accepted is not None and accepted[name] is not _NO_PART:
                parts.setdefault(f"{place}.{name}", accepted[name])
            check_part(argument, f"{prefix}.{name}", parts)


_NO_PART = object()
_OF_NUMBERS = (Sequence, Mapping, Iterable)  # what a list or a mapping stands for


def _arguments(part: Callable[..., Any]) -> dict[str, Any] | None:
    """Argument names of a class; with each the class it is by default, None where a class is expected, or _NO_PART.

    None where any argument is accepted.
    """
    try:
        parameters = inspect.signature(part).parameters
        hints = typing.get_type_hints(part.__init__ if inspect.isclass(part) else part)
    except (TypeError, ValueError, NameError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return {
        name: p.default if _is_part(p.default) else None if _takes_part(hints.get(name)) else _NO_PART
        for name, p in parameters.items()
    }


def _is_part(default: Any) -> bool:
    return inspect.isclass(default) and default is not inspect.Parameter.empty


def _takes_part(hint: Any) -> bool:
    """Whether text for an argument of type ``hint`` can only be the name of a class."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if typing.get_origin(hint) is typing.Union:
        options = typing.get_args(hint)
    origins = [typing.get_origin(option) or option for option in options]
    plain = (str, int, float, bool, list, tuple, dict, type(None), Path, typing.Any, typing.Literal, *_OF_NUMBERS)
    known = [o for o in origins if o not in plain and getattr(o, "__name__", "") != "Tensor"]  # a number is one
    text = any(o in (str, typing.Literal, typing.Any, Path) for o in origins)
    enums = any(inspect.isclass(o) and issubclass(o, Enum) for o in known)
    return bool(known) and not text and not enums
