"""Runs whose artifacts an MLflow server keeps: their checkpoints are on this machine, and are found there."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_project import command, environment
from servers import Server

from dsob_pl.cli import main
from dsob_pl.tracking.store import mlflow_client

DIES = """
import os, signal
import lightning as L

class Dies(L.Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 45:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.mark.parametrize("seeds", [[], ["--seeds=0-1"]], ids=["one", "many"])
def test_a_run_that_was_killed_goes_on_and_can_be_evaluated(
    seeds: list[str],
    server: Server,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    experiment = f"of {len(seeds)}"
    logger = "--trainer.logger=dsob_pl.tracking.MLflowLogger"
    fit = ["fit", "--config", "base.yaml", logger, f"--trainer.logger.experiment_name={experiment}", *seeds]
    (project / "dies.py").write_text(DIES)
    killed = subprocess.run(command(*fit, "--trainer.callbacks=dies.Dies"), cwd=project, env=environment(), timeout=200)
    assert killed.returncode == -9
    client = mlflow_client(server.uri)
    where = [client.get_experiment_by_name(experiment).experiment_id]
    before = {run.info.run_id: run for run in client.search_runs(where)}
    assert {run.info.artifact_uri.partition(":")[0] for run in before.values()} == {"mlflow-artifacts"}
    assert {run.info.status for run in before.values()} == {"RUNNING"}

    assert main([*fit, "--ckpt_path=last"]) == 0
    assert "going on from step 30 of 'mlruns/uploads/" in capfd.readouterr().out
    after = client.search_runs(where)
    assert {run.info.run_id: run.info.status for run in after} == dict.fromkeys(before, "FINISHED")
    own = next(run for run in after if run.data.tags.get("seed") == "0")
    assert [point.step for point in client.get_metric_history(own.info.run_id, "eval/return_mean")] == [30, 60]
    for more in ([], ["--tracking_uri", server.uri]):  # as the run says at its end, and by the store
        assert main(["evaluate", "--run", own.info.run_id[:12], "--episodes=1", "--json", *more]) == 0
        place = Path(json.loads(capfd.readouterr().out)["checkpoint"])
        assert place.absolute() == project / "mlruns" / "uploads" / own.info.run_id / "checkpoints" / "best.ckpt"
    if seeds:
        (parent,) = [run.info.run_id for run in after if "seeds" in run.data.tags]
        assert main(["evaluate", "--run", parent]) == 2
        assert f"load the run of one of them (seed 0: {own.info.run_id[:8]}, seed 1: " in capfd.readouterr().err
    monkeypatch.chdir(project.parent)
    assert main(["evaluate", "--run", own.info.run_id, "--episodes=1"]) == 2
    assert "has its artifacts at 'mlflow-artifacts:/" in capfd.readouterr().err
