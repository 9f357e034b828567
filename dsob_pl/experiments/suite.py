"""A suite: the grid of tasks x methods x noise that a file of conf/suite/ describes, and its cells."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from dsob_pl.errors import UsageError, nearest
from dsob_pl.seeds import compact_seeds, parse_seeds
from dsob_pl.tracking.glossary import SCORES
from dsob_pl.tracking.store import PARENT_TAG

KEYS = ("name", "score", "seeds", "tasks", "methods", "noise", "options")
FACTORS = ("task", "method", "noise")
DEFAULT_SCORE = "eval/return_mean"
# Options of `fit` that a sweep gives itself.
_TAKEN = ("config", "seeds", "seed_everything", "ckpt_path", "trainer.logger", "checkpoint.dirpath")
_NAME = re.compile(r"(?!\.+$)[\w.+-]+")  # not . or .., which are folders
_FILES = "expected a config file, or a list of config files and options"

Options = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Part:
    """One task, method or noise: config files that are merged from left to right, and options put behind them."""

    files: tuple[str, ...] = ()
    options: Options = ()


@dataclass(frozen=True)
class Suite:
    """The grid of a suite file.

    Attributes:
        name: of the suite and of its MLflow experiment.
        score: metric that methods are compared by.
        seeds: of every cell.
        tasks: by name.
        methods: by name.
        noise: by name.
        options: of every cell, put last.
        text: of the file.
    """

    name: str
    score: str
    seeds: tuple[int, ...]
    tasks: Mapping[str, Part]
    methods: Mapping[str, Part]
    noise: Mapping[str, Part]
    options: Options = ()
    text: str = ""

    def parts(self) -> Iterator[tuple[str, Part]]:
        """Every part with the key that it stands under, such as ``methods.mage``."""
        for key in ("tasks", "methods", "noise"):
            for name, part in getattr(self, key).items():
                yield f"{key}.{name}", part


@dataclass(frozen=True)
class Cell:
    """One task under one method and one noise: all its seeds are trained by one process of ``fit``.

    Attributes:
        suite: name of the suite.
        task: name of the task.
        method: name of the method.
        noise: name of the noise.
        seeds: to be trained.
        files: config files, merged from left to right.
        options: put behind the files.
        settings: digest of what the files hold and of the options: equal where equal runs come of them.
    """

    suite: str
    task: str
    method: str
    noise: str
    seeds: tuple[int, ...]
    files: tuple[str, ...]
    options: Options
    settings: str

    @property
    def name(self) -> str:
        """``task/method/noise``."""
        return f"{self.task}/{self.method}/{self.noise}"

    @property
    def tags(self) -> dict[str, str]:
        """The tags of its runs."""
        factors = {name: getattr(self, name) for name in FACTORS}
        return {"suite": self.suite, "cell": self.name, **factors, "settings": self.settings}

    def arguments(self, seeds: Sequence[int], parent: str = "", run_id: str = "", ckpt_path: str = "") -> list[str]:
        """What follows ``python -m dsob_pl`` to train it.

        Args:
            seeds: those of its seeds that are to be trained.
            parent: id of the suite's run.
            run_id: of the run to go on with.
            ckpt_path: checkpoint to go on from.
        """
        tags = self.tags | ({PARENT_TAG: parent} if parent else {})
        return [
            "fit",
            *(word for file in self.files for word in ("--config", file)),
            f"--seeds={compact_seeds(seeds)}",
            *(f"--{key}={value}" for key, value in self.options),
            # Names the class, or a config's own logger would take the place of the one that sweeps are read from.
            "--trainer.logger=dsob_pl.tracking.MLflowLogger",
            f"--trainer.logger.experiment_name={self.suite}",
            f"--trainer.logger.tags={json.dumps(tags)}",
            *([f"--trainer.logger.run_id={run_id}"] if run_id else []),
            *([f"--ckpt_path={ckpt_path}"] if ckpt_path else []),
        ]

    @property
    def command(self) -> str:
        """The command that trains all of it, as one would type it."""
        return shlex.join(["python", "-m", "dsob_pl", *self.arguments(self.seeds)])


# Reading ------------------------------------------------------------------------------------------------------------


def parse_suite(tree: Mapping[str, Any], source: str) -> Suite:
    """The suite of a file.

    Args:
        tree: the file's contents.
        source: the file as it was named.

    Raises:
        UsageError: an unknown key, a name that cannot be one, a missing or empty part of the grid.
    """
    try:
        for key in tree:
            if key not in KEYS:
                raise UsageError(f"unknown key '{key}'{nearest(str(key), KEYS)} (one of {', '.join(KEYS)})")
        grid = {key: _parts(tree[key], key) for key in ("tasks", "methods", "noise") if tree.get(key) is not None}
        for key in ("tasks", "methods"):
            if not grid.get(key):
                raise UsageError(f"{key}: the grid is empty; expected at least one")
        grid.setdefault("noise", {"none": Part()})
        if not grid["noise"]:
            raise UsageError("noise: the grid is empty; leave the key out for no noise")
        if "seeds" not in tree:
            raise UsageError("seeds: missing; expected numbers and ranges such as 0-9 or 0,3,7")
        name = str(tree.get("name") or Path(source).stem)
        score = tree.get("score", DEFAULT_SCORE)
        if not isinstance(score, str) or not score:
            raise UsageError(f"score: expected the name of a metric such as {DEFAULT_SCORE}, got {score!r}")
        if score not in SCORES:
            raise UsageError(f"score: no report shows '{score}'{nearest(score, SCORES)} (one of {', '.join(SCORES)})")
        seeds = tuple(parse_seeds(tree["seeds"]))
        options = _options(tree.get("options"), "options")
        return Suite(_named(name, "name"), score, seeds, grid["tasks"], grid["methods"], grid["noise"], options)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error


def _named(name: str, where: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{where}: '{name}' cannot be a name; expected letters, digits and any of _ . + -")
    return name


def _parts(value: Any, key: str) -> dict[str, Part]:
    if isinstance(value, list):
        if not all(isinstance(file, str) for file in value):
            raise UsageError(f"{key}: expected config files in the list; use names with files for options")
        names = [Path(file).stem for file in value]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise UsageError(f"{key}: '{name}' is given twice; give the files names of their own")
        value = dict(zip(names, value))
    if not isinstance(value, dict):
        raise UsageError(f"{key}: expected names with config files, or a list of config files, got {value!r}")
    return {_named(str(name), key): _part(part, f"{key}.{name}") for name, part in value.items()}


def _part(value: Any, where: str) -> Part:
    pieces = value if isinstance(value, list) else [] if value is None else [value]
    files: list[str] = []
    options: Options = ()
    for piece in pieces:
        if isinstance(piece, dict):
            options += _options(piece, where)
        elif isinstance(piece, str) and piece:
            files.append(piece)
        else:
            raise UsageError(f"{where}: {_FILES}, got {piece!r}")
    return Part(tuple(files), options)


def _options(value: Any, where: str) -> Options:
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise UsageError(f"{where}: expected options of fit such as trainer.max_steps: 1000, got {value!r}")
    for key in _keys(value):
        _option(key, where)
    return tuple((_option(str(key), where), _text(item, f"{where}.{key}")) for key, item in value.items())


def _keys(tree: Mapping[Any, Any]) -> Iterator[str]:
    """Dotted keys, those of mappings within it, too."""
    for key, value in tree.items():
        yield str(key)
        if isinstance(value, dict):
            yield from (f"{key}.{inner}" for inner in _keys(value))


def _option(key: str, where: str) -> str:
    key = key.removeprefix("--")
    for taken in _TAKEN:
        if key == taken or key.startswith(f"{taken}."):
            raise UsageError(f"{where}: '{key}' is set by the sweep itself and cannot be an option")
    return key


def _text(value: Any, where: str) -> str:
    """``value`` as a command line has it."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, allow_nan=False)
    except TypeError as error:
        raise UsageError(f"{where}: expected numbers, text, lists and keys, got {value!r}") from error
    except ValueError:  # infinity, which YAML knows
        return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()


def parse_settings(words: Iterable[str]) -> Options:
    """The options of ``--set key=value ...``.

    Raises:
        UsageError: a word that is not of this form.
    """
    pairs = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.strip("-"):
            raise UsageError(f"sweep: set: expected key=value such as trainer.max_steps=1000, got '{word}'")
        pairs.append((_option(key, "sweep: set"), value))
    return tuple(pairs)


# The grid -----------------------------------------------------------------------------------------------------------


def expand(suite: Suite, trees: Mapping[str, Any], settings: Options = ()) -> list[Cell]:
    """The cells of ``suite``: tasks one after the other, of each all noises, of each all methods.

    Args:
        suite: the grid.
        trees: contents of every config file that the suite names.
        settings: further options of every cell, put last.

    Raises:
        UsageError: all cells would have their checkpoints in one folder.
    """
    for name, tree in trees.items():
        section = tree.get("checkpoint") if isinstance(tree, Mapping) else None
        folder = section.get("dirpath") if isinstance(section, Mapping) else None
        if folder is not None:
            raise UsageError(f"{name}: checkpoint.dirpath: all cells of a suite would share '{folder}'; leave it out")
    result = []
    for task, first in suite.tasks.items():
        for noise, third in suite.noise.items():
            for method, second in suite.methods.items():
                parts = (first, second, third)
                files = tuple(file for part in parts for file in part.files)
                options = _last_of_each(*(part.options for part in parts), suite.options, settings)
                contents = json.dumps(
                    _keyed_by_text([[trees[file] for file in files], dict(options)]), sort_keys=True, default=str
                )
                digest = hashlib.sha256(contents.encode()).hexdigest()[:12]
                result.append(Cell(suite.name, task, method, noise, suite.seeds, files, options, digest))
    return result


def _keyed_by_text(tree: Any) -> Any:
    """``tree`` with keys that can be sorted, whatever a file has."""
    if isinstance(tree, Mapping):
        return {str(key): _keyed_by_text(value) for key, value in tree.items()}
    return [_keyed_by_text(item) for item in tree] if isinstance(tree, list | tuple) else tree


def _last_of_each(*options: Options) -> Options:
    merged: dict[str, str] = {}
    for key, value in (pair for group in options for pair in group):
        merged.pop(key, None)  # a class is to be named before what it is given
        merged[key] = value
    return tuple(merged.items())


def select(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    """Those of ``cells`` that one of ``patterns`` names.

    A pattern is a name of a task, method or noise, or several joined by slashes in this order; each may hold the
    wildcards ``*``, ``?`` and ``[...]``.

    Raises:
        UsageError: a pattern names none.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        found = {cell.name for cell in cells if _matches(cell, pattern)}
        if not found:
            raise UsageError(f"sweep: only: {_no_match(cells, pattern)}")
        chosen |= found
    return [cell for cell in cells if cell.name in chosen] if patterns else list(cells)


def _matches(cell: Cell, pattern: str) -> bool:
    values = cell.name.split("/")
    words = pattern.split("/")
    if len(words) == 1:
        return any(fnmatchcase(value, pattern) for value in values)
    return len(words) <= len(values) and all(fnmatchcase(value, word) for value, word in zip(values, words))


def _no_match(cells: Sequence[Cell], pattern: str) -> str:
    words = pattern.split("/")
    if len(words) > len(FACTORS):
        return f"'{pattern}' has {len(words)} parts; expected task/method/noise"
    if len(words) == 1:
        names = {value for cell in cells for value in cell.name.split("/")}
        return f"no task, method or noise is called '{pattern}'{nearest(pattern, sorted(names))}"
    for word, factor in zip(words, FACTORS):
        names = {getattr(cell, factor) for cell in cells}
        if not any(fnmatchcase(name, word) for name in names):
            return f"no {factor} is called '{word}'{nearest(word, sorted(names))}"
    return f"no cell is called '{pattern}'"
