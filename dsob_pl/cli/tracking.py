"""``tracking``: what puts MLflow's records right, where MLflow did not take them or the project has moved."""

from __future__ import annotations

from pathlib import Path

from dsob_pl.cli.options import Parser
from dsob_pl.errors import RunFailed, UsageError, nearest
from dsob_pl.tracking.delivery import Connection, StoreUnavailable, replay
from dsob_pl.tracking.journal import Journal, journals_under, read_header
from dsob_pl.tracking.moved import relocate
from dsob_pl.tracking.store import database_path, existing_client, reason_of, resolve_tracking_uri

_ACTIONS = ("replay", "relocate")


def parser() -> Parser:
    """The options of ``tracking``."""
    result = Parser(
        prog="python -m dsob_pl tracking",
        description="replay: writes the journals of a run, and of its seeds' runs, to MLflow, each point once; a "
        "journal that is written is removed. May be cut off and called again. relocate: has MLflow's database name the "
        "folder of artifacts, where the project was moved or copied.",
        allow_abbrev=False,
    )
    result.add_argument("action", metavar="ACTION", help=" or ".join(_ACTIONS))
    which = "of replay: the run's, such as mlruns/EXPERIMENT/RUN_ID; of relocate: that of all artifacts, mlruns"
    result.add_argument("folder", metavar="FOLDER", help=which)
    result.add_argument("--tracking_uri", metavar="URI", help="the store (replay: that of the journal; else mlflow.db)")
    return result


def tracking(arguments: list[str]) -> int:
    """Runs the subcommand and returns its exit code.

    Raises:
        UsageError: bad options, no such folder, a file that is no journal, or a store that is not there.
        RunFailed: the store does not take what it is given; what is left stays in the journal.
    """
    options = parser().read(arguments)
    if options is None:
        return 0
    if options.action not in _ACTIONS:
        hint = nearest(options.action, _ACTIONS)
        raise UsageError(f"tracking: unknown action '{options.action}'{hint}; expected {' or '.join(_ACTIONS)}")
    if options.action == "relocate":
        print(_relocate(Path(options.folder), options.tracking_uri))
        return 0
    paths = journals_under(Path(options.folder))
    if not paths:
        print(f"there is no journal in '{options.folder}': all of the run is in MLflow")
    for path in paths:
        print(_replay(path, options.tracking_uri))
    return 0


def _relocate(folder: Path, tracking_uri: str | None) -> str:
    """Has the database name a folder of artifacts; what was done, in a line."""
    uri = resolve_tracking_uri(tracking_uri)
    if not folder.is_dir():
        raise UsageError(f"tracking: there is no folder '{folder}'; expected that of all artifacts, such as mlruns")
    if database_path(uri) is None:
        raise UsageError(f"tracking: relocate changes an sqlite database, got '{uri}'")
    existing_client(uri, write=True)
    done = relocate(uri, folder.absolute())
    if done is None:
        return f"'{database_path(uri)}' names no other folder for the runs in '{folder}'"
    return f"{done[1]} runs that were in '{done[0]}' are in '{folder.absolute()}' now"


def _replay(path: Path, tracking_uri: str | None) -> str:
    """Writes one journal and removes it; what was done, in a line."""
    from mlflow.exceptions import MlflowException

    header = read_header(path)
    uri = resolve_tracking_uri(tracking_uri or header.tracking_uri)
    client = existing_client(uri, write=True)
    journal = Journal(path, header)
    journal.open()
    try:
        with Connection(uri, wait=0.0).attempt(client):
            kept, written = journal.metrics, replay(client, header.run_id, path)
            journal.remove()
    except StoreUnavailable as error:
        if isinstance(error.__cause__, MlflowException) and error.__cause__.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise UsageError(f"journal '{path}': there is no run '{header.run_id}' in '{uri}'") from error
        raise RunFailed(f"'{uri}' did not take the journal '{path}': {reason_of(error)}") from error
    finally:
        journal.close()
    there = f", {kept - written:,} were there already" if kept > written else ""
    return f"run {header.run_id}: {written:,} metrics written{there}"
