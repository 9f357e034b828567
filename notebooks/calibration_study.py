"""Whether the law of the return that a critic has learned in control is calibrated: the table of RESULTS.md.

    python notebooks/calibration_study.py                 five seeds of each; more than an hour on one core
    python notebooks/calibration_study.py --table         the table from the file, nothing is run
    python notebooks/calibration_study.py --runs FOLDER   the default's cells, from a sweep of conf/suite/default.yaml there

Each cell is the default of conf/pendulum.yaml, or that under noise or on another task, or the default with pessimism that
goes by ranks or leaves at half of the run, or what it was when pessimism adapted from the start, that without pessimism,
that with another divergence, or what the default was before all of this; coverage is that of the last evaluation's
episodes, which were not seen in training.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]

from seed_runs import extremes, finished, fit, own_provenance, provenance, study  # noqa: E402

RESULTS = ROOT / "notebooks" / "results" / "calibration.csv"
METRICS = ("eval/coverage_50", "eval/coverage_80", "eval/coverage_95", "eval/pit_mean", "eval/crps")
MORE = ("eval/return_mean", "eval/value", "eval/discounted_return")
COLUMNS = ["cell", "seed", "environment_step", *METRICS, *MORE, "run", "commit", "command"]


def kernel(bandwidth: float) -> dict[str, object]:
    """A multiquadric kernel as configs write it."""
    return {"class_path": "dsob_pl.divergences.Multiquadric", "init_args": {"bandwidth": bandwidth}}


def anchored(name: str, estimator: str = "unbiased", fine: float = 30.0, **options: str) -> dict[str, object]:
    """The divergence of conf/pendulum.yaml with another one in its middle, another estimator or another fine kernel."""
    joint = {"kernel": kernel(10.0), "estimator": estimator, **options}
    parts = {
        "divergence": {"class_path": f"dsob_pl.divergences.{name}", "init_args": joint},
        "value_divergence": {
            "class_path": "dsob_pl.divergences.MMD",
            "init_args": {"kernel": kernel(fine), "estimator": estimator},
        },
    }
    outer = {"class_path": "dsob_pl.divergences.ValueAnchored", "init_args": parts}
    return {"model": {"init_args": {"divergence": outer}}}


def overlay(file: str, **trainer: int) -> dict[str, object]:
    """A file of conf/ and options of the Trainer."""
    found = yaml.safe_load((ROOT / "conf" / file).read_text(encoding="utf-8"))
    return found | ({"trainer": trainer} if trainer else {})


def pessimism(**options: object) -> dict[str, object]:
    """AdaptivePessimism with these options."""
    part = {"class_path": "dsob_pl.bellman.AdaptivePessimism", "init_args": options}
    return {"model": {"init_args": {"overestimation": part}}}


def together(*parts: dict[str, Any]) -> dict[str, Any]:
    """Overlays as one, the last one counting; the options of another class are not those of this one."""
    result: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            before = result.get(key)
            alike = isinstance(before, dict) and isinstance(value, dict)
            same = alike and before.get("class_path", "") == value.get("class_path", before.get("class_path", ""))
            result[key] = together(before, value) if same else value
    return result


EARLIER = "ablation/earlier_default.yaml"
# Where a law is to be right for most states, not for those where most is at stake.
BY_RANK = pessimism(after=0.6, rate=0.25, floor=-1.0, evidence="rank")
# The policy still moves, and nothing adds optimism.
AT_HALF = together(
    pessimism(after=0.5, rate=0.1, floor=0.0, evidence="rank"),
    {"model": {"init_args": {"anneal_after": 0.5, "freeze_policy_at": 0.7}}},
)
FROM_START = overlay("ablation/adapting_from_start.yaml")
NONE = together(FROM_START, overlay("ablation/no_truncation.yaml"))
CELLS: dict[str, dict[str, object]] = {
    "default": {},
    "default, dynamics noise": overlay("noise/dynamics.yaml"),
    "default, observation noise": overlay("noise/observation.yaml"),
    "pessimism by ranks": BY_RANK,
    "pessimism leaving at half of the run": AT_HALF,
    "adapting from the start": FROM_START,
    "adapting from the start, dynamics noise": together(FROM_START, overlay("noise/dynamics.yaml")),
    "adapting from the start, observation noise": together(FROM_START, overlay("noise/observation.yaml")),
    "no pessimism": NONE,
    "no pessimism, dynamics noise": together(NONE, overlay("noise/dynamics.yaml")),
    "no pessimism, observation noise": together(NONE, overlay("noise/observation.yaml")),
    "no pessimism, biased": together(NONE, anchored("MMD", estimator="biased")),
    "no pessimism, max-sliced MMD, direction of the batch": together(NONE, anchored("MaxSlicedMMD", direction="batch")),
    "no pessimism, max-sliced MMD, direction per transition": together(
        NONE, anchored("MaxSlicedMMD", direction="transition")
    ),
    "no pessimism, kernel of the return of bandwidth 50": together(NONE, anchored("MMD", fine=50.0)),
    "earlier default": overlay(EARLIER, max_steps=1500),
    "earlier default, longer": overlay(EARLIER, max_steps=4000),
}
# Cells of conf/suite/default.yaml: the same runs, and those of other tasks.
SUITE_CELLS = {
    name: f"{task}/mmd_adaptive_state_action/{noise}"
    for label, task in {
        "default": "pendulum",
        "default, InvertedPendulum-v5": "inverted_pendulum",
        "default, InvertedDoublePendulum-v5": "inverted_double_pendulum",
    }.items()
    for noise, name in {
        "none": label,
        **{noise: f"{label}, {noise} noise" for noise in ("observation", "dynamics", "action", "reward")},
    }.items()
}
# Rows of earlier configs (their commit is in the file), kept for what they show.
KEPT = (
    "pessimism by ranks, InvertedDoublePendulum-v5",
    "earlier default, biased",
    "earlier default, max-sliced MMD, direction per transition",
    "earlier default, nothing truncated",
    "earlier default, nothing truncated, longer",
)


def run(cell: str, seeds: str, folder: Path) -> list[dict[str, object]]:
    """Trains all seeds of a cell in one process; a row for each."""
    place = folder / str(list(CELLS).index(cell))
    file = folder / f"{place.name}.yaml"
    file.write_text(yaml.safe_dump(CELLS[cell] or {"threads": 1}), encoding="utf-8")
    runs = fit(place, [ROOT / "conf/pendulum.yaml", file], seeds, "--model.compile=true")
    return rows(cell, place, runs, provenance)


def swept(folder: Path) -> list[dict[str, object]]:
    """Rows of the cells that a sweep of conf/suite/default.yaml has finished in ``folder``."""
    runs = finished(folder)
    return [
        row
        for cell, name in SUITE_CELLS.items()
        for row in rows(cell, folder, [run for run in runs if run.data.tags.get("cell") == name], own_provenance)
    ]


def rows(
    cell: str, folder: Path, runs: Sequence[Any], source: Callable[[Any], dict[str, object]]
) -> list[dict[str, object]]:
    """The last evaluation of each run in ``folder``."""
    from dsob_pl.tracking.store import mlflow_client

    client = mlflow_client(f"sqlite:///{folder.resolve() / 'mlflow.db'}")
    return [
        {
            "cell": cell,
            "environment_step": client.get_metric_history(found.info.run_id, METRICS[0])[-1].step,
            **{name: f"{found.data.metrics[name]:.6g}" for name in (*METRICS, *MORE)},
            **source(found),
        }
        for found in runs
    ]


def table(rows: list[dict[str, str]]) -> str:
    """Mean over seeds of each metric, lowest and highest seed in parentheses; nothing without rows."""
    if not rows:
        return ""
    lines = [
        "| setting | seeds | steps | 50 % interval | 80 % interval | 95 % interval "
        "| mean PIT | CRPS | predicted value | realised |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in dict.fromkeys((*SUITE_CELLS, *CELLS, *KEPT)):
        own = [row for row in rows if row["cell"] == cell]
        if not own:
            continue
        texts = []
        for name in (*METRICS, "eval/value", "eval/discounted_return"):
            values = np.array([float(row[name]) for row in own])
            digits = 2 if name.startswith(("eval/coverage", "eval/pit")) else 1
            texts.append(extremes(values, digits))
        steps = f"{int(own[0]['environment_step']):,}"
        lines.append(f"| {cell} | {len(own)} | {steps} | {' | '.join(texts)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    study(__doc__, list(CELLS), run, table, RESULTS, COLUMNS, seeds="0-4", swept=swept)
