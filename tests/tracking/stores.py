"""What goes wrong with MLflow's stores, done to real ones: a database locked or moved, a server killed."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from dsob_pl.tracking import MLflowLogger
from dsob_pl.tracking.store import mlflow_client

Points = list[tuple[int, float]]


def make(folder: Path, uri: str | None = None, **options: Any) -> MLflowLogger:
    """A logger that writes everything at once to the database in ``folder``."""
    uri = uri or f"sqlite:///{folder / 'mlflow.db'}"
    options = {"experiment_name": "e", "run_name": "r", "flush_seconds": 0.0} | options
    return MLflowLogger(tracking_uri=uri, artifact_location=str(folder / "mlruns"), **options)


def history(uri: str, run_id: str, key: str = "m") -> Points:
    """What stands in MLflow, in the order of steps."""
    return [(metric.step, metric.value) for metric in mlflow_client(uri).get_metric_history(run_id, key)]


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Another process writes to the database and does not finish."""
    with closing(sqlite3.connect(database, isolation_level=None, timeout=10.0)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def moved(database: Path) -> Iterator[None]:
    """The file is somewhere else."""
    elsewhere = database.with_name("elsewhere.db")
    database.rename(elsewhere)
    yield
    elsewhere.rename(database)


@contextmanager
def restored(database: Path) -> Iterator[None]:
    """The file is gone, and a copy of it comes back."""
    content = database.read_bytes()
    database.rename(database.with_name("old.db"))
    yield
    database.write_bytes(content)


@contextmanager
def read_only(database: Path) -> Iterator[None]:
    """SQLite itself refuses to write: the write version in the file's header is one that it does not know.

    Permissions would not do, since tests may be run by root.
    """

    def write_version(value: int) -> None:
        with database.open("r+b") as file:
            file.seek(18)
            file.write(bytes([value]))

    before = database.read_bytes()[18]
    write_version(3)
    yield
    write_version(before)


OUTAGES = {function.__name__: function for function in (locked, moved, restored, read_only)}


class Server:
    """A real ``mlflow server`` on a free port, with its database and artifacts in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers."""
        words = ["server", "--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}", "--port", str(self.port)]
        words += ["--artifacts-destination", str(self.folder / "server"), "--workers", "1", "--host", "127.0.0.1"]
        own = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
        own |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *words], stdout=log, stderr=log, env=own, start_new_session=True
            )
        end = time.monotonic() + 120
        while time.monotonic() < end and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError((self.folder / "server.log").read_text())

    def signal(self, number: int) -> None:
        """Sends a signal to it and to what it has started."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """Ends it as a machine that fails does."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
