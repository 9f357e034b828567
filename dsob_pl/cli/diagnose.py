"""One line for what jsonargparse refuses: the file, the key, what was expected and the nearest valid name.

jsonargparse knows that a config is wrong, but reports the union of all types it tried. Once it has refused one, the
sources are walked again along the constructors' signatures to find the key that is to blame.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from dsob_pl.cli.config_files import COMMAND_LINE, Source, leaves
from dsob_pl.cli.parts import check_part
from dsob_pl.errors import UsageError, nearest

_COMMA = re.compile(r", (?![^\[]*\])")  # between types, and not between those in brackets
MOST_THREADS = 1024
_SIZE = re.compile(r"(^|_)(sizes?|capacity|samples|episodes|members|hidden)$")


LINKED = {
    "data.seed": "seed_everything",
    "model.observation_size": "the environment",
    "model.action_size": "the environment",
}


_MAPPINGS = {
    "model": "model.init_args", "data": "data.env_id", "trainer": "trainer.max_steps",
    "checkpoint": "checkpoint.monitor",
}  # fmt: skip


def known_keys(keys: Iterable[str]) -> set[str]:
    """The dotted keys of a parser, what lies below a ``class_path`` left out: its class decides what that may be."""
    keys = set(keys)
    parts = {key.removesuffix(".class_path") for key in keys if key.endswith(".class_path")}
    return parts | {key for key in keys if not any(key.startswith(f"{part}.") for part in parts)}


def check_top_level(sources: list[Source], sections: set[str]) -> None:
    """Raises UsageError for what jsonargparse lets pass: an unknown empty section, a value that a link replaces."""
    for source in sources:
        for key, value in source.tree.items():
            if source.label != COMMAND_LINE and key not in sections:
                raise UsageError(_in(source, f"{key}: unknown key{nearest(str(key), sections)}"))
            allowed = (dict, str) if key == "model" else dict  # a string is the model's class
            if source.label != COMMAND_LINE and key in _MAPPINGS and not isinstance(value, allowed):
                found = "nothing" if value is None else repr(value)
                raise UsageError(_in(source, f"{key}: expected keys such as {_MAPPINGS[key]}, got {found}"))
        _check_class(source)
        for key, _ in leaves(source.tree):
            if key.replace(".init_args", "") in LINKED:
                raise UsageError(_in(source, f"{key}: is set by {LINKED[key.replace('.init_args', '')]}; leave it out"))


def _check_class(source: Source) -> None:
    model = source.tree.get("model")
    if isinstance(model, dict):
        if not isinstance(model.get("class_path", ""), str):
            raise UsageError(
                _in(source, f"model.class_path: expected the path of a class, got {model['class_path']!r}")
            )
        if not isinstance(model.get("init_args", {}), dict):
            raise UsageError(_in(source, f"model.init_args: expected keys, got {model['init_args']!r}"))


def check_numbers(config: dict[str, Any]) -> None:
    """Raises UsageError for a NaN anywhere, a negative size, and a seed, cadence or number of threads out of range."""
    for key, value in leaves(config):
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, float) and math.isnan(item):
                raise UsageError(f"{key}: expected a number, got nan")
            if isinstance(item, int | float) and item < 0 and _SIZE.search(key.rpartition(".")[2]):
                raise UsageError(f"{key}: expected a size, got {item}")
    if not 0 <= config["seed_everything"] < 2**32:
        raise UsageError(f"seed_everything: expected an integer from 0 to 2^32 - 1, got {config['seed_everything']}")
    if (config.get("trainer") or {}).get("max_steps", -1) is None:
        raise UsageError("trainer.max_steps: expected an integer, in environment steps (-1 for no end), got null")
    if (config.get("trainer") or {}).get("val_check_interval") == 0:  # Lightning divides by it
        raise UsageError("trainer.val_check_interval: expected at least 1, in environment steps, got 0")
    if config["threads"] is not None and not 1 <= config["threads"] <= MOST_THREADS:
        raise UsageError(f"threads: expected an integer from 1 to {MOST_THREADS}, got {config['threads']}")


def explain(error: Exception, sources: list[Source], command: str, known: set[str], parts: dict[str, Any]) -> str:
    """The line for ``error``.

    Args:
        error: what the parser raised; its causes are looked at, too.
        sources: config files and command line.
        command: the subcommand, which jsonargparse puts in front of some keys.
        known: dotted keys that the parser accepts.
        parts: classes that stand at some of them by default.
    """
    parts = dict(parts)
    for source in sources:
        try:
            _walk(source.tree, known, parts)
        except UsageError as found:
            return _in(source, str(found))
    texts = [str(link) for link in causes(error)]
    for describe in (_stray, _required, _interpolation, _wrong_class, _wrong_type):
        line = describe(texts, sources)
        if line is not None:
            return line.replace(f"{command}.", "", 1)
    return ": ".join([*_keys(texts)[-1:], texts[-1].strip().partition("\n")[0].partition(". Got value")[0]])


def causes(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what it was raised from, outermost first, each once: one that is raised anew is its own cause."""
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _in(source: Source, line: str) -> str:
    return line if source.label == COMMAND_LINE else f"{source.label}: {line}"


def _walk(tree: dict[str, Any], known: set[str], parts: dict[str, Any], prefix: str = "") -> None:
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if dotted in known:
            check_part(value, dotted, parts)
        elif any(name.startswith(f"{dotted}.") for name in known):
            if isinstance(value, dict):
                _walk(value, known, parts, f"{dotted}.")
        else:
            siblings = {name.removeprefix(prefix).partition(".")[0] for name in known if name.startswith(prefix)}
            raise UsageError(f"{dotted}: unknown key{nearest(str(key), siblings)}")


def _keys(texts: list[str]) -> list[str]:
    return [m[1] for text in texts for m in re.finditer(r'Parser key "([^"]*)"', text)]


def _located(texts: list[str], sources: list[Source], got: str, line: str) -> str:
    """``line`` behind the key that jsonargparse names last, in full, and the file that gives it the value ``got``."""
    name = (_keys(texts) or [""])[-1]
    for source in reversed(sources):
        for dotted, value in leaves(source.tree):
            key = dotted.removesuffix(".class_path")
            items = value if isinstance(value, list) else [value]
            if key.split(".")[-1] == name.split(".")[-1] and got in [str(value), *map(str, items)]:
                return _in(source, f"{key}: {line}")
    return f"{name}: {line}" if name else line


def _stray(texts: list[str], sources: list[Source]) -> str | None:
    match = re.search(r"unrecognized arguments: (.*)", texts[0])
    return match and f"unexpected argument '{match[1].split()[0]}'; options look like --key=value"


def _required(texts: list[str], sources: list[Source]) -> str | None:
    for text in reversed(texts):
        match = re.search(r"the following arguments are required: (.*)", text)
        if match:
            part = re.search(r'Parser key "([^"]*)"', texts[0])
            return f"{part[1] + '.init_args.' if part else ''}{match[1].strip()}: required, but not given"
    return None


def _interpolation(texts: list[str], sources: list[Source]) -> str | None:
    match = re.search(r"(?s)^(.*?)\s+full_key: (\S+)", texts[0])
    return match and f"{match[2]}: {match[1]} in the same file"


def _wrong_class(texts: list[str], sources: list[Source]) -> str | None:
    match = re.search(r"Expected '(\S+)' to be a subclass of <class '(\w+)'>", texts[-1])
    match = match or re.search(r"Import path (\S+) does not correspond to a subclass of (\w+)", texts[-1])
    return match and _located(texts, sources, match[1], f"expected a {match[2]}, got the class '{match[1]}'")


def _wrong_type(texts: list[str], sources: list[Source]) -> str | None:
    match = next(
        (m for text in texts[-2:] if (m := re.search(r"(?s)^Expected an? (.*?)\. Got value: (.*)", text))), None
    )
    if match is None:
        return None
    expected, got = match[1], match[2].strip()
    nearby = next((text for text in reversed(texts) if "Parser key" in text), "")
    union = re.search(r"Subtypes: \[(.*)\]", nearby)
    if union is not None:
        expected = union[1]
    choices = re.findall(r"'(\w+)'", expected) if "Literal[" in expected else []
    if expected.startswith("member of"):
        choices = expected.rpartition("{")[2].strip("}").split(",")
    hint = nearest(got, choices) or nearest(got.upper(), choices)
    types = f"one of {', '.join(choices)}" if choices and union is None else _type_names(expected)
    return _located(texts, sources, got, f"expected {types}, got {got!r}{hint}")


def _type_names(text: str) -> str:
    text = re.sub(r"<\w+ '(?:[\w.]*\.)?(\w+)'>", r"\1", text)
    text = re.sub(r"(?:[a-zA-Z_]+\.)+(\w+)", r"\1", text)
    names = {"NoneType": "null", "tuple": "a list", "list": "a list", "str": "text", "int": "an integer"}
    names |= {"float": "a number", "bool": "true or false", "dict": "a mapping"}
    return " or ".join(names.get(name, name) for name in _COMMA.split(text))
