"""Cells as tasks of a Ray cluster; where there is none, of a Ray on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import Future
from importlib.util import find_spec
from threading import Event
from typing import Any

from dsob_pl.errors import UsageError
from dsob_pl.experiments.schedule import Watch, run_jobs
from dsob_pl.experiments.worker import Job, Outcome, run_cell


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
    references: list[Any] = []

    def submit(job: Job) -> Future[Outcome]:
        references.append(task.remote(job, wait=False))
        future: Future[Outcome] = references[-1].future()
        return future

    def cancel() -> None:
        for reference in references:  # raises KeyboardInterrupt in those that run, which end their process politely
            ray.cancel(reference, force=False)

    def outcome(error: BaseException) -> Outcome | None:
        stopped = isinstance(error, KeyboardInterrupt | ray.exceptions.TaskCancelledError)
        return Outcome("stopped", ran=True) if stopped or "KeyboardInterrupt" in str(error) else None

    # Ray itself starts as many as there are free CPUs.
    return run_jobs(jobs, stop, watch, submit, len(jobs), cancel, outcome)
