"""Cells on this machine: a process each, a fixed number of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from dsob_pl.experiments.schedule import Watch, run_jobs
from dsob_pl.experiments.worker import Job, Outcome, run_cell


def run_local(
    processes: int, jobs: Sequence[Job], stop: Event, watch: Watch, begin: Callable[[], None] = lambda: None
) -> dict[str, Outcome]:
    """Runs ``jobs`` in this order and returns how each cell ended, by its name.

    Args:
        processes: that train at the same time.
        jobs: the cells.
        stop: ends them politely when it is set.
        watch: called twice a second with the outcomes so far.
        begin: called before anything is started.
    """
    begin()
    with ThreadPoolExecutor(processes) as pool:
        try:
            return run_jobs(jobs, stop, watch, lambda job: pool.submit(run_cell, job, stop, wait=False), processes)
        except BaseException:  # such as of ``watch`` where nobody reads what it prints; the pool waits for the cells
            stop.set()
            raise
