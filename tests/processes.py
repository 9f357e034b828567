"""Processes of the command line that begin with all libraries loaded, which takes longer than most of them run.

Each is forked from a server that has loaded them and does nothing else, and runs ``python -m dsob_pl`` there: it has
its own id, environment, folder and pipe, takes signals and can be killed as any other process. What it shares with its
siblings is the order of sets of strings: where two runs have to agree, let one of them be a plain process.
"""

from __future__ import annotations

import concurrent.futures
import io
import multiprocessing
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parent
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["loaded"])


class Process:
    """As much of ``subprocess.Popen`` as tests need.

    Args:
        arguments: of ``python -m dsob_pl``.
        cwd: folder to run in.
        env: the whole environment.
        before: called in the process before anything else; a function of a module.
        apart: errors come out of ``stderr``, not with everything else out of ``stdout``.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        before: Callable[[], None] | None = None,
        apart: bool = False,
    ) -> None:
        _start_server()
        pipes = [_server.Pipe(duplex=False) for _ in range(2 if apart else 1)]
        writers = [writer for _, writer in pipes]
        self._process = _server.Process(target=_run, args=(list(arguments), cwd, dict(env), writers, before))
        self._process.daemon = True  # not to be waited for where a test fails
        self._process.start()
        files = []
        for reader, writer in pipes:
            writer.close()
            files.append(os.fdopen(os.dup(reader.fileno()), encoding="utf-8"))
            reader.close()
        self.stdout, self.stderr = (*files, None)[:2]
        self.args = arguments

    @property
    def pid(self) -> int:
        """Its id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, that of a signal negative; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Its exit code, if it has ended."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, when it has ended."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(list(self.args), timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Sends a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that it printed and nobody has read, when it has ended: to ``stdout`` and to ``stderr``."""
        files = [file for file in (self.stdout, self.stderr) if file is not None]
        with ThreadPoolExecutor(len(files)) as pool:
            reading = [pool.submit(file.read) for file in files]
            if concurrent.futures.wait(reading, timeout).not_done:
                self.kill()  # nothing that reads is left behind
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0)
        for file in files:
            file.close()
        self.wait(timeout)
        out, err = (*(read.result() for read in reading), "")[:2]
        return out, err


def _start_server() -> None:
    """Starts it, if it is not there yet, with the environment that all processes have in common."""
    from multiprocessing import forkserver

    before = dict(os.environ)
    own = {key: value for key, value in before.items() if not key.startswith(("MLFLOW", "SLURM"))}
    try:
        os.environ.clear()
        # It reads the path from here, not from sys.path.
        paths = f"{TESTS.parent}{os.pathsep}{TESTS}"
        os.environ.update(own | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"})
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run(
    arguments: list[str],
    cwd: Path,
    env: dict[str, str],
    out: list[Connection],
    before: Callable[[], None] | None,
) -> None:
    """``python -m dsob_pl`` in this process."""
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    for number, pipe in ((1, out[0]), (2, out[-1])):
        os.dup2(pipe.fileno(), number)
    for pipe in out:
        pipe.close()
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), encoding="utf-8")
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), encoding="utf-8", line_buffering=True)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:0] = [str(cwd), *env.get("PYTHONPATH", "").split(os.pathsep)]
    np.random.seed()  # noqa: NPY002  # as different as it is in any two processes; fork does so for ``random``
    sys.argv = ["dsob_pl", *arguments]
    if before is not None:
        before()
    code: object = 0
    try:
        runpy.run_module("dsob_pl", run_name="__main__", alter_sys=True)
    except SystemExit as leave:
        code = leave.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.exit(code)  # type: ignore[arg-type]
