"""What MLflow knows of a suite: its own run, the runs of its cells, and what is left to be done."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsob_pl.experiments.suite import FACTORS, Cell, Suite
from dsob_pl.seeds import compact_seeds, parse_seeds
from dsob_pl.tracking.store import (
    ARTIFACT_LOCATION,
    FAILED_TAG,
    PARENT_TAG,
    SUPERSEDED_TAG,
    all_runs,
    creation_lock,
    experiment_id,
)


@dataclass
class CellRun:
    """One run of a cell, with the runs of its seeds under it.

    Attributes:
        run_id: its id.
        status: of the run, as MLflow spells it.
        settings: the digest that it was started with.
        seeds: those that it trains.
        children: id and status of the run of each seed; a run of one seed has none.
        failed: whether it ended because every seed failed, which would happen again.
        folder: artifact folder, as a uri.
        start_time: in milliseconds.
    """

    run_id: str
    status: str
    settings: str
    seeds: tuple[int, ...]
    failed: bool
    folder: str
    start_time: int
    children: dict[int, tuple[str, str]] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to be done in it."""
        return self.status == "FINISHED" or self.failed

    @property
    def ended_seeds(self) -> list[int]:
        """The seeds that finished or failed for good."""
        if not self.ended:
            return []
        # A seed whose own run was given up is to be trained again.
        return [s for s in self.seeds if self.failed or s in self.children or len(self.seeds) == 1]

    @property
    def failed_seeds(self) -> list[int]:
        """The seeds that have failed for good."""
        return [s for s in self.ended_seeds if self.failed or self.children.get(s, ("", ""))[1] == "FAILED"]


def cell_runs(client: Any, suite: str, cell: str | None = None) -> dict[str, list[CellRun]]:
    """The runs of the cells of ``suite``, oldest first, without superseded ones.

    Args:
        client: of MLflow.
        suite: its name.
        cell: name of the only cell wanted; None means all.
    """
    experiment = client.get_experiment_by_name(suite)
    if experiment is None:
        return {}
    runs = [
        run
        for run in all_runs(client, [experiment.experiment_id], f"tags.cell = '{cell}'" if cell else "")
        if "cell" in run.data.tags and run.data.tags.get("suite") == suite
    ]
    ids = {run.info.run_id for run in runs}
    gone = {run.info.run_id for run in runs if run.data.tags.get(SUPERSEDED_TAG) == "true"}
    found: dict[str, CellRun] = {}
    result: dict[str, list[CellRun]] = {}
    for run in runs:
        tags, info = run.data.tags, run.info
        if tags.get(PARENT_TAG) in ids or info.run_id in gone:
            continue
        seeds = tuple(parse_seeds(tags.get("seeds") or tags["seed"])) if "seeds" in tags or "seed" in tags else ()
        found[info.run_id] = CellRun(
            info.run_id,
            info.status,
            tags.get("settings", ""),
            seeds,
            tags.get(FAILED_TAG) == "true",
            info.artifact_uri,
            info.start_time,
        )
        result.setdefault(tags["cell"], []).append(found[info.run_id])
    for run in runs:
        parent, seed = run.data.tags.get(PARENT_TAG), run.data.tags.get("seed", "")
        if parent in found and seed.isdigit() and run.info.run_id not in gone:
            found[parent].children[int(seed)] = (run.info.run_id, run.info.status)
    return {name: sorted(own, key=lambda run: run.start_time) for name, own in result.items()}


def seeds_left(cell: Cell, runs: Sequence[CellRun]) -> list[int]:
    """The seeds of ``cell`` that no run has ended, well or badly."""
    done = {seed for run in runs for seed in run.ended_seeds}
    return [seed for seed in cell.seeds if seed not in done]


def failed_seeds(cell: Cell, runs: Sequence[CellRun]) -> list[int]:
    """The seeds of ``cell`` that have failed for good."""
    failed = {seed for run in runs for seed in run.failed_seeds}
    return [seed for seed in cell.seeds if seed in failed]


def supersede(client: Any, run: CellRun) -> list[str]:
    """Marks a run and those of its seeds as given up: everything that reads a suite leaves them out.

    Returns:
        The ids of those that it has marked.
    """
    own = [(run.run_id, run.status), *run.children.values()]
    for run_id, status in own:
        client.set_tag(run_id, SUPERSEDED_TAG, "true")
        if status == "RUNNING":
            client.set_terminated(run_id, "KILLED")
    return [run_id for run_id, _ in own]


def mark_failed(client: Any, run: CellRun) -> None:
    """Notes that every seed failed by itself, so that the cell is not started again and again."""
    client.set_tag(run.run_id, FAILED_TAG, "true")


# The suite's own run --------------------------------------------------------------------------------------------------


def open_suite(client: Any, tracking_uri: str, suite: Suite, grid: Iterable[Cell]) -> str:
    """Id of the run of ``suite``, made where there is none yet; it holds the file and the list of all cells.

    Args:
        client: of MLflow.
        tracking_uri: of the store.
        suite: the suite.
        grid: all its cells.
    """
    with creation_lock(tracking_uri):
        experiment = experiment_id(client, tracking_uri, suite.name, Path(ARTIFACT_LOCATION).absolute())
        runs = all_runs(client, [experiment], "tags.kind = 'suite'")
        tags = {"kind": "suite", "suite": suite.name}
        run = min(runs, key=lambda r: r.info.start_time) if runs else None
        run_id = (run or client.create_run(experiment, tags=tags, run_name=suite.name)).info.run_id
        client.update_run(run_id, status="RUNNING")
        client.set_tag(run_id, "score", suite.score)
        client.log_text(run_id, suite.text, "suite.yaml")
        rows = [
            {"cell": cell.name, **{name: getattr(cell, name) for name in FACTORS}}
            | {"seeds": compact_seeds(cell.seeds), "command": cell.command}
            for cell in grid
        ]
        client.log_text(run_id, json.dumps(rows, indent=1), "cells.json")
    return str(run_id)


def close_suite(client: Any, run_id: str, status: str) -> None:
    """Ends the suite's run: FINISHED, FAILED, KILLED, or SCHEDULED where cells are left for another time."""
    client.set_terminated(run_id, status)
