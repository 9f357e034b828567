"""What takes minutes: ``pytest -m slow``. Learning on real tasks, the law of returns, and what the framework costs."""

import csv
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsob_pl.cli import main

CONF = Path(__file__).resolve().parent.parent / "conf"


def best_return(folder):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name != 'Default'")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "eval/return_mean")
    return {point.step: point.value for point in history}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("task", "steps", "goal"), [("pendulum", 2500, -200.0), ("inverted_pendulum", 5000, 950.0)], ids=lambda x: str(x)
)
def test_it_learns(task, steps, goal, seed, tmp_path):
    command = [sys.executable, "-m", "dsob_pl", "fit", "--config", str(CONF / f"{task}.yaml"), "--threads=1"]
    subprocess.run([*command, f"--seed_everything={seed}"], cwd=tmp_path, check=True)
    returns = best_return(tmp_path)
    assert any(value >= goal for step, value in returns.items() if step <= steps), returns


LQ, CVAE, POINT_MASS, ROTATION, CHAIN = (
    CONF / "ground_truth" / f"{name}.yaml"
    for name in ("linear_quadratic", "cvae", "point_mass", "smoothness", "reward_chain")
)
MMD_SOBOLEV, FULL, MSMMD = (
    CONF / "method" / f"{name}.yaml" for name in ("mmd_sobolev", "mmd_sobolev_state_action", "msmmd_sobolev")
)
CROSS_FITTED = "--model.init_args.divergence.init_args.direction=cross_fitted"
CALIBRATED = {"return_spread": (0.9, 1.1), "gradient_spread": (0.9, 1.1)}
LEARNED_MODEL = {"return_error": (0, 0.12), **CALIBRATED}
TIGHT = {"return_spread": (0.93, 1.07), "gradient_spread": (0.88, 1.08), "energy_distance": (0, 0.006)}
TAIL = {"cvar_25_gradient_error": (0, 0.15), "cvar_25_gradient_cosine": (0.97, 1)}
BOTH_TAILS = TAIL | {"cvar_10_gradient_error": (0, 0.15), "cvar_10_gradient_cosine": (0.97, 1)}
# Standard deviation that the biased estimator leaves of a sum of independent rewards, at N = 10 and gamma = 0.9: one
# backup leaves c / sqrt(2 - c^2) of it, c = (N - 1) / N, and the next one starts from there.
ONE_STEP = 0.9**2 / (2 - 0.9**2)
COLLAPSED = math.sqrt(ONE_STEP * (1 - 0.9**2) / (1 - ONE_STEP * 0.9**2))
# name: configs and options, bounds on the last scores
TRUTH = {
    "linear-quadratic, MMD": ([LQ], {"return_error": (0, 0.08), "gradient_error": (0, 0.06), **TIGHT, **BOTH_TAILS}),
    "linear-quadratic, MSMMD": ([LQ, MSMMD, CROSS_FITTED], {**CALIBRATED, "energy_distance": (0, 0.01)}),
    "linear-quadratic, state-action": ([LQ, FULL], {"gradient_error": (0, 0.08), "state_gradient_error": (0, 0.08)}),
    "linear-quadratic, cVAE": ([LQ, CVAE], LEARNED_MODEL),
    "point mass, state-action": (
        [POINT_MASS],
        {"gradient_spread": (0.85, 1.1), "energy_distance": (0, 0.045), **TAIL},
    ),
    "point mass, state-action, larger and longer": (
        [
            POINT_MASS,
            "--model.init_args.samples=20",
            "--model.init_args.critic.init_args.hidden=[128,128]",
            "--model.init_args.critic_scheduler.init_args.total_iters=1200",
            "--trainer.max_steps=3200",
        ],
        {"gradient_spread": (0.9, 1.1), "energy_distance": (0, 0.015), **BOTH_TAILS},
    ),
    # The law of dG/ds, which nothing asks for here, is in the next backup all the same.
    "point mass, action only": ([POINT_MASS, MMD_SOBOLEV], {"gradient_spread": (0, 0.75)}),
    "rotation 0.9": ([ROTATION], {"return_error": (0, 0.25)}),
    "rotation 1.15": ([ROTATION, "--data.env_kwargs.rho=1.15"], {"return_error": (10, math.inf)}),
    "chain, unbiased": ([CHAIN], {"return_spread": (0.9, 1.1)}),
    "chain, biased": (
        [CHAIN, "--model.init_args.divergence.init_args.estimator=biased"],
        {"return_spread": (COLLAPSED - 0.03, COLLAPSED + 0.03)},
    ),
}


def last_scores(folder, monkeypatch, seed, options):
    """``truth/*`` at the end of a policy evaluation, without the prefix."""
    monkeypatch.chdir(folder)
    arguments = [f"--config={option}" if isinstance(option, Path) else option for option in options]
    logger = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=logs"]
    assert main(["fit", *arguments, *logger, "--trainer.enable_checkpointing=false", f"--seed_everything={seed}"]) == 0
    (path,) = Path("logs").rglob("metrics.csv")
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["truth/return_error"]]
    return {name.removeprefix("truth/"): float(x) for name, x in rows[-1].items() if x and name.startswith("truth/")}


def outside(scores, bounds):
    """Names of the scores that are not within their bounds."""
    return [name for name, (low, high) in bounds.items() if not low <= scores[name] <= high]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", TRUTH)
def test_against_the_truth(name, seed, monkeypatch, tmp_path):
    options, bounds = TRUTH[name]
    scores = last_scores(tmp_path, monkeypatch, seed, options)
    assert outside(scores, bounds) == [], scores


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(3))
def test_samples_of_a_learned_model_need_the_decoders_noise(seed, monkeypatch, tmp_path):
    silent = "--model.init_args.world_model.init_args.sample_decoder_noise=false"
    scores = last_scores(tmp_path, monkeypatch, seed, [LQ, CVAE, silent])
    assert {"return_error", "return_spread"} <= set(outside(scores, LEARNED_MODEL)), scores
    assert scores["return_spread"] < 0.9


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_framework_costs_under_five_percent_of_a_step_at_paper_sizes(monkeypatch, tmp_path):
    """Everything around the updates: Lightning, collection, replay, logging, progress."""
    from dsob_pl.agents import SobolevActorCritic

    monkeypatch.chdir(tmp_path)
    spent, stamps = [], []
    update, step = SobolevActorCritic._update, SobolevActorCritic.training_step

    def timed_update(self, *arguments):
        start = time.perf_counter()
        try:
            return update(self, *arguments)
        finally:
            spent.append((start, time.perf_counter() - start))

    def stamped_step(self, item, index):
        stamps.append(time.perf_counter())
        return step(self, item, index)

    monkeypatch.setattr(SobolevActorCritic, "_update", timed_update)
    monkeypatch.setattr(SobolevActorCritic, "training_step", stamped_step)
    more = ["--trainer.max_steps=320", "--trainer.log_every_n_steps=5", "--data.warmup_steps=300", "--threads=1"]
    assert main(["fit", f"--config={CONF / 'walker.yaml'}", *more]) == 0
    # From the second learning step to the last: each stretch holds one environment step and its ten updates.
    first, last = stamps[301], stamps[-1]
    learning = sum(seconds for start, seconds in spent if first <= start < last)
    overhead = 1 - learning / (last - first)
    print(f"overhead {overhead:.2%} of {(last - first) / (len(stamps) - 302):.2f} s a step")
    assert overhead < 0.05
