"""The config in a checkpoint is somebody else's: what it names is a part, or is not called."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import dsob_pl
from dsob_pl.cli import main
from dsob_pl.cli.foreign import importing_only, parts_named
from dsob_pl.errors import UsageError

MINE = """
import os
import torch
from torch import nn
from dsob_pl.critics import GenerativeCritic

class Critic(GenerativeCritic):
    pass

def annotated(parameters, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=lr)

def silent(parameters, command="touch ran"):
    os.system(command)
    return torch.optim.SGD(parameters, lr=0.1)

class Anything:
    def __init__(self, command="touch ran"):
        os.system(command)
"""


@pytest.fixture(autouse=True)
def mine(project: Path) -> Path:
    (project / "mine.py").write_text(MINE)
    sys.modules.pop("mine", None)
    return project


@pytest.mark.parametrize(
    "path",
    [
        "subprocess.getoutput",
        "subprocess.Popen",
        "os.system",
        "builtins.eval",
        "functools.partial",
        "gymnasium.make",
        "torch.hub.load",
        "torch.load",
        "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler",
        "numpy.load",
        "dsob_pl.cli.main",
        3,
    ],
)
def test_what_is_no_part_is_named(path: Any) -> None:
    arguments = {"critic": {"class_path": path, "init_args": {}}}
    with pytest.raises(
        UsageError, match=rf"^checkpoint 'a.ckpt': model\.init_args\.critic: '{path}' is no part that a"
    ):
        parts_named({"model": {"class_path": "SobolevActorCritic", "init_args": arguments}}, "a.ckpt")


@pytest.mark.parametrize(
    "path",
    ["mine.Critic", "mine.silent", "mine.Anything", "torch.optim.Adam", "dsob_pl.envs.RewardNoise", "MMD"],
)
def test_parts_of_one_s_own_and_of_the_libraries_are_parts(path: str) -> None:
    assert parts_named({"model": [{"class_path": path}]}, "a.ckpt")


CALL = "{class_path: subprocess.getoutput, init_args: {cmd: touch ran}}"
ESCAPED = r"""'{"class\x5fpath": "subprocess.getoutput", "init_args": {"cmd": "touch ran"}}'"""
DOTS = "critic_optimizer.class_path: subprocess.getoutput, critic_optimizer.init_args.cmd: touch ran"
HANDLER = (
    "{class_path: torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler, init_args: "
    "{entrypoint: touch, args: [ran], env: {}, stdout: null, stderr: null, local_rank_id: 0}}"
)
MAKE = (
    "{class_path: gymnasium.make, init_args: "
    "{id: {id: X-v0, entry_point: 'subprocess:getoutput', kwargs: {cmd: touch ran}}}}"
)
TAGS = (
    "trainer: {logger: {class_path: dsob_pl.tracking.MLflowLogger, init_args: {tags: "
    "{a: '{class_', b: 'path: subprocess.getoutput, init_args: {cmd: touch ran}}'}}}}"
)
TAG = "trainer.logger.init_args.tags."
CALLBACK = "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.LambdaCallback, init_args: {setup: "
# Of the model, of the data, and the rest.
SPELT = {
    "plainly": ("critic_optimizer: " + CALL, "", ""),
    "by an entry point": ("critic_optimizer: " + MAKE, "", ""),
    "as text": (f"critic_optimizer: '{CALL}'", "", ""),
    "with an escape": ("critic_optimizer: " + ESCAPED, "", ""),
    "with dots": (DOTS, "", ""),
    "in a file": ("critic_optimizer: notes.txt", "", ""),
    "among arguments of the environment": ("gamma: 0.9", ", env_kwargs: {g: " + HANDLER + "}", ""),
    "among defaults": (
        "critic_optimizer: {class_path: torch.optim.Optimizer, init_args: {defaults: {x: " + HANDLER + "}}}",
        "",
        "",
    ),
    "by interpolation": ("critic_optimizer: '${" + TAG + "a}${" + TAG + "b}'", "", TAGS),
    "as noise": ("gamma: 0.9", f", noise: [{MAKE}]", ""),
    "in a callback": ("gamma: 0.9", "", CALLBACK + CALL + "}}]}"),
    "by this package": ("critic: {class_path: dsob_pl.cli.main, init_args: {argv: [--version]}}", "", ""),
}


@pytest.mark.parametrize("how", SPELT)
@pytest.mark.parametrize("command", [["evaluate", "--ckpt"], ["validate", "--ckpt_path"]], ids=lambda words: words[0])
def test_a_command_in_a_checkpoint_is_not_run(
    how: str, command: list[str], project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (project / "notes.txt").write_text("class_path: subprocess.getoutput\ninit_args: {cmd: touch ran}\n")
    model, data, rest = SPELT[how]
    config = "model: {class_path: dsob_pl.agents.SobolevActorCritic, init_args: {" + model + "}}\n"
    config += "data: {env_id: Pendulum-v1" + data + "}\n" + rest
    sizes = {"observation_size": 3, "action_size": 1}
    torch.save({"state_dict": {}, "dsob_config": config, "dsob_sizes": sizes}, project / "a.ckpt")
    assert main([*command, "a.ckpt"]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert not (project / "ran").exists()


def test_what_may_be_imported_is_as_before_afterwards() -> None:
    from jsonargparse._common import parsing_settings

    before = dict(parsing_settings)
    with importing_only(["mine.Critic"]):
        assert parsing_settings != before
    assert dict(parsing_settings) == before


def test_an_agent_with_a_part_of_one_s_own_is_loaded_and_one_that_is_gone_is_named(project: Path) -> None:
    own = ["--model.critic=mine.Critic", "--model.critic.hidden=[8]", "--model.critic_optimizer=mine.annotated"]
    fit = ["fit", "--config", "base.yaml", "--trainer.logger=false", "--trainer.max_steps=30"]
    assert main([*fit, *own]) == 0
    path = project / "checkpoints" / "best.ckpt"
    assert type(dsob_pl.load_agent(path).critic).__name__ == "Critic"
    content = torch.load(path, weights_only=True)
    config = yaml.safe_load(content["dsob_config"])
    config["model"]["init_args"]["critic"]["class_path"] = "mine.Gone"
    content["dsob_config"] = yaml.safe_dump(config)
    torch.save(content, path)
    with pytest.raises(
        UsageError, match=r"best\.ckpt': model\.init_args\.critic\.class_path: 'mine' has no class 'Gone'"
    ):
        dsob_pl.load_agent(path)


def test_callbacks_added_one_by_one_are_all_the_user_s_own(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (project / "heard.py").write_text(
        "import lightning as L\n\n"
        "class One(L.Callback):\n    def on_validation_start(self, *_): print('one')\n\n"
        "class Two(L.Callback):\n    def on_validation_start(self, *_): print('two')\n"
    )
    config = (
        "model: {class_path: dsob_pl.agents.SobolevActorCritic}\ndata: {env_id: Pendulum-v1, evaluation_episodes: 1}\n"
    )
    torch.save(
        {"state_dict": {}, "dsob_config": config, "dsob_sizes": {"observation_size": 3, "action_size": 1}}, "a.ckpt"
    )
    more = ["--trainer.callbacks+=heard.One", '--trainer.callbacks+={"class_path": "heard.Two"}']
    assert main(["validate", "--ckpt_path", "a.ckpt", *more]) == 2  # of the weights, which are not in it
    assert "heard" not in capfd.readouterr().err
