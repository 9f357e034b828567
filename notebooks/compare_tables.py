"""The tables of the comparison in RESULTS.md, from results/compare/ and results/*_factors.csv; nothing is run.

python notebooks/compare_tables.py

results/compare/<suite>/ are the tables that `python -m dsob_pl report --suite <suite> --out DIR` writes after a sweep;
the commands of single fits stand in every file.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from dsob_pl.analysis import read_csv
from dsob_pl.analysis.comparison import compare, estimate_of
from dsob_pl.analysis.methods import in_order
from dsob_pl.analysis.statistics import estimate, interquartile_mean, separated
from dsob_pl.analysis.tables import Results
from dsob_pl.analysis.text import interval

RESULTS = Path(__file__).resolve().parent / "results"
# Return, environment steps.
GOALS = {"pendulum": (-200, 2500), "inverted_pendulum": (950, 5000), "inverted_double_pendulum": (9000, 15000)}
# The tasks on which all methods are compared, by suite.
CONTROL_TASKS = {"control": ("pendulum", "inverted_pendulum"), "double_pendulum": ("inverted_double_pendulum",)}
NOISES = ("none", "observation", "dynamics", "action", "reward")
CONTROL_NOISES = NOISES[:3]
DEFAULT_METHOD = "mmd_anchored_state_action"
# The default of conf/pendulum.yaml, and what it was: suite in conf/suite/, method there, and as the table names it.
DEFAULTS = [
    ("default", "mmd_adaptive_state_action", "default"),
    ("default", "mmd_adapting_from_start_state_action", "adapting from the start"),
    ("control", "mmd_calibrated_state_action", "without pessimism"),
    ("control", DEFAULT_METHOD, "earlier default"),
]
# The pessimism of the default, and what was tried in its place: likewise.
PESSIMISM = [
    ("default", DEFAULTS[0][1], "as it is"),
    ("reward_noise_default", "drift", "bounded drift, 0.025"),
    ("reward_noise_default", "drift_050", "bounded drift, 0.05"),
    ("reward_noise_default", "truncation", "the largest tenth dropped, to the end"),
]
# What gradients weigh beside the return: suite, method, as the table names it.
ACTION_WEIGHTS = [
    ("control", "mmd", "MMD, no gradient"),
    ("control", "mmd_sobolev", "MMD, 1"),
    ("action_gradients", "weight_03", "MMD, 0.3"),
    ("action_gradients", "weight_01", "MMD, 0.1"),
    ("action_gradients", "weight_30", "MMD, 30"),
    ("action_gradients", "limited", "MMD, limited"),
    ("action_gradients", "anchored", "MMD, 1, and MMD of the return alone"),
    ("control", "msmmd_sobolev", "MSMMD, 1"),
    ("action_gradients", "msmmd_weight_01", "MSMMD, 0.1"),
    ("action_gradients", "msmmd_limited", "MSMMD, limited"),
    ("control", "mmd_sobolev_state_action", "MMD of state and action, 1"),
    ("action_gradients", "state_action_limited", "MMD of state and action, limited"),
]
# The learning rate of the world model on SUMMIT(5), by where its cells are: suite and task.
WORLD_MODEL_RATES = {
    0.001: ("summit_rates", "rate_0001"),
    0.003: ("summit_rates", "rate_0003"),
    0.01: ("summit", "summit_5"),
    0.03: ("summit_rates", "rate_0030"),
}
REST = 0.6  # of a run: from then on the default's policy stays as it is
FACTORS_AT = 500  # environment steps that all fits of summit_factors.csv have reached


def task_table(suite: str, *tasks: str, against: str = "mage") -> str:
    """Final score and area under the curve of every method on one task, or on each of several, without noise."""
    rows = compare(_results(suite), against).tasks
    rows = rows[rows["task"].isin(tasks) & (rows["noise"] == "none")]
    rows = rows.sort_values("task", key=lambda names: names.map(tasks.index), kind="stable")
    names = ["method", "targets; pessimism", "seeds", "final score", "area under the curve", f"against {against}"]
    several = len(tasks) > 1
    names = ["task", *names] if several else names
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for _, row in rows.iterrows():
        score, area = (interval(estimate_of(row, name)) for name in ("score", "area"))
        cells = [row["method"], _short(row["setting"]), row["seeds"], score, area, row["against"]]
        cells = [row["task"], *cells] if several else cells
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join(lines)


def _short(setting: str) -> str:
    """Without the options of a part that has many, which its config names."""
    return re.sub(r"( \w+=\S+){3,}", "", setting)


def factor_table() -> str:
    """The score on SUMMIT(5) early in training, one factor at a time."""
    table = pd.read_csv(RESULTS / "summit_factors.csv")
    table = table[table["environment_step"] == FACTORS_AT]
    lines = [f"| factor | setting | seeds | score after {FACTORS_AT:,} environment steps |", "|---|---|---|---|"]
    for (factor, setting), group in table.groupby(["factor", "setting"], sort=False):
        score = interval(estimate(interquartile_mean, [group["normalized_score"].to_numpy()]))
        lines.append(f"| {factor} | {setting} | {len(group)} | {score} |")
    return "\n".join(lines)


def control_table() -> str:
    """When each seed of the small control tasks first met its goal under each noise, and where it ended; defaults only."""
    suites = {name: _results(name) for name, _, _ in DEFAULTS}
    names = [
        "task", "noise", "setting", "goal", "seeds that met it", "first evaluation that did, in environment steps",
        "at the end",
    ]  # fmt: skip
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for task, noise, (suite, method, label) in itertools.product(GOALS, NOISES, DEFAULTS):
        own = {"task": task, "noise": noise, "method": method}
        cells, curves = (_where(table, own) for table in (suites[suite].cells, suites[suite].curves))
        if curves.empty or not cells["state"].isin(["complete", "incomplete"]).any():
            continue
        goal, within = GOALS[task]
        last = curves[curves["environment_step"] == curves["environment_step"].max()]
        first = _first_steps(curves, goal, within)
        end = interval(estimate(interquartile_mean, [last["eval/return_mean"].to_numpy()]))
        many = curves["seed"].nunique()
        when = f"{first[0]:,} to {first[-1]:,}" if first else ""
        row = [task, noise, label, f"{goal:,} within {within:,}", f"{len(first)} of {many}", when]
        still = int((last["eval/return_mean"] >= goal).sum())
        step = f"{last['environment_step'].iloc[0]:,}"
        lines.append(f"| {' | '.join(row)} | {end} at {step}; {still} of {many} still meet it |")
    return "\n".join(lines)


def pessimism_table() -> str:
    """The default with another pessimism, each on the seeds that it has: who meets the goal, and how right values are."""
    suites = {name: _results(name).curves for name in dict.fromkeys(s for s, _, _ in PESSIMISM)}
    names = [
        "task", "noise", "pessimism", "seeds that met the goal", "still do at the end", "return at the end",
        "predicted when the policy comes to rest", "predicted at the end", "realised at the end",
    ]  # fmt: skip
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for task, noise in itertools.product(GOALS, NOISES):
        goal, within = GOALS[task]
        rows = []
        for suite, method, label in PESSIMISM:
            curves = _where(suites[suite], {"task": task, "noise": noise, "method": method})
            if curves.empty:
                continue
            met = len(_first_steps(curves, goal, within))
            end = curves["environment_step"].max()
            last = curves[curves["environment_step"] == end]
            rest = curves[curves["environment_step"] == REST * end]
            still, many = int((last["eval/return_mean"] >= goal).sum()), len(last)
            numbers = [
                interval(estimate(interquartile_mean, [values.to_numpy()]))
                for values in (
                    last["eval/return_mean"], rest["eval/value"], last["eval/value"], last["eval/discounted_return"],
                )
            ]  # fmt: skip
            rows.append([task, noise, label, f"{met} of {many}", f"{still} of {many}", *numbers])
        if len(rows) > 1:  # the default alone is in the table of control
            lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def _where(table: pd.DataFrame, own: dict[str, str]) -> pd.DataFrame:
    return table[np.logical_and.reduce([table[name] == value for name, value in own.items()])]


def _first_steps(curves: pd.DataFrame, goal: float, within: int) -> list[int]:
    """Environment steps at which the seeds that met the goal in time first did, in order."""
    met = curves[(curves["eval/return_mean"] >= goal) & (curves["environment_step"] <= within)]
    return sorted(met.groupby("seed")["environment_step"].min())


def control_methods_table(suite: str = "control") -> str:
    """Every method on the small control tasks beside the earlier default, whatever its number of seeds."""
    results = _results(suite)
    known = set(results.cells["method"])
    rows = compare(results, DEFAULT_METHOD if DEFAULT_METHOD in known else None).tasks
    curves = _ended_curves(results)
    names = [
        "task", "noise", "method", "targets; pessimism", "seeds", "met the goal", "in environment steps",
        "last evaluation", "area under the curve",
    ]  # fmt: skip
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for (task, noise), group in rows.groupby(["task", "noise"], sort=False):
        if len(group) < 2:
            continue
        goal, within = GOALS[task]
        for _, row in group.iterrows():
            own = curves[(curves["task"] == task) & (curves["noise"] == noise) & (curves["method"] == row["method"])]
            first = _first_steps(own, goal, within)
            when = f"{first[0]:,} to {first[-1]:,}" if first else ""
            score, area = (interval(estimate_of(row, name)) for name in ("score", "area"))
            reached = f"{len(first)} of {row['seeds']}"
            cells = [task, noise, row["method"], _short(row["setting"]), row["seeds"], reached, when, score, area]
            lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join(lines)


def goals_table() -> str:
    """How many seeds of every method met the goal of each small control task, a column for each task and noise setting."""
    return _control_matrix(_met)


def areas_table() -> str:
    """Area under the curve of the same with its interval, and in how many of the columns it is apart from the best."""
    apart = control_areas().groupby("method")["apart"]
    counts = [f" {apart.get_group(name).sum()} of {len(apart.get_group(name))} |" for name in in_order(apart.groups)]
    lines = _control_matrix(_area).splitlines()
    return "\n".join(a + b for a, b in zip(lines, [" apart from the best |", "---|", *counts], strict=True))


def action_weights_table() -> str:
    """Seeds that met the goal, and areas, where gradients weigh more or less in the loss."""
    places = [(task, noise) for task in ("inverted_pendulum", "pendulum") for noise in CONTROL_NOISES]
    names = ["loss, weight of its gradients", *(f"{task}: {noise}" for task, noise in places)]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for suite, method, label in ACTION_WEIGHTS:
        cells = [{"task": task, "noise": noise, "method": method} for task, noise in places]
        found = ["; ".join(filter(None, (_met(suite, own), _area(suite, own)))) for own in cells]
        lines.append(f"| {' | '.join([label, *found])} |")
    return "\n".join(lines)


def rates_table() -> str:
    """Final score and area on SUMMIT(5) of the methods of ``summit_rates``, a column for each rate of the world model."""
    names = ["method", "number", *(f"{rate:g}" for rate in WORLD_MODEL_RATES)]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for method in in_order(_rows("summit_rates")["method"]):
        for number, name in (("score", "final score"), ("area", "area under the curve")):
            found = [
                _where(_rows(suite), {"task": task, "noise": "none", "method": method})
                for suite, task in WORLD_MODEL_RATES.values()
            ]
            cells = [interval(estimate_of(rows.iloc[0], number)) if len(rows) else "" for rows in found]
            lines.append(f"| {' | '.join([method, name, *cells])} |")
    return "\n".join(lines)


def control_areas() -> pd.DataFrame:
    """Rows of ``Comparison.tasks`` of all methods on the small control tasks; ``apart`` says which are from the best area."""
    parts = [_rows(suite)[_rows(suite)["task"].isin(tasks)] for suite, tasks in CONTROL_TASKS.items()]
    table = pd.concat(parts, ignore_index=True)
    best = table.groupby(["task", "noise"])["area"].transform("idxmax")
    areas = [estimate_of(row, "area") for _, row in table.iterrows()]
    return table.assign(apart=[separated(area, areas[i]) for area, i in zip(areas, best, strict=True)])


def _control_matrix(cell: Callable[[str, dict[str, str]], str]) -> str:
    """A row for each method of the small control tasks; ``cell`` gets the suite, and task, noise and method."""
    places = [
        (suite, task, noise) for suite, tasks in CONTROL_TASKS.items() for task in tasks for noise in CONTROL_NOISES
    ]
    names = ["method", "gradients", "targets", *(f"{task}: {noise}" for _, task, noise in places)]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    cells = pd.concat([_results(suite).cells for suite in CONTROL_TASKS])
    cells = cells[cells["state"] != "missing"]
    for method in in_order(cells["method"]):
        own = cells[cells["method"] == method]
        settings = (" or ".join(dict.fromkeys(own[name])) for name in ("gradients", "targets"))
        found = (cell(suite, {"task": task, "noise": noise, "method": method}) for suite, task, noise in places)
        lines.append(f"| {' | '.join([method, *settings, *found])} |")
    return "\n".join(lines)


def _met(suite: str, own: dict[str, str]) -> str:
    """How many seeds of a cell met the goal; empty where it was not run."""
    evaluations = _where(_ended_curves(_results(suite)), own)
    many = evaluations["seed"].nunique()
    return f"{len(_first_steps(evaluations, *GOALS[own['task']]))} of {many}" if many else ""


def _area(suite: str, own: dict[str, str]) -> str:
    """Area under the curve of a cell; empty where it was not run."""
    rows = _where(_rows(suite), own)
    return interval(estimate_of(rows.iloc[0], "area")) if len(rows) else ""


@cache  # several tables are of the same suites
def _results(suite: str) -> Results:
    return read_csv(RESULTS / "compare" / suite)


@cache
def _rows(suite: str) -> pd.DataFrame:
    """``Comparison.tasks``, compared with no method."""
    return compare(_results(suite), None).tasks


def _ended_curves(results: Results) -> pd.DataFrame:
    """Evaluations of the runs that have ended."""
    ended = results.ended[["task", "noise", "method", "seed"]]
    return results.curves.merge(ended, on=list(ended.columns))


def control_factors_table() -> str:
    """What the default without pessimism lacks on InvertedPendulum under observation noise, one factor at a time."""
    control = _results("control").curves
    own = (control["task"] == "inverted_pendulum") & (control["noise"] == "observation") & (control["seed"] < 5)
    parts = [pd.read_csv(RESULTS / "control_factors.csv")]
    for method, setting in (("mmd_calibrated_state_action", "without pessimism"), (DEFAULT_METHOD, "earlier default")):
        rows = control[own & (control["method"] == method)].rename(columns={"eval/return_mean": "return_mean"})
        parts.insert(-1, rows.assign(factor="for comparison", setting=setting))
    lines = ["| factor | setting | seeds | met 950 | return after 3,000 environment steps |", "|---|---|---|---|---|"]
    for (factor, setting), group in pd.concat(parts).groupby(["factor", "setting"], sort=False):
        last = group[group["environment_step"] == 3000]["return_mean"].to_numpy()
        met, many = int((group.groupby("seed")["return_mean"].max() >= 950).sum()), group["seed"].nunique()
        score = interval(estimate(interquartile_mean, [last]))
        lines.append(f"| {factor} | {setting} | {many} | {met} of {many} | {score} |")
    return "\n".join(lines)


def tables() -> dict[str, str]:
    """By the name of their place in RESULTS.md."""
    return {
        "summit": task_table("summit", "summit_5"),
        "summit sizes": task_table("summit", "summit_1", "summit_2"),
        "point mass": task_table("point_mass", "point_mass_1", "point_mass_5", "point_mass_20"),
        "jack": task_table("jack", "jack_10"),
        "jack sizes": task_table("jack", "jack_1"),
        "factors": factor_table(),
        "summit long": task_table("summit_long", "summit_5"),
        "summit rates": rates_table(),
        "summit factors": task_table("summit_factors", "summit_5", "summit_1", against="reference"),
        "control": control_table(),
        "goals": goals_table(),
        "areas": areas_table(),
        "action weights": action_weights_table(),
        "control methods": control_methods_table(),
        "double pendulum": control_methods_table("double_pendulum"),
        "reward noise": control_methods_table("reward_noise"),
        "pessimism": pessimism_table(),
        "confirmation": task_table("confirmation", "reacher", against="td3"),
        "control factors": control_factors_table(),
        "locomotion": task_table("locomotion", "walker2d", "ant"),
    }


if __name__ == "__main__":
    print("\n\n".join(tables().values()))
