"""Names in a config are names: whatever they look like, a run writes below its own folders and reads nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_project import client_of, runs_of

from dsob_pl.cli import main
from dsob_pl.tracking import MLflowLogger

HOSTILE = ["..", ".", "../above", "a/../../above", "/etc/above", "~/above", "..\\above"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_runs_and_experiments_do_not_leave_the_artifact_folder(name: str, project: Path) -> None:
    inside = project / "inside"
    logger = MLflowLogger(name, name, f"sqlite:///{inside}/mlflow.db", str(inside / "mlruns"), {"tag": name})
    logger.log_text("x", "config.yaml")
    logger.finalize("success")
    (run,) = runs_of(inside)
    assert run.info.run_name == name
    written = {p for p in project.rglob("*") if p.is_file()} - {project / "base.yaml"}
    assert all(inside in p.parents for p in written)
    (config,) = (p for p in written if p.name == "config.yaml")
    assert config.parents[3] == inside / "mlruns"  # experiment, run and artifacts lie between
    assert sorted(p.name for p in project.iterdir()) == ["base.yaml", "inside"]


def test_a_whole_run_with_such_names(project: Path) -> None:
    (project / "inside").mkdir()
    options = ["--trainer.logger=dsob_pl.tracking.MLflowLogger", "--trainer.logger.experiment_name=.."]
    options += ["--trainer.logger.tracking_uri=sqlite:///inside/mlflow.db"]
    options += ["--trainer.logger.artifact_location=inside/mlruns", "--trainer.logger.run_name=../../above"]
    options += ["--trainer.max_steps=12", "--trainer.val_check_interval=12"]
    assert main(["fit", "--config", "base.yaml", *options]) == 0
    assert sorted(p.name for p in project.iterdir() if p.name != "__pycache__") == ["base.yaml", "inside"]
    assert len(list((project / "inside" / "mlruns").rglob("last.ckpt"))) == 1


@pytest.mark.parametrize("name", ["with space", "100%", "a#b", "ünï", "a&b=c;d", "'q'"])
def test_a_project_s_folder_may_have_any_name(
    name: str, project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (project / name).mkdir()
    monkeypatch.chdir(project / name)
    assert main(["fit", "--config", "../base.yaml", "--trainer.max_steps=12", "--trainer.val_check_interval=12"]) == 0
    (run,) = runs_of(project / name)
    assert main(["evaluate", "--run", run.info.run_id, "--episodes=1", "--json"]) == 0
    assert capfd.readouterr().err == ""
    assert sorted(p.name for p in project.iterdir() if p.name != "__pycache__") == sorted(["base.yaml", name])


@pytest.mark.parametrize("name", ["what?", "100%25"])
def test_but_for_those_of_which_mlflow_would_make_another(
    name: str, project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (project / name).mkdir()
    monkeypatch.chdir(project / name)
    for command in (["fit", "--config", "../base.yaml"], ["evaluate", "--run", "x"]):
        assert main(command) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert "no database with a question mark or a code such as %20 in its path" in line
    assert sorted(p.name for p in project.rglob("*") if p.name != "__pycache__") == sorted(["base.yaml", name])


@pytest.mark.parametrize("run", ["../secret", "..", "*", "?", "%", "secret/../../secret", ".", "[a-z]*"])
def test_a_run_is_looked_for_by_its_id_only(run: str, project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # What a path would find: a readable checkpoint beside and above the artifacts of a run.
    for folder in (project / "secret", project / "mlruns" / "secret", project / "mlruns" / "experiment" / "0"):
        (folder / "artifacts" / "checkpoints").mkdir(parents=True)
        torch.save({"state_dict": {}}, folder / "artifacts" / "checkpoints" / "best.ckpt")
    client_of(project)  # a store without runs
    assert main(["evaluate", "--run", run]) == 2
    err = capfd.readouterr().err.strip().splitlines()
    assert len(err) == 1
    assert f"run '{run}'" in err[0]
    assert "state_dict" not in err[0]
    assert "config" not in err[0]


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9/x", "s3://bucket/x", "ftp://127.0.0.1:9/x"])
def test_artifacts_elsewhere_are_not_downloaded(uri: str, project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    client = client_of(project)
    experiment = client.create_experiment("elsewhere", artifact_location=uri)
    run = client.create_run(experiment)
    assert main(["evaluate", "--run", run.info.run_id]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "has its artifacts at" in err
    assert "download its checkpoint" in err
