"""Bad input: one line on stderr that names the key and the nearest valid name, exit code 2, and no trace of a run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_project import command, environment

from dsob_pl.cli import main

ABSENT = "tpu" if torch.cuda.is_available() else "cuda"
B = ["fit", "--config", "base.yaml"]
ARGS = "model: {init_args: {%s}}"

# arguments, contents of the overlay over.yaml, fragments of the line
CASES: dict[str, tuple[list[str], str | None, list[str]]] = {
    "command": (["fitt"], None, ["'fitt'", "did you mean 'fit'"]),
    "section": (B, "trainr: {max_steps: 3}", ["over.yaml: trainr", "'trainer'"]),
    "empty section": (B, "trainr:", ["over.yaml: trainr", "'trainer'"]),
    "trainer key": ([*B, "--trainer.max_stps=3"], None, ["trainer.max_stps", "'max_steps'"]),
    "data key": ([*B, "--data.capacty=3"], None, ["data.capacty", "'capacity'"]),
    "model key": ([*B, "--model.gama=0.3"], None, ["model.gama", "'gamma'"]),
    "model key in file": (B, ARGS % "gama: 0.3", ["over.yaml: model.init_args.gama", "'gamma'"]),
    "nested key": ([*B, "--model.critic.hiden=[3]"], None, ["model.critic.hiden", "'hidden'"]),
    "nested key in file": (
        B,
        ARGS % "critic: {init_args: {hiden: [3]}}",
        ["over.yaml: model.init_args.critic.init_args.hiden", "GenerativeCritic", "'hidden'"],
    ),
    "key of the replaced class": (
        B,
        ARGS % "world_model: {class_path: dsob_pl.world_models.Deterministic, init_args: {latent_size: 3}}",
        ["latent_size"],
    ),
    "beside init_args": (B, "model: {init_argss: {gamma: 0.9}}", ["model.init_argss"]),
    "class": (
        B,
        ARGS % "critic: {class_path: dsob_pl.critics.GenerativeCritc}",
        ["over.yaml: model.init_args.critic.class_path", "'GenerativeCritic'"],
    ),
    "class on command line": ([*B, "--model.critic=dsob_pl.critics.Generativ"], None, ["'GenerativeCritic'"]),
    "short class": ([*B, "--model.divergence=MMDD"], None, ["'MMDD'", "'dsob_pl.divergences.MMD'"]),
    "room": ([*B, "--model.divergence=dsob_pl.divergnces.MMD"], None, ["'dsob_pl.divergences.MMD'"]),
    "foreign module": ([*B, "--model.divergence=mypackage.MMD"], None, ["no module 'mypackage'"]),
    "class of another room": (
        [*B, "--model.critic=dsob_pl.networks.DeterministicPolicy"],
        None,
        ["model.critic: expected a Critic", "DeterministicPolicy"],
    ),
    "logger": ([*B, "--trainer.logger=lightning.pytorch.loggers.CSVLoger"], None, ["'CSVLogger'"]),
    "integer": ([*B, "--data.capacity=abc"], None, ["data.capacity: expected an integer, got 'abc'"]),
    "float for integer": ([*B, "--trainer.max_steps=1e6"], None, ["trainer.max_steps: expected an integer"]),
    "number in file": (B, ARGS % "gamma: high", ["over.yaml: model.init_args.gamma: expected a number, got 'high'"]),
    "item of a list": (
        B,
        ARGS % "critic: {init_args: {hidden: [3, a]}}",
        ["over.yaml: model.init_args.critic.init_args.hidden: expected an integer, got 'a'"],
    ),
    "union": ([*B, "--trainer.limit_val_batches=abc"], None, ["trainer.limit_val_batches", "or null, got 'abc'"]),
    "choice": ([*B, "--model.target_source=replayd"], None, ["model.target_source", "one of", "'replayed'"]),
    "seed": ([*B, "--seed_everything=abc"], None, ["seed_everything: expected an integer, got 'abc'"]),
    "negative seed": ([*B, "--seed_everything=-1"], None, ["seed_everything", "-1"]),
    "linked seed": (B, "data: {seed: 3}", ["over.yaml: data.seed", "seed_everything"]),
    "linked size": (B, ARGS % "observation_size: 3", ["observation_size", "the environment"]),
    "interpolation": (B, ARGS % 'gamma: "${foo.bar}"', ["model.init_args.gamma", "foo.bar"]),
    "nan": (B, ARGS % "gamma: .nan", ["model.init_args.gamma", "nan"]),
    "negative size": ([*B, "--data.batch_size=-3"], None, ["data.batch_size", "-3"]),
    "negative width": ([*B, "--model.critic.hidden=[-3]"], None, ["hidden", "-3"]),
    "out of range": ([*B, "--model.gamma=3"], None, ["model.gamma", "[0, 1)", "3"]),
    "threads": ([*B, "--threads=0"], None, ["threads", "0"]),
    "missing file": (["fit", "--config", "bas.yaml"], None, ["'bas.yaml'", "'base.yaml'"]),
    "missing folder": (["fit", "--config", "nowhere/bas.yaml"], None, ["'nowhere/bas.yaml'", "'nowhere'"]),
    "no file": (["fit", "--config"], None, ["--config"]),
    "syntax": (B, "model:\n  a: [3\nb: 3\n", ["over.yaml", "line 3"]),
    "not a mapping": (B, "- 3\n", ["over.yaml", "list"]),
    "empty file": (B, "", ["over.yaml", "empty"]),
    "no environment": (["fit"], None, ["data.env_id: required"]),
    "environment": ([*B, "--data.env_id=InvertedPendulm-v5"], None, ["'InvertedPendulm-v5'", "'InvertedPendulum-v5'"]),
    "discrete": ([*B, "--data.env_id=CartPole-v1"], None, ["CartPole-v1", "Discrete"]),
    "device": ([*B, f"--trainer.accelerator={ABSENT}"], None, ["accelerator"]),
    "no such accelerator": ([*B, "--trainer.accelerator=cudda"], None, ["cudda", "cpu"]),
    "positional": ([*B, "foo"], None, ["'foo'"]),
    "checkpoint": ([*B, "--ckpt_path=base.ckpt"], None, ["'base.ckpt' does not exist"]),
    "no checkpoint": (["validate", "--ckpt_path", "base.yaml"], None, ["'base.yaml'", "not a checkpoint"]),
    "file store": (
        [*B, "--trainer.logger=dsob_pl.tracking.MLflowLogger", "--trainer.logger.tracking_uri=./mlruns"],
        None,
        ["'./mlruns'", "sqlite"],
    ),
    "evaluate nothing": (["evaluate"], None, ["--run", "--ckpt"]),
    "evaluate option": (["evaluate", "--run", "ab", "--epsodes=3"], None, ["'--epsodes=3'", "'--episodes'"]),
    "evaluate episodes": (["evaluate", "--run", "ab", "--episodes=0"], None, ["--episodes", "at least 1", "'0'"]),
    "evaluate run": (["evaluate", "--run", "ab"], None, ["'ab'", "mlflow.db"]),
    "evaluate file": (["evaluate", "--ckpt", "base.yml"], None, ["'base.yml'"]),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line_exit_code_two_and_no_trace(
    name: str, project: Path, untouched: Callable[[], bool], capfd: pytest.CaptureFixture[str]
) -> None:
    arguments, overlay, fragments = CASES[name]
    if overlay is not None:
        (project / "over.yaml").write_text(overlay)
        arguments = [*arguments, "--config", "over.yaml"]

    code = main(arguments)

    out, err = capfd.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("dsob_pl: error: ")
    assert err.count("\n") == 1
    assert len(err) < 420
    for fragment in fragments:
        assert fragment in err
    assert untouched()


def test_a_read_only_folder_is_refused_before_anything_is_built_there(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # nobody, root included, can make a file in /proc
    folder = "/proc/self" if os.path.isdir("/proc/self") else "/dev"
    logger = ["--trainer.logger=dsob_pl.tracking.MLflowLogger"]
    code = main([*B, *logger, f"--trainer.logger.tracking_uri=sqlite:///{folder}/mlflow.db"])
    out, err = capfd.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"cannot write to the folder '{folder}'" in err


def test_the_traceback_can_be_asked_for(project: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.setenv("DSOB_PL_TRACEBACK", "1")
    assert main(["fit", "--config", "bas.yaml"]) == 2
    assert "Traceback" in capfd.readouterr().err


def test_as_a_process(project: Path, untouched: Callable[[], bool]) -> None:
    done = subprocess.run(
        command(*B, "--data.env_id=Pendulm-v1"), env=environment(), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "did you mean 'Pendulum-v1'" in done.stderr
    assert untouched()


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["evaluate", "--help"]])
def test_help_without_a_run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip()
