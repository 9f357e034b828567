"""A project that was copied or moved: it does not write into the folder that it came from, and can be set right."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from cli_project import client_of, runs_of

from dsob_pl.cli import main
from dsob_pl.training import read_checkpoint

FIT = ["fit", "--config", "base.yaml", "--trainer.max_steps=30"]
MORE = [*FIT, "--trainer.max_steps=60", "--ckpt_path=last"]


def files_under(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


KEPT, MANY = ["--checkpoint.dirpath=kept"], ["--seeds=0-1"]


@pytest.mark.parametrize("options", [[], MANY, KEPT, [*MANY, *KEPT]], ids=["one", "many", "kept", "many kept"])
def test_a_copy_writes_nothing_into_the_original(
    options: list[str], project: Path, tmp_path_factory, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    assert main([*FIT, *options]) == 0
    original = files_under(project)
    copy = tmp_path_factory.mktemp("copy") / "project"
    shutil.copytree(project, copy)
    monkeypatch.chdir(copy)
    before = files_under(copy)
    capfd.readouterr()
    for command in ([*MORE, *options], [*FIT, "--seed_everything=5"]):
        assert main(command) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert (
            f"the project was moved or copied: '{copy / 'mlflow.db'}' has its artifacts in '{project}/mlruns'" in line
        )
        assert "python -m dsob_pl tracking relocate mlruns" in line
    assert main(["doctor"]) == 1
    assert "problem  MLflow: the project was moved or copied" in capfd.readouterr().out
    assert files_under(copy) == before

    assert main(["tracking", "relocate", "mlruns"]) == 0
    assert f"that were in '{project}/mlruns' are in '{copy}/mlruns' now" in capfd.readouterr().out
    runs = runs_of(copy)
    assert {Path(run.info.artifact_uri).parents[2] for run in runs} == {copy / "mlruns"}
    assert main([*MORE, *options]) == 0
    assert {run.info.run_id for run in runs_of(copy)} == {run.info.run_id for run in runs}  # the same, gone on with
    folders = {path.parent for path in copy.rglob("last.ckpt")}
    assert len(folders) == len(runs)
    assert [read_checkpoint(folder / "last.ckpt")["global_step"] for folder in folders] == [60] * len(folders)
    for run in runs:
        if run.data.tags.get("seed"):
            history = client_of(copy).get_metric_history(run.info.run_id, "eval/return_mean")
            assert [point.step for point in history] == [30, 60]
            returns = {point.step: point.value for point in history}
            capfd.readouterr()
            assert main(["evaluate", "--run", run.info.run_id, "--episodes=1", "--json"]) == 0
            best = json.loads(capfd.readouterr().out)["checkpoint"]
            step = read_checkpoint(best)["global_step"]
            assert returns[step] == max(returns.values())  # the copy knows which was the best so far
    assert main([*FIT, "--seed_everything=5"]) == 0
    assert main(["tracking", "relocate", "mlruns"]) == 0
    assert "names no other folder" in capfd.readouterr().out
    assert files_under(project) == original


def test_a_project_that_was_moved_is_set_right_all_of_it_or_nothing(
    project: Path, tmp_path_factory, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    assert main(FIT) == 0
    moved = tmp_path_factory.mktemp("moved") / "project"
    shutil.move(project, moved)
    project.mkdir()
    monkeypatch.chdir(moved)
    assert main(MORE) == 2
    before = (moved / "mlflow.db").read_bytes()
    with closing(sqlite3.connect(moved / "mlflow.db")) as database:  # it takes the experiments, and then no runs
        database.execute("create trigger no before update on runs begin select raise(abort, 'no more'); end")
        database.commit()
        capfd.readouterr()
        assert main(["tracking", "relocate", "mlruns"]) == 2
        assert "no more" in capfd.readouterr().err
        (location,) = database.execute("select artifact_location from experiments where experiment_id = 1").fetchone()
        assert location.startswith(str(project))
        database.execute("drop trigger no")
        database.commit()
    assert main(["tracking", "relocate", "mlruns"]) == 0
    assert (moved / "mlflow.db").read_bytes() != before
    assert main(MORE) == 0
    assert list(project.iterdir()) == []


def test_another_folder_of_artifacts_is_no_move(project: Path) -> None:
    assert main(FIT) == 0
    logger = ["--trainer.logger=MLflowLogger"]
    elsewhere = [*logger, "--trainer.logger.artifact_location=elsewhere/mlruns"]
    assert main([*FIT, "--seed_everything=1", *elsewhere]) == 0
    link = project.parent / f"{project.name}_link"
    link.symlink_to(project)
    try:
        by_link = [*logger, f"--trainer.logger.artifact_location={link}/mlruns"]
        assert main([*FIT, "--seed_everything=2", *by_link]) == 0
    finally:
        link.unlink()
    assert {Path(run.info.artifact_uri).parents[2] for run in runs_of(project)} == {project / "mlruns"}


BAD = {
    "no folder": (["relocate", "there"], "there is no folder 'there'"),
    "no sqlite": (["relocate", ".", "--tracking_uri=http://127.0.0.1:9"], "relocate changes an sqlite database"),
    "no database": (["relocate", "."], "there is no MLflow database"),
    "action": (["relocat", "."], "did you mean 'relocate'?"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_to_relocate(name: str, project: Path, capfd) -> None:
    arguments, message = BAD[name]
    assert main(["tracking", *arguments]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert message in line
