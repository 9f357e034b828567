"""What goes wrong with MLflow's databases, done to real ones: locked, moved, restored, read-only."""

from __future__ import annotations

import sqlite3
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
