"""Trains for an hour and watches the memory of the process: its resident size must not grow with the steps.

    python notebooks/soak_study.py --minutes 60 --out notebooks/results/soak.csv --figure notebooks/figures/soak.png

A real run with everything that a run does: updates, evaluations, checkpoints, figures, metrics in MLflow. The replay is
small and full after a while (a replay that fills up grows, as it must); what counts is the slope from twice that step
on. Exit code 1 where the slope is not below 1 MB per 10,000 environment steps.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 1.0  # MB per 10,000 steps
CAPACITY = 2000
CONFIG = f"""
threads: 1
trainer: {{max_steps: 100000000, val_check_interval: 500, log_every_n_steps: 20}}
model:
  init_args:
    critic: {{class_path: dsob_pl.critics.GenerativeCritic, init_args: {{hidden: [32, 32]}}}}
    policy: {{class_path: dsob_pl.networks.DeterministicPolicy, init_args: {{hidden: [32, 32]}}}}
    world_model: {{class_path: dsob_pl.world_models.CVAE, init_args: {{hidden: [32], termination_hidden: [32]}}}}
    samples: 5
data:
  env_id: Walker2d-v5
  noise: [dsob_pl.envs.ObservationNoise]
  capacity: {CAPACITY}
  batch_size: 32
  updates_per_step: 1
  warmup_steps: 200
  evaluation_episodes: 2
"""
Sample = tuple[float, int, float]  # minutes, environment step, MB


def resident(process: int) -> float:
    """Resident size of a process in MB."""
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(encoding="ascii"))
    return int(match[1]) * 1024 / 1e6 if match else float("nan")


def last_step(database: Path) -> int:
    """The environment step of the newest metric."""
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=30)) as connection:
            (step,) = connection.execute("select max(step) from latest_metrics").fetchone()
    except sqlite3.OperationalError:  # it is not there yet, or in the making
        return 0
    return int(step or 0)


def watch(folder: Path, minutes: float, every: float) -> list[Sample]:
    """Runs ``fit`` for so long, tells it to stop, and returns what was seen of it."""
    (folder / "base.yaml").write_text(CONFIG)
    own = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
    words = [sys.executable, "-m", "dsob_pl", "fit", "--config", "base.yaml", "--trainer.enable_progress_bar=false"]
    own |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(words, cwd=folder, env=own, stdout=log, stderr=log)
    samples: list[Sample] = []
    start = time.monotonic()
    while process.poll() is None and time.monotonic() - start < 60 * minutes:
        time.sleep(every)
        step = last_step(folder / "mlflow.db")
        if step:
            samples.append(((time.monotonic() - start) / 60, step, resident(process.pid)))
    process.send_signal(signal.SIGTERM)
    if process.wait(timeout=120) != 128 + signal.SIGTERM:
        raise SystemExit((folder / "log").read_text())
    return samples


def slope(samples: list[Sample]) -> tuple[float, float]:
    """MB per 10,000 steps by least squares, and its standard error by the jackknife over ten stretches of the run.

    Neighbouring samples are not independent, so that the usual standard error would be too small.
    """
    rows = np.array([sample for sample in samples if sample[1] >= 2 * CAPACITY])
    if len(rows) < 20:
        raise SystemExit(f"too short: {len(rows)} samples after step {2 * CAPACITY:,}, at least 20 are needed")

    def fit(points: np.ndarray) -> float:
        return float(np.polyfit(points[:, 1] / 10_000, points[:, 2], 1)[0])

    stretches = np.array_split(rows, 10)
    without = [fit(np.concatenate(stretches[:i] + stretches[i + 1 :])) for i in range(10)]
    return fit(rows), float(np.sqrt(9 / 10 * np.sum((np.array(without) - np.mean(without)) ** 2)))


def draw(samples: list[Sample], found: tuple[float, float], out: Path) -> None:
    """Resident size over environment steps, and the slope."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    minutes, steps, size = np.array(samples).T
    figure, axis = plt.subplots(figsize=(6.4, 3.0), constrained_layout=True)
    axis.axvspan(0, 2 * CAPACITY, color="0.93", linewidth=0)
    axis.plot(steps, size, linewidth=1.4, color="#0f6fc6")
    axis.set(xlabel="environment steps", ylabel="resident size, MB", ylim=(0, 1.25 * size.max()), xlim=(0, steps.max()))
    axis.set_title(
        f"{minutes[-1]:.0f} minutes of training: {found[0]:+.2f} ± {1.96 * found[1]:.2f} MB per 10,000 steps",
        fontsize=10,
    )
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=130)


def main() -> int:
    """Runs the study, writes its samples and draws them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=15.0, help="seconds between two samples")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    samples = watch(Path(tempfile.mkdtemp(prefix="soak_study_")), options.minutes, options.every)
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["minutes", "environment_step", "resident_mb"])
        writer.writerows((f"{minutes:.2f}", step, f"{size:.2f}") for minutes, step, size in samples)
    found = slope(samples)
    print(f"{samples[-1][0]:.1f} minutes, {samples[-1][1]:,} environment steps, {samples[-1][2]:,.0f} MB")
    print(f"slope {found[0]:+.3f} MB per 10,000 steps, standard error {found[1]:.3f}")
    if options.figure is not None:
        draw(samples, found, options.figure)
    return int(found[0] >= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
