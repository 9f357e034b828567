"""What agents that ascend the mean and CVaR_0.1 reach on CLIFF, beside the brute force: the README's table.

    python notebooks/cliff_study.py               ten seeds of each objective; about an hour on one core
    python notebooks/cliff_study.py --table       the table from the file, nothing is run

World models are learned. Every agent's last policy plays 20,000 episodes of the problem itself; CVaR is that of the
discounted return of these episodes, not what the agent's critic predicts.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "notebooks" / "results" / "cliff.csv"
OPTIMUM = ROOT / "notebooks" / "results" / "risk_optimum.csv"
COLUMNS = ["objective", "seed", "environment_step", "mean", "cvar_10", "run", "commit", "command"]
OBJECTIVES = {"mean": "conf/risk/mean.yaml", "cvar_10": "conf/risk/cvar_10.yaml"}
EPISODES, LIMIT, ALPHA = 20_000, 30, 0.1


@torch.no_grad()
def returns(agent: object, gamma: float) -> torch.Tensor:
    """Discounted returns ``[n]`` of the agent's policy in the problem itself."""
    from dsob_pl.envs import Cliff

    problem, generator = Cliff(), torch.Generator().manual_seed(0)

    def normal(size: int) -> torch.Tensor:
        return torch.randn(EPISODES, size, generator=generator)

    s, total = problem.initial_state(normal(2)), torch.zeros(EPISODES)
    for t in range(LIMIT):
        s, r, _ = problem(s, agent.act(s), normal(problem.noise_size))  # type: ignore[attr-defined]
        total += gamma**t * r
    return total


def run(objective: str, seeds: str, steps: int, folder: Path) -> list[dict[str, object]]:
    """Trains all seeds in one process; a row for each."""
    from dsob_pl import load_agent
    from dsob_pl.envs import lower_cvar
    from dsob_pl.tracking.store import PARENT_TAG, all_runs, mlflow_client

    place = folder / objective
    place.mkdir()
    files = [ROOT / "conf/cliff.yaml", ROOT / OBJECTIVES[objective]]
    words = [word for file in files for word in ("--config", str(file))]
    own = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
    own |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = ["fit", *words, f"--seeds={seeds}", f"--trainer.max_steps={steps}"]
    subprocess.run(
        [sys.executable, "-m", "dsob_pl", *command], cwd=place, env=own, check=True, stdout=subprocess.DEVNULL
    )
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    uri = f"sqlite:///{place / 'mlflow.db'}"
    client = mlflow_client(uri)
    found = all_runs(client, [experiment.experiment_id for experiment in client.search_experiments()])
    rows: list[dict[str, object]] = []
    for one in (one for one in found if PARENT_TAG in one.data.tags):
        agent = load_agent(Path(one.info.artifact_uri) / "checkpoints" / "last.ckpt")
        reached = returns(agent, agent.gamma)
        rows.append(
            {
                "objective": objective,
                "seed": int(one.data.tags["seed"]),
                "environment_step": steps,
                "mean": f"{reached.mean().item():.5g}",
                "cvar_10": f"{lower_cvar(reached, ALPHA):.5g}",
                "run": one.info.run_id[:8],
                "commit": commit[:10],
                "command": f"python {' '.join(sys.argv)}",
            }
        )
    return sorted(rows, key=lambda row: int(str(row["seed"])))


def read(path: Path = RESULTS) -> list[dict[str, str]]:
    """Rows of a file; none where there is none."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table(rows: list[dict[str, str]]) -> str:
    """Mean over seeds with its 95 % bootstrap interval, and as a fraction of the brute force."""
    from dsob_pl.analysis.statistics import estimate, mean

    best = {row["objective"]: row for row in read(OPTIMUM) if row["task"] == "cliff" and row["clockless"] == "False"}
    lines = [
        "| policy | seeds | mean return | CVaR_0.1 of the return | of the best mean | of the best CVaR_0.1 |",
        "|---|---|---|---|---|---|",
    ]
    names = {"mean": "best mean", "nested_cvar": "best nested CVaR_0.1", "episode_cvar": "best CVaR_0.1 of the episode"}
    top = float(best["mean"]["mean"]), float(best["episode_cvar"]["cvar_10"])
    for key, name in names.items():
        values = float(best[key]["mean"]), float(best[key]["cvar_10"])
        shares = " | ".join(f"{value / most:.2f}" for value, most in zip(values, top))
        lines.append(f"| brute force: {name} | | {values[0]:.2f} | {values[1]:.2f} | {shares} |")
    for objective in OBJECTIVES:
        own = [row for row in rows if row["objective"] == objective]
        if not own:
            continue
        texts, shares = [], []
        for column, most in zip(("mean", "cvar_10"), top):
            found = estimate(mean, [np.array([float(row[column]) for row in own])])
            texts.append(f"{float(found.value):.2f} [{float(found.low):.2f}, {float(found.high):.2f}]")
            shares.append(f"{float(found.value) / most:.2f}")
        lines.append(f"| learned, ascends {objective} | {len(own)} | {' | '.join(texts + shares)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is asked for, keeps the other rows of the file, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-9")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--only", default="", help="objectives whose name contains this")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if not options.table:
        with tempfile.TemporaryDirectory(prefix="cliff_study_") as folder:
            for objective in (name for name in OBJECTIVES if options.only in name):
                own = run(objective, options.seeds, options.steps, Path(folder))
                rows = [row for row in read() if row["objective"] != objective] + own  # type: ignore[operator]
                with RESULTS.open("w", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)
    print(table(read()))


if __name__ == "__main__":
    main()
