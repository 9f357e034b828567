"""The config in a checkpoint is somebody else's: what it names is a part, or is not called."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import dsob_pl
from dsob_pl.cli.foreign import check_foreign
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
        "mine.silent",
        "mine.Anything",
        "torch.hub.load",
        "torch.load",
        "numpy.load",
        3,
    ],
)
@pytest.mark.parametrize("key", ["critic_optimizer", "critic", "divergence"])
def test_what_is_no_part_is_named_and_not_called(path: Any, key: str, project: Path) -> None:
    config = {"model": {"class_path": "SobolevActorCritic", "init_args": {key: {"class_path": path, "init_args": {}}}}}
    with pytest.raises(
        UsageError, match=rf"^checkpoint 'a.ckpt': model\.init_args\.{key}: '{path}' is no class that a"
    ):
        check_foreign(config, "a.ckpt")
    assert not (project / "ran").exists()


@pytest.mark.parametrize(
    "path", ["mine.Critic", "mine.annotated", "torch.optim.Adam", "dsob_pl.envs.RewardNoise", "MMD"]
)
def test_parts_of_one_s_own_and_of_the_libraries_are_parts(path: str) -> None:
    check_foreign({"model": [{"class_path": path}]}, "a.ckpt")


def test_text_that_would_be_read_as_a_config_is_refused(project: Path) -> None:
    (project / "critic.yaml").write_text("class_path: subprocess.getoutput")
    for text in ("{class_path: subprocess.getoutput}", "critic.yaml"):
        with pytest.raises(UsageError, match=r"model\.critic: expected a value, got a config"):
            check_foreign({"model": {"critic": text}}, "a.ckpt")
    check_foreign({"data": {"env_kwargs": {"xml_file": "ant.xml", "other": "gone.yaml"}}}, "a.ckpt")


def test_an_agent_with_a_part_of_one_s_own_is_loaded_and_one_that_is_gone_is_named(project: Path) -> None:
    from dsob_pl.cli import main

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
