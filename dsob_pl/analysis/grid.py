"""The grid of a suite: which cells there are to be, and how far each has come."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from dsob_pl.analysis.settings import COLUMNS, setting
from dsob_pl.analysis.tables import ENDED, FACTORS
from dsob_pl.errors import UsageError
from dsob_pl.seeds import compact_seeds, parse_seeds


def factors_of(tags: dict[str, str]) -> dict[str, str]:
    """Task, method and noise of a run's tags."""
    return {"task": tags["task"], "method": tags["method"], "noise": tags.get("noise", "none")}


def read_grid(client: Any, runs: list[Any]) -> tuple[list[dict[str, str]], str | None]:
    """The cells that the suite is to have and the metric it is scored by; neither where no sweep has recorded them."""
    suites = [run for run in runs if run.data.tags.get("kind") == "suite"]
    if not suites:
        return [], None
    suite = min(suites, key=lambda run: run.info.start_time)
    return _artifact(client, suite), suite.data.tags.get("score")


def _artifact(client: Any, suite: Any) -> list[dict[str, str]]:
    from mlflow.exceptions import MlflowException

    from dsob_pl.tracking.store import local_path

    folder = local_path(suite.info.artifact_uri)
    try:
        if folder is not None:
            text = (folder / "cells.json").read_text(encoding="utf-8")
        else:
            with tempfile.TemporaryDirectory() as place:
                path = client.download_artifacts(suite.info.run_id, "cells.json", place)
                text = Path(path).read_text(encoding="utf-8")
        cells = json.loads(text)
        return [{key: str(cell[key]) for key in ("cell", *FACTORS, "seeds", "command")} for cell in cells]
    except (OSError, MlflowException):
        return []  # the runs are still there; the page says that the grid is not
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"cells.json of suite run {suite.info.run_id} cannot be read: {error!r}") from error


def cell_table(suite: str, grid: list[dict[str, str]], runs: list[Any], finals: pd.DataFrame) -> pd.DataFrame:
    """The grid, and behind it cells that have runs without being in it."""
    by_cell: dict[tuple[str, ...], list[Any]] = {}
    for run in runs:
        by_cell.setdefault(tuple(factors_of(run.data.tags).values()), []).append(run)
    planned = {tuple(cell[name] for name in FACTORS): cell for cell in grid}
    status = finals.set_index([*FACTORS, "seed"])["status"]
    rows = []
    for key in [*planned, *sorted(set(by_cell) - set(planned))]:
        there = by_cell.get(key, [])
        seeds = {int(run.data.tags["seed"]) for run in there}
        cell = planned.get(key, {})
        wanted = set(parse_seeds(cell["seeds"])) if cell else seeds
        ended = {seed for seed in seeds if status[(*key, seed)] in ENDED}
        failed = sorted(seed for seed in seeds if status[(*key, seed)] == "FAILED")
        missing = sorted(wanted - ended)
        rows.append(
            {
                "suite": suite,
                "score": "",
                "cell": cell.get("cell") or "/".join(key),
                **dict(zip(FACTORS, key)),
                "seeds": compact_seeds(sorted(wanted)),
                "state": "complete" if not missing else "incomplete" if ended else "missing",
                "missing_seeds": compact_seeds(missing),
                "failed_seeds": compact_seeds(failed),
                "in_grid": bool(cell),
                "command": cell.get("command") or (there[0].data.tags.get("command", "") if there else ""),
                "versions": _versions(there),
                **(setting(there[0].data.params) if there else dict.fromkeys(COLUMNS, "")),
            }
        )
    return pd.DataFrame(rows)


def _versions(runs: list[Any]) -> str:
    named: dict[str, set[str]] = {}
    for run in runs:
        for tag, value in run.data.tags.items():
            if tag.startswith("version."):
                named.setdefault(tag.removeprefix("version."), set()).add(value)
    return ", ".join(f"{name} {'/'.join(sorted(values))}" for name, values in named.items())
