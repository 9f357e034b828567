"""What a command line says, as nested dictionaries with the file each came from; nothing heavy is imported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dsob_pl.errors import UsageError, nearest

COMMAND_LINE = "command line"
_NOTHING = ("null", "~", "")


@dataclass(frozen=True)
class Source:
    """One config file, or all the options of the command line.

    Attributes:
        label: the file as it was named, or "command line".
        tree: its contents as nested dictionaries.
    """

    label: str
    tree: dict[str, Any]


def option_values(arguments: list[str], *names: str) -> list[str]:
    """The values of an option that is given as ``--name=value`` or ``--name value``, in order."""
    values = []
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name not in names:
            continue
        if not equals:
            if i + 1 == len(arguments):
                raise UsageError(f"{name}: a value is expected after it")
            value = arguments[i + 1]
        values.append(value)
    return values


def read_sources(arguments: list[str]) -> list[Source]:
    """The config files of a command line in order, then its options.

    Raises:
        UsageError: a file is missing, unreadable, not YAML, or not a mapping of keys to values.
    """
    sources = [Source(name, _read(name)) for name in option_values(arguments, "--config", "-c")]
    return [*sources, Source(COMMAND_LINE, _options(arguments))]


def _read(name: str) -> dict[str, Any]:
    path = Path(name)
    if path.is_dir():
        raise UsageError(f"config file '{name}' is a folder")
    if not path.is_file():
        folder = path.parent
        if not folder.is_dir():
            raise UsageError(f"config file '{name}' does not exist: there is no folder '{folder}'")
        raise UsageError(f"config file '{name}' does not exist{nearest(path.name, (p.name for p in folder.iterdir()))}")
    try:
        return parse(path.read_text(encoding="utf-8"), f"config file '{name}'")
    except UnicodeDecodeError as error:
        raise UsageError(f"config file '{name}' is not YAML text: {error}") from error
    except OSError as error:
        raise UsageError(f"config file '{name}' cannot be read: {(error.strerror or str(error)).lower()}") from error


def parse(text: str, name: str) -> dict[str, Any]:
    """A config as nested dictionaries.

    Args:
        text: YAML.
        name: of where it stands, for errors.

    Raises:
        UsageError: it is not YAML, not a mapping of keys to values, or gives a key twice.
    """
    try:
        tree = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UsageError(f"{name}{where}: not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:  # a ValueError is a date that there is not
        raise UsageError(f"{name} is not YAML text: {error}") from error
    if not isinstance(tree, dict):
        found = "empty" if tree is None else f"a {type(tree).__name__}"
        raise UsageError(f"{name} is {found}; expected keys such as model:, data: and trainer:")
    _check_ends(tree, name, ())
    check_keys_once(text, name)
    return tree


def check_keys_once(text: str, name: str) -> None:
    """Raises UsageError where a key is given twice in the YAML ``text``, of which YAML would take the last."""

    def check(node: yaml.Node | None) -> None:
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    raise UsageError(f"{name}, line {key.start_mark.line + 1}: '{key.value}' is given twice")
                seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
                check(value)
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                check(item)

    check(yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def _check_ends(value: Any, name: str, above: tuple[int, ...]) -> None:
    """Raises UsageError where an alias stands within what it stands for: such a config goes on for ever."""
    if not isinstance(value, (dict, list)):
        return
    if id(value) in above:
        raise UsageError(f"{name}: an alias (*name) stands within what it stands for")
    for item in value.values() if isinstance(value, dict) else value:
        _check_ends(item, name, (*above, id(value)))


def _options(arguments: list[str]) -> dict[str, Any]:
    """``--a.b=v`` and ``--a.b v`` as nested dictionaries; values stay text but where they name parts themselves."""
    tree: dict[str, Any] = {}
    for i, argument in enumerate(arguments):
        if not argument.startswith("--"):
            continue
        name, equals, value = argument[2:].partition("=")
        if not equals and i + 1 < len(arguments) and not arguments[i + 1].startswith("--"):
            value = arguments[i + 1]
        *parents, last = name.removesuffix("+").split(".")
        node = tree
        for parent in parents:
            child = node.get(parent)
            if not isinstance(child, dict):
                # --model=Class --model.key=value
                child = node[parent] = {"class_path": child} if isinstance(child, str) else {}
            node = child
        content = _nested(value, f"--{name}")
        if name.endswith("+"):
            content = [*_listed(node.get(last)), *_listed(content)]
        if isinstance(node.get(last), dict) and isinstance(content, str) and content not in _NOTHING:
            node[last]["class_path"] = content
        else:
            node[last] = content
    return tree


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _nested(value: str, name: str) -> Any:
    """``{"class_path": ...}`` or a list of such as what it says, any other text as it is."""
    if not re.match(r"\[?\s*\{", value):
        return value
    try:
        tree = yaml.load(value, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError):
        return value
    _check_ends(tree, name, ())
    return tree


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``(dotted key, value)`` for everything that is not a dictionary or a list of such."""
    if isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict):
        yield prefix, tree
        return
    for key, value in tree.items():
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
