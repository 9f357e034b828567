"""``doctor``: one line for each thing that a run needs, nothing created, and what to do where it is not there."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from dsob_pl.cli import doctor as module
from dsob_pl.cli import main
from dsob_pl.cli.doctor import versions

LINE = re.compile(r"(ok|warning|problem)\s+([^:]+): (.+)")


def looked(capfd: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, tuple[str, str]]]:
    code = main(["doctor", *options])
    out, err = capfd.readouterr()
    assert err == ""
    matches = [LINE.fullmatch(line) for line in out.splitlines()]
    assert all(matches)
    return code, {match[2]: (match[1], match[3]) for match in matches if match}


def test_all_is_well(project: Path, untouched: Callable[[], bool], capfd: pytest.CaptureFixture[str]) -> None:
    code, found = looked(capfd, "--config", "base.yaml")
    assert code == 0
    wanted = {"Python", "torch", "lightning", "mujoco", "mlflow", "CPU", "rendering", "MLflow", "memory", "disk"}
    assert wanted <= set(found)
    assert {state for subject, (state, _) in found.items() if subject != "rendering"} == {"ok"}
    assert "will be made by the first run" in found["MLflow"][1]
    # 2 x 4 observations, an action and a reward of 4 bytes, 2 flags: 42 bytes, a million times
    assert "a replay of 1,000,000 transitions of InvertedPendulum-v5 grows to 0.04 GB" in found["disk"][1]
    assert untouched()


def test_the_runs_that_are_there_are_counted(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logger = ["--trainer.logger=dsob_pl.tracking.MLflowLogger"]
    assert main(["fit", "--config", "base.yaml", "--trainer.max_steps=2", *logger]) == 0
    capfd.readouterr()
    code, found = looked(capfd)
    assert code == 0
    assert re.search(r"mlflow.db' has \d experiments and 1 runs", found["MLflow"][1])


@pytest.mark.parametrize("how", ["locked", "another", "no database"])
def test_a_database_that_cannot_be_used(how: str, project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    holder = None
    if how == "no database":
        Path("mlflow.db").write_text("not a database, however long the text is that stands in it")
    else:
        holder = sqlite3.connect("mlflow.db", isolation_level=None)
        holder.execute("create table other (x)")
        if how == "locked":
            holder.execute("BEGIN EXCLUSIVE")
    code, found = looked(capfd)
    assert code == 1
    state, text = found["MLflow"]
    assert state == "problem"
    expected = {"locked": "is locked", "another": "is a database, but not MLflow's", "no database": "not a database"}
    assert expected[how] in text
    if holder is not None:
        holder.close()


def test_too_large_a_replay(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("over.yaml").write_text("data: {capacity: 1000000000000}")
    code, found = looked(capfd, "--config", "base.yaml", "over.yaml")
    assert code == 1
    for subject in ("memory", "disk"):
        assert found[subject][0] == "problem"
        assert "lower data.capacity" in found[subject][1]


@pytest.mark.parametrize(
    ("text", "state", "message"),
    [
        ("data: {capacity: 10000}", "ok", "a replay of 10,000 transitions"),
        ("data: {capacity: 1e4}", "problem", "data.capacity: expected an integer of at least 1, got '1e4'"),
        ("data: {capacity: many}", "problem", "data.capacity: expected an integer of at least 1, got 'many'"),
        ("data: {capacity: 1.5}", "problem", "expected an integer of at least 1, got 1.5"),
        ("data: {env_id: Pendulum-v9}", "problem", "Pendulum-v9"),
    ],
)
def test_data_that_no_run_can_have_is_a_finding(
    text: str, state: str, message: str, project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("over.yaml").write_text(text)
    _, found = looked(capfd, "--config", "base.yaml", "--config", "over.yaml")
    told = found["memory" if state == "ok" else "config"]
    assert told[0] == state
    assert message in told[1]


def test_another_version_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.metadata.version
    monkeypatch.setattr(module.metadata, "version", lambda name: "1.0" if name == "torch" else real(name))
    found = {finding.subject: finding for finding in versions()}
    assert found["torch"].state == "problem"
    assert found["torch"].text.startswith("1.0, and ")
    assert "pip install" in found["torch"].text
    assert found["lightning"].state == "ok"


def test_a_driver_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    (finding,) = module.rendering()
    assert finding.state == "warning"
    assert "MUJOCO_GL nonsense" in finding.text
    assert "only --video needs frames" in finding.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", "bas.yaml"], "'bas.yaml'"),
        (["--confg", "base.yaml"], "did you mean '--config'"),
        (["--config", "list.yaml"], "data: expected options and their values, got ['a']"),
    ],
)
def test_bad_options_are_one_line(
    options: list[str], message: str, project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("list.yaml").write_text("data: [a]")
    assert main(["doctor", *options]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert message in line
