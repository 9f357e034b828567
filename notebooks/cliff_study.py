"""What agents that ascend the mean and CVaR_0.1 reach on CLIFF, beside the brute force: the README's table.

    python notebooks/cliff_study.py               ten seeds of each objective; some hours on one core
    python notebooks/cliff_study.py --only mean --runs FOLDER   the runs that have finished there, nothing is trained
    python notebooks/cliff_study.py --table       the table from the file, nothing is run

World models are learned. Objectives have the environment steps of their config, which the table states. Policies play
20,000 episodes of the problem itself: every agent's last one, and where the best checkpoint is that of the measure that
is ascended (eval/risk, of 200 other episodes of an evaluation), that one, too. CVaR is that of the discounted return of
these episodes, not what the agent's critic predicts.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]

from seed_runs import finished, fit, keep, own_provenance, provenance, read  # noqa: E402

RESULTS = ROOT / "notebooks" / "results" / "cliff.csv"
OPTIMUM = ROOT / "notebooks" / "results" / "risk_optimum.csv"
COLUMNS = ["objective", "seed", "checkpoint", "environment_step", "mean", "cvar_10", "run", "commit", "command"]
KEYS = ["objective", "seed", "checkpoint"]
# By the file in conf/risk/: what is said of it, and its environment steps.
OBJECTIVES = {
    "mean": ("the mean", 2000),
    "cvar_10": ("CVaR_0.1 from the first step on", 2000),
    "cvar_10_schedule": ("CVaR_0.1, led to from the mean", 6000),
    "cvar_20_schedule": ("CVaR_0.2, led to from the mean", 4500),
}
# Rows of an earlier conf/cliff.yaml (their commit is in the file), kept for what they show.
EARLIER = {"cvar_10_first_settings": "CVaR_0.1 from the first step on (the first settings)"}
EPISODES, LIMIT, ALPHA = 20_000, 30, 0.1


def run(objective: str, seeds: str, steps: int, folder: Path) -> list[dict[str, object]]:
    """Trains all seeds in one process; their rows."""
    files = [ROOT / "conf/cliff.yaml", ROOT / f"conf/risk/{objective}.yaml"]
    options = f"--trainer.max_steps={steps}", "--model.compile=true"
    runs = fit(folder / objective, files, seeds, *options)
    return [{"objective": objective, **played, **provenance(found)} for found in runs for played in plays(found)]


def judge(objective: str, folder: Path) -> list[dict[str, object]]:
    """Rows of each run of the objective that has finished in the folder."""
    return [
        {"objective": objective, **played, **own_provenance(found)}
        for found in finished(folder)
        for played in plays(found)
    ]


def plays(found: Any) -> list[dict[str, object]]:
    """Those of a run's last policy, and of its best checkpoint where that is the best by the measure it ascends."""
    from dsob_pl.training.checkpoint_file import checkpoint_config, read_checkpoint

    folder = Path(found.info.artifact_uri) / "checkpoints"
    last = folder / "last.ckpt"
    monitor = yaml.safe_load(checkpoint_config(read_checkpoint(last), last))["checkpoint"]["monitor"]
    return [play(folder / f"{which}.ckpt") for which in (["last", "best"] if monitor == "eval/risk" else ["last"])]


def play(checkpoint: Path) -> dict[str, object]:
    """Mean and CVaR of a policy over episodes of the problem itself."""
    from dsob_pl import load_agent
    from dsob_pl.envs import Cliff, play_policy
    from dsob_pl.risk import CVaR
    from dsob_pl.training.checkpoint_file import read_checkpoint

    agent = load_agent(checkpoint)

    def policy(s: Tensor, *_: object) -> Tensor:
        return agent.act(s.float()).double()

    generator = torch.Generator().manual_seed(0)
    returns, _ = play_policy(Cliff(), policy, agent.gamma, LIMIT, EPISODES, generator)
    return {
        "checkpoint": checkpoint.stem,
        "environment_step": int(read_checkpoint(checkpoint)["global_step"]),
        "mean": f"{returns.mean().item():.5g}",
        "cvar_10": f"{CVaR(ALPHA)(returns).item():.5g}",
    }


def table(rows: list[dict[str, str]]) -> str:
    """Mean over seeds with its 95 % bootstrap interval, and as a fraction of the brute force."""
    from dsob_pl.analysis.statistics import estimate, mean

    best = {row["objective"]: row for row in read(OPTIMUM) if row["task"] == "cliff" and row["clockless"] == "False"}
    lines = [
        "| policy | seeds | environment steps | mean return | CVaR_0.1 of the return "
        "| of the best mean | of the best CVaR_0.1 |",
        "|---|---|---|---|---|---|---|",
    ]
    names = {
        "mean": "best mean",
        "nested_cvar": "best nested CVaR_0.1",
        "nested_cvar_20": "best nested CVaR_0.2",
        "episode_cvar": "best CVaR_0.1 of the episode",
    }
    top = float(best["mean"]["mean"]), float(best["episode_cvar"]["cvar_10"])
    for key, name in names.items():
        values = float(best[key]["mean"]), float(best[key]["cvar_10"])
        shares = " | ".join(f"{value / most:.2f}" for value, most in zip(values, top))
        lines.append(f"| brute force: {name} | | | {values[0]:.2f} | {values[1]:.2f} | {shares} |")
    shown = {key: name for key, (name, _) in OBJECTIVES.items()} | EARLIER
    for (objective, name), which in itertools.product(shown.items(), ("last", "best")):
        own = [row for row in rows if (row["objective"], row["checkpoint"]) == (objective, which)]
        if not own:
            continue
        at = sorted({int(row["environment_step"]) for row in own})
        steps = f"{at[0]:,}" if len(at) == 1 else f"{at[0]:,} to {at[-1]:,}"
        texts, shares = [], []
        for column, most in zip(("mean", "cvar_10"), top):
            found = estimate(mean, [np.array([float(row[column]) for row in own])])
            texts.append(f"{float(found.value):.2f} [{float(found.low):.2f}, {float(found.high):.2f}]")
            shares.append(f"{float(found.value) / most:.2f}")
        name += ", best checkpoint" if which == "best" else ""
        lines.append(f"| learned, ascends {name} | {len(own)} | {steps} | {' | '.join(texts + shares)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is asked for, keeps the other rows of the file, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-9")
    parser.add_argument("--steps", type=int, help="environment steps in place of the objective's own")
    parser.add_argument("--only", default="", choices=["", *OBJECTIVES], help="this objective, not all")
    parser.add_argument("--runs", type=Path, help="a folder whose runs have finished, of the objective of --only")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.runs:
        if not options.only:
            parser.error("--runs: expected an objective as well, --only NAME")
        keep(RESULTS, COLUMNS, KEYS, judge(options.only, options.runs))
    elif not options.table:
        with tempfile.TemporaryDirectory(prefix="cliff_study_") as folder:
            for objective in (name for name in OBJECTIVES if options.only in ("", name)):
                steps = options.steps or OBJECTIVES[objective][1]
                rows = run(objective, options.seeds, steps, Path(folder))
                keep(RESULTS, COLUMNS, KEYS, rows)
    print(table(read(RESULTS)))


if __name__ == "__main__":
    main()
