"""Cells on this machine: a process each, a fixed number of them at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from threading import Event

from dsob_pl.experiments.worker import Job, Outcome, run_cell

_TICK_SECONDS = 0.5
_BUSY_SECONDS = 5.0

Watch = Callable[[dict[str, Outcome]], None]


def run_local(processes: int, jobs: Sequence[Job], stop: Event, watch: Watch) -> dict[str, Outcome]:
    """Runs ``jobs`` in this order and returns how each cell ended, by its name.

    Args:
        processes: that train at the same time.
        jobs: the cells.
        stop: ends them politely when it is set.
        watch: called twice a second with the outcomes so far.
    """
    outcomes: dict[str, Outcome] = {}
    waiting = [(0.0, job) for job in jobs]  # with the time before which it is not to be tried again
    running: dict[Future[Outcome], Job] = {}
    with ThreadPoolExecutor(processes) as pool:
        while running or (waiting and not stop.is_set()):
            ready = [entry for entry in waiting if entry[0] <= time.monotonic()]
            for entry in ready[: processes - len(running)] if not stop.is_set() else []:
                waiting.remove(entry)
                running[pool.submit(run_cell, entry[1], stop, wait=False)] = entry[1]
            if running:
                done, _ = wait(running, timeout=_TICK_SECONDS, return_when=FIRST_COMPLETED)
            else:
                done = set()
                stop.wait(_TICK_SECONDS)
            for future in done:
                job, outcome = running.pop(future), outcome_of(future)
                if outcome.state == "busy":  # another sweep is at it; the others first
                    waiting.append((time.monotonic() + _BUSY_SECONDS, job))
                else:
                    outcomes[job.cell.name] = outcome
            watch(outcomes)
    return outcomes


def outcome_of(future: Future[Outcome]) -> Outcome:
    """How a cell ended; an error in running it, such as a database that is out of reach, is the end of that cell."""
    try:
        return future.result()
    except Exception as error:
        return Outcome("died", " ".join(str(error).split())[:200] or type(error).__name__)
