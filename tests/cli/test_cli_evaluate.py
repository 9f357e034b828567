"""What one does with a run afterwards: evaluate, validate, go on, load the agent in Python."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from cli_project import Finished, runs_of

import dsob_pl
from dsob_pl.cli import main
from dsob_pl.errors import UsageError


@pytest.fixture
def run(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> str:
    """Id of a finished run, from its project's folder."""
    monkeypatch.chdir(finished.folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return min(p.name for p in (finished.folder / "mlruns" / "InvertedPendulum-v5").iterdir())


def checkpoint(run: str, name: str = "best") -> Path:
    return Path("mlruns", "InvertedPendulum-v5", run, "artifacts", "checkpoints", f"{name}.ckpt")


def test_json_is_all_of_stdout_and_agrees_with_the_agent_in_python(run: str, capsys) -> None:
    assert main(["evaluate", "--run", run[:12], "--episodes", "12", "--seed", "5", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["episodes"] == len(result["returns"]) == 12
    assert result["return"]["mean"] == pytest.approx(sum(result["returns"]) / 12)
    assert result["env_id"] == "InvertedPendulum-v5"

    agent, env = dsob_pl.load_agent(run), dsob_pl.make_env("InvertedPendulum-v5")
    observation, _ = env.reset(seed=16)
    total, over = 0.0, False
    while not over:
        action = agent.act(torch.as_tensor(observation, dtype=torch.float32))
        observation, reward, terminated, truncated, _ = env.step(action.numpy())
        total, over = total + float(reward), terminated or truncated
    assert result["returns"][-1] == pytest.approx(total)
    assert not agent.training


def test_the_table(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--ckpt", str(checkpoint(run, "last")), "--episodes", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("InvertedPendulum-v5, 2 episodes from seed 10000")
    assert lines[1].split() == ["mean", "std", "min", "max"]
    assert [line.split("  ")[0] for line in lines[2:]] == ["return", "length", "discounted return"]


def test_an_averse_run_is_judged_by_its_measure(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    risk = ["--model.risk", "dsob_pl.risk.CVaR", "--model.risk.alpha=0.5", "--checkpoint.monitor=eval/risk"]
    assert main(["fit", "--config", "base.yaml", *risk, "--trainer.logger=false", "--data.evaluation_episodes=4"]) == 0
    assert "best eval/risk" in capsys.readouterr().out
    arguments = ["evaluate", "--ckpt", str(project / "checkpoints" / "best.ckpt"), "--episodes", "4"]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert main(arguments) == 0
    own = result["risk"]
    assert (own["measure"], own["options"]) == ("CVaR", {"alpha": 0.5, "tail": "lower"})
    line = f"CVaR(alpha 0.5, tail lower) of the discounted return: {own['value']:,.1f}"
    assert capsys.readouterr().out.splitlines()[-1] == line
    # Rewards are 1 a step, and the worst half of four episodes are the two shortest.
    gamma = 0.99
    worst = [(1 - gamma**length) / (1 - gamma) for length in sorted(result["returns"])[:2]]
    assert own["value"] == pytest.approx(sum(worst) / 2, rel=1e-4)


def test_a_run_is_evaluated_where_it_was_judged(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = ["--data.env_kwargs.max_episode_steps=3", "--data.evaluation_env_kwargs.max_episode_steps=2"]
    assert main(["fit", "--config", "base.yaml", *limits, "--trainer.logger=false"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "--ckpt", str(project / "checkpoints" / "best.ckpt"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["length"]["max"] == 2


def test_validate_needs_nothing_but_the_checkpoint(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = len(runs_of(Path.cwd()))
    assert main(["validate", "--ckpt_path", str(checkpoint(run))]) == 0
    assert "eval/return_mean" in capsys.readouterr().out
    assert len(runs_of(Path.cwd())) == before  # looking is not a run


def test_going_on_from_the_last_checkpoint(run: str, project: Path, finished: Finished) -> None:
    # project comes after run: the new run is made in a folder of its own
    path = finished.folder / checkpoint(run, "last")
    arguments = ["fit", "--config", "base.yaml", f"--ckpt_path={path}", "--trainer.max_steps=70"]
    assert main([*arguments, "--trainer.logger=false"]) == 0
    last = torch.load(project / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 70


@pytest.mark.parametrize("command", [["validate", "--ckpt_path"], ["fit", "--ckpt_path"]])
def test_a_checkpoint_of_other_shapes_names_the_first_tensor(run: str, command: list[str], capfd) -> None:
    before = sorted(os.listdir(Path.cwd() / "mlruns" / "InvertedPendulum-v5"))
    other = ["--config", "base.yaml", "--model.policy.hidden=[9]"]
    assert main([command[0], *other, command[1], str(checkpoint(run))]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "'policy.mlp.0.weight' has shape [8, 4], the configured model has [9, 4]" in err
    assert err.count("\n") == 1
    assert sorted(os.listdir(Path.cwd() / "mlruns" / "InvertedPendulum-v5")) == before


def test_an_environment_of_other_sizes(run: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--run", run, "--env_id", "Pendulum-v1"]) == 2
    assert "observations of size 4, 'Pendulum-v1' has 3" in capfd.readouterr().err


def test_runs_that_cannot_be_named(run: str) -> None:
    with pytest.raises(UsageError, match="'zzz' is not in"):
        dsob_pl.load_agent("zzz")
    with pytest.raises(UsageError, match="run: expected the id of a run, or the beginning of one, got ''"):
        dsob_pl.load_agent("")
    with pytest.raises(UsageError, match=r"did you mean 'last\.ckpt'"):
        dsob_pl.load_agent(checkpoint(run, "lst"))


def test_a_run_is_found_through_mlflow_from_any_folder(run: str, finished: Finished, tmp_path, monkeypatch) -> None:
    uri = f"sqlite:///{finished.folder / 'mlflow.db'}"
    monkeypatch.chdir(tmp_path)
    agent = dsob_pl.load_agent(run, which="last", tracking_uri=uri)
    assert agent.act(torch.zeros(3, 4)).shape == (3, 1)
