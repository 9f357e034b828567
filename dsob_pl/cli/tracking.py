"""``tracking replay``: writes to MLflow what a run has kept in its journal while MLflow did not take it."""

from __future__ import annotations

from pathlib import Path

from dsob_pl.cli.options import Parser
from dsob_pl.errors import RunFailed, UsageError, nearest
from dsob_pl.tracking.delivery import Connection, StoreUnavailable, replay
from dsob_pl.tracking.journal import Journal, journals_under, read_header
from dsob_pl.tracking.store import existing_client, reason_of, resolve_tracking_uri

_ACTIONS = ("replay",)


def parser() -> Parser:
    """The options of ``tracking``."""
    result = Parser(
        prog="python -m dsob_pl tracking",
        description="replay: writes the journals of a run, and of its seeds' runs, to MLflow, each point once; a "
        "journal that is written is removed. May be cut off and called again.",
        allow_abbrev=False,
    )
    result.add_argument("action", metavar="replay")
    result.add_argument("folder", metavar="RUN_DIR", help="the run's folder, such as mlruns/EXPERIMENT/RUN_ID")
    result.add_argument("--tracking_uri", metavar="URI", help="the store, where it has moved (that of the journal)")
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
        raise UsageError(
            f"tracking: unknown action '{options.action}'{nearest(options.action, _ACTIONS)}; expected replay"
        )
    paths = journals_under(Path(options.folder))
    if not paths:
        print(f"there is no journal in '{options.folder}': all of the run is in MLflow")
    for path in paths:
        print(_replay(path, options.tracking_uri))
    return 0


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
