"""Reads the runs of a suite from MLflow into tidy tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from dsob_pl.analysis.grid import cell_table, factors_of, read_grid
from dsob_pl.analysis.tables import DIGITS, FACTORS, METRICS, Results
from dsob_pl.errors import UsageError, nearest

# Beside the evaluations: the largest gamma*kappa, and how far a run has come.
_GAMMA_KAPPA, _PROGRESS = "bellman/gamma_kappa", "critic/loss"
_SHORT = 8  # characters of a run's id, which `evaluate --run` takes as well as all of it
# Of runs of the same seed, one that has ended counts before one that has not.
_RANK = {"FINISHED": 2, "FAILED": 1}


def read_suite(name: str, tracking_uri: str | None = None, score: str | None = None) -> Results:
    """The results of the suite ``name``; runs with the tag ``superseded`` are left out.

    Histories are read one by one, 1.5 ms each from sqlite: three seconds for 200 runs of ten metrics.

    Args:
        name: of the suite, which is that of its MLflow experiment.
        tracking_uri: where it is recorded; None means MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.
        score: metric to compare by; None means the suite's own, else the first of ``METRICS`` that there is.

    Raises:
        UsageError: there is no such store, suite or metric, or the suite has no runs. Nothing is created.
    """
    # Not at the top: tables of committed results are read without MLflow and Lightning.
    from dsob_pl.tracking.store import reading, resolve_tracking_uri

    with reading(resolve_tracking_uri(tracking_uri)) as client:
        runs = _runs_of(client, name)
        grid, own_score = read_grid(client, runs)
        seeds = _seed_runs(runs)
        histories = {run.info.run_id: _histories(client, run) for run in seeds}
    if not seeds:
        raise UsageError(f"suite '{name}' has no runs of seeds yet; start it with python -m dsob_pl sweep")
    by_id = {run.info.run_id: run for run in runs}
    finals = pd.DataFrame([_final(name, run, _status(run, by_id), histories[run.info.run_id]) for run in seeds])
    curves = pd.concat([_curve(name, run, histories[run.info.run_id]) for run in seeds], ignore_index=True)
    order = [*FACTORS, "seed"]
    finals = finals.sort_values(order, ignore_index=True)
    curves = curves.sort_values([*order, "environment_step"], ignore_index=True)
    cells = cell_table(name, grid, seeds, finals)
    results = Results(name, "", curves, finals, cells)
    chosen = score or (own_score if own_score in results.metrics else next(iter(results.metrics), None))
    if chosen is None:
        raise UsageError(f"suite '{name}' has no evaluation yet (none of {', '.join(METRICS)})")
    return results.scored_by(chosen)


def _runs_of(client: Any, name: str) -> list[Any]:
    """All runs of the suite that are not superseded."""
    from dsob_pl.tracking.store import PARENT_TAG, SUPERSEDED_TAG, all_runs

    experiment = client.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage == "deleted":
        names = [e.name for e in client.search_experiments() if e.name != "Default"]
        there = f" (there: {', '.join(sorted(names)[:10])})" if names else " (there is none yet)"
        raise UsageError(f"there is no suite '{name}'{nearest(name, names) or there}")
    runs = all_runs(client, [experiment.experiment_id])
    gone = {run.info.run_id for run in runs if run.data.tags.get(SUPERSEDED_TAG) == "true"}
    return [r for r in runs if r.info.run_id not in gone and r.data.tags.get(PARENT_TAG) not in gone]


def _seed_runs(runs: list[Any]) -> list[Any]:
    """One run for each seed of each cell: where there are several, one that finished, then the latest."""
    best: dict[tuple[str, ...], Any] = {}
    for run in runs:
        tags = run.data.tags
        if not tags.get("seed", "").isdigit() or "task" not in tags or "method" not in tags:
            continue
        key = (*factors_of(tags).values(), tags["seed"])
        if key not in best or _preference(run) > _preference(best[key]):
            best[key] = run
    return list(best.values())


def _preference(run: Any) -> tuple[int, int]:
    return _RANK.get(run.info.status, 0), run.info.start_time


def _histories(client: Any, run: Any) -> dict[str, dict[int, float]]:
    """Values by environment step of the metrics wanted here; of several at one step the latest."""
    wanted = [name for name in (*METRICS, _GAMMA_KAPPA, _PROGRESS) if name in run.data.metrics]
    return {
        name: {p.step: float(f"{p.value:.{DIGITS}g}") for p in client.get_metric_history(run.info.run_id, name)}
        for name in wanted
    }


def _curve(suite: str, run: Any, histories: dict[str, dict[int, float]]) -> pd.DataFrame:
    tags = run.data.tags
    points = pd.DataFrame({name: pd.Series(histories.get(name, {}), dtype=float) for name in METRICS}).sort_index()
    points.index.name = "environment_step"
    table = points.reset_index().astype({"environment_step": int})
    for place, (name, value) in enumerate({"suite": suite, **factors_of(tags), "seed": int(tags["seed"])}.items()):
        table.insert(place, name, value)
    return table


def _status(run: Any, runs: dict[str, Any]) -> str:
    """MLflow's, but KILLED where the run broke off for a reason that was not its own, such as a full disk."""
    from dsob_pl.tracking.store import FAILED_TAG, PARENT_TAG

    parent = runs.get(run.data.tags.get(PARENT_TAG, ""))
    family = [run] if parent is None or "cell" not in parent.data.tags else [run, parent]
    if run.info.status != "FAILED" or any(one.data.tags.get(FAILED_TAG) == "true" for one in family):
        return str(run.info.status)
    # One seed of many is given up while the others go on.
    return "FAILED" if family[-1].info.status != "FAILED" else "KILLED"


def _final(suite: str, run: Any, status: str, histories: dict[str, dict[int, float]]) -> dict[str, Any]:
    tags, params, info = run.data.tags, run.data.params, run.info
    evaluations = {name: _last(histories.get(name, {})) for name in METRICS}
    steps = max((step for history in histories.values() for step in history), default=0)
    kappas = [value for value in histories.get(_GAMMA_KAPPA, {}).values() if not np.isnan(value)]
    per_step, warmup = (_number(params.get(f"data.{name}")) for name in ("updates_per_step", "warmup_steps"))
    if params.get("data.collect") == "False":  # from what is there already: every step updates
        warmup = 0.0
    return {
        "suite": suite,
        **factors_of(tags),
        "seed": int(tags["seed"]),
        "status": status,
        "environment_step": max((step for name in METRICS for step in histories.get(name, {})), default=0),
        **evaluations,
        "area_under_curve": np.nan,
        "wall_clock_seconds": _seconds(run),
        "updates": per_step * max(0.0, steps - warmup),
        "steps": steps,
        "gamma_kappa": max(kappas, default=np.nan),
        "run": info.run_id[:_SHORT],
        "commit": tags.get("mlflow.source.git.commit", ""),
        "dirty": tags.get("git.dirty", ""),
        "command": tags.get("command", ""),
    }


def _seconds(run: Any) -> float:
    """That a run took, without the time between a process that was cut off and the one that went on."""
    from dsob_pl.tracking.store import PAUSED_TAG

    if not run.info.end_time:
        return float("nan")
    paused = float(run.data.tags.get(PAUSED_TAG, 0))
    return round((run.info.end_time - run.info.start_time) / 1000 - paused)


def _last(history: dict[int, float]) -> float:
    """The last value that is finite: an evaluation after a divergence has none."""
    return next((history[step] for step in sorted(history, reverse=True) if np.isfinite(history[step])), np.nan)


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return np.nan
