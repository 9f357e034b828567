"""New MLflow databases as copies of one. MLflow makes each by some seventy migrations, which take longer than a run."""

from __future__ import annotations

import sqlite3
import sys
from typing import Any

_made: list[bytes] = []  # what MLflow made, in the first database of this process


def copy_new_databases() -> None:
    """From now on MLflow makes one database by itself, and every later one of this process is a copy of that.

    Does nothing before MLflow is loaded: the tests that do without it should not wait for it.
    """
    utils = sys.modules.get("mlflow.store.db.utils")
    make = getattr(utils, "_initialize_tables", None)
    if make is None or hasattr(make, "makes_copies"):
        return

    def initialize(engine: Any) -> None:
        if engine.dialect.name != "sqlite" or not _copied_into(engine):
            make(engine)
            if engine.dialect.name == "sqlite" and not _made:
                connection = engine.raw_connection()
                _made.append(connection.driver_connection.serialize())
                connection.close()

    initialize.makes_copies = True  # type: ignore[attr-defined]
    utils._initialize_tables = initialize  # type: ignore[union-attr]


def _copied_into(engine: Any) -> bool:
    """Whether it could be: into an empty one that can be written; what MLflow says of any other is MLflow's to say."""
    if not _made:
        return False
    connection = engine.raw_connection()
    template = sqlite3.connect(":memory:")
    try:
        template.deserialize(_made[0])
        if connection.driver_connection.execute("select count(*) from sqlite_master").fetchone() != (0,):
            return False
        template.backup(connection.driver_connection)
    except sqlite3.Error:
        return False
    finally:
        template.close()
        connection.close()
    return True
