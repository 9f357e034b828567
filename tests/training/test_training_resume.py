"""A run that is cut off and gone on with is the run that was never cut off: real processes, really killed."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "notebooks"))

from resume_study import checkpoint, compare, killed, start  # noqa: E402


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    return out


def statuses(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "mlflow.db") as database:
        return [status for (status,) in database.execute("select status from runs order by start_time")]


def check_same(folder: Path, straight: Path) -> None:
    assert compare(folder, straight) == []
    assert torch.load(checkpoint(folder), weights_only=True)["global_step"] == 160
    assert statuses(folder) == statuses(straight)


def until(condition: Callable[[], Any], seconds: float = 100) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    finish(start(folder))
    return folder


def test_killed_at_twenty_random_moments(straight: Path, tmp_path: Path) -> None:
    torn = killed(tmp_path, 20, seed=0, mean_seconds=0.7)
    assert torn > 0  # some were killed while they wrote
    finish(start(tmp_path, "--ckpt_path=last"))
    check_same(tmp_path, straight)
    assert not list(tmp_path.rglob(".*.part"))


def test_many_seeds_killed(tmp_path: Path) -> None:
    finish(start(tmp_path / "straight", "--seeds=0-1"))
    cut_off = tmp_path / "cut_off"
    process = start(cut_off, "--seeds=0-1")
    until(lambda: list(cut_off.glob("mlruns/*/*/artifacts/checkpoints/previous.ckpt")))
    process.kill()
    process.communicate()
    finish(start(cut_off, "--seeds=0-1", "--ckpt_path=last"))
    check_same(cut_off, tmp_path / "straight")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_told_to_stop_it_saves_and_says_how_to_go_on(number: int, code: int, straight: Path, tmp_path: Path) -> None:
    process = start(tmp_path)
    until(lambda: list(tmp_path.glob("mlruns/*/*/artifacts/checkpoints/last.ckpt")))
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert statuses(tmp_path) == ["KILLED"]
    assert torch.load(checkpoint(tmp_path), weights_only=True)["global_step"] > 20
    (again,) = re.findall(r"go on with it: python -m dsob_pl fit (.*)", out)
    finish(start(tmp_path, *again.split()[2:]))
    check_same(tmp_path, straight)


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    (tmp_path / "slow_env.py").write_text(
        "import time\nfrom gymnasium.envs.classic_control import PendulumEnv\nimport gymnasium\n"
        "class Slow(PendulumEnv):\n    def step(self, action):\n        time.sleep(30)\n"
        "gymnasium.register('Slow-v0', Slow, max_episode_steps=20)\n"
    )
    process = start(tmp_path, "--data.env_id=slow_env:Slow-v0", PYTHONPATH=f"{ROOT}:{tmp_path}")
    until(lambda: (tmp_path / "mlflow.db").exists())
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None  # it waits for the step
    process.send_signal(signal.SIGINT)
    before = time.monotonic()
    out, _ = process.communicate(timeout=20)
    assert time.monotonic() - before < 15
    assert process.returncode == 130
    assert "Ctrl-C once more stops at once" in out
    assert statuses(tmp_path) == ["KILLED"]


def test_slurm_requeues_between_two_steps_and_the_job_goes_on(straight: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/scontrol").write_text('#!/bin/sh\necho "$@" >> requeued\n')
    (tmp_path / "bin/scontrol").chmod(0o755)
    slurm = {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "12", "SLURM_LOCALID": "0"}
    slurm |= {"SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NODELIST": "here"}
    slurm["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    process = start(tmp_path, **slurm)
    until(lambda: list(tmp_path.glob("mlruns/*/*/artifacts/checkpoints/last.ckpt")))
    process.send_signal(signal.SIGUSR1)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGUSR1, out
    assert (tmp_path / "requeued").read_text() == "requeue 12\n"
    finish(start(tmp_path, **slurm))  # the same command: Lightning finds what it saved
    check_same(tmp_path, straight)


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_taken(straight: Path, tmp_path: Path) -> None:
    process = start(tmp_path)
    until(lambda: list(tmp_path.glob("mlruns/*/*/artifacts/checkpoints/previous.ckpt")))
    process.kill()
    process.communicate()
    last = checkpoint(tmp_path)
    content = bytearray(last.read_bytes())
    weight = torch.load(last, weights_only=True)["state_dict"]["policy.mlp._layers.1.weight"]
    content[content.index(weight.numpy().tobytes()) + 9] ^= 1  # one bit of it
    last.write_bytes(content)
    out = finish(start(tmp_path, "--ckpt_path=last"))
    assert re.search(r"checkpoint '.*last.ckpt' is damaged or not a checkpoint; going on from the one before", out)
    check_same(tmp_path, straight)
    for path in checkpoint(tmp_path).parent.glob("replay/*.pt"):
        path.unlink()
    process = start(tmp_path, "--ckpt_path=last")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert out.startswith("dsob_pl: error: the replay files of checkpoint")
    assert out.count("\n") == 1


def test_without_a_run_to_go_on_with_one_line(tmp_path: Path) -> None:
    process = start(tmp_path, "--ckpt_path=last")
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out.count("\n")) == (2, 1)
    assert "ckpt_path: 'last': there is no MLflow database" in out
