"""A small project for the tests of the command line, and ways to look at what runs leave in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from dsob_pl.tracking.store import mlflow_client

ROOT = Path(__file__).resolve().parents[2]

BASE = """\
seed_everything: 0
threads: 1
trainer: {max_steps: 60, val_check_interval: 30, log_every_n_steps: 10}
model:
  class_path: dsob_pl.agents.SobolevActorCritic
  init_args:
    critic: {class_path: dsob_pl.critics.GenerativeCritic, init_args: {hidden: [8]}}
    policy: {class_path: dsob_pl.networks.DeterministicPolicy, init_args: {hidden: [8]}}
    world_model: {class_path: dsob_pl.world_models.CVAE, init_args: {hidden: [8]}}
    samples: 2
    diagnostic_samples: 4
data:
  env_id: InvertedPendulum-v5
  warmup_steps: 10
  updates_per_step: 1
  batch_size: 4
  evaluation_episodes: 2
"""


class Finished(NamedTuple):
    """A folder in which two runs, seeds 0 and 1, were started at one moment, and what they printed."""

    folder: Path
    outputs: list[subprocess.CompletedProcess[str]]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dsob_pl", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def client_of(folder: Path) -> Any:
    return mlflow_client(f"sqlite:///{folder / 'mlflow.db'}")


def runs_of(folder: Path) -> list[Any]:
    client = client_of(folder)
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))
