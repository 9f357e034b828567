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
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |".replace("|  |", "| |"))
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


def tables() -> dict[str, str]:
    """By the name of their place in the README."""
    return {"summit": task_table("summit", "summit_5"), "factors": factor_table()}


if __name__ == "__main__":
    print("\n\n".join(tables().values()))
