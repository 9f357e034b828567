"""Configs: merging, links, class replacement and --print_config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dsob_pl.cli import main


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["fit", *arguments, "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_print_config_round_trip(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = printed(capsys, "--config", "base.yaml")
    (project / "printed.yaml").write_text(yaml.safe_dump(first))
    assert printed(capsys, "--config", "printed.yaml") == first
    assert first["trainer"]["logger"]["class_path"] == "dsob_pl.tracking.MLflowLogger"
    assert first["trainer"]["devices"] == 1
    assert "observation_size" not in first["model"]["init_args"]  # comes from the environment
    assert "seed" not in first["data"]


def test_files_merge_left_to_right_and_name_only_what_differs(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "a.yaml").write_text("model: {init_args: {gamma: 0.9, critic: {init_args: {noise_size: 3}}}}")
    (project / "b.yaml").write_text("model: {init_args: {gamma: 0.8}}\ndata: {batch_size: 2}")
    config = printed(capsys, "--config", "base.yaml", "--config", "a.yaml", "--config", "b.yaml", "--model.tau=0.5")
    arguments = config["model"]["init_args"]
    assert (arguments["gamma"], arguments["tau"], arguments["samples"]) == (0.8, 0.5, 2)
    assert arguments["critic"]["init_args"]["noise_size"] == 3
    assert arguments["critic"]["init_args"]["hidden"] == [8]
    assert (config["data"]["batch_size"], config["data"]["warmup_steps"]) == (2, 10)


def test_another_class_drops_the_arguments_of_the_old_one(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "mine.py").write_text(
        "from dsob_pl.critics import GenerativeCritic\n"
        "class Narrow(GenerativeCritic):\n"
        "    def __init__(self, observation_size: int, action_size: int, width: int = 5):\n"
        "        super().__init__(observation_size, action_size, hidden=[width])\n"
    )
    (project / "mine.yaml").write_text("model: {init_args: {critic: {class_path: mine.Narrow}}}")
    config = printed(capsys, "--config", "base.yaml", "--config", "mine.yaml")
    assert config["model"]["init_args"]["critic"] == {"class_path": "mine.Narrow", "init_args": {"width": 5}}


def test_the_model_is_the_agent_where_none_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = printed(capsys, "--data.env_id=Pendulum-v1")
    assert config["model"]["class_path"] == "dsob_pl.agents.SobolevActorCritic"


def test_sizes_and_seed_arrive_by_their_links(project: Path) -> None:
    from dsob_pl.cli.config_files import read_sources
    from dsob_pl.cli.lightning_cli import CLI

    arguments = ["--config", "base.yaml", "--seed_everything=7"]
    cli = CLI("fit", arguments, read_sources(arguments))
    assert cli.model.critic.mlp.layers[0].weight.shape[1] == 4 + 1 + cli.model.critic.noise_size
    assert cli.config["fit"]["data"]["seed"] == 7
