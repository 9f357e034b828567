"""Options of the subcommands that are not Lightning's; what is wrong with them is one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
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


def add_source(parser: Parser) -> None:
    """Adds the options that name a trained agent: a run or a checkpoint, which of the run's, and the store."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", metavar="RUN_ID", help="id of a run, or the beginning of one")
    source.add_argument("--ckpt", metavar="PATH", help="a checkpoint file")
    parser.add_argument("--which", choices=("best", "last"), default="best", help="checkpoint of the run (best)")
    parser.add_argument(
        "--clean", action="store_true", help="leave out the noise that the run's config has (data.noise)"
    )
    parser.add_argument("--tracking_uri", metavar="URI", help="MLflow's (sqlite:///mlflow.db)")


def check_folder(out: Path) -> None:
    """Raises UsageError where a folder of results cannot be made or written to."""
    from dsob_pl.tracking.store import check_writable

    taken = next((place for place in (out, *out.parents) if place.exists()), Path())
    if not taken.is_dir():
        raise UsageError(f"out: '{taken}' is a file; expected a folder")
    try:
        check_writable(out)
    except UsageError as error:
        raise UsageError(f"out: {str(error).partition(';')[0]}") from error


def at_least(minimum: int) -> Callable[[str], int]:
    """The type of an option that is an integer of at least ``minimum``."""

    def integer(text: str) -> int:
        if not text.lstrip("+-").isdigit() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"expected an integer of at least {minimum}, got '{text}'")
        return int(text)

    return integer
