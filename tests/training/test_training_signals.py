"""Told to stop by a signal, a run finishes its step, saves, and can be gone on with: real processes."""

from __future__ import annotations

import os
import re
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from resume_runs import ROOT, check_same, checkpoint, finish, start, start_python, statuses, until

from dsob_pl.cli.resume import slurm_folder
from dsob_pl.training import BestAndLast


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    finish(start_python(folder))
    return folder


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_told_to_stop_it_saves_and_says_how_to_go_on(number: int, code: int, straight: Path, tmp_path: Path) -> None:
    # The process that others are forked from may have been begun under nohup.
    process = start(tmp_path, before=partial(signal.signal, signal.SIGHUP, signal.SIG_DFL))
    until(lambda: list(tmp_path.glob("mlruns/*/*/artifacts/checkpoints/last.ckpt")))
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert statuses(tmp_path) == ["KILLED"]
    assert torch.load(checkpoint(tmp_path), weights_only=True)["global_step"] >= 20
    (again,) = re.findall(r"go on with it: python -m dsob_pl fit (.*)", out)
    finish(start(tmp_path, *again.split()[2:]))
    check_same(tmp_path, straight)


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    (tmp_path / "slow_env.py").write_text(
        "import time\nfrom gymnasium.envs.classic_control import PendulumEnv\nimport gymnasium\n"
        "class Slow(PendulumEnv):\n    def step(self, action):\n        open('stepping', 'w').close()\n"
        "        time.sleep(30)\n"
        "gymnasium.register('Slow-v0', Slow, max_episode_steps=20)\n"
    )
    process = start(tmp_path, "--data.env_id=slow_env:Slow-v0", PYTHONPATH=f"{ROOT}:{tmp_path}")
    until(lambda: (tmp_path / "stepping").exists())
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


def signal_from(hook: str) -> None:
    """Has this process send itself SIGUSR1 when ``hook`` of the checkpoints is called the second time."""
    own, calls = getattr(BestAndLast, hook), []

    def called(*arguments: Any) -> None:
        own(*arguments)
        calls.append(None)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)

    setattr(BestAndLast, hook, called)


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_end"])
def test_slurm_requeues_between_two_steps_and_the_job_goes_on(hook: str, straight: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/scontrol").write_text('#!/bin/sh\necho "$@" >> requeued\n')
    (tmp_path / "bin/scontrol").chmod(0o755)
    slurm = {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "12", "SLURM_LOCALID": "0"}
    slurm |= {"SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NODELIST": "here"}
    slurm["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    process = start(tmp_path, before=partial(signal_from, hook), **slurm)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGUSR1, out
    assert (tmp_path / "requeued").read_text() == "requeue 12\n"
    (kept,) = tmp_path.rglob("hpc_ckpt_*.ckpt")  # not where a run of another job, or another command, would look
    assert kept.relative_to(tmp_path).parts[:2] == ("runs", "slurm")
    assert kept.parent.name.startswith("12-")
    finish(start(tmp_path, **slurm))  # the same command: Lightning finds what it saved
    check_same(tmp_path, straight)


def test_a_requeued_job_finds_its_own_checkpoint_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    assert slurm_folder(["--config", "a.yaml"]) is None
    for name, value in {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "12"}.items():
        monkeypatch.setenv(name, value)
    own = slurm_folder(["--config", "a.yaml"])
    assert own == slurm_folder(["--config", "a.yaml"])
    assert own != slurm_folder(["--config", "b.yaml"])
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    assert own != slurm_folder(["--config", "a.yaml"])
