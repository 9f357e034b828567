"""What mean and CVaR_0.1 of the return can be on CLIFF and JACK(10), into results/risk_optimum.csv.

``python notebooks/risk_optimum_study.py`` plans for each objective by dynamic programming, a few minutes on two cores,
and plays 20,000 episodes of each policy. ``clockless`` is the policy of the first step at every step, which an agent
that does not see the time can have. Standard errors of CVaR are those of its influence function.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

import torch
from torch import Tensor

from dsob_pl.envs import Cliff, Jack, play, risk_plan
from dsob_pl.risk import CVaR

TABLE = Path(__file__).parent / "results" / "risk_optimum.csv"
ALPHA, GAMMA, EPISODES = 0.1, 0.9, 20_000
# A name, what risk_plan plans for, and the level.
OBJECTIVES = {
    "mean": ("mean", ALPHA),
    "nested_cvar": ("nested_cvar", ALPHA),
    "nested_cvar_20": ("nested_cvar", 0.2),
    "episode_cvar": ("episode_cvar", ALPHA),
}
# Episodes as long as those of the registered environments; JACK's returns spread wider.
TASKS = {"cliff": (Cliff(), 30, {"budgets": 200}), "jack_10": (Jack(10), 10, {"budgets": 600})}


def cvar_error(returns: Tensor) -> float:
    """Standard error of CVaR."""
    shortfall = (returns.quantile(ALPHA) - returns).clamp_min(0) / ALPHA
    return shortfall.std().item() / math.sqrt(len(returns))


def main() -> None:
    """Writes the table."""
    rows = []
    for task, (problem, limit, sizes) in TASKS.items():
        for name, (objective, alpha) in OBJECTIVES.items():
            found = risk_plan(problem, GAMMA, limit, objective, alpha, **sizes)
            for clockless in (False, True) if objective != "episode_cvar" else (False,):
                returns, _ = play(problem, found, EPISODES, torch.Generator().manual_seed(0), clockless)
                numbers = {
                    "promised_mean": math.nan if clockless else found.mean,
                    "promised_cvar_10": math.nan if clockless or alpha != ALPHA else found.cvar,
                    "mean": returns.mean().item(),
                    "mean_error": returns.std().item() / math.sqrt(EPISODES),
                    "cvar_10": CVaR(ALPHA)(returns).item(),
                    "cvar_10_error": cvar_error(returns),
                    "std": returns.std().item(),
                }
                numbers = {key: "" if math.isnan(x) else f"{x:.4f}" for key, x in numbers.items()}
                rows.append({"task": task, "objective": name, "clockless": clockless, **numbers})
                print(rows[-1], flush=True)
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
