"""Runs one cell in a process of ``fit``: never twice at once, from where it was cut off, again where it died."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Literal, Protocol

from dsob_pl.experiments.record import CellRun, cell_runs, failed_seeds, mark_failed, seeds_left, supersede
from dsob_pl.experiments.suite import Cell
from dsob_pl.files import hold_folder
from dsob_pl.seeds import compact_seeds

MARK = "=== "  # of the lines that a worker adds to the log of a cell
ATTEMPTS = 2
_POLL_SECONDS = 0.2
_LOCK_SECONDS = 2.0
_END_SECONDS = 60.0  # for the step it is at and the checkpoint
_BEGUN = (" started", " gone on with")  # how the mark of an attempt ends
# The latter of a run that somebody else has told to end. Whatever else the command line says is advice.
_ERROR = re.compile(r"dsob_pl: (?:error: |(?=(?:interrupted|terminated|hung up|stopped); ))(.*)")
_TRACEBACK = "Traceback (most recent call last):"
_LONGEST_END = 1 << 16  # of a log, in which a traceback has room

State = Literal["finished", "failed", "died", "stopped", "busy", "submitted"]


class Stop(Protocol):
    """A ``threading.Event`` or what does as one."""

    def is_set(self) -> bool:
        """Whether what runs is to end."""
        ...

    def wait(self, timeout: float) -> bool:
        """Waits so many seconds at most until it is set; whether it is."""
        ...


@dataclass(frozen=True)
class Job:
    """A cell and where it is to be run; can be sent to another process.

    Attributes:
        cell: the cell.
        parent: id of the suite's run.
        tracking_uri: MLflow's.
        folder: of logs and locks.
        directory: to run in, which relative paths start from.
        threads: of the process.
    """

    cell: Cell
    parent: str
    tracking_uri: str
    folder: Path
    directory: Path
    threads: int = 1

    @property
    def log(self) -> Path:
        """What its processes print."""
        return self.folder / f"{self.cell.name.replace('/', ',')}.log"

    @property
    def lock(self) -> Path:
        """Locked by whoever runs the cell."""
        return self.log.with_suffix(".lock")


@dataclass(frozen=True)
class Outcome:
    """How a cell ended.

    Attributes:
        state: finished; failed, and would again; died more often than it is tried; stopped with the sweep; busy: it
            is being run by somebody else; submitted to a queue.
        detail: in a few words, such as the seeds that failed.
        ran: whether anything was started.
    """

    state: State
    detail: str = ""
    ran: bool = False


def run_cell(job: Job, stop: Stop | None = None, wait: bool = True) -> Outcome:
    """Trains what is left of a cell.

    Its lock is inherited by the process that trains and lives as long as that does, whatever becomes of this one.

    Args:
        job: the cell.
        stop: ends the process politely when it is set: it saves its checkpoint.
        wait: until the cell is free; else a cell that is run by somebody else is busy.
    """
    stop = stop or Event()
    while True:
        with locked(job) as lock:
            outcome = _run(job, lock, stop) if lock else Outcome("busy")
        if outcome.state != "busy":
            return outcome
        if not wait:
            return outcome
        if stop.wait(_LOCK_SECONDS):
            return Outcome("stopped")


@contextmanager
def locked(job: Job) -> Iterator[int | None]:
    """The file descriptor of the cell's lock, held until the end; None where somebody else holds it.

    Processes that inherit the descriptor go on holding the lock.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    with job.lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield file.fileno()


def outcome_of_ended(cell: Cell, runs: list[CellRun], ran: bool = False) -> Outcome:
    """How a cell ended of which nothing is left to be done."""
    failed = failed_seeds(cell, runs)
    detail = f"seeds {compact_seeds(failed)} failed" if failed else ""
    return Outcome("failed" if len(failed) == len(cell.seeds) else "finished", detail, ran)


def _run(job: Job, lock: int, stop: Stop) -> Outcome:
    from dsob_pl.tracking.store import mlflow_client

    client = mlflow_client(job.tracking_uri)
    deaths = 0
    ran = False
    unusable: set[str] = set()  # runs whose checkpoints cannot be gone on from
    while True:
        runs = cell_runs(client, job.cell.suite, job.cell.name).get(job.cell.name, [])
        left = seeds_left(job.cell, runs)
        if not left:
            outcome = outcome_of_ended(job.cell, runs, ran)
            why = last_error(job.log) if outcome.state == "failed" else ""
            return replace(outcome, detail=f"{outcome.detail}: {why}") if why else outcome
        if stop.is_set():
            return Outcome("stopped", ran=ran)
        try:
            cut_off, given_up = _to_go_on_with(job, runs, left, unusable)
        except _StillTrained:
            return Outcome("busy", ran=ran)
        if cut_off is None:
            arguments = job.cell.arguments(left, job.parent)
        else:
            run, checkpoint = cut_off
            arguments = job.cell.arguments(run.seeds, job.parent, run.run_id, checkpoint)
        ran = True
        code = _train(job, arguments, lock, stop)
        if code != 2:  # else nothing has begun, and what was cut off may yet be of use
            for old in given_up:
                supersede(client, old)
        if stop.is_set() and code != 0:
            return Outcome("stopped", ran=ran)
        before = {run.run_id for run in runs} - ({cut_off[0].run_id} if cut_off else set())
        runs = cell_runs(client, job.cell.suite, job.cell.name).get(job.cell.name, [])
        if code == 3:  # all of its seeds, by themselves; where others finished, so did the run
            for run in runs:
                if run.status == "FAILED" and run.run_id not in before:
                    mark_failed(client, run)
                    run.failed = True
        if seeds_left(job.cell, runs) != left:
            continue
        if code == 0:
            return Outcome("failed", f"MLflow at {job.tracking_uri} has no finished run of it", ran)
        if code == 2:
            if cut_off is None:
                return Outcome("failed", last_error(job.log), ran)
            unusable.add(cut_off[0].run_id)
            continue
        deaths += 1
        if deaths >= ATTEMPTS:
            why = last_error(job.log, killed=code < 0)
            return Outcome("died", f"{_ending(code)}: {why}" if why else _ending(code), ran)


class _StillTrained(Exception):
    """A run of the cell that somebody goes on with by hand."""


def _to_go_on_with(
    job: Job, runs: list[CellRun], left: list[int], unusable: set[str]
) -> tuple[tuple[CellRun, str] | None, list[CellRun]]:
    """The latest run of seeds that are left and its checkpoint, and those that are given up when it goes on.

    Those are runs of the same seeds. Others are left alone: they are gone on with later, or by a sweep of their seeds.

    Raises:
        _StillTrained: another process trains some of these seeds.
    """
    found = None
    cut_off = [run for run in reversed(runs) if not run.ended and set(run.seeds) & set(left)]
    for run in cut_off:
        if is_trained(job, run):
            raise _StillTrained
        folder = _artifacts(job, run)
        if folder is None:
            continue
        checkpoint = folder / "checkpoints" / "last.ckpt"
        if found is None and run.run_id not in unusable and checkpoint.is_file():
            found = run, str(checkpoint)
    seeds = set(left if found is None else found[0].seeds)
    return found, [run for run in cut_off if set(run.seeds) & seeds and (found is None or run is not found[0])]


def is_trained(job: Job, run: CellRun) -> bool:
    """Whether a process trains a run of the cell at this moment, as far as this machine can tell."""
    folder = _artifacts(job, run)
    if folder is None:
        return False
    hold = hold_folder(folder)
    if hold is None:
        return True
    hold.release()
    return False


def _artifacts(job: Job, run: CellRun) -> Path | None:
    """The folder that a run of the cell writes its artifacts to, if it is there."""
    from dsob_pl.tracking.store import ARTIFACT_LOCATION, artifact_folder

    folder = artifact_folder(run.run_id, run.folder, job.directory / ARTIFACT_LOCATION)
    return folder if folder is not None and folder.is_dir() else None


def _train(job: Job, arguments: list[str], lock: int, stop: Stop) -> int:
    """Exit code of ``fit``; that of a signal is negative."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads)}
    environment["MLFLOW_TRACKING_URI"] = job.tracking_uri
    with job.log.open("a", encoding="utf-8") as log:
        how = "gone on with" if any(word.startswith("--ckpt_path") for word in arguments) else "started"
        log.write(f"{MARK}{time.strftime('%Y-%m-%d %H:%M:%S')} {job.cell.name} {how}\n")
        log.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "dsob_pl", *arguments],
            cwd=job.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[lock],
            process_group=0,  # a Ctrl-C is the sweep's, which asks for the checkpoint to be saved
        )
        try:
            while True:
                try:
                    code = process.wait(_POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    if stop.is_set():
                        code = _end(process)
                        break
        except BaseException:  # such as the KeyboardInterrupt by which Ray cancels a task
            _end(process)
            raise
        log.write(f"{MARK}{time.strftime('%Y-%m-%d %H:%M:%S')} {_ending(code)}\n")
    return code


def _end(process: subprocess.Popen[bytes]) -> int:
    """Ends ``fit`` as politely as it allows; its exit code."""
    process.terminate()
    try:
        return process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _ending(code: int) -> str:
    return f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"


def last_error(log: Path, killed: bool = False) -> str:
    """What the last attempt at a cell complained about, in one line; "" where it said nothing.

    Args:
        log: of the cell.
        killed: it was ended by a signal, which what it printed last has nothing to do with.
    """
    lines = tail(log, _LONGEST_END)
    begun = [i for i, line in enumerate(lines) if line.startswith(MARK) and line.endswith(_BEGUN)]
    lines = lines[begun[-1] + 1 :] if begun else lines
    lines = [line for line in lines if line.strip() and not line.startswith(MARK)]
    for line in reversed(lines):
        match = _ERROR.match(line)
        if match:
            return match[1]
    if killed or not lines:
        return ""
    raised = lines[max(i for i, line in enumerate(lines) if line == _TRACEBACK) + 1 :] if _TRACEBACK in lines else []
    # Behind its frames; more may follow, such as what multiprocessing finds left over.
    return next((line for line in raised if not line[0].isspace()), lines[-1]).strip()[:200]


def tail(path: Path, characters: int = 4000) -> list[str]:
    """The last lines of a text file; none where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - characters))
            return file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
