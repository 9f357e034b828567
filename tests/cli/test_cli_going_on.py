"""What is gone on with is the run that it says, in its own folder: `fit` in this process, with a real MLflow."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_project import client_of
from test_cli_seeds import GOING_WRONG
from tiny import TINY_MODEL

from dsob_pl.agents import SobolevActorCritic
from dsob_pl.cli import main
from dsob_pl.cli.resume import changed_settings

BASE = (
    TINY_MODEL
    + """\
threads: 1
trainer: {max_steps: 40, val_check_interval: 20, log_every_n_steps: 10}
data: {env_id: Pendulum-v1, warmup_steps: 10, updates_per_step: 1, batch_size: 8, evaluation_episodes: 1}
"""
)
CALLBACKS = """
import lightning as L
import numpy as np

class Keeper(L.Callback):
    def state_dict(self):
        return {"best": np.float64(3.0)}
"""
Fit = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fit(project: Path, capfd: pytest.CaptureFixture[str]) -> Fit:
    (project / "base.yaml").write_text(BASE)
    (project / "keeping.py").write_text(CALLBACKS)
    (project / "wrong_environment.py").write_text(GOING_WRONG)

    def run(*more: str, command: str = "fit") -> tuple[int, str, str]:
        code = main([command, "--config", "base.yaml", *more])
        return code, *capfd.readouterr()

    return run


def step_of(path: str | Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


def best_of(out: str) -> str:
    (best,) = re.findall(r"best \S+ (-?[\d,.]+)", out)
    return best


def test_what_begins_from_the_best_leaves_the_run_alone_that_it_is_the_best_of(fit: Fit, tmp_path: Path) -> None:
    assert fit("--trainer.logger=false")[0] == 0
    content = Path("checkpoints/last.ckpt").read_bytes()
    assert fit("--trainer.logger=false", "--trainer.max_steps=30", "--ckpt_path=checkpoints/best.ckpt")[0] == 0
    assert Path("checkpoints/last.ckpt").read_bytes() == content
    assert step_of("checkpoints_2/last.ckpt") == 30
    code, _, err = fit("--checkpoint.dirpath=checkpoints", "--ckpt_path=checkpoints/best.ckpt")
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "checkpoint.dirpath" in err
    assert Path("checkpoints/last.ckpt").read_bytes() == content


@pytest.mark.parametrize("seeds", [[], ["--seeds=0-1"]])
def test_a_finished_run_that_is_gone_on_with_stays_as_it_is(fit: Fit, seeds: list[str], tmp_path: Path) -> None:
    kept = ["--checkpoint.dirpath=kept", *seeds]
    code, first, _ = fit(*kept)
    assert code == 0
    code, second, _ = fit(*kept, "--ckpt_path=last")
    assert (code, "finished at step 40" in second) == (0, True)
    client = client_of(tmp_path)
    assert sorted(e.name for e in client.search_experiments()) == ["Default", "Pendulum-v1"]
    trained = re.findall(r"^seed \d.*run ([0-9a-f]{32})" if seeds else r"run ([0-9a-f]{32})", first, re.M)
    assert len(set(trained)) == (2 if seeds else 1)
    for run_id in set(trained):
        assert main(["evaluate", "--run", run_id, "--episodes", "1", "--json"]) == 0
    assert fit(*kept, "--trainer.max_steps=60", "--ckpt_path=last")[0] == 0


def test_the_best_of_a_run_comes_along_into_another_folder(fit: Fit, tmp_path: Path) -> None:
    returns = iter([-100.0, -300.0, -200.0, -400.0, -500.0])

    def judged(self: Any, *_: Any) -> dict[str, torch.Tensor]:
        return {"eval/return_mean": torch.tensor(next(returns))}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SobolevActorCritic, "judge", judged)
        assert best_of(fit()[1]) == "-100.0"
        assert best_of(fit("--checkpoint.dirpath=kept", "--trainer.max_steps=60", "--ckpt_path=last")[1]) == "-100.0"
        assert step_of("kept/best.ckpt") == 20
        assert best_of(fit("--trainer.max_steps=80", "--ckpt_path=last")[1]) == "-100.0"
    (best,) = tmp_path.glob("mlruns/*/*/artifacts/checkpoints/best.ckpt")
    assert step_of(best) == 20


def test_a_run_goes_on_in_its_folder_where_the_first_one_has_become_free(fit: Fit, tmp_path: Path) -> None:
    quiet = "--trainer.logger=false"
    assert fit(quiet)[0] == fit(quiet)[0] == 0
    for path in sorted(Path("checkpoints").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    Path("checkpoints").rmdir()
    assert fit(quiet, "--trainer.max_steps=60", "--ckpt_path=checkpoints_2/last.ckpt")[0] == 0
    assert step_of("checkpoints_2/last.ckpt") == 60
    assert not Path("checkpoints").exists()


@pytest.mark.parametrize("seeds", [[], ["--seeds=0-1"]])
def test_a_callback_that_would_spoil_every_checkpoint_is_named(fit: Fit, seeds: list[str]) -> None:
    code, _, err = fit("--trainer.logger=false", "--trainer.callbacks=keeping.Keeper", *seeds)
    assert code == 2
    assert "trainer.callbacks: the state_dict of 'Keeper' holds objects other than tensors" in err
    assert "numpy" in err


def test_a_key_that_is_new_or_gone_among_the_arguments_of_an_environment_is_another_task() -> None:
    def config(**arguments: Any) -> dict[str, Any]:
        return {
            "data": {"env_kwargs": {"max_episode_steps": 100, **arguments}, "capacity": 10},
            "model": {"gamma": 0.9},
        }

    for before, now, said in ((config(), config(g=1.0), "g null -> 1.0"), (config(g=1.0), config(), "g 1.0 -> null")):
        assert said in changed_settings({"dsob_config": yaml.safe_dump(before)}, now)
    newer = config()
    newer["data"]["option_of_a_later_version"] = 1
    assert not changed_settings({"dsob_config": yaml.safe_dump(config())}, newer)


def test_seeds_that_failed_are_still_named_when_the_others_go_on(fit: Fit) -> None:
    wrong = ["--seeds=0-2", "--data.env_id=wrong_environment:Wrong-v0", "--data.env_kwargs.at=15"]
    assert fit(*wrong)[0] == 3
    code, out, err = fit(*wrong, "--trainer.max_steps=60", "--ckpt_path=last")
    assert code == 3
    assert "1 of 3 seeds failed" in err
    assert re.search(r"^seed 1: failed: .*not finite", out, re.M)
    assert re.search(r"^finished at step 60", out, re.M)


def test_seeds_that_a_run_never_had_do_not_go_on_with_it(fit: Fit) -> None:
    assert fit("--seeds=0-1", "--trainer.logger=false")[0] == 0
    code, _, err = fit("--seeds=0-3", "--trainer.logger=false", "--ckpt_path=checkpoints/last.ckpt")
    assert code == 2
    assert "is of the seeds 0-1; the run of 2-3 has to begin by itself" in err


def test_the_timer_of_lightning_is_a_callback_as_any_other(fit: Fit) -> None:
    timer = "--trainer.callbacks=Timer"
    assert fit(timer)[0] == 0
    assert fit(timer, "--trainer.max_steps=60", "--ckpt_path=last")[0] == 0
    code, out, _ = fit(timer, "--print_config")
    assert (code, "interval: step" in out) == (0, True)


def test_looking_at_a_checkpoint_is_no_run_beside_another_logger_either(fit: Fit, tmp_path: Path) -> None:
    csv = "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: csv}}"
    loggers = f"--trainer.logger=[dsob_pl.tracking.MLflowLogger, {csv}]"
    assert fit(loggers)[0] == 0
    client = client_of(tmp_path)

    def runs() -> int:
        return len(client.search_runs([e.experiment_id for e in client.search_experiments()]))

    before = runs()
    (best,) = tmp_path.glob("**/best.ckpt")
    code, out, _ = fit(loggers, f"--ckpt_path={best}", command="validate")
    assert (code, "eval/return_mean" in out) == (0, True)
    assert runs() == before == 1
