"""What a sweep's table and files say of a cell, from runs as they stand in MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dsob_pl.analysis.grid import read_grid
from dsob_pl.experiments.record import open_suite
from dsob_pl.experiments.suite import Suite, expand, parse_suite
from dsob_pl.experiments.table import Table
from dsob_pl.experiments.worker import Job, Outcome
from dsob_pl.tracking.store import PARENT_TAG, all_runs, mlflow_client


def toy(score: str, **methods: None) -> Suite:
    content: dict[str, Any] = {"name": "toy", "score": score, "seeds": "0-9", "tasks": {"t": None}, "methods": methods}
    return parse_suite(content, "toy.yaml")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def scores(store: str, score: str, runs: list[dict[str, float]], seeds: list[str]) -> dict[str, float]:
    """What the table shows for a cell that has runs with these metrics, of these seeds."""
    client, suite = mlflow_client(store), toy(score, m=None)
    grid = expand(suite, {})
    parent = open_suite(client, store, suite, grid)
    experiment = client.get_experiment_by_name("toy").experiment_id
    for metrics, own in zip(runs, seeds, strict=True):
        run = client.create_run(experiment, tags=grid[0].tags | {PARENT_TAG: parent, "seeds": own})
        for name, value in metrics.items():
            client.log_metric(run.info.run_id, name, value, step=1)
    table = Table([Job(grid[0], parent, store, Path("runs"), Path())], {}, client, score)
    table.close({grid[0].name: Outcome("finished")})
    return table._scores


def test_the_score_is_the_one_that_the_heading_names(store: str) -> None:
    """The run of several seeds has the mean of eval/return_mean, and none of the return without noise."""
    means = {"seeds/return_mean": -900.0, "seeds/normalized_score_mean": 0.4}
    assert scores(store, "eval/return_mean", [means], ["0-9"]) == {"t/m/none": -900.0}
    assert scores(store, "eval_clean/return_mean", [means], ["0-9"]) == {}


def test_seeds_that_were_trained_again_count_as_many_as_they_are(store: str) -> None:
    runs = [{"seeds/return_mean": 900.0}, {"eval/return_mean": 20.0}]
    assert scores(store, "eval/return_mean", runs, ["0-8", "9"]) == {"t/m/none": pytest.approx(812.0)}


def test_cells_of_other_names_have_other_files() -> None:
    suite = parse_suite(
        {
            "name": "toy",
            "score": "eval/return_mean",
            "seeds": "0",
            "tasks": {"a": None, "a+b": None},
            "methods": {"b+c": None, "c": None},
        },
        "toy.yaml",
    )
    jobs = [Job(cell, "", "", Path("runs"), Path()) for cell in expand(suite, {})]
    assert len({job.lock for job in jobs}) == len({job.log for job in jobs}) == 4


def test_the_report_reads_the_suite_that_the_sweep_records(store: str) -> None:
    """Two sweeps that began at once on a server can have made two runs of the suite: the first one is kept up."""
    client = mlflow_client(store)
    first = open_suite(client, store, toy("eval/return_mean", m=None), expand(toy("eval/return_mean", m=None), {}))
    experiment = client.get_experiment_by_name("toy").experiment_id
    second = client.create_run(experiment, tags={"kind": "suite", "suite": "toy"})
    assert second.info.start_time >= client.get_run(first).info.start_time
    longer = toy("eval/return_mean", m=None, n=None)
    assert open_suite(client, store, longer, expand(longer, {})) == first
    cells, score = read_grid(client, all_runs(client, [experiment], ""))
    assert ([cell["cell"] for cell in cells], score) == (["t/m/none", "t/n/none"], "eval/return_mean")
