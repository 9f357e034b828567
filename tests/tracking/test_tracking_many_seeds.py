"""Loggers of the runs of many seeds, against a real database and real files."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger

from dsob_pl.errors import UsageError
from dsob_pl.seeds import compact_seeds
from dsob_pl.tracking import MLflowLogger, seed_loggers
from dsob_pl.tracking.store import mlflow_client


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


def make(folder: Path, **options: Any) -> MLflowLogger:
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    return MLflowLogger(tracking_uri=uri, artifact_location=str(folder / "mlruns"), **options)


def children_of(logger: MLflowLogger, seeds: range) -> list[MLflowLogger]:
    loggers = [seed_loggers([logger], seed)[0] for seed in seeds]
    assert all(isinstance(child, MLflowLogger) for child in loggers)
    return loggers  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("seeds", "text"),
    [
        ([0, 1, 2, 3, 7], "0-3,7"),
        ([5], "5"),
        ([4, 2, 3, 0], "0,2-4"),
        (range(10), "0-9"),
        ([1, 3], "1,3"),
        ([8, 9, 10], "8-10"),
    ],
)
def test_compact_seeds(seeds: list[int], text: str) -> None:
    assert compact_seeds(seeds) == text


def test_nothing_is_created_before_a_child_logs_and_then_the_parent_is_first(tmp_path: Path) -> None:
    parent = make(tmp_path, experiment_name="e", run_name="all", tags={"k": "v"}, flush_seconds=3.0)
    first, second = children_of(parent, range(2))
    first.finalize("success")
    assert list(tmp_path.iterdir()) == []
    assert (first.name, first.save_dir, first.flush_seconds) == ("e", parent.save_dir, 3.0)
    first.log_metrics({"m": 1.0}, step=1)
    first.flush()
    assert (parent.started, first.started, second.started) == (True, True, False)
    second.log_text("hello", "note.txt")
    client = mlflow_client(parent.tracking_uri)
    runs = {run.info.run_id: run for run in client.search_runs([client.get_experiment_by_name("e").experiment_id])}
    assert set(runs) == {parent.run_id, first.run_id, second.run_id}
    assert [runs[x.run_id].info.run_name for x in (parent, first, second)] == ["all", "all-0", "all-1"]
    for child in (first, second):
        tags = runs[child.run_id].data.tags
        assert (tags["mlflow.parentRunId"], tags["k"]) == (parent.run_id, "v")
        assert child.client is parent.client
        assert child.artifact_dir.parents[1] == parent.artifact_dir.parents[1]
    assert "mlflow.parentRunId" not in runs[parent.run_id].data.tags


def test_each_ends_in_its_own_way_with_its_own_metrics(folder: Path) -> None:
    parent = make(folder, experiment_name="ends")
    children = children_of(parent, range(3))
    for seed, child in enumerate(children):
        child.environment_step = lambda: 7
        child.log_metrics({"m": float(seed), "epoch": 0}, step=-1)
    children[1].finalize("failed")
    children[2].final_status = "KILLED"
    children[2].finalize("failed")
    client = mlflow_client(parent.tracking_uri)
    assert [client.get_run(x.run_id).info.status for x in (parent, *children)] == [
        "RUNNING",
        "RUNNING",
        "FAILED",
        "KILLED",
    ]
    children[0].finalize("success")
    assert client.get_run(children[0].run_id).info.status == "FINISHED"
    for seed, child in enumerate(children):
        assert [(m.step, m.value) for m in client.get_metric_history(child.run_id, "m")] == [(7, float(seed))]
    assert client.get_run(parent.run_id).data.metrics == {}


def test_reports_of_ten_seeds_cost_no_call_each(folder: Path) -> None:
    children = children_of(make(folder, experiment_name="cost"), range(10))
    assert all(child.run_id for child in children)
    start = time.process_time()
    for step in range(20):
        for child in children:
            child.log_metrics({f"m{i}": 1.0 for i in range(30)}, step=step)
    assert (time.process_time() - start) / 20 < 0.03  # ten calls of MLflow's take 0.08 s


def test_csv_logs_of_seeds_lie_in_the_folder_of_all(tmp_path: Path) -> None:
    (tmp_path / "logs" / "name" / "version_3").mkdir(parents=True)
    parent = CSVLogger(tmp_path / "logs", name="name", prefix="p")
    parent.log_hyperparams({"k": 1})  # has begun, as at the start of a second fit
    loggers: list[Any] = [seed_loggers([parent], seed)[0] for seed in (0, 12)]
    for logger in loggers:
        logger.log_hyperparams({"k": 1})
    for seed, logger in zip((0, 12), loggers):
        logger.log_metrics({"m": float(seed)}, step=2)
        logger.finalize("success")
    parent.log_metrics({"seeds/running": 2.0}, step=2)
    parent.finalize("success")
    folder = tmp_path / "logs" / "name" / "version_4"
    assert Path(parent.log_dir) == folder
    assert sorted(path.name for path in folder.iterdir()) == ["hparams.yaml", "metrics.csv", "seed_0", "seed_12"]
    for seed, logger in zip((0, 12), loggers):
        assert Path(logger.log_dir) == folder / f"seed_{seed}"
        with (folder / f"seed_{seed}" / "metrics.csv").open() as file:
            assert list(csv.DictReader(file)) == [{"p-m": str(float(seed)), "step": "2"}]


def test_tensorboard_logs_of_seeds_lie_in_the_folder_of_all(tmp_path: Path) -> None:
    try:
        parent = TensorBoardLogger(tmp_path, name="name", sub_dir="sub")
    except ModuleNotFoundError:
        pytest.skip("TensorBoard is not installed")
    loggers: list[Any] = [seed_loggers([parent], seed)[0] for seed in (0, 1)]
    parent.log_hyperparams({"k": "parent"})
    for seed, logger in enumerate(loggers):
        logger.log_hyperparams({"k": f"seed {seed}"})
        logger.log_metrics({"m": float(seed)}, step=2)
        logger.finalize("success")
        folder = tmp_path / "name" / "version_0" / "sub" / f"seed_{seed}"
        assert Path(logger.log_dir) == folder
        assert list(folder.glob("events.*"))
        assert (folder / "hparams.yaml").read_text() == f"k: seed {seed}\n"


class Other(Logger):
    name = version = "other"

    def log_metrics(self, metrics: Any, step: int | None = None) -> None: ...

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None: ...


def test_other_loggers_are_refused(tmp_path: Path) -> None:
    assert seed_loggers([], 0) == []
    assert isinstance(seed_loggers([DummyLogger()], 0)[0], DummyLogger)
    with pytest.raises(UsageError, match="Other cannot be used with many seeds; MLflowLogger, CSVLogger and Tens"):
        seed_loggers([CSVLogger(tmp_path), Other()], 0)
