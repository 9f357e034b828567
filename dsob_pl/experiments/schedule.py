"""Keeps cells running wherever they are run: a limited number at a time, those that are busy elsewhere once more."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from threading import Event

from dsob_pl.experiments.worker import Job, Outcome

_TICK_SECONDS = 0.5
_BUSY_SECONDS = 5.0

Watch = Callable[[dict[str, Outcome]], None]


def run_jobs(
    jobs: Sequence[Job],
    stop: Event,
    watch: Watch,
    submit: Callable[[Job], Future[Outcome]],
    at_once: int,
    cancel: Callable[[], None] = lambda: None,
    outcome_of_error: Callable[[BaseException], Outcome | None] = lambda error: None,
) -> dict[str, Outcome]:
    """Runs ``jobs`` in this order and returns how each cell ended, by its name.

    Args:
        jobs: the cells.
        stop: when it is set nothing more is started, and what is running is waited for.
        watch: called twice a second with the outcomes so far.
        submit: starts a cell.
        at_once: cells that are running at the same time, at most.
        cancel: called once when ``stop`` is set.
        outcome_of_error: what an error of the place means; None: that the cell died of it.
    """
    outcomes: dict[str, Outcome] = {}
    waiting = [(0.0, job) for job in jobs]  # with the time before which it is not to be tried again
    running: dict[Future[Outcome], Job] = {}
    cancelled = False
    while running or (waiting and not stop.is_set()):
        if stop.is_set() and not cancelled:
            cancelled = True
            cancel()
        ready = [] if stop.is_set() else [entry for entry in waiting if entry[0] <= time.monotonic()]
        for entry in ready[: at_once - len(running)]:
            waiting.remove(entry)
            running[submit(entry[1])] = entry[1]
        if running:
            done, _ = wait(running, timeout=_TICK_SECONDS, return_when=FIRST_COMPLETED)
        else:
            done = set()
            stop.wait(_TICK_SECONDS)
        for future in done:
            job, outcome = running.pop(future), _outcome(future, outcome_of_error)
            if outcome.state == "busy":  # another sweep is at it; the others first
                waiting.append((time.monotonic() + _BUSY_SECONDS, job))
            else:
                outcomes[job.cell.name] = outcome
        watch(outcomes)
    return outcomes


def _outcome(future: Future[Outcome], of_error: Callable[[BaseException], Outcome | None]) -> Outcome:
    """How a cell ended; an error in running it, such as a database that is out of reach, is the end of that cell."""
    try:
        return future.result()
    except (Exception, KeyboardInterrupt) as error:  # the latter is how a task of Ray is cancelled
        return of_error(error) or Outcome("died", " ".join(str(error).split())[:200] or type(error).__name__)
