"""What the config in a checkpoint may name: it comes with a file that somebody else may have written.

Tensors are read without unpickling, which could run any code. The config beside them is then built, and a class path is
no less than a call: ``subprocess.getoutput`` where an optimizer is expected would be one.
"""

from __future__ import annotations

import inspect
import sys
import typing
from pathlib import Path
from typing import Any

from dsob_pl.cli.parts import find_part
from dsob_pl.errors import UsageError

# A part is a class of one of these packages, or derived from one.
_PACKAGES = ("dsob_pl", "torch", "lightning", "gymnasium")


def check_foreign(config: dict[str, Any], checkpoint: str | Path) -> None:
    """Looks at all class paths in the config of a checkpoint, before anything is built of it.

    Raises:
        UsageError: one names what is no part of a model, a dataset or a trainer, or a class that is not there; or there
            is text that could be read as a config of its own.
    """
    try:
        _check(config, "")
    except UsageError as error:
        raise UsageError(f"checkpoint '{checkpoint}': {error}") from error


def _check(value: Any, key: str) -> None:
    if isinstance(value, dict):
        if "class_path" in value:
            _check_class(value["class_path"], key)
        for name, item in value.items():
            _check(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check(item, f"{key}.{i}")
    elif isinstance(value, str) and ("class_path" in value or _is_config_file(value)):
        raise UsageError(f"{key}: expected a value, got a config, '{value[:60]}'")


def _is_config_file(text: str) -> bool:
    return text.endswith((".yaml", ".yml", ".json")) and Path(text).is_file()


def _check_class(path: Any, key: str) -> None:
    refused = f"{key}: '{path}' is no class that a run is made of, and is not called"
    if not isinstance(path, str) or path.partition(".")[0] in {*sys.stdlib_module_names, "builtins"}:
        raise UsageError(refused)
    part = find_part(path, f"{key}.class_path")
    made = part if inspect.isclass(part) else _returned(part)
    if made is None or not any(base.__module__.partition(".")[0] in _PACKAGES for base in made.__mro__):
        raise UsageError(refused)


def _returned(function: Any) -> type | None:
    """The class that a function says it returns."""
    try:
        made = typing.get_type_hints(function).get("return")
    except (TypeError, NameError):
        return None
    return made if inspect.isclass(made) else None
