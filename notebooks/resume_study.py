"""Kills a real run at random moments, goes on with it each time, and compares it with one that was never cut off.

    python notebooks/resume_study.py --kills 200 --steps 5000 --out notebooks/results/resume.csv

Both runs are in a temporary folder, which --keep leaves there. Compared are everything in the last checkpoint (parameters,
targets, optimizers, scales, counters, generators, the environment in mid-episode), the replay, and every point of every
metric, those of speed excepted. Exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LAST = "mlruns/*/*/artifacts/checkpoints/last.ckpt"
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # as the processes that it starts have it
CONFIG = """
threads: 1
trainer: {max_steps: %(steps)d, val_check_interval: %(interval)d, log_every_n_steps: 7}
model:
  init_args:
    critic: {class_path: dsob_pl.critics.GenerativeCritic, init_args: {hidden: [16, 16]}}
    policy: {class_path: dsob_pl.networks.DeterministicPolicy, init_args: {hidden: [16, 16]}}
    world_model: {class_path: dsob_pl.world_models.CVAE, init_args: {hidden: [16], termination_hidden: [16]}}
    samples: 3
    diagnostic_samples: 4
    gamma: 0.9
    overestimation: {class_path: dsob_pl.bellman.AdaptivePessimism, init_args: {every: 5, window: 40, after: 0.5}}
    anneal_after: 0.5
    freeze_policy_at: 0.7
data:
  env_id: %(env)s
  env_kwargs: {max_episode_steps: 45}
  noise: [dsob_pl.envs.ObservationNoise]
  batch_size: 8
  updates_per_step: 1
  warmup_steps: 30
  evaluation_episodes: 2
  holdout_fraction: 0.3
"""
# Writes every file in small pieces with a pause before each, so that a kill hits the writing, too.
SLOW_WRITES = """
import time
import dsob_pl.files as files

def write(file, data):
    for start in range(0, len(data), 16384):
        file.write(data[start : start + 16384])
        file.flush()
        time.sleep(0.02)

files.write = write
"""
MAIN = """
import sys
from dsob_pl.cli import main
sys.exit(main(sys.argv[1:]))
"""
# Names of runs and folders, and times, are not the same in two runs.
DIFFERENT = ("dsob_run", "dsob_owner", "/files", "path", "dsob_config", "best_k_models", "speed/")


def environment() -> dict[str, str]:
    """Of the processes: without the settings of whatever started this one."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "SLURM"))}
    return {**own, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def write_config(folder: Path, steps: int, interval: int) -> None:
    """Writes base.yaml into ``folder``, which is made where it is not there yet."""
    folder.mkdir(exist_ok=True)
    (folder / "base.yaml").write_text(CONFIG % {"steps": steps, "interval": interval, "env": "Walker2d-v5"})


def start(
    folder: Path, *options: str, slow: bool = False, steps: int = 160, interval: int = 20, **more: str
) -> subprocess.Popen[str]:
    """A process of ``fit`` in ``folder``, with what it prints in a pipe."""
    write_config(folder, steps, interval)
    program = ["-c", SLOW_WRITES + MAIN] if slow else ["-m", "dsob_pl"]
    words = [sys.executable, *program, "fit", "--config", "base.yaml", *options]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
    return subprocess.Popen(words, cwd=folder, env=environment() | more, text=True, **pipes)


def killed(
    folder: Path, kills: int, seed: int, mean_seconds: float, start: Callable[..., Any] = start, **config: int
) -> int:
    """Starts a run and kills it, again and again; of how many of the kills a file was just being written.

    One kill of two is at any moment after the first checkpoint, the other at one while files are written.
    """
    draw = random.Random(seed)
    torn = 0
    for _ in range(kills):
        begun = bool(list(folder.glob(LAST)))
        for path in folder.rglob(".*.part"):  # of the last kill
            path.unlink()
        process = start(folder, *(["--ckpt_path=last"] if begun else []), slow=True, **config)
        assert process.stdout is not None
        while not begun and process.poll() is None and not list(folder.glob(LAST)):
            time.sleep(0.02)
        if begun:
            process.stdout.readline()  # it goes on
        if draw.random() < 0.5:
            time.sleep(draw.expovariate(1.0 / mean_seconds))
        else:
            while process.poll() is None and not list(folder.rglob(".*.part")):
                time.sleep(0.002)
            time.sleep(draw.uniform(0.0, 1.0))
        process.kill()
        process.communicate()
        torn += bool(list(folder.rglob(".*.part")))
    return torn


def checkpoint(folder: Path, name: str = "last") -> Path:
    """Of the run that holds all there is to go on with."""
    (found,) = (path.parent for path in folder.glob("mlruns/*/*/artifacts/checkpoints/replay"))
    return found / f"{name}.ckpt"


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two checkpoints differ."""
    if any(word in where for word in DIFFERENT):
        return []
    if isinstance(a, torch.Tensor):
        same = a.shape == b.shape and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
        return [] if same else [where]
    if isinstance(a, dict):
        if set(a) != set(b):
            return [f"{where}: {set(a) ^ set(b)}"]
        return [found for key in a for found in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [f"{where}: {len(a)} and {len(b)}"]
        return [found for i, (x, y) in enumerate(zip(a, b)) for found in differences(x, y, f"{where}[{i}]")]
    return [] if a == b else [f"{where}: {a} and {b}"]


def histories(folder: Path) -> dict[tuple[str, str], list[tuple[int, float, int]]]:
    """Every point of every metric, by run's name; a point that was written twice is there twice."""
    query = "select name, key, step, value, is_nan from metrics join runs using (run_uuid) order by step"
    found: dict[tuple[str, str], list[tuple[int, float, int]]] = {}
    with sqlite3.connect(folder / "mlflow.db") as database:
        for run, key, step, value, nan in database.execute(query):
            if not key.startswith("speed/"):
                found.setdefault((run, key), []).append((step, value, nan))
    return found


def compare(folder: Path, straight: Path) -> list[str]:
    """Where a run that was cut off differs from one that was not."""
    from dsob_pl.data import load_replay

    paths = checkpoint(folder), checkpoint(straight)
    a, b = (torch.load(path, weights_only=True) for path in paths)
    found = differences(a, b)
    if "ReplayDataModule" in a:
        one, two = (load_replay(path) for path in paths)
        found += [] if len(one) == len(two) and bool((one == two).all()) else ["replay"]
    one, two = histories(folder), histories(straight)
    return found + [f"history of {key}" for key in sorted(set(one) | set(two)) if one.get(key) != two.get(key)]


def main() -> int:
    """Runs the study and writes one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--interval", type=int, default=25, help="environment steps between evaluations")
    parser.add_argument("--seconds", type=float, default=0.7, help="mean time from a start to a kill")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="resume_study_"))
    config = {"steps": options.steps, "interval": options.interval}
    straight = start(folder / "straight", **config)
    torn = killed(folder / "killed", options.kills, options.seed, options.seconds, **config)
    reached = torch.load(checkpoint(folder / "killed"), weights_only=True)["global_step"]
    last = start(folder / "killed", "--ckpt_path=last", **config)
    for process in (straight, last):
        out, _ = process.communicate()
        if process.returncode:
            print(out)
            return 1
    found = compare(folder / "killed", folder / "straight")
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    row = {
        "environment": "Walker2d-v5",
        "steps": options.steps,
        "kills": options.kills,
        "kills_while_writing": torn,
        "last_step_before_the_end": reached,
        "points_of_metrics": sum(map(len, histories(folder / "straight").values())),
        "differences": len(found),
        "seed": options.seed,
        "commit": commit,
        "command": f"python {' '.join(sys.argv)}",
    }
    print(row, *found[:20], sep="\n")
    if options.out:
        with options.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            writer.writeheader()
            writer.writerow(row)
    if options.keep or found:
        print(folder)
    else:
        import shutil

        shutil.rmtree(folder)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
