"""Suites as a sweep leaves them in MLflow, made through MLflow's own client; and tables of one that nobody ran."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dsob_pl.analysis.tables import FACTORS, Results
from dsob_pl.tracking.store import mlflow_client

STEPS = (100, 200, 300)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SCORE = "eval/normalized_score"
LEVELS = {"td3": 0.2, "mage": 0.5, "msmmd_sobolev": 0.9, "mmd": 0.52}
SETTING = {
    "targets": "imagined by CVAE",
    "draws": "10",
    "pessimism": "Truncation 0.1",
    "gradients": "action",
    "risk": "Mean",
}


def command_of(cell: str, seeds: str = "0-2") -> str:
    task, method, _ = cell.split("/")
    return f"python -m dsob_pl fit --config conf/{task}.yaml --config conf/method/{method}.yaml --seeds {seeds}"


class Suite:
    """An experiment with a suite run; cells and seeds are added one by one."""

    def __init__(self, folder: Path, name: str = "tiny", score: str | None = "eval/normalized_score") -> None:
        self.folder = folder
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.name = name
        self.client = mlflow_client(self.uri)
        self.experiment = self.client.create_experiment(name, artifact_location=str(folder / "mlruns" / name))
        tags = {"kind": "suite", "suite": name, **({"score": score} if score else {})}
        self.run = self.client.create_run(self.experiment, tags=tags)

    def grid(self, cells: Sequence[str], seeds: str = "0-2") -> None:
        factors = [dict(zip(("task", "method", "noise"), cell.split("/"))) for cell in cells]
        rows = [
            {"cell": cell, **own, "seeds": seeds, "command": command_of(cell, seeds)}
            for cell, own in zip(cells, factors)
        ]
        self.client.log_text(self.run.info.run_id, json.dumps(rows), "cells.json")

    def cell(
        self,
        cell: str,
        curves: Mapping[int, Mapping[str, Sequence[float]]],
        status: Mapping[int, str] | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        steps: Sequence[int] = STEPS,
    ) -> list[str]:
        """Ids of new runs of a cell and its seeds; ``curves`` by seed and metric, of the first steps."""
        from mlflow.entities import Metric, Param

        own = {"suite": self.name, "cell": cell, **dict(zip(("task", "method", "noise"), cell.split("/")))}
        own |= {"command": command_of(cell), "mlflow.source.git.commit": COMMIT, "git.dirty": "false"}
        own |= {"version.python": "3.11", "version.torch": "2.13.0", **(tags or {})}
        parent = {"seeds": ",".join(map(str, curves)), "mlflow.parentRunId": self.run.info.run_id}
        above = self.client.create_run(self.experiment, tags={**own, **parent})
        identifiers = [above.info.run_id]
        for seed, metrics in curves.items():
            below = {**own, "seed": str(seed), "mlflow.parentRunId": above.info.run_id}
            identifier = self.client.create_run(self.experiment, tags=below).info.run_id
            identifiers.append(identifier)
            points = [
                Metric(name, float(value), 1000 + step, step)
                for name, values in metrics.items()
                for step, value in zip(steps, values)
            ]
            shown = [Param(key, str(value)) for key, value in (params or {}).items()]
            self.client.log_batch(identifier, metrics=points, params=shown)
            end = (status or {}).get(seed, "FINISHED")
            if end != "RUNNING":
                self.client.set_terminated(identifier, end)
        self.client.set_terminated(above.info.run_id)
        return identifiers


def tables(levels=LEVELS, tasks=("jack", "summit"), noises=("none",), seeds=4, score=SCORE, without=(), scales=None):
    """Curves that rise to a method's level, seeds 0.02 apart; scores of a task times its scale."""
    curves, finals, cells = [], [], []
    for task in tasks:
        scale = (scales or {}).get(task, 1.0)
        for method, level in levels.items():
            for noise in noises:
                own = dict(zip(FACTORS, (task, method, noise)))
                gone = (task, method) in without
                state = {"state": "missing" if gone else "complete", "missing_seeds": "0-3" if gone else ""}
                command = f"python -m dsob_pl fit --config conf/{task}.yaml --config conf/method/{method}.yaml"
                cell = {"suite": "made", "score": score, "cell": "/".join(own.values()), **own, "seeds": "0-3", **state}
                more = {"failed_seeds": "", "in_grid": True, "command": command, "versions": "torch 2.13.0"}
                cells.append({**cell, **more, **SETTING, "divergence": "MMD", "updates_per_step": "5"})
                for seed in [] if gone else range(seeds):
                    final = scale * (level + 0.02 * seed)
                    row = {"suite": "made", **own, "seed": seed}
                    curves += [{**row, "environment_step": 100 * i, score: final * i / 3} for i in (1, 2, 3)]
                    end = {"status": "FINISHED", "environment_step": 300, score: final, "area_under_curve": np.nan}
                    end |= {"wall_clock_seconds": 60.0, "updates": 1000.0, "steps": 300, "gamma_kappa": 1.5}
                    finals.append({**row, **end, "run": "a", "commit": "c" * 40, "dirty": "false", "command": command})
    return Results("made", score, pd.DataFrame(curves), pd.DataFrame(finals), pd.DataFrame(cells)).scored_by(score)
