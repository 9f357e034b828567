"""The comparison of methods: per task, and over the tasks of each noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dsob_pl.analysis.methods import in_order
from dsob_pl.analysis.settings import COLUMNS, in_words
from dsob_pl.analysis.statistics import (
    AGGREGATES,
    Array,
    Estimate,
    estimate,
    interquartile_mean,
    mean_ranks,
    probability_of_improvement,
    separated,
)
from dsob_pl.analysis.tables import Results
from dsob_pl.errors import UsageError, nearest

NORMALIZED = "eval/normalized_score"
AHEAD, BEHIND, OVERLAP = "ahead", "behind", "not separated"


@dataclass(frozen=True)
class Comparison:
    """All numbers of a report.

    Attributes:
        results: the runs.
        against: the method that the others are compared with; None where there is none.
        tasks: one row per (noise, task, method): seeds, failed, data setting, and score, area, clean with their
            intervals (``score``, ``score_low``, ``score_high``, ...), verdict against ``against`` by final score.
        noises: one row per (noise, method): tasks, seeds, lacking (names of tasks without it), data setting, IQM,
            median, mean, optimality gap, improvement and rank with their intervals, verdict by IQM. A method that
            lacks a task has no aggregate: over other tasks it would not be comparable.
        scaled: why aggregated scores are not the raw ones, or empty.
    """

    results: Results
    against: str | None
    tasks: pd.DataFrame
    noises: pd.DataFrame
    scaled: str


def compare(results: Results, against: str | None = "mage") -> Comparison:
    """All numbers of a report; see ``Comparison``.

    Args:
        results: the runs.
        against: the method that the others are compared with; None compares with none.

    Raises:
        UsageError: there is no such method, or no run has ended.
    """
    methods = in_order(results.cells["method"])
    if against is not None and against not in methods:
        raise UsageError(
            f"against: there is no method '{against}' in '{results.suite}'{nearest(against, methods)} "
            f"(there: {', '.join(methods)})"
        )
    if results.ended.empty:
        raise UsageError(f"no run of suite '{results.suite}' has ended with a score yet")
    tasks = pd.DataFrame(_task_rows(results))
    tasks["against"] = _verdicts(tasks, ["noise", "task"], "score", against)
    scale, scaled = _scale(results, tasks)
    noises = pd.DataFrame(
        [row for noise in in_noise_order(tasks["noise"]) for row in _noise_rows(results, tasks, noise, scale, against)]
    )
    noises["against"] = _verdicts(noises, ["noise"], "IQM", against)
    return Comparison(results, against, tasks, noises, scaled)


def in_noise_order(noises: pd.Series) -> list[str]:
    """Each noise once, none first."""
    return sorted(set(noises), key=lambda noise: (noise != "none", noise))


def scaled_scores(comparison: Comparison, noise: str, method: str) -> list[Array]:
    """Scores of a method on every task of a noise, on the scale of the aggregates; empty where it lacks a task."""
    scale, _ = _scale(comparison.results, comparison.tasks)
    return _scores(comparison.results, comparison.tasks, noise, scale).get(method, [])


def _task_rows(results: Results) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    groups = results.ended.groupby(["noise", "task", "method"])
    # Also those that diverged before their first evaluation, which have no score.
    failed = results.finals[results.finals["status"] == "FAILED"].groupby(["noise", "task", "method"]).size()
    order = {method: place for place, method in enumerate(in_order(results.cells["method"]))}
    keys = {*groups.groups, *failed.index}
    for key in sorted(keys, key=lambda key: (key[0] != "none", key[0], key[1], order.get(key[2], 0))):
        noise, task, method = key
        group = groups.get_group(key) if key in groups.groups else results.ended[:0]
        row: dict[str, object] = {"noise": noise, "task": task, "method": method, "seeds": len(group)}
        row |= {"failed": int(failed.get((noise, task, method), 0)), "setting": _setting(results, method, task, noise)}
        columns = {"score": results.score, "area": "area_under_curve", "clean": "eval_clean/return_mean"}
        for name, column in columns.items():
            values = group[column].dropna().to_numpy(float) if column in group else np.empty(0)
            row |= _named(name, estimate(interquartile_mean, [values]) if values.size else _UNKNOWN)
        rows.append(row)
    return rows


def _noise_rows(
    results: Results, tasks: pd.DataFrame, noise: str, scale: Callable[[str, Array], Array], against: str | None
) -> list[dict[str, object]]:
    scores = _scores(results, tasks, noise, scale)
    there = tasks[tasks["noise"] == noise]
    names = sorted(set(there.loc[there["seeds"] > 0, "task"]))
    ranks = mean_ranks(scores)
    rows: list[dict[str, object]] = []
    for method in in_order(there["method"]):
        own = there[there["method"] == method]
        scored = own[own["seeds"] > 0]
        lacking = [task for task in names if task not in set(scored["task"])]
        row: dict[str, object] = {"noise": noise, "method": method, "tasks": len(scored)}
        row["seeds"] = int(own["seeds"].sum())
        row |= {"failed": int(own["failed"].sum()), "lacking": ", ".join(lacking)}
        row["setting"] = _setting(results, method, None, noise)
        complete = method in scores
        for name, statistic in AGGREGATES.items():
            row |= _named(name, estimate(statistic, scores[method]) if complete else _UNKNOWN)
        other = scores.get(against or "")
        compared = other if complete and method != against else None
        row |= _named("improvement", probability_of_improvement(scores[method], compared) if compared else _UNKNOWN)
        row |= _named("rank", ranks[method] if complete else _UNKNOWN)
        rows.append(row)
    return rows


def _scores(
    results: Results, tasks: pd.DataFrame, noise: str, scale: Callable[[str, Array], Array]
) -> dict[str, list[Array]]:
    """Scores by method, one array per task; only of methods that have been run on every task of the noise."""
    there = tasks[(tasks["noise"] == noise) & (tasks["seeds"] > 0)]
    names = sorted(set(there["task"]))
    return {
        method: [scale(task, results.final_scores(task, noise, method)) for task in names]
        for method in in_order(there["method"])
        if set(there.loc[there["method"] == method, "task"]) == set(names)
    }


def _scale(results: Results, tasks: pd.DataFrame) -> tuple[Callable[[str, Array], Array], str]:
    """Brings the scores of all tasks on one scale: as they are, or between the worst and the best method's."""
    if results.score == NORMALIZED:
        return (lambda task, scores: scores), ""
    ends = tasks.groupby("task")["score"].agg(["min", "max"])

    def scale(task: str, scores: Array) -> Array:
        low, high = ends.loc[task]
        return (scores - low) / (high - low) if high > low else np.zeros_like(scores)

    return scale, (
        f"{results.score} has another scale on every task. For aggregates 0 is the lowest and 1 the highest IQM of any "
        "method on that task, over all noises: they rank the methods of this suite and mean nothing outside of it."
    )


_UNKNOWN = Estimate(np.asarray(np.nan), np.asarray(np.nan), np.asarray(np.nan))


def _named(name: str, part: Estimate) -> dict[str, object]:
    return {name: float(part.value), f"{name}_low": float(part.low), f"{name}_high": float(part.high)}


def estimate_of(row: pd.Series, name: str) -> Estimate:
    """The estimate ``name`` of a row of ``Comparison.tasks`` or ``.noises``."""
    return Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"])


def _verdicts(table: pd.DataFrame, within: list[str], name: str, against: str | None) -> list[str]:
    """For every row, whether its interval is above or below that of ``against`` in the same group."""
    references = {
        tuple(row[key] for key in within): estimate_of(row, name)
        for _, row in table[table["method"] == against].iterrows()
    }
    verdicts = []
    for _, row in table.iterrows():
        own, other = estimate_of(row, name), references.get(tuple(row[key] for key in within))
        if other is None or row["method"] == against or np.isnan(own.low) or np.isnan(other.low):
            verdicts.append("")
        elif not separated(own, other):
            verdicts.append(OVERLAP)
        else:
            verdicts.append(AHEAD if own.value > other.value else BEHIND)
    return verdicts


def _setting(results: Results, method: str, task: str | None, noise: str) -> str:
    """The data setting of a cell, or of a method's cells, in words; where they differ, all of them."""
    cells = results.cells[(results.cells["method"] == method) & (results.cells["noise"] == noise)]
    if task is not None:
        cells = cells[cells["task"] == task]
    words = {in_words({name: str(row[name]) for name in COLUMNS}): None for _, row in cells.iterrows()}
    return " | ".join(text for text in words if text)
