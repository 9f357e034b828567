"""Whether the law of the return that a critic has learned in control is calibrated: the README's table.

    python notebooks/calibration_study.py                 five seeds of each; more than an hour on one core
    python notebooks/calibration_study.py --table         the table from the file, nothing is run

Each cell is the default of conf/pendulum.yaml with another divergence, or without truncation and for longer; coverage is
that of the last evaluation's episodes, which were not seen in training.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]

from seed_runs import fit, keep, provenance, read  # noqa: E402

RESULTS = ROOT / "notebooks" / "results" / "calibration.csv"
METRICS = ("eval/coverage_50", "eval/coverage_80", "eval/coverage_95", "eval/pit_mean", "eval/crps")
MORE = ("eval/return_mean", "eval/value", "eval/discounted_return")
COLUMNS = ["cell", "seed", "environment_step", *METRICS, *MORE, "run", "commit", "command"]
KERNEL = {"class_path": "dsob_pl.divergences.Multiquadric", "init_args": {"bandwidth": 10.0}}


def anchored(name: str, **options: str) -> dict[str, object]:
    """The divergence of conf/pendulum.yaml with another one in its middle."""
    inner = {"class_path": f"dsob_pl.divergences.{name}", "init_args": {"kernel": KERNEL, **options}}
    outer = {"class_path": "dsob_pl.divergences.ValueAnchored", "init_args": {"divergence": inner}}
    return {"model": {"init_args": {"divergence": outer}}}


LONGER: dict[str, object] = {"trainer": {"max_steps": 4000}}
UNTRUNCATED: dict[str, object] = yaml.safe_load((ROOT / "conf/ablation/no_truncation.yaml").read_text(encoding="utf-8"))
CELLS: dict[str, dict[str, object]] = {
    "MMD, unbiased (default)": {},
    "MMD, biased": anchored("MMD", estimator="biased"),
    "max-sliced MMD, direction of the batch": anchored("MaxSlicedMMD", direction="batch"),
    "max-sliced MMD, direction per transition": anchored("MaxSlicedMMD", direction="transition"),
    "MMD, unbiased, longer": LONGER,
    "MMD, unbiased, nothing truncated": UNTRUNCATED,
    "MMD, unbiased, nothing truncated, longer": UNTRUNCATED | LONGER,
}


def run(cell: str, seeds: str, folder: Path) -> list[dict[str, object]]:
    """Trains all seeds of a cell in one process; a row for each."""
    from dsob_pl.tracking.store import mlflow_client

    place = folder / str(list(CELLS).index(cell))
    overlay = folder / f"{place.name}.yaml"
    overlay.write_text(yaml.safe_dump(CELLS[cell] or {"threads": 1}), encoding="utf-8")
    runs = fit(place, [ROOT / "conf/pendulum.yaml", overlay], seeds)
    client = mlflow_client(f"sqlite:///{place / 'mlflow.db'}")
    return [
        {
            "cell": cell,
            "environment_step": client.get_metric_history(found.info.run_id, METRICS[0])[-1].step,
            **{name: f"{found.data.metrics[name]:.6g}" for name in (*METRICS, *MORE)},
            **provenance(found),
        }
        for found in runs
    ]


def table(rows: list[dict[str, str]]) -> str:
    """Mean over seeds of each metric, lowest and highest seed in brackets; nothing without rows."""
    if not rows:
        return ""
    lines = [
        "| divergence, in the default of conf/pendulum.yaml | seeds | steps | 50 % interval | 80 % interval | 95 % interval "
        "| mean PIT | CRPS | predicted value | realised |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in CELLS:
        own = [row for row in rows if row["cell"] == cell]
        if not own:
            continue
        texts = []
        for name in (*METRICS, "eval/value", "eval/discounted_return"):
            values = np.array([float(row[name]) for row in own])
            digits = 2 if name.startswith(("eval/coverage", "eval/pit")) else 1
            texts.append(f"{values.mean():.{digits}f} [{values.min():.{digits}f}, {values.max():.{digits}f}]")
        steps = f"{int(own[0]['environment_step']):,}"
        lines.append(f"| {cell} | {len(own)} | {steps} | {' | '.join(texts)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is asked for, keeps the other rows of the file, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-4")
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        with tempfile.TemporaryDirectory(prefix="calibration_study_") as folder:
            for cell in (name for name in CELLS if options.only in name):
                keep(RESULTS, COLUMNS, ["cell"], run(cell, options.seeds, Path(folder)))
    print(table(read(RESULTS)))


if __name__ == "__main__":
    main()
