"""What takes minutes: ``pytest -m slow``. Learning on real tasks, and what the framework costs."""

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
