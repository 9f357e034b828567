"""The seeds of ``--seeds`` as text and as numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dsob_pl.errors import UsageError

_LARGEST = 2**32 - 1
# Against slips of the keyboard; each seed takes networks, replay and environments of its own.
_MOST = 1000
_EXPECTED = "expected numbers and ranges such as 0-9 or 0,3,7"


def parse_seeds(value: Any) -> list[int]:
    """The seeds of ``0-9``, ``0,3,7``, ``0-3,7``, 5 or a list of numbers, in the order given.

    Raises:
        UsageError: nothing in it, something that is not a seed, a seed twice.
    """
    pieces = value if isinstance(value, list) else str(value).split(",")
    seeds: list[int] = []
    for piece in pieces:
        text = str(piece).strip()
        if not text:
            raise UsageError(f"seeds: {'no seed' if len(pieces) <= 1 else 'an empty place'} in '{value}'; {_EXPECTED}")
        match = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", text)
        if match is None or isinstance(piece, bool):
            raise UsageError(f"seeds: '{text}' is not a seed or a range of seeds; {_EXPECTED}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UsageError(f"seeds: the range '{text}' runs backwards; did you mean {last}-{first}?")
        if last > _LARGEST:
            raise UsageError(f"seeds: expected integers from 0 to 2^32 - 1, got {last}")
        if last - first >= _MOST:
            raise UsageError(f"seeds: '{text}' are {last - first + 1} seeds; at most {_MOST} fit into one process")
        seeds += range(first, last + 1)
    if len(seeds) > _MOST:
        raise UsageError(f"seeds: '{value}' are {len(seeds)} seeds; at most {_MOST} fit into one process")
    if not seeds:
        raise UsageError(f"seeds: no seed in '{value}'; {_EXPECTED}")
    twice = next((seed for i, seed in enumerate(seeds) if seed in seeds[:i]), None)
    if twice is not None:
        raise UsageError(f"seeds: {twice} is given twice")
    return seeds


def compact_seeds(seeds: Sequence[int]) -> str:
    """The seeds in rising order with ranges for neighbours: ``[0, 1, 2, 3, 7] -> "0-3,7"``."""
    runs: list[list[int]] = []
    for seed in sorted(seeds):
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
