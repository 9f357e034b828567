"""Looks at the cells of a sweep before any of them begins: a slip of the keyboard shows at once, not after a night.

    python -m dsob_pl.cli.sweep_check < CELLS

is how a sweep does it, which itself needs none of the libraries of a run and may last for days.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress

from dsob_pl.errors import UsageError
from dsob_pl.experiments.suite import Cell

_Look = tuple[str, list[str]]  # the name of a cell, and what `fit` would be given


def check_cells(cells: Iterable[Cell], environments: bool = True) -> None:
    """Parses cells as ``fit`` would, as many as have every task, method and noise in one of them.

    Args:
        cells: those that are to be run.
        environments: make their environments, too; they may not be installed where a sweep is only submitted.

    Raises:
        UsageError: what is wrong, behind the name of the first cell that has it.
    """
    seen: set[tuple[str, str]] = set()
    looks: list[_Look] = []
    for cell in cells:
        parts = {("task", cell.task), ("method", cell.method), ("noise", cell.noise)}
        if not parts <= seen:
            looks.append((cell.name, cell.arguments(cell.seeds)[1:]))
            seen |= parts
    if not looks:
        return
    if "lightning" in sys.modules:
        found = _first_wrong(looks, environments)
    else:
        words = [sys.executable, "-m", "dsob_pl.cli.sweep_check"]
        # Of a process group of its own: Ctrl-C is for the sweep, which then ends it.
        done = subprocess.run(
            words, input=json.dumps([looks, environments]), stdout=subprocess.PIPE, text=True, process_group=0
        )
        if done.returncode != 0:
            raise UsageError(f"sweep: the cells could not be looked at (exit code {done.returncode})")
        found = json.loads(done.stdout.splitlines()[-1])
    if found is not None:
        raise UsageError(f"sweep: {found[0]}: {found[1]}")


def _first_wrong(looks: Iterable[_Look], environments: bool) -> tuple[str, str] | None:
    from dsob_pl.cli.config_files import read_sources
    from dsob_pl.cli.lightning_cli import CLI
    from dsob_pl.envs import make_env

    class Parsed(CLI):
        """A command line of ``fit`` that is parsed, and nothing is built of it."""

        def _set_seed(self) -> None:
            pass

        def before_instantiate_classes(self) -> None:
            """Nothing."""

        def instantiate_classes(self) -> None:
            """Nothing."""

    made: set[str] = set()
    for name, arguments in looks:
        try:
            data = Parsed("fit", arguments, read_sources(arguments)).config.fit.data
            environment = repr((data.env_id, data.env_kwargs))
            if environments and environment not in made:
                made.add(environment)
                env = make_env(data.env_id, env_kwargs=data.env_kwargs)
                with suppress(Exception):  # as where a run ends
                    env.close()
        except UsageError as error:
            return name, str(error)
        except SystemExit:
            return name, "expected options of a run, not such as print_config and help"
    return None


if __name__ == "__main__":
    print(json.dumps(_first_wrong(*json.load(sys.stdin))))
