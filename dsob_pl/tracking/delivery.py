"""Delivery to MLflow: what it takes is written at once, what it does not take is kept in the run's journal."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsob_pl.errors import UsageError
from dsob_pl.tracking.journal import JOURNAL, Header, Journal, Row, batches, read_rows
from dsob_pl.tracking.store import database_path, database_problem, http_limits, reason_of

log = logging.getLogger(__name__)

METRICS_PER_CALL, PARAMS_PER_CALL = 1000, 100  # what one call takes in every MLflow from 2 on
_SECONDS_PER_CALL = 5  # that a server which hangs may cost training
_SECONDS_PER_UPLOAD, _RETRIES = 120, 2
_LONGEST_WAIT = 120.0  # seconds between two attempts


class StoreUnavailable(OSError):
    """MLflow did not take what it was given; says why in one line."""


class Connection:
    """Whether a store takes what it is given, and when to try again where it did not; runs under one run share it.

    Args:
        tracking_uri: of the store.
        wait: seconds until the first new attempt; twice as many until each further one, up to two minutes.
    """

    def __init__(self, tracking_uri: str, wait: float) -> None:
        self.down = False
        self._path = database_path(tracking_uri)
        self._wait = self._next_wait = wait
        self._retry_at = 0.0
        self._file: tuple[int, int] | None = None  # the database that open connections write to

    @property
    def due(self) -> bool:
        """Whether it is up, or time to try again."""
        return not self.down or time.monotonic() >= self._retry_at

    @contextmanager
    def attempt(self, client: Any) -> Iterator[None]:
        """Within it the store is written to.

        Raises:
            StoreUnavailable: the database is gone, locked or read-only, the server gives no answer, or either refuses.
        """
        from mlflow.exceptions import MlflowException

        try:
            self._check(client)
            with http_limits(_SECONDS_PER_CALL, retries=0):
                yield
        except (MlflowException, OSError, json.JSONDecodeError) as error:  # the last: of a proxy that answers by a page
            self._retry_at = time.monotonic() + self._next_wait
            self._next_wait = min(2 * self._next_wait, _LONGEST_WAIT)
            raise StoreUnavailable(reason_of(error)) from error
        self._next_wait = self._wait

    def _check(self, client: Any) -> None:
        """Looks at the database itself: MLflow waits 20 seconds for a lock, and makes anew a file that is gone."""
        if self._path is None:
            return
        problem = database_problem(self._path)
        if problem is not None:
            raise StoreUnavailable(problem)
        if self._identity() != self._file:
            # Another file of the same name, such as one restored from a copy; open connections, which MLflow keeps for
            # the whole process, write to the old one.
            client._tracking_client.store.engine.dispose()
            self._file = self._identity()

    def _identity(self) -> tuple[int, int] | None:
        if self._path is None or not self._path.is_file():
            return None
        status = os.stat(self._path)
        return status.st_dev, status.st_ino


class Delivery:
    """Takes what a run logs to MLflow and, while that does not take it, to the run's journal; in order, each row once.

    Args:
        client: of MLflow.
        header: names the run.
        folder: of the run's artifacts, for the journal.
        connection: of the run and of those that it shares the store with.
    """

    def __init__(self, client: Any, header: Header, folder: Path, connection: Connection) -> None:
        self.journal = Journal(folder / JOURNAL, header)
        self._client = client
        self._connection = connection
        self._told = False  # that the journal cannot be written

    @property
    def up(self) -> bool:
        """Whether the store took what it was given last."""
        return not self._connection.down

    def resume(self) -> Iterable[Row]:
        """Takes over the journal of the process that the run goes on from; the rows that are still in it."""
        if not self.journal.exists:
            return ()
        self.journal.append([{"resumed": int(time.time() * 1000)}])
        self.write([])
        return read_rows(self.journal.path) if self.journal.exists else ()

    def write(self, rows: list[Row], now: bool = False) -> None:
        """Writes ``rows``, behind those in the journal; takes out of the list what is in MLflow or in the journal.

        Args:
            rows: see ``Row``.
            now: whether to try also where the last attempt failed a moment ago.
        """
        if not (now or self._connection.due):
            return self._keep(rows)
        try:
            with self._connection.attempt(self._client):
                kept = self.journal.metrics
                if self.journal.exists:
                    replay(self._client, self.journal.header.run_id, self.journal.path)
                    self.journal.remove()
                for batch in batches(list(rows), METRICS_PER_CALL):
                    send(self._client, self.journal.header.run_id, batch, self.journal.path.parent)
                    del rows[: len(batch)]
        except (StoreUnavailable, UsageError) as error:
            first, self._connection.down = not self._connection.down, True
            self._keep(rows)
            if first:
                log.warning("MLflow takes nothing (%s); until it does, metrics go to %s", error, self.journal.path)
        else:
            first, self._connection.down = self._connection.down, False
            if first:
                log.warning("MLflow takes metrics again; those that were kept, %d, have been written", kept)

    def _keep(self, rows: list[Row]) -> None:
        try:
            self.journal.append(rows)
        except (OSError, UsageError) as error:  # they stay in memory, and the run goes on
            if not self._told:
                log.warning("the journal '%s' cannot be written: %s", self.journal.path, error)
            self._told = True
        else:
            rows.clear()


def replay(client: Any, run_id: str, path: Path) -> int:
    """Writes a journal's rows to MLflow, but for those that are there; the file stays.

    A server may have taken what its answer was lost of, and an earlier replay may have been cut off in the middle.

    Args:
        client: of MLflow.
        run_id: of the run.
        path: of the journal.

    Returns:
        How many metrics were written.

    Raises:
        UsageError: the journal is damaged.
    """
    run = client.get_run(run_id)
    there = _points_there(client, run, path)
    written, last = 0, ""
    for batch in batches(read_rows(path), METRICS_PER_CALL):
        last = next(iter(batch[0]))
        if last == "metric":
            batch = [row for row in batch if (row["step"], row["timestamp"]) not in there.get(row["metric"], ())]
            written += len(batch)
        elif last == "param":
            batch = [row for row in batch if row["param"] not in run.data.params]
        if last != "status" and batch:
            send(client, run_id, batch, path.parent)
    if last == "status":  # one that other rows follow was not the end: the run has gone on
        send(client, run_id, batch, path.parent)
    return written


def _points_there(client: Any, run: Any, path: Path) -> dict[str, set[tuple[int, int]]]:
    """By metric, (step, timestamp) in MLflow from the first step in the journal on; only where there is such a step."""
    first: dict[str, int] = {}
    for row in read_rows(path):
        if "metric" in row:
            first[row["metric"]] = min(row["step"], first.get(row["metric"], row["step"]))
    # The last point of each metric; histories, which may be long, are read only where they reach into the journal.
    latest = {metric.key: metric.step for metric in run.data._metric_objs}
    return {
        key: {
            (metric.step, metric.timestamp)
            for metric in client.get_metric_history(run.info.run_id, key)
            if metric.step >= step
        }
        for key, step in first.items()
        if latest.get(key, step - 1) >= step
    }


def _send_valid(client: Any, run_id: str, entities: list[Any]) -> None:
    """Writes metrics or parameters, but for those that MLflow refuses for what they are, and would for ever."""
    from mlflow.entities import Param
    from mlflow.exceptions import MlflowException

    kind = "params" if isinstance(entities[0], Param) else "metrics"
    try:
        client.log_batch(run_id, **{kind: entities})
    except MlflowException as error:
        # That is also what it says of a run that somebody has deleted, who may restore it.
        if error.error_code != "INVALID_PARAMETER_VALUE" or client.get_run(run_id).info.lifecycle_stage != "active":
            raise
        if len(entities) > 1:  # none of them has been written
            for entity in entities:
                _send_valid(client, run_id, [entity])
        else:
            log.warning("MLflow refuses '%s', which is left out: %s", entities[0].key, reason_of(error))


def send(client: Any, run_id: str, rows: list[Row], folder: Path) -> None:
    """Writes rows of one kind to MLflow; artifacts are those in ``folder``."""
    from mlflow.entities import Metric, Param

    kind = next(iter(rows[0]))
    if kind == "metric":
        metrics = [Metric(row["metric"], row["value"], row["timestamp"], row["step"]) for row in rows]
        _send_valid(client, run_id, metrics)
    elif kind == "param":
        params = [Param(row["param"], row["value"]) for row in rows]
        for start in range(0, len(params), PARAMS_PER_CALL):
            _send_valid(client, run_id, params[start : start + PARAMS_PER_CALL])
    elif kind == "tag":
        for row in rows:
            client.set_tag(run_id, row["tag"], row["value"])
    elif kind == "artifacts":
        with http_limits(_SECONDS_PER_UPLOAD, _RETRIES):
            for path in sorted(folder.iterdir()):
                if not path.name.startswith(Path(JOURNAL).stem + "."):
                    client.log_artifact(run_id, str(path))
    elif kind == "status":
        client.set_terminated(run_id, rows[-1]["status"], rows[-1]["end_time"])
