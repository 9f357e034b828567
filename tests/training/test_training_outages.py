"""Whole runs while MLflow's database is not there, and many runs that begin on it at one moment: real processes."""

from __future__ import annotations

import os
import re
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from resume_runs import ROOT, check_same, checkpoint, finish, start, statuses, until
from tiny import TINY_MODEL

from dsob_pl.cli import main

CONFIG = (
    TINY_MODEL
    + """\
threads: 1
trainer: {max_steps: 24, val_check_interval: 8, log_every_n_steps: 1}
data: {env_id: InvertedPendulum-v5, warmup_steps: 10, updates_per_step: 1, batch_size: 4, evaluation_episodes: 1}
"""
)
# The libraries are loaded once; then every process begins its run at the same moment.
TOGETHER = """
import os, sys
from dsob_pl.cli import main
import dsob_pl.cli.run

children = []
for seed in range(int(sys.argv[1])):
    child = os.fork()
    if not child:
        os._exit(main(["fit", "--config", "base.yaml", f"--seed_everything={seed}"]))
    children.append(child)
sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))
"""


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    finish(start(folder))
    return folder


def begun(folder: Path) -> subprocess.Popen[str]:
    """A run that has saved its first checkpoint."""
    process = start(folder)
    until(lambda: list(folder.glob("mlruns/*/*/artifacts/checkpoints/last.ckpt")))
    return process


def test_a_run_goes_on_without_its_database_and_is_written_later(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = begun(tmp_path)
    (tmp_path / "mlflow.db").rename(tmp_path / "away.db")
    out = finish(process)
    (command,) = re.findall(r"write them later: python -m dsob_pl (.*)", out)
    assert not (tmp_path / "mlflow.db").exists()
    (tmp_path / "away.db").rename(tmp_path / "mlflow.db")
    assert statuses(tmp_path) == ["RUNNING"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(shlex.split(command)) == 0
    check_same(tmp_path, straight)


def test_a_run_killed_while_its_database_was_gone_goes_on(straight: Path, tmp_path: Path) -> None:
    process = begun(tmp_path)
    (tmp_path / "mlflow.db").rename(tmp_path / "away.db")
    before = checkpoint(tmp_path).stat().st_mtime_ns
    until(lambda: checkpoint(tmp_path).stat().st_mtime_ns != before and list(tmp_path.rglob("journal.jsonl")))
    process.kill()
    process.communicate()
    (tmp_path / "away.db").rename(tmp_path / "mlflow.db")
    finish(start(tmp_path, "--ckpt_path=last"))
    assert not list(tmp_path.rglob("journal*"))
    check_same(tmp_path, straight)


def test_eight_runs_begin_at_one_moment_in_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(CONFIG)
    own = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
    done = subprocess.run(
        [sys.executable, "-c", TOGETHER, "8"],
        cwd=tmp_path,
        env=own | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert "dsob_pl:" not in done.stderr  # the rest is what Python says of forked processes
    assert statuses(tmp_path) == ["FINISHED"] * 8
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        query = (
            "select params.value, metrics.key, step from metrics join params using (run_uuid) "
            "where params.key = 'seed_everything'"
        )
        rows = database.execute(query).fetchall()
    for seed in range(8):
        for key, steps in (("critic/loss", range(11, 25)), ("eval/return_mean", range(8, 25, 8))):
            found = sorted(step for run, name, step in rows if (run, name) == (str(seed), key))
            assert found == list(steps), (seed, key)
    assert not list(tmp_path.rglob("journal*"))
