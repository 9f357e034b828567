"""The tidy tables of a suite, and their CSV files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from dsob_pl.analysis.settings import COLUMNS
from dsob_pl.errors import UsageError, nearest
from dsob_pl.tracking.glossary import SCORES

METRICS = SCORES
FACTORS = ["task", "method", "noise"]
# Runs in other states have not had all of their steps: they are named, and are in no statistic.
ENDED = ("FINISHED", "FAILED")
FILES = ("curves.csv", "finals.csv", "cells.csv")
_NUMBERS = (
    "seed",
    "environment_step",
    *METRICS,
    "area_under_curve",
    "wall_clock_seconds",
    "updates",
    "steps",
    "gamma_kappa",
)
_OWN = ("suite", *FACTORS, "seed")
# Always written; a metric has a column where any run has it, and a data setting since reports tell it.
_WRITTEN = {
    "curves.csv": (*_OWN, "environment_step"),
    "finals.csv": (*_OWN, "status", "environment_step", "wall_clock_seconds", "updates", "steps", "gamma_kappa", "run",
                   "commit", "dirty", "command"),
    "cells.csv": ("suite", "score", "cell", *FACTORS, "seeds", "state", "missing_seeds", "failed_seeds", "in_grid",
                  "command", "versions"),
}  # fmt: skip
DIGITS = 6  # that count, in tables as in files: a page made from files is the one made from MLflow


@dataclass(frozen=True)
class Results:
    """What a suite left behind.

    Attributes:
        suite: its name.
        score: the metric that methods are compared by.
        curves: one row per evaluation: suite, task, method, noise, seed, environment_step and ``METRICS``.
        finals: one row per run of a seed: those factors, status, environment_step of its last evaluation, each metric
            there, area_under_curve, wall_clock_seconds, updates, steps, gamma_kappa (the largest), run, commit, dirty,
            command. A FAILED run has diverged after that many steps; its last evaluation counts as its final one.
        cells: one row per cell of the grid: suite, score, cell, the factors, seeds, state (complete, incomplete,
            missing), missing_seeds, failed_seeds, in_grid, command, versions and its data setting.
    """

    suite: str
    score: str
    curves: pd.DataFrame
    finals: pd.DataFrame
    cells: pd.DataFrame

    @property
    def metrics(self) -> list[str]:
        """Metrics that any run has."""
        return [name for name in METRICS if name in self.curves and self.curves[name].notna().any()]

    @property
    def ended(self) -> pd.DataFrame:
        """The rows of ``finals`` that have ended and have a score."""
        return self.finals[self.finals["status"].isin(ENDED) & self.finals[self.score].notna()]

    @property
    def without_score(self) -> list[str]:
        """Cells of which a run has finished and has no score: they are in no statistic."""
        silent = self.finals[(self.finals["status"] == "FINISHED") & self.finals[self.score].isna()]
        return list(dict.fromkeys("/".join(names) for names in silent[FACTORS].itertuples(index=False, name=None)))

    def scored_by(self, score: str) -> Results:
        """The same compared by another metric.

        Raises:
            UsageError: no run has it.
        """
        if score not in self.metrics:
            there = ", ".join(self.metrics) or "none"
            raise UsageError(f"score: no run has the metric '{score}'{nearest(score, self.metrics)} (there: {there})")
        other = replace(self, score=score, cells=self.cells.assign(score=score))
        return replace(other, finals=self.finals.assign(area_under_curve=_areas(other)))

    def aligned(self, metric: str, task: str, noise: str, method: str | None = None) -> pd.DataFrame:
        """A metric by environment step (rows), method and seed (columns), of the runs that have ended.

        The steps are those at which all runs that finished were evaluated. A run that failed keeps its last value
        from then on: leaving it out would favour methods that diverge.
        """
        ended = self.finals[self.finals["status"].isin(ENDED)]
        runs = _where(ended, task, noise, method)[["method", "seed", "status"]]
        points = _where(self.curves, task, noise, method)
        points = points[["method", "seed", "environment_step", metric]].dropna().merge(runs, on=["method", "seed"])
        table = points.pivot(index="environment_step", columns=["method", "seed"], values=metric).sort_index()
        stopped = points.loc[points["status"] == "FAILED", ["method", "seed"]].drop_duplicates()
        failed = list(stopped.itertuples(index=False, name=None))
        table[failed] = table[failed].ffill()
        return table.dropna()

    def final_scores(self, task: str, noise: str, method: str, column: str | None = None) -> np.ndarray:
        """Final scores ``[n]`` of the seeds that have ended, or another column of ``finals``."""
        values = _where(self.ended, task, noise, method)[column or self.score].dropna()
        return values.to_numpy(float)


def read_csv(folder: str | Path) -> Results:
    """Results from the CSV files that ``to_csv`` has written; needs no MLflow.

    Raises:
        UsageError: a file is not there, or is not one of these.
    """
    tables = [_read(Path(folder) / name) for name in FILES]
    curves, finals, cells = tables
    for name, table in zip(FILES, tables):
        lacking = [column for column in _WRITTEN[name] if column not in table]
        if lacking:
            raise UsageError(f"'{Path(folder) / name}' has no column '{lacking[0]}'; expected a file that report wrote")
    if finals.empty or cells.empty:
        raise UsageError(f"'{folder}' has no runs in its tables")
    score = str(cells["score"].iloc[0])
    for name, table, key in zip(FILES, tables, ([*FACTORS, "seed", "environment_step"], [*FACTORS, "seed"], FACTORS)):
        twice = table.loc[table.duplicated(key), key]
        if not twice.empty:
            row = "/".join(str(value) for value in twice.iloc[0])
            raise UsageError(f"'{Path(folder) / name}' has two rows of {row}; expected a file that report wrote")
        if name != "cells.csv" and score not in table:
            raise UsageError(f"'{Path(folder) / name}' has no column '{score}', which cells.csv names as the score")
    known = set(cells[FACTORS].itertuples(index=False, name=None))
    unknown = [row for row in finals[FACTORS].itertuples(index=False, name=None) if row not in known]
    if unknown:
        raise UsageError(f"'{Path(folder) / 'cells.csv'}' has no row of {'/'.join(unknown[0])}, which finals.csv has")
    for name in set(COLUMNS) - set(cells):  # of a data setting, which older reports did not tell
        cells[name] = ""
    return Results(str(cells["suite"].iloc[0]), score, curves, finals, cells)


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise UsageError(f"there is no file '{path}'; expected {', '.join(FILES)} as report writes them")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        for name in table.columns.intersection(_NUMBERS):
            table[name] = pd.to_numeric(table[name])
        for name in table.columns.intersection(["in_grid"]):
            table[name] = table[name] == "True"
    except (ValueError, UnicodeDecodeError) as error:
        raise UsageError(f"'{path}' is not a table of report: {' '.join(str(error).split())[:200]}") from error
    return table


def to_csv(results: Results, folder: str | Path) -> list[Path]:
    """Writes curves.csv, finals.csv and cells.csv, numbers with six significant digits; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    finals = results.finals.assign(updates=results.finals["updates"].astype("Int64"))  # a count keeps all its digits
    for name, table in zip(FILES, (results.curves, finals, results.cells)):
        paths.append(folder / name)
        table.to_csv(paths[-1], index=False, float_format=f"%.{DIGITS}g", lineterminator="\n")
    return paths


def _where(table: pd.DataFrame, task: str, noise: str, method: str | None = None) -> pd.DataFrame:
    chosen = (table["task"] == task) & (table["noise"] == noise)
    return table[chosen & (table["method"] == method)] if method is not None else table[chosen]


def _areas(results: Results) -> pd.Series:
    """Mean score over the evaluations that all runs of a task and noise have in common, for every row of finals."""
    areas: dict[tuple[str, str, str, int], float] = {}
    for task, noise in results.finals[["task", "noise"]].drop_duplicates().itertuples(index=False):
        for (method, seed), area in results.aligned(results.score, task, noise).mean().items():
            areas[task, noise, method, seed] = float(area)
    keys = results.finals[["task", "noise", "method", "seed"]].itertuples(index=False)
    return pd.Series([areas.get(tuple(key), np.nan) for key in keys], index=results.finals.index, dtype=float)
