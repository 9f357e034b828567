"""TD3 of this project beside that of stable-baselines3, at equal environment steps and updates: results/sb3_check.csv.

pip install stable-baselines3
python notebooks/sb3_check.py                           all of it, 10 seeds each; fifty minutes on one core
python notebooks/sb3_check.py --only Pendulum-v1        tasks whose name contains this
python notebooks/sb3_check.py --library dsob_pl         or stable-baselines3, or stable-baselines3-normalized
python notebooks/sb3_check.py --seeds 0-4               fewer seeds; what is in the file already is not run again
python notebooks/sb3_check.py --table                   the table from the file, nothing is run

Equal on all sides: networks and their activation, Adam and its rates, batch, discount, warm-up, updates a step,
policy delay, target smoothing, exploration in units of the action bounds, and the evaluation: deterministic policies,
the same code, environments and reset seeds, after the updates of the same environment steps. What is left differs by
design: ours normalises observations (so does the second variant of the other library), scales rewards by one factor
that it fixes after the warm-up, bounds targets by the returns that the rewards seen allow, has Huber's loss in place of
the squared error, clips gradients, and improves the policy on the mean of both critics in place of the first.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results" / "sb3_check.csv"
COLUMNS = ["task", "library", "seed", "environment_step", "return_mean", "updates", "versions", "commit", "command"]

OURS, PLAIN, NORMALIZED = "dsob_pl", "stable-baselines3", "stable-baselines3-normalized"
EVERY = 250  # environment steps between evaluations
DISCOUNT, WARMUP, UPDATES_PER_STEP = 0.98, 400, 5


class Task(NamedTuple):
    """A config, the environment steps of a run, and the return that counts as solved."""

    config: str
    steps: int
    solved: float


TASKS = {
    "Pendulum-v1": Task("conf/pendulum.yaml", 2500, -200.0),
    "InvertedPendulum-v5": Task("conf/inverted_pendulum.yaml", 5000, 950.0),
}


class Evaluation(NamedTuple):
    """Mean return of the evaluation episodes, and the critic's updates so far."""

    environment_step: int
    return_mean: float
    updates: int


# Runs ---------------------------------------------------------------------------------------------------------------


def train_sb3(task: str, seed: int, normalize: bool) -> list[Evaluation]:
    """Evaluations of one seed of the other library's TD3."""
    import gymnasium
    import torch
    from stable_baselines3 import TD3
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    from dsob_pl.data import ReplayDataModule

    env = DummyVecEnv([lambda: gymnasium.make(task)])
    if normalize:
        env = VecNormalize(env, norm_obs=True, norm_reward=False, gamma=DISCOUNT)
    actions = env.action_space.shape[0]
    model = TD3(
        "MlpPolicy",
        env,
        learning_rate=1e-3,
        learning_starts=WARMUP,
        batch_size=64,
        tau=0.05,
        gamma=DISCOUNT,
        train_freq=1,
        gradient_steps=UPDATES_PER_STEP,
        action_noise=NormalActionNoise(np.zeros(actions), 0.15 * np.ones(actions)),
        policy_delay=2,
        target_policy_noise=0.2,
        target_noise_clip=0.5,
        buffer_size=TASKS[task].steps,  # all transitions, as ours
        policy_kwargs={
            "net_arch": [64, 64],
            "activation_fn": torch.nn.SiLU,
            "optimizer_kwargs": {"fused": True},  # the same formula, as in our configs
        },
        seed=seed,
        device="cpu",
    )
    data = ReplayDataModule(task)

    @torch.no_grad()
    def act(observation: torch.Tensor) -> torch.Tensor:
        if normalize:
            observation = torch.as_tensor(env.normalize_obs(observation.numpy()), dtype=torch.float32)
        return model.actor(observation)  # in [-1, 1], as our environments take it

    found = []
    for step in range(EVERY, TASKS[task].steps + 1, EVERY):
        # As many steps more. A callback would come before the updates of its step.
        model.learn(EVERY, reset_num_timesteps=False)
        assert model.num_timesteps == step
        returns = data.evaluate(act, DISCOUNT).returns
        found.append(Evaluation(step, float(returns.mean()), model._n_updates))
    data.teardown("fit")
    env.close()
    return found


def our_arguments(task: str, seeds: str) -> str:
    """Arguments of the ``fit`` of all seeds."""
    return (
        f"fit --config {TASKS[task].config} --config conf/ablation/earlier_default.yaml --config conf/method/td3.yaml "
        f"--seeds {seeds} "
        f"--trainer.max_steps {TASKS[task].steps} --trainer.val_check_interval {EVERY}"
    )


def train_ours(task: str, seeds: str) -> dict[int, list[Evaluation]]:
    """Evaluations of all seeds, one process for all of them."""
    with tempfile.TemporaryDirectory() as folder:
        quiet = f"--trainer.logger.save_dir {folder} --trainer.enable_checkpointing false"
        logger = "--trainer.logger lightning.pytorch.loggers.CSVLogger"
        bar = "--trainer.enable_progress_bar false"
        arguments = f"{our_arguments(task, seeds)} {logger} {quiet} {bar}".split()
        subprocess.run([sys.executable, "-m", "dsob_pl", *arguments], cwd=ROOT, check=True)
        found = {}
        for path in Path(folder).glob("**/seed_*/metrics.csv"):
            with path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if row["eval/return_mean"]]
            found[int(path.parent.name.removeprefix("seed_"))] = [
                Evaluation(step, float(row["eval/return_mean"]), UPDATES_PER_STEP * max(0, step - WARMUP))
                for step, row in ((int(row["step"]), row) for row in rows)
            ]
    return found


# The file -----------------------------------------------------------------------------------------------------------


def read() -> list[dict[str, str]]:
    """The rows of the file."""
    if not RESULTS.is_file():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def commit() -> str:
    """Of the working tree."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def store(task: str, library: str, runs: dict[int, list[Evaluation]], at: str, command: str) -> None:
    """Adds runs to the file; each task, library and seed stands together. ``at`` is the commit."""
    packages = ["torch", "gymnasium", "mujoco"] + ([] if library == OURS else ["stable-baselines3"])
    about = {
        "versions": " ".join(f"{package}={version(package)}" for package in packages),
        "commit": at,
        "command": command,
    }
    rows: list[dict[str, Any]] = list(read())
    for seed, evaluations in runs.items():
        for one in evaluations:
            measured = one._asdict() | {"return_mean": f"{one.return_mean:.2f}"}
            rows.append({"task": task, "library": library, "seed": seed} | measured | about)
    libraries = list(LIBRARIES)
    rows.sort(key=lambda r: (list(TASKS).index(r["task"]), libraries.index(r["library"]), int(r["seed"])))
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def run_sb3(task: str, seeds: Sequence[int], normalize: bool) -> None:
    """Trains and stores one seed after the other."""
    library = NORMALIZED if normalize else PLAIN
    for seed in seeds:
        at, found = commit(), train_sb3(task, seed, normalize)
        print(f"{task}, {library}, seed {seed}: {found[-1].return_mean:.1f}", flush=True)
        command = f"python notebooks/sb3_check.py --only {task} --library {library} --seeds {seed}"
        store(task, library, {seed: found}, at, command)


def run_ours(task: str, seeds: Sequence[int]) -> None:
    """Trains all seeds at once and stores them."""
    from dsob_pl.seeds import compact_seeds

    at, named = commit(), compact_seeds(seeds)
    store(task, OURS, train_ours(task, named), at, f"python -m dsob_pl {our_arguments(task, named)}")


LIBRARIES: dict[str, Callable[[str, Sequence[int]], None]] = {
    PLAIN: lambda task, seeds: run_sb3(task, seeds, normalize=False),
    NORMALIZED: lambda task, seeds: run_sb3(task, seeds, normalize=True),
    OURS: run_ours,
}

# The table ----------------------------------------------------------------------------------------------------------


def curves(task: str, library: str) -> np.ndarray:
    """Evaluations ``[steps, seeds]``; no columns where nothing was run."""
    by_seed: dict[int, list[tuple[int, float]]] = {}
    for row in read():
        if row["task"] == task and row["library"] == library:
            by_seed.setdefault(int(row["seed"]), []).append((int(row["environment_step"]), float(row["return_mean"])))
    return np.array([[value for _, value in sorted(points)] for _, points in sorted(by_seed.items())]).T


def table() -> str:
    """The table of RESULTS.md: interquartile means with bootstrapped 95 % intervals; solved is one evaluation at that return."""
    from dsob_pl.analysis.statistics import (
        Estimate,
        estimate,
        interquartile_mean,
        probability_of_improvement,
        separated,
    )

    def shown(one: Estimate, digits: int) -> str:
        interval = f" [{one.low:.{digits}f}, {one.high:.{digits}f}]" if np.isfinite(one.low) else ""
        return f"{one.value:.{digits}f}{interval}"

    lines = [
        "| task, environment steps | TD3 of | seeds | solved | last evaluation | area under the curve "
        "| intervals apart from ours | P(a seed of ours has more area) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task, (_, steps, solved) in TASKS.items():
        found = {library: curves(task, library) for library in LIBRARIES}
        # The steps between evaluations are equal, so the area over the length is their mean.
        scores = {library: (curve[-1], curve.mean(0)) for library, curve in found.items() if curve.size}
        estimates = {name: [estimate(interquartile_mean, [x]) for x in both] for name, both in scores.items()}
        for library, (last, area) in scores.items():
            reached = (found[library].max(0) >= solved).sum()
            cells = [f"{task}, {steps:,}", library, str(len(last)), str(reached)]
            cells += [shown(one, 0) for one in estimates[library]]
            if library == OURS or OURS not in scores or len(last) < 2:
                cells += ["", ""]
            else:
                pairs = zip(("last evaluation", "area"), estimates[library], estimates[OURS])
                cells.append(" and ".join(name for name, one, ours in pairs if separated(one, ours)) or "neither")
                cells.append(shown(probability_of_improvement([scores[OURS][1]], [area]), 2))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is asked for and not yet in the file, or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="tasks whose name contains this")
    parser.add_argument("--library", choices=list(LIBRARIES), help="only this one")
    parser.add_argument("--seeds", default="0-9", help="such as 0-9 or 0,3,7")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print(table())
        return
    import torch

    from dsob_pl.seeds import parse_seeds

    torch.set_num_threads(1)
    for task in TASKS:
        for library, run in LIBRARIES.items():
            there = {int(row["seed"]) for row in read() if (row["task"], row["library"]) == (task, library)}
            seeds = [seed for seed in parse_seeds(options.seeds) if seed not in there]
            if seeds and options.only in task and options.library in (None, library):
                run(task, seeds)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
