"""Cells as tasks of a Ray cluster; where there is none, of a Ray on this machine."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any

from dsob_pl.errors import UsageError
from dsob_pl.experiments.schedule import Watch, run_jobs
from dsob_pl.experiments.worker import Job, Outcome, run_cell

_POLL_SECONDS = 0.2


def check_ray() -> None:
    """Raises UsageError where Ray is not installed."""
    if find_spec("ray") is None:
        raise UsageError("sweep: on: 'ray' needs Ray; install it with pip install 'dsob_pl[sweep]'")


def run_ray(
    threads: int, jobs: Sequence[Job], stop: Event, watch: Watch, begin: Callable[[], None] = lambda: None
) -> dict[str, Outcome]:
    """Runs ``jobs`` as Ray tasks, as many at a time as there are free CPUs; how each cell ended, by its name.

    The cluster is that of RAY_ADDRESS, or one that runs on this machine, or a new one for the time of the sweep. All
    of its machines need this package, the folder of the sweep and the MLflow store in the same places.

    Args:
        threads: CPUs that each cell asks for.
        jobs: the cells.
        stop: cancels them politely when it is set: those that are running save their checkpoint.
        watch: called twice a second with the outcomes so far.
        begin: called when the cluster is there and large enough, before anything is started.

    Raises:
        UsageError: Ray is not installed, cannot be reached, or has no machine with so many CPUs.
    """
    check_ray()
    if not jobs:
        return {}
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a research run does not phone home
    os.environ.setdefault("RAY_worker_niceness", "0")  # by default the training would yield to everything else
    ours = not ray.is_initialized()
    try:
        if ours:
            with _handler_kept(signal.SIGTERM):
                ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"sweep: on: cannot reach Ray: {' '.join(str(error).split())[:200]}") from error
    try:
        most = max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=0)
        if threads > most:
            raise UsageError(
                f"sweep: threads: no machine of the Ray cluster has {threads} CPUs; the largest has {most}"
            )
        begin()
        return _run(ray, threads, jobs, stop, watch)
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def _handler_kept(number: int) -> Iterator[None]:
    """What a signal does is afterwards what it was: Ray's own handler would end a sweep at once."""
    handler = signal.getsignal(number)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(number, handler)


class StopFile:
    """An event that is set in all processes that see a folder: the file is there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def set(self) -> None:
        """Sets it for good."""
        self.path.touch()

    def is_set(self) -> bool:
        """Whether the file is there."""
        return self.path.exists()

    def wait(self, timeout: float) -> bool:
        """Waits so many seconds at most until it is set; whether it is."""
        end = time.monotonic() + timeout
        while not self.is_set() and time.monotonic() < end:
            time.sleep(min(_POLL_SECONDS, max(end - time.monotonic(), 0)))
        return self.is_set()


def _run(ray: Any, threads: int, jobs: Sequence[Job], stop: Event, watch: Watch) -> dict[str, Outcome]:
    task = ray.remote(num_cpus=threads, max_retries=0)(run_cell)
    told = StopFile(jobs[0].folder / f"stop-{uuid.uuid4().hex}")
    references: list[Any] = []

    def submit(job: Job) -> Future[Outcome]:
        references.append(task.remote(job, told, wait=False))
        future: Future[Outcome] = references[-1].future()
        return future

    def cancel() -> None:
        # The KeyboardInterrupt by which Ray cancels what runs can get lost in whatever Python is at; the file cannot.
        told.path.parent.mkdir(parents=True, exist_ok=True)
        told.set()
        for reference in references:
            ray.cancel(reference, force=False)

    def outcome(error: BaseException) -> Outcome | None:
        stopped = isinstance(error, KeyboardInterrupt | ray.exceptions.TaskCancelledError)
        return Outcome("stopped", ran=True) if stopped or "KeyboardInterrupt" in str(error) else None

    try:
        # Ray itself starts as many as there are free CPUs.
        return run_jobs(jobs, stop, watch, submit, len(jobs), cancel, outcome)
    finally:
        told.path.unlink(missing_ok=True)
