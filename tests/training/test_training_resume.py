"""A run that is cut off and gone on with is the run that was never cut off: real processes, really killed."""

from __future__ import annotations

import os
import random
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

from dsob_pl.data import load_replay

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
threads: 1
trainer: {max_steps: %d, val_check_interval: 20, log_every_n_steps: 7}
model:
  init_args:
    critic: {class_path: dsob_pl.critics.GenerativeCritic, init_args: {hidden: [16, 16]}}
    policy: {class_path: dsob_pl.networks.DeterministicPolicy, init_args: {hidden: [16, 16]}}
    world_model: {class_path: dsob_pl.world_models.CVAE, init_args: {hidden: [16], termination_hidden: [16]}}
    samples: 3
    diagnostic_samples: 4
data:
  env_id: Walker2d-v5
  env_kwargs: {max_episode_steps: 45}
  noise: [dsob_pl.envs.ObservationNoise]
  batch_size: 8
  updates_per_step: 1
  warmup_steps: 30
  evaluation_episodes: 2
  holdout_fraction: 0.3
"""
# Writes every file in small pieces with a pause before each, so that a kill hits the writing, too.
SLOW = """
import sys, time
import dsob_pl.files as files

def write(file, data):
    for start in range(0, len(data), 16384):
        file.write(data[start : start + 16384])
        file.flush()
        time.sleep(0.02)

files.write = write
from dsob_pl.cli import main
sys.exit(main(sys.argv[1:]))
"""
TIMED = ("speed/",)


def environment() -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "SLURM"))}
    return {**own, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(folder: Path, *options: str, slow: bool = False, **more: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    (folder / "base.yaml").write_text(CONFIG % 160)
    program = ["-c", SLOW] if slow else ["-m", "dsob_pl"]
    words = [sys.executable, *program, "fit", "--config", "base.yaml", *options]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
    return subprocess.Popen(words, cwd=folder, env=environment() | more, text=True, **pipes)


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    return out


def checkpoint(folder: Path, name: str = "last") -> Path:
    """Of the run that holds all there is to go on with."""
    (found,) = (p.parent.parent for p in folder.glob("mlruns/*/*/artifacts/checkpoints/replay"))
    return found / "checkpoints" / f"{name}.ckpt"


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two checkpoints differ: names of runs and folders, and times, are left out."""
    if any(word in where for word in ("dsob_run", "/files", "path", "dsob_config", "best_k_models", *TIMED)):
        return []
    if isinstance(a, torch.Tensor):
        same = a.shape == b.shape and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
        return [] if same else [where]
    if isinstance(a, dict):
        if set(a) != set(b):
            return [f"{where}: {set(a) ^ set(b)}"]
        return [found for key in a for found in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [f"{where}: {len(a)} and {len(b)}"]
        return [found for i, (x, y) in enumerate(zip(a, b)) for found in differences(x, y, f"{where}[{i}]")]
    return [] if a == b else [f"{where}: {a} and {b}"]


def histories(folder: Path) -> dict[tuple[str, str], list[tuple[int, float, int]]]:
    """Every point of every metric, by run's name; a point that was written twice is there twice."""
    query = "select name, key, step, value, is_nan from metrics join runs using (run_uuid) order by step"
    found: dict[tuple[str, str], list[tuple[int, float, int]]] = {}
    with sqlite3.connect(folder / "mlflow.db") as database:
        for run, key, step, value, nan in database.execute(query):
            if not key.startswith(TIMED):
                found.setdefault((run, key), []).append((step, value, nan))
    return found


def statuses(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "mlflow.db") as database:
        return [status for (status,) in database.execute("select status from runs order by start_time")]


def check_same(folder: Path, straight: Path) -> None:
    a, b = (torch.load(checkpoint(place), weights_only=True) for place in (folder, straight))
    assert differences(a, b) == []
    assert a["global_step"] == 160
    if "ReplayDataModule" in a:
        assert bool((load_replay(checkpoint(folder)) == load_replay(checkpoint(straight))).all())
    assert histories(folder) == histories(straight)
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
    draw = random.Random(0)
    torn = 0
    for _ in range(20):
        begun = bool(list(tmp_path.glob("mlruns/*/*/artifacts/checkpoints/*.ckpt")))
        process = start(tmp_path, *(["--ckpt_path=last"] if begun else []), slow=True)
        assert process.stdout is not None
        process.stdout.readline()  # it goes on, or has evaluated
        time.sleep(draw.expovariate(1.0 / 0.7))
        process.kill()
        process.communicate()
        torn += bool(list(tmp_path.rglob(".*.part")))
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
