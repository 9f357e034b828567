"""Whether the law of the return that a critic has learned in control is calibrated: the README's table.

    python notebooks/calibration_study.py                 five seeds of each; about half an hour on one core
    python notebooks/calibration_study.py --table         the table from the file, nothing is run

Each cell is the default of conf/pendulum.yaml with another divergence; coverage is that of the last evaluation's
episodes, which were not seen in training.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
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


CELLS: dict[str, dict[str, object]] = {
    "MMD, unbiased (default)": {},
    "MMD, biased": anchored("MMD", estimator="biased"),
    "max-sliced MMD, direction of the batch": anchored("MaxSlicedMMD", direction="batch"),
    "max-sliced MMD, direction per transition": anchored("MaxSlicedMMD", direction="transition"),
}


def run(cell: str, seeds: str, folder: Path) -> list[dict[str, object]]:
    """Trains all seeds of a cell in one process; a row for each."""
    from dsob_pl.tracking.store import PARENT_TAG, all_runs, mlflow_client

    place = folder / str(list(CELLS).index(cell))
    place.mkdir()
    overlay = yaml.safe_dump(CELLS[cell] or {"threads": 1})
    (place / "overlay.yaml").write_text(overlay, encoding="utf-8")
    words = ["fit", "--config", str(ROOT / "conf/pendulum.yaml"), "--config", "overlay.yaml", f"--seeds={seeds}"]
    own = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
    own |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "dsob_pl", *words], cwd=place, env=own, check=True, stdout=subprocess.DEVNULL)
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    client = mlflow_client(f"sqlite:///{place / 'mlflow.db'}")
    runs = all_runs(client, [experiment.experiment_id for experiment in client.search_experiments()])
    return [
        {
            "cell": cell,
            "seed": int(found.data.tags["seed"]),
            "environment_step": client.get_metric_history(found.info.run_id, METRICS[0])[-1].step,
            **{name: f"{found.data.metrics[name]:.6g}" for name in (*METRICS, *MORE)},
            "run": found.info.run_id[:8],
            "commit": commit[:10],
            "command": f"python {' '.join(sys.argv)}",
        }
        for found in sorted(runs, key=lambda found: int(found.data.tags.get("seed", "0").split("-")[0]))
        if PARENT_TAG in found.data.tags
    ]


def read() -> list[dict[str, str]]:
    """The file's rows; none where there is no file yet."""
    if not RESULTS.is_file():
        return []
    with RESULTS.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table(rows: list[dict[str, str]]) -> str:
    """Mean over seeds of each metric, lowest and highest seed in brackets; nothing without rows."""
    if not rows:
        return ""
    lines = [
        "| divergence, in the default of conf/pendulum.yaml | seeds | 50 % interval | 80 % interval | 95 % interval "
        "| mean PIT | CRPS | return |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell in CELLS:
        own = [row for row in rows if row["cell"] == cell]
        if not own:
            continue
        texts = []
        for name in (*METRICS, "eval/return_mean"):
            values = np.array([float(row[name]) for row in own])
            digits = 0 if name.endswith("return_mean") else 2
            texts.append(f"{values.mean():.{digits}f} [{values.min():.{digits}f}, {values.max():.{digits}f}]")
        lines.append(f"| {cell} | {len(own)} | {' | '.join(texts)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is asked for, keeps the other rows of the file, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-4")
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if not options.table:
        with tempfile.TemporaryDirectory(prefix="calibration_study_") as folder:
            for cell in (name for name in CELLS if options.only in name):
                own = run(cell, options.seeds, Path(folder))
                rows = [row for row in read() if row["cell"] != cell] + own  # type: ignore[operator]
                with RESULTS.open("w", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)
    print(table(read()))


if __name__ == "__main__":
    main()
