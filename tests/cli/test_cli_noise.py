"""Noise from the command line: training, evaluation with and without it, many seeds, and mistakes in the config."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_project import BASE, client_of, runs_of

from dsob_pl.cli import main

NOISE = "noise: [{class_path: dsob_pl.envs.RewardNoise, init_args: {scale: 3.0}}, dsob_pl.envs.ObservationNoise]"
FIT = ["fit", "--config=noisy.yaml", "--trainer.max_steps=20", "--trainer.val_check_interval=10"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with the runs of seeds 0 and 4 together, and of seed 4 alone."""
    path = tmp_path_factory.mktemp("noise")
    (path / "noisy.yaml").write_text(f"{BASE}  {NOISE}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert main([*FIT, "--seeds=0,4"]) == 0
        assert main([*FIT, "--seed_everything=4"]) == 0
        yield path


def runs_of_seed_4(folder: Path) -> tuple[str, str]:
    """Ids of the run beside another seed, and of the run alone."""
    runs = [run for run in runs_of(folder) if run.data.tags.get("seed") == "4"]
    joint, alone = sorted(runs, key=lambda run: "mlflow.parentRunId" not in run.data.tags)
    return joint.info.run_id, alone.info.run_id


def history(folder: Path, run: str, name: str) -> list[float]:
    return [metric.value for metric in client_of(folder).get_metric_history(run, name)]


def test_a_run_is_evaluated_with_its_noise_and_without(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, run_id = runs_of_seed_4(folder)
    results = {}
    for option in ([], ["--clean"]):
        capsys.readouterr()
        assert main(["evaluate", "--run", run_id, "--which=last", "--episodes=2", "--json", *option]) == 0
        results[bool(option)] = json.loads(capsys.readouterr().out)
    noisy, clean = history(folder, run_id, "eval/return_mean"), history(folder, run_id, "eval_clean/return_mean")
    assert results[False]["return"]["mean"] == pytest.approx(noisy[-1])
    assert results[True]["return"]["mean"] == pytest.approx(clean[-1])
    assert results[True]["return"]["std"] == pytest.approx(history(folder, run_id, "eval_clean/return_std")[-1])
    # the reward of this task is 1 at every step that does not end it
    assert all(value == round(value) for value in results[True]["returns"])
    assert not any(value == round(value) for value in results[False]["returns"])
    assert [noise["class_path"] for noise in results[False]["noise"]] == [
        "dsob_pl.envs.RewardNoise",
        "dsob_pl.envs.ObservationNoise",
    ]
    assert results[True]["noise"] == []
    assert main(["evaluate", "--run", run_id, "--episodes=1"]) == 0
    assert "InvertedPendulum-v5 with RewardNoise, ObservationNoise, 1 episodes" in capsys.readouterr().out


def test_each_of_many_seeds_is_its_run_alone(folder: Path) -> None:
    for name in ("eval/return_mean", "eval_clean/return_mean", "eval_clean/return_std", "train/episode_return"):
        ours, theirs = (history(folder, run, name) for run in runs_of_seed_4(folder))
        assert len(ours) >= 2
        assert ours == pytest.approx(theirs, rel=1e-4), name


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        ("{class_path: dsob_pl.envs.ObservationNois}", ["data.noise.0.class_path", "did you mean 'ObservationNoise'?"]),
        (
            "{class_path: Observationnoise}",
            ["data.noise.0.class_path", "did you mean 'dsob_pl.envs.ObservationNoise'?"],
        ),
        ("{class_path: ObservationNoise, init_args: {scal: 1}}", ["data.noise.0.init_args.scal", "'scale'?"]),
        ("{class_path: dsob_pl.envs.ObservationNoise, init_args: {scale: 2}}", ["ObservationNoise: scale", "2"]),
        ("{class_path: dsob_pl.envs.RewardNoise, init_args: {scale: much}}", ["scale", "a number", "much"]),
        ("{class_path: dsob_pl.data.ReplayDataModule}", ["data.noise", "ReplayDataModule"]),
        ("3", ["data.noise", "3"]),
    ],
)
def test_a_mistake_is_one_line(folder: Path, capfd: pytest.CaptureFixture[str], option: str, parts: list[str]) -> None:
    (folder / "wrong.yaml").write_text(f"data: {{noise: [{option}]}}")
    before = len(runs_of(folder))
    assert main([*FIT, "--config=wrong.yaml"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    for part in parts:
        assert part in err
    assert len(runs_of(folder)) == before
