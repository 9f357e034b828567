"""Cells as tasks of a Ray cluster; where there is none, of a Ray on this machine."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from importlib.util import find_spec
from threading import Event
from typing import Any

from dsob_pl.errors import UsageError
from dsob_pl.experiments.local import Watch
from dsob_pl.experiments.worker import Job, Outcome, run_cell

_TICK_SECONDS = 0.5
_BUSY_SECONDS = 5.0


def check_ray() -> None:
    """Raises UsageError where Ray is not installed."""
    if find_spec("ray") is None:
        raise UsageError("sweep: on: 'ray' needs Ray; install it with pip install 'dsob_pl[sweep]'")


def run_ray(threads: int, jobs: Sequence[Job], stop: Event, watch: Watch) -> dict[str, Outcome]:
    """Runs ``jobs`` as Ray tasks, as many at a time as there are free CPUs; how each cell ended, by its name.

    The cluster is that of RAY_ADDRESS, or one that runs on this machine, or a new one for the time of the sweep. All
    of its machines need this package, the folder of the sweep and the MLflow store in the same places.

    Args:
        threads: CPUs that each cell asks for.
        jobs: the cells.
        stop: cancels them politely when it is set: those that are running save their checkpoint.
        watch: called twice a second with the outcomes so far.

    Raises:
        UsageError: Ray is not installed, cannot be reached, or has no machine with so many CPUs.
    """
    check_ray()
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a research run does not phone home
    os.environ.setdefault("RAY_worker_niceness", "0")  # by default the training would yield to everything else
    ours = not ray.is_initialized()
    try:
        if ours:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"sweep: on: cannot reach Ray: {' '.join(str(error).split())[:200]}") from error
    try:
        most = max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=0)
        if threads > most:
            raise UsageError(
                f"sweep: threads: no machine of the Ray cluster has {threads} CPUs; the largest has {most}"
            )
        return _run(ray, ray.remote(num_cpus=threads, max_retries=0)(run_cell), jobs, stop, watch)
    finally:
        if ours:
            ray.shutdown()


def _run(ray: Any, task: Any, jobs: Sequence[Job], stop: Event, watch: Watch) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    waiting = [(0.0, job) for job in jobs]  # with the time before which it is not to be tried again
    running: dict[Any, Job] = {}
    cancelled = False
    while running or (waiting and not stop.is_set()):
        now = time.monotonic()
        for entry in [] if stop.is_set() else [entry for entry in waiting if entry[0] <= now]:
            waiting.remove(entry)
            running[task.remote(entry[1], wait=False)] = entry[1]
        if stop.is_set() and not cancelled:
            cancelled = True
            for reference in running:
                ray.cancel(reference, force=False)  # raises KeyboardInterrupt in it, which ends its process politely
        done, _ = ray.wait(list(running), timeout=_TICK_SECONDS) if running else ([], None)
        if not running:
            stop.wait(_TICK_SECONDS)
        for reference in done:
            job, outcome = running.pop(reference), _outcome(ray, reference)
            if outcome.state == "busy":  # another sweep is at it; the others first
                waiting.append((time.monotonic() + _BUSY_SECONDS, job))
            else:
                outcomes[job.cell.name] = outcome
        watch(outcomes)
    return outcomes


def _outcome(ray: Any, reference: Any) -> Outcome:
    """How a cell ended; an error of Ray, such as a machine that is gone, is the end of that cell."""
    try:
        outcome: Outcome = ray.get(reference)
        return outcome
    except (ray.exceptions.TaskCancelledError, KeyboardInterrupt):
        return Outcome("stopped", ran=True)
    except ray.exceptions.RayError as error:
        if "KeyboardInterrupt" in str(error):
            return Outcome("stopped", ran=True)
        return Outcome("died", " ".join(str(error).split())[-200:])
