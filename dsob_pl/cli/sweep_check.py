"""Looks at the cells of a sweep before any of them begins: a slip of the keyboard shows at once, not after a night."""

from __future__ import annotations

from collections.abc import Iterable

from dsob_pl.cli.config_files import read_sources
from dsob_pl.cli.lightning_cli import CLI
from dsob_pl.envs import make_env
from dsob_pl.errors import UsageError
from dsob_pl.experiments.suite import Cell


class _Parsed(CLI):
    """A command line of ``fit`` that is parsed, and nothing is built of it."""

    def _set_seed(self) -> None:
        pass

    def before_instantiate_classes(self) -> None:
        """Nothing."""

    def instantiate_classes(self) -> None:
        """Nothing."""


def check_cells(cells: Iterable[Cell], environments: bool = True) -> None:
    """Parses cells as ``fit`` would, as many as have every task, method and noise in one of them.

    Args:
        cells: those that are to be run.
        environments: make the environment of each, too; they may not be installed where a sweep is only submitted.

    Raises:
        UsageError: what is wrong, behind the name of the first cell that has it.
    """
    seen: set[tuple[str, str]] = set()
    for cell in cells:
        parts = {("task", cell.task), ("method", cell.method), ("noise", cell.noise)}
        if parts <= seen:
            continue
        arguments = cell.arguments(cell.seeds)[1:]
        try:
            data = _Parsed("fit", arguments, read_sources(arguments)).config.fit.data
            if environments and ("task", cell.task) not in seen:
                make_env(data.env_id, env_kwargs=data.env_kwargs).close()
        except UsageError as error:
            raise UsageError(f"sweep: {cell.name}: {error}") from error
        seen |= parts
