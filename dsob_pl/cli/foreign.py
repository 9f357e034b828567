"""What the config in a checkpoint may name: it comes with a file that somebody else may have written.

Tensors are read without unpickling, which could run any code. The config beside them is then built, and a class path is
no less than a call: ``subprocess.getoutput`` where an optimizer is expected would be one. So it may name the parts that
a run is made of, and jsonargparse imports nothing else while it is read and built, however it is spelt there.
"""

from __future__ import annotations

import inspect
import re
import sys
import sysconfig
import typing
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsob_pl.cli.parts import find_part, public_parts
from dsob_pl.errors import UsageError

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_AS_THEY_ARE = ("env_kwargs", "evaluation_env_kwargs")  # handed to the environment, and not built


def parts_named(config: dict[str, Any], checkpoint: str | Path) -> set[str]:
    """The import paths of the parts that the config of a checkpoint names, in every spelling.

    Raises:
        UsageError: it names something else by a ``class_path``, or a class that is not there.
    """
    found: set[str] = set()
    try:
        _collect(config, "", found)
    except UsageError as error:
        raise UsageError(f"checkpoint '{checkpoint}': {error}") from error
    return found


@contextmanager
def importing_only(paths: Iterable[str]) -> Iterator[None]:
    """While it lasts jsonargparse imports ``paths``, this package's parts and torch's optimizers, whatever it reads."""
    from jsonargparse import set_parsing_settings
    from jsonargparse._common import parsing_settings  # there is no public way back

    allowed = {*paths, "torch.optim"}
    for path, part in public_parts().items():
        allowed |= {path, _canonical(part)}
    before = dict(parsing_settings)
    set_parsing_settings(
        import_path_denylist=["*"], import_path_allowlist=sorted(allowed), instantiate_subclass_spec_in_any=False
    )
    try:
        yield
    finally:
        parsing_settings.update(before)


def is_dotted(value: Any) -> bool:
    """Whether it could be an import path."""
    return isinstance(value, str) and _DOTTED.fullmatch(value) is not None


def denied(error: BaseException) -> str | None:
    """What jsonargparse was to import and did not, where that is why it failed."""
    match = re.search(r"Importing '([^']*)' is not allowed", str(error))
    return match and match[1]


def _collect(value: Any, key: str, found: set[str]) -> None:
    if isinstance(value, dict):
        if "class_path" in value:
            found |= _spellings(value["class_path"], key)
        for name, item in value.items():
            if name not in _AS_THEY_ARE and name != "class_path":
                _collect(item, f"{key}.{name}" if key else str(name), found)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _collect(item, f"{key}.{i}", found)
    elif is_dotted(value):  # a function or a class without arguments, or just text
        try:
            found |= _spellings(value, key)
        except UsageError:
            return


def _spellings(path: Any, key: str) -> set[str]:
    refused = f"{key}: '{path}' is no part that a run is made of, and is not called"
    if not isinstance(path, str) or path.partition(".")[0] in {*sys.stdlib_module_names, "builtins"}:
        raise UsageError(refused)
    part = find_part(path, f"{key}.class_path")
    if not (inspect.isclass(part) or inspect.isfunction(part)) or not (_is_own(part) or _makes_a_part(part)):
        raise UsageError(refused)
    return {_canonical(part), *([path] if "." in path else [])}


def _canonical(part: Any) -> str:
    return f"{part.__module__}.{part.__qualname__}"


def _is_own(part: Any) -> bool:
    """Whether it is of a module of one's own: not installed, not Python's, and not of this package."""
    file = getattr(sys.modules.get(part.__module__), "__file__", None)
    if file is None or part.__module__.partition(".")[0] == "dsob_pl":
        return False
    installed = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return not any(Path(file).resolve().is_relative_to(folder) for folder in installed)


def _makes_a_part(part: Any) -> bool:
    """Whether it is a class of parts, or a function that says in its annotation that it returns one."""
    import gymnasium
    import lightning as L
    import torch

    made = part if inspect.isclass(part) else _returned(part)
    bases = (
        torch.nn.Module,
        torch.optim.Optimizer,
        torch.optim.lr_scheduler.LRScheduler,
        gymnasium.Wrapper,
        L.LightningDataModule,
        L.Callback,
        L.pytorch.loggers.Logger,
        *public_parts().values(),
    )
    return made is not None and issubclass(made, bases)


def _returned(function: Any) -> type | None:
    try:
        made = typing.get_type_hints(function).get("return")
    except (TypeError, NameError):
        return None
    return made if inspect.isclass(made) else None
