"""MLflow as a Lightning logger: an sqlite database beside an artifact folder, metrics written in batches.

Once a run has begun, a store that fails does not stop it: see ``dsob_pl.tracking.delivery``.
"""

from __future__ import annotations

import logging
import shlex
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from dsob_pl.errors import UsageError
from dsob_pl.files import Hold, hold_folder
from dsob_pl.tracking.delivery import METRICS_PER_CALL, Connection, Delivery
from dsob_pl.tracking.journal import UPLOADS, Header, Row
from dsob_pl.tracking.moved import check_not_moved
from dsob_pl.tracking.provenance import flatten
from dsob_pl.tracking.store import (
    CHECKPOINTS_TAG,
    FAILED_TAG,
    KEY_LENGTH,
    MLFLOW_TABLES,
    PARENT_TAG,
    PAUSED_TAG,
    SUPERSEDED_TAG,
    artifact_folder,
    check_writable,
    creation_lock,
    database_path,
    database_problem,
    experiment_id,
    http_limits,
    local_path,
    mlflow_client,
    reason_of,
    resolve_tracking_uri,
    tables_of,
    valid_key,
)

# MLflow takes three seconds to import and is imported in the functions that need it only; not even for annotations
# under TYPE_CHECKING, which jsonargparse executes.

log = logging.getLogger(__name__)

_SECONDS_TO_BEGIN = 30  # of each of three attempts
VALUE_LENGTH = 500  # what the column holds in every MLflow from 2 on


class MLflowLogger(Logger):
    """Logs to MLflow; metrics are collected and written every few seconds, everything else at once.

    Nothing is created before the first thing is logged, so that a run whose config turns out wrong leaves no trace.

    Args:
        experiment_name: MLflow experiment; None means the environment's id.
        run_name: name of the run; None means method-environment-seed.
        tracking_uri: where the runs are recorded; None means MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.
        artifact_location: folder of the artifacts of local runs.
        tags: further tags of the run.
        flush_seconds: metrics are written at most this often; a killed process loses no more than this. Where MLflow
            does not take them they are kept in the file journal.jsonl of the run's artifacts, and it is asked again
            after this long, then twice as long, and so on up to two minutes.
        run_id: of a run to go on with from a checkpoint of it, and with the runs of its seeds: what stands in their
            histories is not written again, parameters and config stay those that they began with.
    """

    def __init__(
        self,
        experiment_name: str | None = None,
        run_name: str | None = None,
        tracking_uri: str | None = None,
        artifact_location: str = "./mlruns",
        tags: dict[str, str] | None = None,
        flush_seconds: float = 5.0,
        run_id: str | None = None,
    ) -> None:
        super().__init__()
        self.experiment_name = experiment_name
        self.run_name = run_name
        self.tracking_uri = resolve_tracking_uri(tracking_uri)
        self.artifact_location = Path(artifact_location).absolute()
        self.tags = dict(tags or {})
        self.flush_seconds = flush_seconds
        # Counts environment steps where it is set; Lightning's own step lags one behind and restarts at each fit.
        self.environment_step: Callable[[], int] | None = None
        self.final_status: str | None = None
        self.failed_by_itself = False
        self._parent: MLflowLogger | None = None
        self._children: list[MLflowLogger] = []
        self._seed: int | None = None
        self._earlier_id = run_id
        self._continued = False
        self._last_steps: dict[str, int] = {}  # of what the run that is gone on with has logged
        self._client: Any = None
        self._connection: Connection | None = None
        self._delivery: Delivery | None = None
        self._run_id = ""
        self._artifact_dir = Path()
        self._artifacts_are_remote = False
        self._pending: list[Row] = []
        self._keys: dict[str, str] = {}  # under which names are written
        self._hold: Hold | None = None  # of the artifact folder
        self._last_flush = 0.0

    # The run ----------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises UsageError where the run could not be recorded or is not there to go on with; creates nothing."""
        database = database_path(self.tracking_uri)
        check_not_moved(self.tracking_uri, self.artifact_location)
        if self._earlier_id and (database is None or database.is_file()):
            earlier = self._earlier(mlflow_client(self.tracking_uri)).info
            folder = artifact_folder(earlier.run_id, earlier.artifact_uri, self.artifact_location)
            if folder is not None and folder.is_dir():
                self._take_hold(folder)
        elif self._earlier_id:
            raise UsageError(f"trainer.logger.run_id: there is no MLflow database '{database}'")
        if database is not None:
            check_writable(database.parent)
            problem = database_problem(database) if database.is_file() else None
            # One that is locked may be in the making by a run that begins at the same moment.
            if problem is not None and "locked" not in problem:
                raise UsageError(f"trainer.logger.tracking_uri: {problem}")
            tables = tables_of(database) if database.is_file() else None
            if tables and tables.isdisjoint(MLFLOW_TABLES):  # MLflow would add its own
                raise UsageError(f"trainer.logger.tracking_uri: '{database}' is a database, but not MLflow's")
        check_writable(self.artifact_location)

    @property
    def goes_on(self) -> bool:
        """Whether it was given a run to go on with."""
        return self._earlier_id is not None

    def go_on_with(self, run_id: str) -> None:
        """Goes on with a run instead of beginning one; to be called before anything is logged."""
        self._earlier_id = run_id

    def child(self, seed: int) -> MLflowLogger:
        """A logger of one seed, whose run lies under this one's; that begins with the first thing either logs."""
        child = MLflowLogger(
            experiment_name=self.experiment_name,
            run_name=f"{self.run_name}-{seed}" if self.run_name else None,
            tracking_uri=self.tracking_uri,
            artifact_location=str(self.artifact_location),
            tags=self.tags,
            flush_seconds=self.flush_seconds,
        )
        child._parent = self
        child._seed = seed
        self._children.append(child)
        return child

    @property
    def started(self) -> bool:
        """Whether the run exists."""
        return self._client is not None

    @property
    def client(self) -> Any:
        """The MLflow client; the first use creates the database, the experiment and the run where need be."""
        if self._client is None:
            shared = self._parent.client if self._parent else None  # takes the lock itself where it begins with this
            from mlflow.exceptions import MlflowException

            try:
                with creation_lock(self.tracking_uri), http_limits(_SECONDS_TO_BEGIN, retries=2):
                    self._client = self._start(shared)
            except MlflowException as error:
                raise UsageError(f"the run cannot begin in MLflow '{self.tracking_uri}': {reason_of(error)}") from error
        return self._client

    def _start(self, shared: Any) -> Any:
        client = shared or mlflow_client(self.tracking_uri)
        earlier = self._earlier(client)
        run = earlier or self._begin(client)
        self._run_id = run.info.run_id
        place = local_path(run.info.artifact_uri)
        self._artifacts_are_remote = place is None
        self._artifact_dir = place or self.artifact_location / UPLOADS / self._run_id
        self._artifact_dir.mkdir(parents=True, exist_ok=True)
        if self._parent is None and self._hold is None:
            self._take_hold(self._artifact_dir)
        self._connection = self._parent._connection if self._parent else None
        self._connection = self._connection or Connection(self.tracking_uri, self.flush_seconds)
        header = Header(self.tracking_uri, self._run_id, self._parent.run_id if self._parent else "")
        self._delivery = Delivery(client, header, self._artifact_dir, self._connection)
        if earlier is not None:
            self._continue(client, self._delivery)
        self._last_flush = time.monotonic()
        return client

    def _begin(self, client: Any) -> Any:
        """A new run, in an experiment that is made where there is none."""
        name = self.experiment_name or "default"
        identifier = experiment_id(client, self.tracking_uri, name, self.artifact_location)
        family = {PARENT_TAG: self._parent.run_id} if self._parent else {}
        return client.create_run(identifier, tags={**self.tags, **family}, run_name=self.run_name)

    def _take_hold(self, folder: Path) -> None:
        """Raises UsageError where another process still trains the run whose artifacts lie in ``folder``."""
        self._hold = self._hold or hold_folder(folder)
        if self._hold is None:
            raise UsageError(f"the run of '{folder}' is still going on in another process; end that, or wait for it")

    def let_go(self) -> None:
        """Lets others go on with the run; at its end, or where training does not begin after ``check``."""
        if self._hold is not None:
            self._hold.release()
            self._hold = None

    def _earlier(self, client: Any) -> Any:
        """The run to go on with: the one given, or that of the seed under the parent's; None for a new one."""
        from mlflow.exceptions import MlflowException

        if self._earlier_id:
            try:
                return client.get_run(self._earlier_id)
            except MlflowException as error:
                raise UsageError(f"trainer.logger.run_id: there is no run '{self._earlier_id}' in MLflow") from error
        if self._parent is None or not self._parent._earlier_id:
            return None
        parent = client.get_run(self._parent.run_id)
        condition = f"tags.`{PARENT_TAG}` = '{self._parent.run_id}' and tags.seed = '{self._seed}'"
        runs = client.search_runs([parent.info.experiment_id], condition)
        return next((run for run in runs if run.data.tags.get(SUPERSEDED_TAG) != "true"), None)

    def _continue(self, client: Any, delivery: Delivery) -> None:
        self._continued = True
        kept = delivery.resume()
        run = client.get_run(self._run_id)
        self._last_steps = {
            name: max(metric.step for metric in client.get_metric_history(self._run_id, name))
            for name in run.data.metrics
        }
        for row in kept:
            if "metric" in row:
                self._last_steps[row["metric"]] = max(row["step"], self._last_steps.get(row["metric"], row["step"]))
        paused = float(run.data.tags.get(PAUSED_TAG, 0)) + _seconds_since(run)
        client.set_tag(self._run_id, PAUSED_TAG, f"{paused:.0f}")
        if FAILED_TAG in run.data.tags:
            client.set_tag(self._run_id, FAILED_TAG, "false")
        client.update_run(self._run_id, status="RUNNING")
        if CHECKPOINTS_TAG in self.tags:
            client.set_tag(self._run_id, CHECKPOINTS_TAG, self.tags[CHECKPOINTS_TAG])
        elif CHECKPOINTS_TAG in run.data.tags and self.environment_step is not None:
            # They are among its artifacts from now on; where no step was left to train they stay where they are.
            client.delete_tag(self._run_id, CHECKPOINTS_TAG)
        for key, value in self.tags.items():
            if not key.startswith("mlflow.") and run.data.tags.get(key) != value:
                client.set_tag(self._run_id, f"continued.{key}", value)

    @property
    def continued(self) -> bool:
        """Whether the run was there before."""
        assert self.client
        return self._continued

    @property
    def experiment(self) -> _DeferredClient:
        """The MLflow client, as Lightning's loggers offer it; merely asking for it creates no run."""
        return _DeferredClient(self)

    @property
    def run_id(self) -> str:
        """Id of the run."""
        assert self.client
        return self._run_id

    @property
    def artifact_dir(self) -> Path:
        """Local folder of the run's artifacts: what is written here is an artifact."""
        assert self.client
        return self._artifact_dir

    @property
    def name(self) -> str | None:
        """Name of the experiment."""
        return self.experiment_name

    @property
    def version(self) -> str:
        """Id of the run."""
        return self.run_id

    @property
    def save_dir(self) -> str:
        """Root of all artifacts."""
        return str(self.artifact_location)

    # Logging ----------------------------------------------------------------------------------------------------------

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Collects ``metrics`` of the current environment step; they are written within ``flush_seconds``."""
        step = self.environment_step() if self.environment_step else (step or 0)
        now = int(time.time() * 1000)
        # Lightning adds the epoch, of which a run has one.
        self._pending += [
            {"metric": self._valid_key(name), "value": float(value), "timestamp": now, "step": step}
            for name, value in metrics.items()
            if name != "epoch"
        ]
        if time.monotonic() - self._last_flush >= self.flush_seconds or len(self._pending) >= METRICS_PER_CALL:
            self.flush()

    def flush(self, now: bool = False) -> None:
        """Hands over the collected metrics: to MLflow or, where that does not take them, to the journal.

        Args:
            now: whether MLflow is asked also where it failed a moment ago.
        """
        assert self.client
        assert self._delivery is not None
        seen = self._last_steps
        self._pending = [
            row for row in self._pending if "metric" not in row or row["step"] > seen.get(row["metric"], -1)
        ]
        self._delivery.write(self._pending, now)
        self._last_flush = time.monotonic()

    def flush_all(self) -> None:
        """Writes the collected metrics of this run and of those under it."""
        for logger in (self, *self._children):
            if logger._pending:
                logger.flush()

    @rank_zero_only
    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Logs ``params``, nested or flat, as MLflow parameters, cut to the length that MLflow takes."""
        leaves = flatten(params if isinstance(params, Mapping) else vars(params))
        assert self.client
        assert self._delivery is not None
        self._delivery.write(
            [{"param": self._valid_key(key), "value": str(value)[:VALUE_LENGTH]} for key, value in leaves]
        )

    def _valid_key(self, name: str) -> str:
        """``name`` as MLflow takes it; says once what has become of one that it would refuse."""
        if name not in self._keys:
            key = valid_key(name)
            if key in self._keys.values():  # two that differ in what is replaced
                key = f"{key[: KEY_LENGTH - 9]}_{zlib.crc32(name.encode()):08x}"
            self._keys[name] = key
            if self._keys[name] != name[:KEY_LENGTH]:
                log.warning("MLflow takes no metric or parameter named '%s'; it is '%s' there", name, self._keys[name])
        return self._keys[name]

    @rank_zero_only
    def log_text(self, text: str, name: str) -> None:
        """Writes ``text`` as the artifact ``name``."""
        (self.artifact_dir / name).write_text(text, encoding="utf-8")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes what is left and ends the run as FINISHED, FAILED or KILLED."""
        goes_on = self._earlier_id or (self._parent is not None and self._parent._earlier_id)
        if self._client is None and not goes_on:  # one that was cut off at its end has nothing to log any more
            return
        assert self.client
        if self._artifacts_are_remote:
            self._pending.append({"artifacts": True})
        outcome = self.final_status or ("FAILED" if status == "failed" else "FINISHED")
        if self.failed_by_itself:
            self._pending.append({"tag": FAILED_TAG, "value": "true"})
        self._pending.append({"status": outcome, "end_time": int(time.time() * 1000)})
        # A store that hangs is asked once for all seeds, by the run that they lie under.
        self.flush(now=self._parent is None)
        if self._parent is None:
            self._deliver_the_rest()
        self.let_go()

    def _deliver_the_rest(self) -> None:
        """Says what is left in the journals, after one more attempt with those of the runs under this one."""
        started = [logger for logger in (self, *self._children) if logger._delivery is not None]
        deliveries = [logger._delivery for logger in started if logger._delivery is not None]
        for delivery in deliveries:
            if delivery.up and delivery.journal.exists:
                delivery.write([], now=True)
        left = [delivery for delivery in deliveries if delivery.journal.exists]
        if left:
            metrics = sum(delivery.journal.metrics for delivery in left)
            what = f"{metrics:,} metrics" if metrics else "how the run ended"
            replay = f"python -m dsob_pl tracking replay {shlex.quote(str(self._artifact_dir))}"
            print(f"dsob_pl: MLflow did not take {what}; write them later: {replay}", file=sys.stderr)
        lost = sum("metric" in row for logger in started for row in logger._pending)
        if lost:
            print(f"dsob_pl: {lost:,} metrics are lost: neither MLflow nor the journal took them", file=sys.stderr)
        for delivery in deliveries:
            delivery.journal.close()


def _seconds_since(run: Any) -> float:
    """Since the run ended or, where it was killed, since it last wrote a metric."""
    # MLflow keeps the end of a run that has begun again.
    last = max([run.info.end_time or 0, *(metric.timestamp for metric in run.data._metric_objs)])
    return max(0.0, time.time() - last / 1000) if last else 0.0


class _DeferredClient:
    """Stands for the client of a logger: Lightning asks for ``experiment`` long before there is anything to log."""

    def __init__(self, logger: MLflowLogger) -> None:
        self._logger = logger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger.client, name)

    def log_figure(self, run_id: str, figure: Any, artifact_file: str, **options: Any) -> None:
        """A matplotlib figure of this run becomes a file among its artifacts, for which no store is asked."""
        if run_id != self._logger.run_id or not hasattr(figure, "savefig"):
            self._logger.client.log_figure(run_id, figure, artifact_file, **options)
            return
        path = self._logger.artifact_dir / artifact_file
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, **(options.get("save_kwargs") or {}))
