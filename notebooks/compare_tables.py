"""The README's tables of the comparison, from results/compare/ and results/summit_factors.csv; nothing is run.

python notebooks/compare_tables.py

results/compare/<suite>/ are the tables that `python -m dsob_pl report --suite <suite> --out DIR` writes after a sweep;
the commands of single fits stand in every file.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from dsob_pl.analysis import read_csv
from dsob_pl.analysis.comparison import compare, estimate_of
from dsob_pl.analysis.statistics import estimate, interquartile_mean
from dsob_pl.analysis.text import interval

RESULTS = Path(__file__).resolve().parent / "results"
# Return, environment steps.
GOALS = {"pendulum": (-200, 2500), "inverted_pendulum": (950, 5000), "inverted_double_pendulum": (9000, 15000)}
DEFAULT_METHOD = "mmd_anchored_state_action"
FACTORS_AT = 500  # environment steps, which all of its fits have reached


def task_table(suite: str, task: str, against: str = "mage") -> str:
    """Final score and area under the curve of every method on one task, without noise."""
    rows = compare(read_csv(RESULTS / "compare" / suite), against).tasks
    rows = rows[(rows["task"] == task) & (rows["noise"] == "none")]
    lines = [f"| method | targets; pessimism | seeds | final score | area under the curve | against {against} |"]
    lines.append("|---|---|---|---|---|---|")
    for _, row in rows.iterrows():
        score, area = (interval(estimate_of(row, name)) for name in ("score", "area"))
        cells = [row["method"], row["setting"], row["seeds"], score, area, row["against"]]
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join(lines)


def factor_table() -> str:
    """The score on SUMMIT(5) early in training, one factor at a time."""
    table = pd.read_csv(RESULTS / "summit_factors.csv")
    table = table[table["environment_step"] == FACTORS_AT]
    lines = [f"| factor | setting | seeds | score after {FACTORS_AT} environment steps |", "|---|---|---|---|"]
    for (factor, setting), group in table.groupby(["factor", "setting"], sort=False):
        score = interval(estimate(interquartile_mean, [group["normalized_score"].to_numpy()]))
        lines.append(f"| {factor} | {setting} | {len(group)} | {score} |")
    return "\n".join(lines)


def control_table() -> str:
    """When each seed of the small control tasks first met its goal under each noise, and where it ended; defaults only."""
    results = read_csv(RESULTS / "compare" / "control")
    done = results.cells[(results.cells["state"] == "complete") & (results.cells["method"] == DEFAULT_METHOD)]
    whole = set(zip(done["task"], done["noise"]))
    lines = [
        "| task | noise | goal | seeds that met it | first evaluation that did, in environment steps | at the end |"
    ]
    lines.append("|---|---|---|---|---|---|")
    own = results.curves[results.curves["method"] == DEFAULT_METHOD]
    for task, (goal, within) in GOALS.items():
        for noise in ("none", "observation", "dynamics"):
            if (task, noise) not in whole:
                continue
            curves = own[(own["task"] == task) & (own["noise"] == noise)]
            last = curves[curves["environment_step"] == curves["environment_step"].max()]
            met = curves[(curves["eval/return_mean"] >= goal) & (curves["environment_step"] <= within)]
            first = sorted(met.groupby("seed")["environment_step"].min())
            end = interval(estimate(interquartile_mean, [last["eval/return_mean"].to_numpy()]))
            many = curves["seed"].nunique()
            when = f"{first[0]:,} to {first[-1]:,}" if first else ""
            cells = [task, noise, f"{goal:,} within {within:,}", f"{len(first)} of {many}", when]
            still = int((last["eval/return_mean"] >= goal).sum())
            step = f"{last['environment_step'].iloc[0]:,}"
            lines.append(f"| {' | '.join(cells)} | {end} at {step}; {still} of {many} still meet it |")
    return "\n".join(lines)


def tables() -> dict[str, str]:
    """By the name of their place in the README."""
    return {"summit": task_table("summit", "summit_5"), "factors": factor_table(), "control": control_table()}


if __name__ == "__main__":
    print("\n\n".join(tables().values()))
