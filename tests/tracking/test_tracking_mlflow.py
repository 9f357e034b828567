"""The MLflow logger against a real database, read back through MLflow's client."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dsob_pl.errors import UsageError
from dsob_pl.files import hold_folder
from dsob_pl.tracking import MLflowLogger
from dsob_pl.tracking.store import check_writable, local_path, mlflow_client, resolve_tracking_uri


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


def make(folder: Path, **options: object) -> MLflowLogger:
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    return MLflowLogger(tracking_uri=uri, artifact_location=str(folder / "mlruns"), **options)  # type: ignore[arg-type]


def test_nothing_is_created_before_something_is_logged(tmp_path: Path) -> None:
    logger = make(tmp_path, experiment_name="e")
    logger.check()
    assert hasattr(logger, "experiment")  # as Lightning asks before training
    assert (logger.name, logger.save_dir) == ("e", str(tmp_path / "mlruns"))
    logger.finalize("success")
    assert not logger.started
    assert list(tmp_path.iterdir()) == []


def test_an_experiment_of_a_long_name_has_a_folder_of_a_short_one(tmp_path: Path) -> None:
    names = [f"{'ab' * 120}{end}" for end in "xy"]
    for name in names:
        logger = make(tmp_path, experiment_name=name)
        logger.log_metrics({"m": 1.0}, 0)
        logger.finalize("success")
        experiment = mlflow_client(f"sqlite:///{tmp_path / 'mlflow.db'}").get_experiment_by_name(name)
        assert experiment is not None
    folders = {
        Path(experiment.artifact_location).name
        for experiment in mlflow_client(f"sqlite:///{tmp_path / 'mlflow.db'}").search_experiments()
        if experiment.name in names
    }
    assert len(folders) == 2
    assert all(len(folder) < 60 for folder in folders)


def test_metrics_are_batched_and_none_is_lost(folder: Path) -> None:
    logger = make(folder, experiment_name="batched", run_name="r", tags={"k": "v"})
    step = 0
    logger.environment_step = lambda: step
    assert logger.run_id
    calls = []
    log_batch = logger.client.log_batch
    logger.client.log_batch = lambda *a, **k: (calls.append(len(k["metrics"])), log_batch(*a, **k))  # type: ignore[method-assign]
    for step in range(1, 1502):
        logger.log_metrics({"critic/loss": step / 2, "epoch": 0}, step=-1)
    assert sum(calls) < 1501  # some still wait
    logger.finalize("success")
    assert sum(calls) == 1501
    assert len(calls) < 20
    history = mlflow_client(logger.tracking_uri).get_metric_history(logger.run_id, "critic/loss")
    assert [(m.step, m.value) for m in history] == [(s, s / 2) for s in range(1, 1502)]
    run = mlflow_client(logger.tracking_uri).get_run(logger.run_id)
    assert (run.info.status, run.info.run_name, run.data.tags["k"]) == ("FINISHED", "r", "v")
    assert set(run.data.metrics) == {"critic/loss"}


def test_a_database_that_is_busy_costs_no_metric_and_does_not_stop_the_run(folder: Path, monkeypatch) -> None:
    from mlflow.exceptions import MlflowException

    logger = make(folder, experiment_name="busy", flush_seconds=0.0)
    assert logger.run_id
    log_batch = logger.client.log_batch

    def fail(*_: object, **__: object) -> None:
        raise MlflowException("database is locked")

    monkeypatch.setattr(logger.client, "log_batch", fail)
    logger.log_metrics({"m": 1.0}, step=1)
    monkeypatch.setattr(logger.client, "log_batch", log_batch)
    logger.log_metrics({"m": 2.0}, step=2)
    history = mlflow_client(logger.tracking_uri).get_metric_history(logger.run_id, "m")
    assert [m.value for m in history] == [1.0, 2.0]


def test_long_parameters_are_cut_and_many_are_taken(folder: Path) -> None:
    logger = make(folder, experiment_name="params")
    logger.log_hyperparams({"many": {f"k{i}": i for i in range(150)}, "long": "x" * 9000, "y" * 300: 1})
    params = mlflow_client(logger.tracking_uri).get_run(logger.run_id).data.params
    assert len(params) == 152
    assert params["many.k149"] == "149"
    assert params["long"] == "x" * 500
    assert params["y" * 250] == "1"


@pytest.mark.parametrize(
    ("outcome", "final", "status"),
    [("success", None, "FINISHED"), ("failed", None, "FAILED"), ("failed", "KILLED", "KILLED")],
)
def test_status(folder: Path, outcome: str, final: str | None, status: str) -> None:
    logger = make(folder, experiment_name="status")
    logger.final_status = final
    logger.log_metrics({"m": 1.0}, step=1)
    logger.finalize(outcome)
    assert mlflow_client(logger.tracking_uri).get_run(logger.run_id).info.status == status


def test_artifacts_lie_in_a_folder_named_after_the_experiment(folder: Path) -> None:
    logger = make(folder, experiment_name="module:Env/Id-v0")
    logger.log_text("hello", "note.txt")
    assert logger.artifact_dir == folder / "mlruns" / "module_Env_Id-v0" / logger.run_id / "artifacts"
    assert [a.path for a in logger.experiment.list_artifacts(logger.run_id)] == ["note.txt"]
    assert (logger.artifact_dir / "note.txt").read_text() == "hello"


def test_a_deleted_experiment_is_refused(folder: Path) -> None:
    client = mlflow_client(make(folder).tracking_uri)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(UsageError, match="'gone' is deleted"):
        make(folder, experiment_name="gone").log_hyperparams({"k": 1})


def test_a_metric_costs_little(folder: Path) -> None:
    logger = make(folder, experiment_name="cost")
    assert logger.run_id
    start = time.process_time()
    for step in range(900):
        logger.log_metrics({"m": 1.0}, step=step)
    assert (time.process_time() - start) / 900 < 1e-3  # a call of MLflow's own takes 10-30 ms


def test_tracking_uris(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_tracking_uri(None) == f"sqlite:///{tmp_path}/mlflow.db"
    assert resolve_tracking_uri("http://host:5000") == "http://host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert resolve_tracking_uri(None) == f"sqlite:///{tmp_path}/other.db"
    assert local_path("file:///a/b%20c") == Path("/a/b c")
    assert local_path("/a/b") == Path("/a/b")
    assert local_path("s3://bucket/a") is None


def test_a_folder_that_does_not_exist_yet_is_writable_where_its_parent_is(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="cannot write"):
        check_writable(Path("/proc/nothing"))


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("eval/CVaR(0.1)", "eval/CVaR_0.1_"),
        ("coverage_95%", "coverage_95_"),
        ("../up", "up"),
        ("/above//twice", "above/twice"),
        ("eval/return_mean", "eval/return_mean"),
        ("a - b.c:d", "a - b.c:d"),
        (".", "_"),
        ("x" * 300, "x" * 250),
    ],
)
def test_names_that_mlflow_refuses_are_written_under_others(
    folder: Path, caplog: pytest.LogCaptureFixture, name: str, written: str
) -> None:
    logger = make(folder, experiment_name="e", flush_seconds=0.0)
    for step in (1, 2):
        logger.log_metrics({name: step, "after": step}, step=step)
    logger.log_hyperparams({name: 7})
    logger.finalize("success")
    run = mlflow_client(logger.tracking_uri).get_run(logger.run_id)
    assert run.data.metrics == {written: 2, "after": 2}
    assert run.data.params == {written: "7"}
    assert run.info.status == "FINISHED"
    said = [record for record in caplog.records if f"'{written}'" in record.getMessage()]
    assert len(said) == (written != name and len(name) < 300)


def test_a_run_that_another_process_trains_is_not_gone_on_with(folder: Path) -> None:
    first = make(folder, experiment_name="e")
    assert first.run_id
    second = make(folder, experiment_name="e", run_id=first.run_id)
    with pytest.raises(UsageError, match="still going on in another process"):
        second.check()
    with pytest.raises(UsageError, match="still going on in another process"):
        assert second.client
    first.finalize("failed")
    second.check()
    assert second.run_id == first.run_id
    second.finalize("success")


def test_pauses_are_known_of_a_run_that_was_gone_on_with(folder: Path) -> None:
    first = make(folder, experiment_name="e")
    assert first.run_id
    first.finalize("failed")
    client, ended = mlflow_client(first.tracking_uri), int(time.time() * 1000) - 3_600_000
    client.set_terminated(first.run_id, "KILLED", ended)
    for hours in (1, 2):
        again = make(folder, experiment_name="e", run_id=first.run_id)
        assert again.run_id
        paused = float(client.get_run(first.run_id).data.tags["paused_seconds"])
        assert 3600 * hours <= paused < 3600 * hours + 60
        again.finalize("failed")
        client.set_terminated(first.run_id, "KILLED", ended)


def test_what_a_run_trained_after_its_end_is_no_pause(folder: Path) -> None:
    """MLflow keeps the end of a run that has begun again; one that is killed then leaves it so."""
    first = make(folder, experiment_name="e")
    assert first.run_id
    first.finalize("failed")
    client, now = mlflow_client(first.tracking_uri), int(time.time() * 1000)
    client.set_terminated(first.run_id, "KILLED", now - 7_200_000)
    client.update_run(first.run_id, status="RUNNING")
    client.log_metric(first.run_id, "m", 1.0, timestamp=now - 60_000, step=1)
    again = make(folder, experiment_name="e", run_id=first.run_id)
    assert again.run_id
    assert 60 <= float(client.get_run(first.run_id).data.tags["paused_seconds"]) < 120
    again.finalize("success")


def test_a_run_that_had_failed_and_goes_on_has_not(folder: Path) -> None:
    first = make(folder, experiment_name="e")
    assert first.run_id
    first.failed_by_itself = True
    first.finalize("failed")
    client = mlflow_client(first.tracking_uri)
    assert client.get_run(first.run_id).data.tags["failed"] == "true"
    again = make(folder, experiment_name="e", run_id=first.run_id)
    assert again.run_id
    again.finalize("success")
    assert client.get_run(first.run_id).data.tags["failed"] == "false"


def test_names_that_become_the_same_stay_two(folder: Path) -> None:
    logger = make(folder, experiment_name="e", flush_seconds=0.0)
    logger.log_metrics({"m(1)": 1.0, "m[1]": 2.0}, step=1)
    logger.finalize("success")
    metrics = mlflow_client(logger.tracking_uri).get_run(logger.run_id).data.metrics
    assert sorted(metrics.values()) == [1.0, 2.0]
    assert all(name.startswith("m_1_") for name in metrics)


def test_a_fork_does_not_hold_the_run(folder: Path) -> None:
    logger = make(folder, experiment_name="e")
    assert logger.run_id
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # until the pipe is closed
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    logger.finalize("failed")
    hold = hold_folder(logger.artifact_dir)
    assert hold is not None
    hold.release()
    os.close(write)
    os.waitpid(child, 0)
