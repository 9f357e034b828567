"""Errors whose text is meant for the person at the command line.

The command line prints their text as one line and exits; it never shows a traceback for them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Bad input: names the file or option, what was expected and the nearest valid name. Exit code 2."""


class RunFailed(RuntimeError):
    """A run that cannot go on, such as a loss that became NaN. The run is marked FAILED. Exit code 3."""


class OutOfRoom(RunFailed):
    """Memory or disk ran out, which says nothing about the run: it can be gone on with. Exit code 4."""


class Interrupted(Exception):
    """A run that was told to stop by a signal, between two steps. The run is marked KILLED. Exit code 128 + signal.

    Args:
        signal: its number.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(f"signal {signal}")
        self.signal = signal


def nearest(name: str, valid: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the closest of ``valid``, or nothing when none is close."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""
