"""Bad input: one line on stderr that names the key and the nearest valid name, exit code 2, and no trace of a run."""

from __future__ import annotations

import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_project import ROOT, command, environment

from dsob_pl.cli import main

ABSENT = "tpu" if torch.cuda.is_available() else "cuda"
B = ["fit", "--config", "base.yaml"]
ARGS = "model: {init_args: {%s}}"

# arguments, contents of the overlay over.yaml, fragments of the line
CASES: dict[str, tuple[list[str], str | None, list[str]]] = {
    "command": (["fitt"], None, ["'fitt'", "did you mean 'fit'"]),
    "section": (B, "trainr: {max_steps: 3}", ["over.yaml: trainr", "'trainer'"]),
    "empty section": (B, "trainr:", ["over.yaml: trainr", "'trainer'"]),
    "section that is a number": (B, "trainer: 3", ["over.yaml: trainer", "trainer.max_steps", "got 3"]),
    "section that is a list": (B, "data: [1]", ["over.yaml: data", "data.env_id", "got [1]"]),
    "section without anything": (B, "model:", ["over.yaml: model", "model.init_args", "got nothing"]),
    "class path that is a number": (B, "model: {class_path: 3}", ["over.yaml: model.class_path", "got 3"]),
    "arguments that are a number": (B, "model: {init_args: 3}", ["over.yaml: model.init_args", "got 3"]),
    "no number of steps": (B, "trainer: {max_steps: null}", ["trainer.max_steps: expected an integer", "got null"]),
    "key twice": (B, "trainer:\n  max_steps: 3\n  max_steps: 4", ["over.yaml', line 3: 'max_steps' is given twice"]),
    "abbreviated option": (["fit", "--conf=base.yaml"], None, ["conf", "'config'"]),
    "abbreviated key": ([*B, "--trainer.max_step=4"], None, ["trainer.max_step", "'max_steps'"]),
    "logger by its short name, and a mistake": (
        [*B, "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs", "--trainer.max_stps=4"],
        None,
        ["trainer.max_stps", "'max_steps'"],
    ),
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
    "risk measure": ([*B, "--model.risk=dsob_pl.risk.CVar"], None, ["model.risk", "'CVar'", "'CVaR'"]),
    "short risk measure": ([*B, "--model.risk=Entropc"], None, ["model.risk", "'dsob_pl.risk.Entropic'"]),
    "risk key": ([*B, "--model.risk=CVaR", "--model.risk.alfa=0.1"], None, ["model.risk.alfa", "CVaR", "'alpha'"]),
    "risk level": ([*B, "--model.risk=CVaR", "--model.risk.alpha=1.5"], None, ["CVaR.alpha", "(0, 1]", "1.5"]),
    "risk tail": (
        B,
        ARGS % "risk: {class_path: dsob_pl.risk.CVaR, init_args: {tail: uper}}",
        ["over.yaml: model.init_args.risk.init_args.tail", "'upper'"],
    ),
    "risk of a deterministic critic": (
        [*B, "--model.risk=CVaR", "--model.critic.noise_size=0"],
        None,
        ["model.risk: CVaR needs samples", "noise_size 0", "dsob_pl.risk.Mean"],
    ),
    "risk of one sample": (
        [*B, "--model.risk=CVaR", "--model.policy_samples=1"],
        None,
        ["model.policy_samples: CVaR needs at least 2", "got 1"],
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
    "one width for a list": ([*B, "--model.critic.hidden=64"], None, ["model.critic.hidden: expected", "got '64'"]),
    "rate": (
        [*B, "--model.critic_optimizer=torch.optim.Adam", "--model.critic_optimizer.lr=1e-3x"],
        None,
        ["model.critic_optimizer.lr: expected a number", "got '1e-3x'"],
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
    "many threads": ([*B, "--threads=100000"], None, ["threads: expected an integer from 1 to 1024, got 100000"]),
    "a config for the name of a file": (
        ["fit", "--config", "{trainer: {max_steps: 3000000}, data: {env_id: Pendulum-v1}, model: {" + 300 * "x" + "}}"],
        None,
        ["'{trainer: {max_steps: 3000000}, data: {env_id: Pendulum-v1},...'", "path of a file", "name too long"],
    ),
    "a checkpoint of too long a name": ([*B, f"--ckpt_path={300 * 'x'}"], None, ["xxx...'", "name too long"]),
    "a replay of too long a name": ([*B, f"--data.replay_path={300 * 'x'}"], None, ["xxx...'", "name too long"]),
    "a suite of too long a name": (["sweep", "--config", 300 * "x"], None, ["xxx...'", "name too long"]),
    "a checkpoint to evaluate of too long a name": (["evaluate", "--ckpt", 300 * "x"], None, ["name too long"]),
    "a folder of too long a name": (
        ["report", "--from_csv", 300 * "x", "--out", "out"],
        None,
        ["xxx...'", "name too long"],
    ),
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
    "a file for the folder of checkpoints": (
        [*B, "--checkpoint.dirpath=base.yaml/x"],
        None,
        ["base.yaml'", "not a dir"],
    ),
    "a file for the folder of the run": (
        [*B, "--trainer.logger=false", "--trainer.default_root_dir=base.yaml"],
        None,
        ["'base.yaml'", "not a directory"],
    ),
    "a file for the folder of the log": (
        [*B, "--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=base.yaml"],
        None,
        ["'base.yaml'", "not a directory"],
    ),
    "no checkpoint of an earlier run": ([*B, "--ckpt_path=last"], None, ["ckpt_path: 'last'", "mlflow.db"]),
    "no such number of the best": ([*B, "--checkpoint.best_k=0"], None, ["checkpoint.best_k", "at least 1", "0"]),
    "no such accelerator": ([*B, "--trainer.accelerator=cudda"], None, ["cudda", "cpu"]),
    "learning rate": (
        [*B, "--model.critic_optimizer=torch.optim.Adam", "--model.critic_optimizer.lr=-1"],
        None,
        ["model.critic_optimizer", "learning rate", "-1"],
    ),
    "closure": ([*B, "--model.policy_optimizer=torch.optim.LBFGS"], None, ["model.policy_optimizer", "closure"]),
    "scheduler": (
        [*B, "--model.critic_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau"],
        None,
        ["model.critic_scheduler", "metrics"],
    ),
    "scheduler's option": (
        [
            *B,
            "--model.world_model_scheduler=torch.optim.lr_scheduler.StepLR",
            "--model.world_model_scheduler.step_size=0",
        ],
        None,
        ["model.world_model_scheduler", "ZeroDivisionError"],
    ),
    "devices": ([*B, "--trainer.devices=2"], None, ["trainer.devices: expected one device, got 2"]),
    "empty checkpoint": ([*B, "--ckpt_path="], None, ["ckpt_path: expected the path of a checkpoint"]),
    "evaluation seed": ([*B, "--data.evaluation_seed=99999999999999999999"], None, ["evaluation_seed", "below 2^63"]),
    "bad value beside print_config": ([*B, "--print_config", "--data.capacity=abc"], None, ["data.capacity: expected"]),
    "nothing to train": (
        [*B, "--model.policy=dsob_pl.networks.LinearPolicy"],
        None,
        ["model.policy_optimizer: LinearPolicy has no parameters to train; use null"],
    ),
    "penalty without a model": (
        [*B, "--model.jacobian_penalty=1", "--model.world_model=null", "--model.sobolev=none"],
        None,
        ["model.jacobian_penalty: needs a world model"],
    ),
    "double precision of many seeds": (
        [*B, "--trainer.precision=64-true", "--seeds=0-1"],
        None,
        ["trainer.precision: expected 32 bits for many seeds"],
    ),
    "half precision": ([*B, "--trainer.precision=16-true"], None, ["trainer.precision", "16-true"]),
    "beside no logger": ([*B, "--trainer.logger=false", "--checkpoint.mode=maxx"], None, ["checkpoint.mode", "'max'"]),
    "positional": ([*B, "foo"], None, ["'foo'"]),
    "checkpoint": ([*B, "--ckpt_path=base.ckpt"], None, ["'base.ckpt' does not exist"]),
    "no checkpoint": (["validate", "--ckpt_path", "base.yaml"], None, ["'base.yaml'", "not a checkpoint"]),
    "file store": (
        [*B, "--trainer.logger=dsob_pl.tracking.MLflowLogger", "--trainer.logger.tracking_uri=./mlruns"],
        None,
        ["'./mlruns'", "sqlite"],
    ),
    "config folder": (["fit", "--config", "folder.ckpt"], None, ["'folder.ckpt' is a folder"]),
    "binary config": (["fit", "--config", "raw.ckpt"], None, ["'raw.ckpt'", "not"]),
    "tag that runs code": (B, "a: !!python/object/apply:os.system [touch ran]", ["over.yaml", "not valid YAML"]),
    "a day that there is not": (B, "data: {env_kwargs: {day: 2024-13-01}}", ["over.yaml", "not YAML text", "month"]),
    "an alias within itself": (B, "data: {env_kwargs: &x {a: *x}}", ["over.yaml", "an alias (*name) stands within"]),
    "an alias in an option": ([*B, "--data.env_kwargs={a: &x {b: *x}}"], None, ["--data.env_kwargs: an alias"]),
    "no name in JSON": ([*B, "--model.divergence={1: 2}"], None, ["divergence: Key must be a string, got: 1"]),
    "null after JSON": (
        [*B, '--data.env_kwargs={"g": 3}', "--data.env_kwargs=null", "--trainer.max_stps=3"],
        None,
        ["trainer.max_stps: unknown key; did you mean 'max_steps'?"],
    ),
    "the second of two in JSON": (
        [*B, '--model.overestimation={"class_path": "dsob_pl.bellman.LowerMean"}', "--model.divergence=Huberr"],
        None,
        ["model.divergence: unknown class 'Huberr'; did you mean 'dsob_pl.divergences.Huber'?"],
    ),
    "no options": ([*B, "--trainer.max_steps="], None, ["trainer.max_steps: expected an integer, got ''"]),
    "steps": ([*B, "--trainer.max_steps=-5"], None, ["max_steps", "-5"]),
    "no evaluations": ([*B, "--trainer.val_check_interval=0"], None, ["trainer.val_check_interval", "at least 1"]),
    "no critic": ([*B, "--model.critic=null"], None, ["model.critic: expected a class, got null"]),
    "margin": ([*B, "--model.divergence_margin=0"], None, ["model.divergence_margin: expected a positive number"]),
    "budget": ([*B, "--data.restart_budget=-1"], None, ["data.restart_budget: expected an integer of at least 0"]),
    "noise": ([*B, "--data.noise=3"], None, ["data.noise", "'3'", "list[Callable[[Env], Env]]"]),
    "callback": ([*B, "--trainer.callbacks=Nope"], None, ["trainer.callbacks", "'Nope'"]),
    "replay missing": ([*B, "--data.replay_path=gone.pt"], None, ["data.replay_path: no file 'gone.pt'"]),
    "replay torn": ([*B, "--data.replay_path=torn.ckpt"], None, ["data.replay_path: 'torn.ckpt'"]),
    "replay payload": ([*B, "--data.replay_path=payload.ckpt"], None, ["data.replay_path: 'payload.ckpt'"]),
    "env module": ([*B, "--data.env_id=nomodule:Id-v0"], None, ["module 'nomodule'", "cannot be imported"]),
    "env module raises": ([*B, "--data.env_id=broken:Id-v0"], None, ["module 'broken'", "ZeroDivisionError"]),
    "env module syntax": ([*B, "--data.env_id=wrongsyntax:Id-v0"], None, ["module 'wrongsyntax'", "SyntaxError"]),
    "env raises": ([*B, "--data.env_id=refusing:Refusing-v0"], None, ["refusing:Refusing-v0", "no licence"]),
    "env kwargs": (
        [*B, "--data.env_id=refusing:Refusing-v0", "--data.env_kwargs.hwo=1"],
        None,
        ["data.env_kwargs: 'hwo' is not an argument of refusing:Refusing-v0; did you mean 'how'?"],
    ),
    "env kwargs not a mapping": ([*B, "--data.env_kwargs=[1]"], None, ["data.env_kwargs", "[1]"]),
    "env class gone": ([*B, "--data.env_id=refusing:Gone-v0"], None, ["no_such_module"]),
    "env id": ([*B, "--data.env_id=a:b:c"], None, ["data.env_id: expected an id such as", "'a:b:c'"]),
    "time limit": ([*B, "--data.env_kwargs.max_episode_steps=0"], None, ["max_episode_steps", "0"]),
    "checkpoint payload": ([*B, "--ckpt_path=payload.ckpt"], None, ["'payload.ckpt'", "can run code"]),
    "checkpoint pickle": ([*B, "--ckpt_path=raw.ckpt"], None, ["'raw.ckpt'"]),
    "checkpoint torn": ([*B, "--ckpt_path=torn.ckpt"], None, ["'torn.ckpt'"]),
    "checkpoint empty": ([*B, "--ckpt_path=zero.ckpt"], None, ["'zero.ckpt'"]),
    "checkpoint folder": ([*B, "--ckpt_path=folder.ckpt"], None, ["'folder.ckpt' is a folder"]),
    "checkpoint of another agent": ([*B, "--ckpt_path=other.ckpt"], None, ["'other.ckpt'", "tensor"]),
    "validate payload": (["validate", "--ckpt_path", "payload.ckpt"], None, ["'payload.ckpt'", "can run code"]),
    "validate newer": (["validate", "--ckpt_path", "newer.ckpt"], None, ["'newer.ckpt'", "format 99"]),
    "evaluate payload": (["evaluate", "--ckpt", "payload.ckpt"], None, ["'payload.ckpt'", "can run code"]),
    "evaluate torn": (["evaluate", "--ckpt", "torn.ckpt"], None, ["'torn.ckpt'"]),
    "evaluate newer": (["evaluate", "--ckpt", "newer.ckpt"], None, ["'newer.ckpt'", "format 99"]),
    "evaluate other": (["evaluate", "--ckpt", "other.ckpt"], None, ["'other.ckpt'"]),
    "evaluate damaged": (["evaluate", "--ckpt", "flipped.ckpt"], None, ["'flipped.ckpt' is damaged"]),
    "evaluate another format": (["evaluate", "--ckpt", "format.ckpt"], None, ["'format.ckpt' is damaged"]),
    "evaluate without data": (["evaluate", "--ckpt", "nodata.ckpt"], None, ["'nodata.ckpt'", "without data.env_id"]),
    "evaluate without model": (["evaluate", "--ckpt", "nomodel.ckpt"], None, ["'nomodel.ckpt'", "without a model"]),
    "validate config": (
        ["validate", "--ckpt_path", "badconfig.ckpt"],
        None,
        ["config in checkpoint 'badconfig.ckpt'", "YAML"],
    ),
    "validate key": (["validate", "--ckpt_path", "badkey.ckpt"], None, ["'badkey.ckpt'", "modell", "'model'"]),
    "evaluate config": (["evaluate", "--ckpt", "badconfig.ckpt"], None, ["'badconfig.ckpt'", "not valid YAML"]),
    "evaluate above": (["evaluate", "--run", "../secret"], None, ["'../secret'", "mlflow.db"]),
    "evaluate any": (["evaluate", "--run", "*"], None, ["'*'", "mlflow.db"]),
    "evaluate nothing": (["evaluate"], None, ["--run", "--ckpt"]),
    "evaluate option": (["evaluate", "--run", "ab", "--epsodes=3"], None, ["'--epsodes=3'", "'--episodes'"]),
    "evaluate episodes": (["evaluate", "--run", "ab", "--episodes=0"], None, ["--episodes", "at least 1", "'0'"]),
    "evaluate run": (["evaluate", "--run", "ab"], None, ["'ab'", "mlflow.db"]),
    "evaluate file": (["evaluate", "--ckpt", "base.yml"], None, ["'base.yml' does not exist"]),
    "evaluate no run": (["evaluate", "--run", ""], None, ["run: expected the id of a run"]),
    "evaluate no file": (["evaluate", "--ckpt", ""], None, ["ckpt: expected the path of a checkpoint"]),
    "explain no run": (["explain", "--run", ""], None, ["run: expected the id of a run"]),
    "evaluate other store": (
        ["evaluate", "--run", "ab", "--tracking_uri", "sqlite:///raw.ckpt"],
        None,
        ["raw.ckpt' is not a database of MLflow"],
    ),
    "last of other store": (
        [*B, "--ckpt_path=last", "--trainer.logger=MLflowLogger", "--trainer.logger.tracking_uri=sqlite:///raw.ckpt"],
        None,
        ["raw.ckpt' is not a database of MLflow"],
    ),
    "evaluate no driver": (
        ["evaluate", "--run", "ab", "--tracking_uri", "oracle+nodriver://u@127.0.0.1:9/x"],
        None,
        ["oracle+nodriver"],
    ),
    "doctor suite": (["doctor", "--config", "suite.ckpt"], None, ["suite.ckpt is a suite"]),
}


REFUSING = """\
import gymnasium
class Refusing(gymnasium.Env):
    def __init__(self, how=None):
        raise ZeroDivisionError("no\\nlicence")
gymnasium.register("Refusing-v0", entry_point=Refusing)
gymnasium.register("Gone-v0", entry_point="no_such_module:Gone")
"""


class Payload:
    """Unpickled, it leaves a file."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("ran",)


def malformed(folder: Path) -> None:
    """Checkpoints and modules that cannot be used, for whichever case names them."""
    torch.save({"state_dict": {}, "x": torch.zeros(100)}, folder / "torn.ckpt")
    whole = (folder / "torn.ckpt").read_bytes()
    (folder / "torn.ckpt").write_bytes(whole[: len(whole) // 2])
    (folder / "zero.ckpt").touch()
    (folder / "folder.ckpt").mkdir()
    (folder / "raw.ckpt").write_bytes(pickle.dumps(Payload()))
    contents: dict[str, dict[str, object]] = {
        "payload": {"state_dict": {}, "x": Payload()},
        "newer": {"state_dict": {}, "dsob_format": 99, "dsob_config": "model: {}"},
        "other": {"state_dict": {"actor.weight": torch.zeros(2)}},
        "badconfig": {"state_dict": {}, "dsob_format": 1, "dsob_config": "model: ["},
        "badkey": {"state_dict": {}, "dsob_format": 2, "dsob_config": "modell: {}"},
        "format": {"state_dict": {}, "dsob_format": "a"},
        "nodata": {"state_dict": {}, "dsob_config": "model: {class_path: dsob_pl.agents.SobolevActorCritic}"},
        "nomodel": {"state_dict": {}, "dsob_format": 1, "dsob_config": "data: {}"},
    }
    (folder / "suite.ckpt").write_text("name: suite\nmethods: {td3: []}\n")
    for name, content in contents.items():
        torch.save(content, folder / f"{name}.ckpt")
    flipped = bytearray((folder / "other.ckpt").read_bytes())
    place = flipped.index(b"data.pkl") + 80
    flipped[place : place + 8] = b"\xff" * 8
    (folder / "flipped.ckpt").write_bytes(flipped)
    (folder / "refusing.py").write_text(REFUSING)
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "wrongsyntax.py").write_text("def (\n")


def listing(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if "__pycache__" not in p.parts}


@pytest.mark.parametrize("name", CASES)
def test_one_line_exit_code_two_and_no_trace(
    name: str, project: Path, untouched: Callable[[], bool], capfd: pytest.CaptureFixture[str]
) -> None:
    arguments, overlay, fragments = CASES[name]
    malformed(project)
    if overlay is not None:
        (project / "over.yaml").write_text(overlay)
        arguments = [*arguments, "--config", "over.yaml"]
    before, above = listing(project), sorted(project.parent.iterdir())

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
    assert listing(project) == before
    assert sorted(project.parent.iterdir()) == above


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


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["sweep", "--config", "conf/suite/summit.yaml", "--dry-run"]])
def test_a_reader_that_leaves_is_no_error(arguments: list[str], unbuffered: str) -> None:
    """As in ``... | head -1``."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env=environment() | {"PYTHONUNBUFFERED": unbuffered},
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=100,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["evaluate", "--help"]])
def test_help_without_a_run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip()


def test_a_link_to_a_disk_that_is_not_there_is_named_and_no_run_begun(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (project / "mlruns").symlink_to("/nowhere/mlruns")
    assert main(B) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "mlruns' is a link to '/nowhere/mlruns', which is not there" in err
    assert not (project / "mlflow.db").exists()
