"""Access to MLflow's store: the tracking uri, the client, and local artifact folders."""

from __future__ import annotations

import logging
import os
import posixpath
import re
import sqlite3
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from dsob_pl.errors import UsageError
from dsob_pl.tracking.journal import UPLOADS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"
ARTIFACT_LOCATION = "mlruns"  # folder of the artifacts of local runs, below the current one
# Of the run that another lies under, and of a run that was given up: whatever reads runs leaves it out.
PARENT_TAG, SUPERSEDED_TAG = "mlflow.parentRunId", "superseded"
KEY_LENGTH = 250  # what the columns of names hold in every MLflow from 2 on
FAILED_TAG = "failed"  # of a run that failed by itself, and would again
CHECKPOINTS_TAG = "dsob_pl.checkpoints"  # folder of a run's checkpoints, where that is not among its artifacts
PAUSED_TAG = "paused_seconds"  # of a run that was gone on with, all its pauses together
_SQLITE = "sqlite:///"
MLFLOW_TABLES = {"experiments", "runs", "metrics"}  # some of them
_PER_PAGE = 1000
_SECONDS_TO_ANSWER = 10


def resolve_tracking_uri(tracking_uri: str | None) -> str:
    """``tracking_uri``, else MLFLOW_TRACKING_URI, else sqlite:///mlflow.db; sqlite paths made absolute.

    Raises:
        UsageError: such a path has a question mark or a code such as %20, of which MLflow would make another path.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_TRACKING_URI
    if not uri.startswith(_SQLITE):
        return uri
    path = os.path.abspath(uri.removeprefix(_SQLITE))
    if "?" in path or unquote(path) != path:
        reason = "MLflow takes no database with a question mark or a code such as %20 in its path"
        raise UsageError(f"{reason}: '{path}'; use another folder")
    return _SQLITE + path


def database_path(tracking_uri: str) -> Path | None:
    """The file of an sqlite database; None for any other store."""
    return Path(tracking_uri.removeprefix(_SQLITE)) if tracking_uri.startswith(_SQLITE) else None


@contextmanager
def creation_lock(tracking_uri: str) -> Iterator[None]:
    """Held by the one process that creates database, experiment or run; MLflow itself fails where two do so at once."""
    path = database_path(tracking_uri)
    if path is None:
        yield
        return
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        yield


def mlflow_client(tracking_uri: str) -> MlflowClient:
    """A client, its database created where it is not there yet; MLflow's own chatter and telemetry are off.

    Raises:
        UsageError: MLflow refuses the uri, the database cannot be opened, or its driver is not installed.
    """
    # Read when mlflow is imported: a research run does not phone home.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It prints a traceback for each error of a database, which is raised all the same.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    try:
        return mlflow.MlflowClient(tracking_uri)
    except ModuleNotFoundError as error:
        raise UsageError(f"the tracking uri '{tracking_uri}' needs a package that is missing: {error.name}") from error
    except (MlflowException, SQLAlchemyError) as error:
        raise UsageError(f"MLflow cannot use the tracking uri '{tracking_uri}': {reason_of(error)}") from error


def existing_client(tracking_uri: str, write: bool = False) -> MlflowClient:
    """A client of a store that is there; never creates a database.

    Args:
        tracking_uri: of the store.
        write: whether it must take what it is given.

    Raises:
        UsageError: there is no such database, it is not MLflow's or, with ``write``, nothing can be written to it.
    """
    path = database_path(tracking_uri)
    if path is None and "://" not in tracking_uri:
        raise UsageError(f"tracking_uri: expected a uri such as sqlite:///mlflow.db, got '{tracking_uri}'")
    if path is not None:
        if not path.is_file():
            raise UsageError(
                f"there is no MLflow database '{path}'; run from the project's folder or use --tracking_uri"
            )
        if not (tables_of(path) or set()) >= MLFLOW_TABLES:  # MLflow would make its tables in it
            raise UsageError(f"'{path}' is not a database of MLflow")
        problem = database_problem(path) if write else None
        if problem is not None:
            raise UsageError(problem)
    return mlflow_client(tracking_uri)


@contextmanager
def reading(tracking_uri: str) -> Iterator[MlflowClient]:
    """A client of a store that is there, to read from; creates nothing, and does not wait minutes for a server.

    Raises:
        UsageError: there is no such store, it is not MLflow's, or does not answer.
    """
    client = existing_client(tracking_uri)
    from mlflow.exceptions import MlflowException

    try:
        with http_limits(_SECONDS_TO_ANSWER, retries=1):
            yield client
    except MlflowException as error:
        raise UsageError(f"MLflow '{tracking_uri}' cannot be read: {reason_of(error)}") from error


def database_problem(path: Path, wait: float = 2.0) -> str | None:
    """Why an sqlite database cannot be written to; None where it can. Writes nothing and creates nothing.

    Args:
        path: its file.
        wait: seconds within which whoever has locked it may finish.
    """
    if not path.is_file():
        return f"the database '{path}' is gone"
    try:
        # A connection of its own: one that is open already goes on with a file that was moved, deleted or protected.
        uri = f"{path.absolute().as_uri()}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, timeout=wait, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
    except sqlite3.Error as error:
        return f"the database '{path}' cannot be written to ({error})"
    return None


def tables_of(path: Path) -> set[str] | None:
    """Names of the tables of an sqlite database; None where it cannot be read."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            return {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
    except sqlite3.DatabaseError:
        return None


_limited: set[str] = set()  # variables that are set by http_limits, and not by the user


@contextmanager
def http_limits(seconds: int, retries: int) -> Iterator[None]:
    """While it lasts, a server that hangs or is gone costs ``seconds`` for each of 1 + ``retries`` attempts.

    MLflow's own limits are minutes, in which training would stand still. What the user has set stays.
    """
    limits = {"MLFLOW_HTTP_REQUEST_TIMEOUT": seconds, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": retries}
    names = [name for name in limits if name not in os.environ or name in _limited]
    before = {name: os.environ.get(name) for name in names}
    new = set(names) - _limited
    _limited.update(new)
    os.environ.update({name: str(limits[name]) for name in names})
    try:
        yield
    finally:
        _limited.difference_update(new)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def reason_of(error: BaseException) -> str:
    """What MLflow, the database or the network said, in one line without SQL."""
    text = re.split(r"\[SQL:|\(Background on this", " ".join(str(error).split()))[0].strip()
    text = re.sub(r"^API request to (\S+) failed with exception .*", r"no answer from \1", text)
    return text[:200] or type(error).__name__


def valid_key(name: str) -> str:
    """The name of a metric or a parameter with what MLflow refuses replaced: ``CVaR(0.1)`` is ``CVaR_0.1_``."""
    plain = posixpath.normpath(re.sub(r"[^\w.\- :/]", "_", name[:KEY_LENGTH]))  # a path without detours
    plain = plain.lstrip("./") if plain.startswith(("..", "/")) else plain
    return "_" if plain in ("", ".") else plain


def experiment_id(client: MlflowClient, tracking_uri: str, name: str, artifact_location: Path) -> str:
    """Id of the experiment ``name``, made where there is none; to be called under ``creation_lock``.

    Args:
        client: of MLflow.
        tracking_uri: of the store.
        name: of the experiment.
        artifact_location: in a folder of which a local store keeps the artifacts of a new experiment.

    Raises:
        UsageError: the experiment is deleted.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        raise UsageError(f"trainer.logger.experiment_name: '{name}' is deleted in MLflow; restore or rename it")
    if experiment is not None:
        return str(experiment.experiment_id)
    local = database_path(tracking_uri) is not None
    # One folder below the location, whatever the name: neither a path nor the folder above, and not too long.
    folder = re.sub(r"[^\w.-]+|^\.+$", "_", name)
    if len(folder.encode()) > 200:
        folder = f"{folder[:40]}_{zlib.crc32(name.encode()):08x}"
    return str(client.create_experiment(name, artifact_location=str(artifact_location / folder) if local else None))


def all_runs(client: MlflowClient, experiments: Sequence[str], condition: str = "") -> list[Run]:
    """All runs of the experiments with these ids, in pages as long as MLflow gives them.

    Args:
        client: of MLflow.
        experiments: their ids.
        condition: of MLflow's search, such as "tags.kind = 'suite'".
    """
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs(list(experiments), condition, max_results=_PER_PAGE, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def check_writable(folder: Path) -> None:
    """Raises UsageError where no file can be written in ``folder``, or in the parent it would be made in."""
    while not folder.exists() and folder != folder.parent:
        if folder.is_symlink():  # such as one to a disk that is not mounted
            raise UsageError(f"the folder '{folder}' is a link to '{os.readlink(folder)}', which is not there")
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(
            f"cannot write to the folder '{folder}' ({reason}); start the run in a writable one"
        ) from error


def checkpoint_folder(run: Run, artifact_location: Path) -> Path | None:
    """Where the checkpoints of a run are; None where its artifacts are not on this machine.

    Args:
        run: the run.
        artifact_location: see ``artifact_folder``.
    """
    if CHECKPOINTS_TAG in run.data.tags:
        return Path(run.data.tags[CHECKPOINTS_TAG])
    folder = artifact_folder(run.info.run_id, run.info.artifact_uri, artifact_location)
    return None if folder is None else folder / "checkpoints"


def artifact_folder(run_id: str, artifact_uri: str, artifact_location: Path) -> Path | None:
    """Where a run writes its artifacts; None where that is not on this machine.

    Those that a server keeps are written here first, and stay: what the run goes on from is uploaded at its end only.

    Args:
        run_id: of the run.
        artifact_uri: of its artifacts, as MLflow has it.
        artifact_location: folder of the artifacts of local runs, such as mlruns.
    """
    folder = local_path(artifact_uri)
    if folder is not None:
        return folder
    uploads = artifact_location / UPLOADS / run_id
    return uploads if uploads.is_dir() else None


def local_path(artifact_uri: str) -> Path | None:
    """The folder behind a local artifact uri; None for a remote one."""
    parts = urlparse(artifact_uri)
    if parts.scheme not in ("", "file"):
        return None
    return Path(unquote(parts.path) if parts.scheme else artifact_uri)
