"""Options of the subcommands that are not Lightning's; what is wrong with them is one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn

from dsob_pl.errors import UsageError, nearest


class Parser(argparse.ArgumentParser):
    """Raises UsageError, which names the subcommand, instead of printing the usage and leaving the process."""

    @property
    def _command(self) -> str:
        return self.prog.rpartition(" ")[2]

    def error(self, message: str) -> NoReturn:
        """Raises UsageError."""
        raise UsageError(f"{self._command}: {message}")

    def read(self, arguments: Sequence[str]) -> argparse.Namespace | None:
        """The options; None after ``--help``.

        Raises:
            UsageError: an unknown option, with the nearest there is, or a value that cannot be taken.
        """
        try:
            options, unknown = self.parse_known_args(arguments)
        except SystemExit:  # after --help; errors raise UsageError
            return None
        if unknown:
            valid = [name for action in self._actions for name in action.option_strings]
            name = unknown[0].partition("=")[0]
            raise UsageError(f"{self._command}: unknown option '{unknown[0]}'{nearest(name, valid)}")
        return options


def at_least(minimum: int) -> Callable[[str], int]:
    """The type of an option that is an integer of at least ``minimum``."""

    def integer(text: str) -> int:
        if not text.lstrip("+-").isdigit() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"expected an integer of at least {minimum}, got '{text}'")
        return int(text)

    return integer
