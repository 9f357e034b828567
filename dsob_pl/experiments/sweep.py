"""One sweep: finds out what is left of a suite, has it run, and records how that ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from dsob_pl.errors import UsageError
from dsob_pl.experiments.record import (
    CellRun,
    cell_runs,
    close_suite,
    open_suite,
    seeds_left,
    supersede,
)
from dsob_pl.experiments.schedule import Watch
from dsob_pl.experiments.suite import Cell, Suite
from dsob_pl.experiments.table import Table
from dsob_pl.experiments.worker import Job, Outcome, is_trained, locked, outcome_of_ended
from dsob_pl.tracking.moved import check_not_moved
from dsob_pl.tracking.store import (
    ARTIFACT_LOCATION,
    SUPERSEDED_TAG,
    check_writable,
    creation_lock,
    database_path,
    http_limits,
    mlflow_client,
    reading,
    resolve_tracking_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

# The last of what it is given gives up what is to be run anew; it calls that when it knows that the place works.
Runner = Callable[[Sequence[Job], Event, Watch, Callable[[], None]], dict[str, Outcome]]
_SECONDS_TO_END = 10


@dataclass(frozen=True)
class Sweep:
    """What is to be run.

    Attributes:
        suite: the suite.
        grid: all its cells.
        cells: those that are to be run now.
        again: of what has been run, what is to be run anew: failed, changed (with other settings), all, or nothing.
        threads: of each process.
    """

    suite: Suite
    grid: Sequence[Cell]
    cells: Sequence[Cell]
    again: str | None = None
    threads: int = 1


def recorded(suite: Suite) -> dict[str, list[CellRun]]:
    """The runs of the cells of ``suite``, by the cell's name; makes no database where there is none."""
    uri = resolve_tracking_uri(None)
    path = database_path(uri)
    if uri.startswith(("http://", "https://")):  # a server, which may not be there
        with reading(uri) as client:
            return cell_runs(client, suite.name)
    return {} if path is not None and not path.is_file() else cell_runs(_client(uri), suite.name)


def run_sweep(sweep: Sweep, runner: Runner, stop: Event) -> dict[str, Outcome]:
    """Runs what is left of the cells and returns how each ended, by its name.

    Args:
        sweep: the cells.
        runner: runs jobs, here or elsewhere. Where it raises UsageError it has started nothing.
        stop: ends everything politely when it is set.

    Raises:
        UsageError: cells have been run with other settings, what is to be run anew is being trained, nothing can be
            written here, the project was moved, or the runner's place refuses; nothing has been started or given up.
    """
    from mlflow.exceptions import MlflowException

    uri = resolve_tracking_uri(None)
    database = database_path(uri)
    logs = (database.parent if database else Path.cwd()) / "runs" / sweep.suite.name
    for folder in (Path.cwd() / ARTIFACT_LOCATION, logs):
        check_writable(folder)
    check_not_moved(uri, Path.cwd() / ARTIFACT_LOCATION)
    runs = recorded(sweep.suite)
    _check_settings(sweep, runs)
    jobs = [Job(cell, "", uri, logs, Path.cwd(), sweep.threads) for cell in sweep.cells]
    for job in jobs:
        _check_free(job, runs.get(job.cell.name, []), sweep.again)
    client = _client(uri)
    parent = open_suite(client, uri, sweep.suite, sweep.grid)
    try:
        outcomes = _run_what_is_left(sweep, [replace(job, parent=parent) for job in jobs], runs, client, runner, stop)
        runs = cell_runs(client, sweep.suite.name)
    except BaseException:
        with suppress(MlflowException), http_limits(_SECONDS_TO_END, retries=0):  # which may be what went wrong
            close_suite(client, parent, "FAILED")
        raise
    if stop.is_set():
        status = "KILLED"
    elif any(outcome.state not in ("finished", "submitted") for outcome in outcomes.values()):
        status = "FAILED"
    else:
        whole = not any(seeds_left(cell, runs.get(cell.name, [])) for cell in sweep.grid)
        status = "FINISHED" if whole else "SCHEDULED"
    close_suite(client, parent, status)
    return outcomes


def _run_what_is_left(
    sweep: Sweep,
    jobs: Sequence[Job],
    runs: dict[str, list[CellRun]],
    client: MlflowClient,
    runner: Runner,
    stop: Event,
) -> dict[str, Outcome]:
    """How each cell ended; nothing is given up before ``runner`` says so, or in the end where it refuses."""
    given_up = {job.cell.name: _given_up(job, runs.get(job.cell.name, []), sweep.again) for job in jobs}
    marked: list[str] = []

    def give_up() -> None:
        for whole, seeds in given_up.values():
            for run in whole:
                marked.extend(supersede(client, run))
            for run_id in seeds:
                client.set_tag(run_id, SUPERSEDED_TAG, "true")
                marked.append(run_id)

    kept = {name: _without(runs.get(name, []), *what) for name, what in given_up.items()}
    ended = {
        cell.name: outcome_of_ended(cell, kept[cell.name])
        for cell in sweep.cells
        if not seeds_left(cell, kept[cell.name])
    }
    table = Table(jobs, ended, client, sweep.suite.score)
    left = [job for job in jobs if job.cell.name not in ended]
    if not left:
        give_up()
    try:
        outcomes = ended | (runner(left, stop, table.update, give_up) if left else {})
    except UsageError:
        for run_id in marked:
            client.delete_tag(run_id, SUPERSEDED_TAG)
        raise
    table.close(outcomes)
    return outcomes


def _client(uri: str) -> MlflowClient:
    with creation_lock(uri):  # the first use makes the tables, which fails where another sweep is at it
        return mlflow_client(uri)


def _check_settings(sweep: Sweep, runs: dict[str, list[CellRun]]) -> None:
    if sweep.again in ("changed", "all"):
        return
    changed = [cell.name for cell in sweep.cells if _changed(cell, runs.get(cell.name, []))]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UsageError(
            f"suite '{sweep.suite.name}': {changed[0]}{more} ran with other settings; give the suite another name, or "
            "run them anew with --again changed"
        )


def _changed(cell: Cell, runs: Sequence[CellRun]) -> list[CellRun]:
    return [run for run in runs if run.settings != cell.settings]


def _given_up(job: Job, runs: Sequence[CellRun], again: str | None) -> tuple[list[CellRun], list[str]]:
    """What is to be run anew: whole runs, and the ids of the runs of single seeds."""
    if again == "failed":
        seeds = [run.children[s][0] for run in runs if run.ended and not run.failed for s in run.failed_seeds]
        return [run for run in runs if run.failed], seeds
    return list(runs) if again == "all" else _changed(job.cell, runs) if again == "changed" else [], []


def _without(runs: Sequence[CellRun], whole: Sequence[CellRun], seeds: Sequence[str]) -> list[CellRun]:
    """What is left of ``runs`` when what ``_given_up`` tells is given up."""
    return [
        replace(run, children={seed: child for seed, child in run.children.items() if child[0] not in seeds})
        for run in runs
        if run not in whole
    ]


def _check_free(job: Job, runs: Sequence[CellRun], again: str | None) -> None:
    """Raises UsageError where somebody trains what is to be run anew."""
    given_up, seeds = _given_up(job, runs, again)
    if not given_up and not seeds:
        return
    with locked(job) as free:
        if not free:
            raise UsageError(f"sweep: again: {job.cell.name} is being run by another sweep")
        for run in given_up:
            if not run.ended and is_trained(job, run):
                raise UsageError(f"sweep: again: run {run.run_id} of {job.cell.name} is being trained")
