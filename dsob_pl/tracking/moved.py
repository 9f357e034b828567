"""A project's folder that was moved or copied: MLflow's database still names the artifacts by where they were."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from dsob_pl.errors import UsageError
from dsob_pl.tracking.store import CHECKPOINTS_TAG, database_path, local_path

_COLUMNS = (
    ("experiments", "artifact_location", "experiment_id"),
    ("runs", "artifact_uri", "run_uuid"),
    ("tags", "value", "rowid"),
)


def check_not_moved(tracking_uri: str, artifacts: Path) -> None:
    """Raises UsageError where runs that lie in ``artifacts`` are, to the database, in another folder.

    A run that goes on would be written to that folder, which in the case of a copy is the original's. Reads only.

    Args:
        tracking_uri: of the store; one that is not an sqlite database is not looked at.
        artifacts: the folder of artifacts that is in use, such as mlruns.
    """
    old = moved_from(tracking_uri, artifacts)
    if old is not None:
        database = database_path(tracking_uri)
        raise UsageError(
            f"the project was moved or copied: '{database}' has its artifacts in '{old}'; python -m dsob_pl tracking "
            f"relocate {artifacts.name} has it name '{artifacts}'"
        )


def moved_from(tracking_uri: str, artifacts: Path) -> Path | None:
    """The folder in which the database has runs that lie in ``artifacts``; None where that is the same folder."""
    database = database_path(tracking_uri)
    if database is None or not database.is_file():
        return None
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            query = "select artifact_location, run_uuid from experiments join runs using (experiment_id)"
            found = connection.execute(query).fetchall()
    except sqlite3.Error:  # not MLflow's, or locked: whoever writes to it will say so
        return None
    runs: dict[Path, list[str]] = {}
    for location, run in found:
        if (place := local_path(location or "")) is not None:
            runs.setdefault(place, []).append(run)
    for place, names in runs.items():
        elsewhere = place.parent.name == artifacts.name and place.parent.resolve() != artifacts.resolve()
        if elsewhere and any((artifacts / place.name / run).is_dir() for run in names):
            return place.parent
    return None


def relocate(tracking_uri: str, artifacts: Path) -> tuple[Path, int] | None:
    """Has the database name ``artifacts`` in place of the folder that they were in, all of it or nothing.

    That is of experiments, of runs, and of folders beside them that have come along, such as a checkpoint.dirpath.

    Returns:
        The folder that they were in and the number of runs; None where there is nothing to change.

    Raises:
        UsageError: the database cannot be written to.
    """
    old, database = moved_from(tracking_uri, artifacts), database_path(tracking_uri)
    if old is None or database is None:
        return None
    count = 0
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True)) as connection, connection:
            for table, column, key in _COLUMNS:
                only = f" where key = '{CHECKPOINTS_TAG}'" if table == "tags" else ""
                for name, value in connection.execute(f"select {key}, {column} from {table}{only}").fetchall():
                    new = _moved(value, old, artifacts)
                    if new is not None:
                        connection.execute(f"update {table} set {column} = ? where {key} = ?", [str(new), name])
                        count += table == "runs"
    except sqlite3.Error as error:
        raise UsageError(f"the database '{database}' cannot be written to ({error}); nothing was changed") from error
    return old, count


def _moved(value: str | None, old: Path, new: Path) -> Path | None:
    """Where it is now; None where it was neither among the artifacts nor, come along with them, beside them."""
    place = local_path(value or "")
    if place is None or not place.is_relative_to(old.parent):
        return None
    if place.is_relative_to(old):
        return new / place.relative_to(old)
    beside = new.parent / place.relative_to(old.parent)
    return beside if beside.is_dir() else None
