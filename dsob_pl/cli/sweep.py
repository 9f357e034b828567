"""``sweep``: every cell of a suite, each once."""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from dsob_pl.cli.config_files import read_sources
from dsob_pl.cli.options import Parser, at_least
from dsob_pl.errors import RunFailed, UsageError
from dsob_pl.experiments.suite import Cell, Suite, expand, parse_settings, parse_suite, select
from dsob_pl.seeds import compact_seeds, parse_seeds
from dsob_pl.tracking.store import reason_of

if TYPE_CHECKING:
    from dsob_pl.experiments.record import CellRun
    from dsob_pl.experiments.sweep import Runner, Sweep
    from dsob_pl.experiments.worker import Outcome

_PLACES = ("local", "ray", "slurm")
_AGAIN = ("failed", "changed", "all")


def parser() -> Parser:
    """The options of ``sweep``."""
    result = Parser(
        prog="python -m dsob_pl sweep",
        description="Runs every cell of a suite, each once: what is finished is skipped, what was cut off is gone on "
        "with, what died is tried once more. Logs are in runs/SUITE/.",
        allow_abbrev=False,
    )
    add = result.add_argument
    add("--config", metavar="FILE", required=True, help="the suite, such as conf/suite/quick.yaml")
    add("--only", metavar="PATTERN", nargs="+", default=[], action="extend", help="such as mage or 'summit_*/mage'")
    add("--seeds", metavar="SEEDS", help="these in place of the suite's")
    add("--set", metavar="KEY=VALUE", nargs="+", default=[], action="extend", help="options of fit, for every cell")
    add("--jobs", metavar="N", type=at_least(1), help="processes at a time (number of cores / threads)")
    add("--threads", metavar="N", type=at_least(1), help="of each process (1)")
    add("--again", choices=_AGAIN, help="run again what has failed, what ran with other settings, or everything")
    add("--dry-run", "--dry_run", action="store_true", help="list the commands, start nothing")
    add("--on", choices=_PLACES, default="local", help="where the cells run (local)")
    add("--partition", metavar="NAME", help="of SLURM, in place of its default")
    add("--minutes", metavar="N", type=at_least(1), help="that SLURM gives each cell (1440)")
    return result


def sweep(arguments: list[str]) -> int:
    """Runs the subcommand and returns its exit code.

    Raises:
        UsageError: bad options, a suite or a cell that is not right, or cells that have run with other settings.
        RunFailed: cells that failed or died, named.
    """
    options = parser().read(arguments)
    if options is None:
        return 0
    for name in ("partition", "minutes"):
        if getattr(options, name) is not None and options.on != "slurm":
            raise UsageError(f"sweep: {name}: is for --on slurm, not for --on {options.on}")
    if options.jobs is not None and options.on == "ray":
        raise UsageError(
            "sweep: jobs: is not for --on ray, which runs as many cells as it has free CPUs; use --threads"
        )
    suite, grid = read_suite(options.config, parse_settings(options.set))
    chosen = select(grid, options.only)
    if options.seeds is not None:
        seeds = tuple(parse_seeds(options.seeds))
        chosen = [dataclasses.replace(cell, seeds=seeds) for cell in chosen]
    if options.threads is not None:
        chosen, grid = ([_with_threads(cell, options.threads) for cell in cells] for cells in (chosen, grid))
    from mlflow.exceptions import MlflowException

    from dsob_pl.cli.sweep_check import check_cells
    from dsob_pl.experiments.record import seeds_left
    from dsob_pl.experiments.sweep import Sweep, recorded, run_sweep

    plan = Sweep(suite, grid, chosen, options.again, options.threads or 1)
    try:
        runs = recorded(suite)
        left = [cell for cell in chosen if options.again or seeds_left(cell, runs.get(cell.name, []))]
        check_cells(left, environments=options.on == "local")
        if options.dry_run:
            return _list(plan, runs)
        stop = Event()
        with _set_by_signals(stop) as received:
            outcomes = run_sweep(plan, _runner(options), stop)
    except MlflowException as error:  # a database that went away in the meantime
        raise RunFailed(f"MLflow failed: {reason_of(error)}; the same command goes on from here") from error
    return _end(outcomes, received)


def read_suite(file: str, settings: Sequence[tuple[str, str]] = ()) -> tuple[Suite, list[Cell]]:
    """A suite file and all its cells, every config file in it looked at.

    Raises:
        UsageError: the suite or a file that it names is missing or not right.
    """
    tree = read_sources(["--config", file])[0].tree
    text = Path(file).read_text(encoding="utf-8")
    suite = dataclasses.replace(parse_suite(tree, file), text=text)
    trees: dict[str, Any] = {}
    for where, part in suite.parts():
        for name in part.files:
            try:
                trees[name] = trees.get(name) or read_sources(["--config", name])[0].tree
            except UsageError as error:
                raise UsageError(f"{file}: {where}: {error}") from error
    return suite, expand(suite, trees, tuple(settings))


def _with_threads(cell: Cell, threads: int) -> Cell:
    return dataclasses.replace(cell, options=(*cell.options, ("threads", str(threads))))


def _list(plan: Sweep, runs: Mapping[str, Sequence[CellRun]]) -> int:
    """Prints the commands of all cells; those of which nothing is left are commented out."""
    from dsob_pl.experiments.record import failed_seeds, seeds_left

    ended = 0
    for cell in plan.cells:
        own = runs.get(cell.name, [])
        left, failed = seeds_left(cell, own), failed_seeds(cell, own)
        ended += not left
        note = "finished" if not left else "begun" if own else "waiting"
        if failed:
            note += f", seeds {compact_seeds(failed)} failed"
        if any(run.settings != cell.settings for run in own):
            note += ", with other settings"
        print(f"# {cell.name}: {note}\n{'# ' if not left else ''}{cell.command}")
    print(f"# {len(plan.cells)} cells, {ended} of them ended")
    return 0


def _runner(options: argparse.Namespace) -> Runner:
    threads = options.threads or 1
    if options.on == "slurm":
        from dsob_pl.experiments.slurm import Slurm

        slurm = Slurm(options.partition, options.minutes or Slurm.minutes, options.jobs, threads)
        slurm.check()
        return slurm
    if options.on == "ray":
        from dsob_pl.experiments.ray import check_ray, run_ray

        check_ray()
        return partial(run_ray, threads)
    from dsob_pl.experiments.local import run_local

    processes = options.jobs or max(1, len(os.sched_getaffinity(0)) // threads)
    return partial(run_local, processes)


@contextmanager
def _set_by_signals(stop: Event) -> Iterator[list[int]]:
    """Sets ``stop`` on Ctrl-C, SIGTERM and SIGHUP, and lists the signals that came."""
    received: list[int] = []

    def handle(number: int, _: object) -> None:
        stop.set()
        received.append(number)
        if len(received) == 1:
            with suppress(OSError):  # a terminal that is gone, which SIGHUP tells of
                print("dsob_pl: ending the cells that are running, with their checkpoints", file=sys.stderr, flush=True)

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # What is ignored stays so: nohup has a process ignore SIGHUP.
    numbers = [number for number in wanted if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(outcomes: dict[str, Outcome], received: Sequence[int]) -> int:
    if received:
        how = "interrupted" if received[0] == signal.SIGINT else "terminated"
        print(f"dsob_pl: {how}; the same command goes on from here", file=sys.stderr)
        return 128 + received[0]
    bad = [
        f"{name} {outcome.state}: {outcome.detail}"
        for name, outcome in outcomes.items()
        if outcome.state not in ("finished", "submitted")
    ]
    if bad:
        raise RunFailed(f"{len(bad)} of {len(outcomes)} cells did not finish; {'; '.join(bad)}")
    return 0
