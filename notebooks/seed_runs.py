"""What studies of many seeds have in common: fits in a folder of their own, and a CSV of one row per seed."""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def fit(place: Path, files: Sequence[Path], seeds: str, *options: str) -> list[Any]:
    """Trains all seeds in one process in the new folder ``place``; the seeds' runs as MLflow has them, in order."""
    place.mkdir()
    words = ["fit", *(word for file in files for word in ("--config", str(file))), f"--seeds={seeds}", *options]
    own = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
    own |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "dsob_pl", *words], cwd=place, env=own, check=True, stdout=subprocess.DEVNULL)
    return finished(place)


def finished(place: Path) -> list[Any]:
    """The seeds' runs that have ended well in the folder ``place``, in order."""
    from dsob_pl.tracking.store import PARENT_TAG, SUPERSEDED_TAG, all_runs, mlflow_client

    client = mlflow_client(f"sqlite:///{place.resolve() / 'mlflow.db'}")
    runs = all_runs(client, [experiment.experiment_id for experiment in client.search_experiments()])
    gone = {run.info.run_id for run in runs if run.data.tags.get(SUPERSEDED_TAG) == "true"}
    runs = [run for run in runs if not {run.info.run_id, run.data.tags.get(PARENT_TAG)} & gone]
    runs = [run for run in runs if run.info.status == "FINISHED" and "seed" in run.data.tags]
    own_runs = [run for run in runs if PARENT_TAG in run.data.tags] or runs  # a single seed has no parent
    return sorted(own_runs, key=lambda run: int(run.data.tags["seed"]))


def provenance(run: Any) -> dict[str, object]:
    """Where a row comes from: seed, run, commit and command."""
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    command = f"python {' '.join(sys.argv)}"
    return {"seed": int(run.data.tags["seed"]), "run": run.info.run_id[:8], "commit": commit[:10], "command": command}


def own_provenance(run: Any) -> dict[str, object]:
    """The same of a run that was there before: commit and command that began it.

    Where it was cut off, the command that went on names a checkpoint that nobody else has.
    """
    tags = run.data.tags
    commit = tags["mlflow.source.git.commit"][:10] + ("-dirty" if tags.get("git.dirty") == "true" else "")
    return {"seed": int(tags["seed"]), "run": run.info.run_id[:8], "commit": commit, "command": tags["command"]}


def extremes(values: Any, digits: int) -> str:
    """Mean of the seeds, and in parentheses the lowest and the highest; brackets are for intervals."""
    return f"{values.mean():.{digits}f} ({values.min():.{digits}f} to {values.max():.{digits}f})"


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a file; none where there is none."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def keep(path: Path, columns: Sequence[str], keys: Sequence[str], rows: Sequence[dict[str, object]]) -> None:
    """Writes ``rows`` to a file in place of those that it has of the same ``keys``."""
    new = {tuple(str(row[key]) for key in keys) for row in rows}
    kept = [row for row in read(path) if tuple(row[key] for key in keys) not in new]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *rows])


def study(
    description: str,
    cells: Sequence[str],
    run: Callable[[str, str, Path], list[dict[str, object]]],
    table: Callable[[list[dict[str, str]]], str],
    results: Path,
    columns: Sequence[str],
    seeds: str,
    swept: Callable[[Path], list[dict[str, object]]] | None = None,
) -> None:
    """The command line of a study: runs the cells asked for, keeps the other rows of the file, prints the table.

    Args:
        description: of the study.
        cells: their names.
        run: a cell's rows, from its name, seeds and a folder that is thrown away.
        table: of all rows.
        results: the file.
        columns: of it, "cell" and "seed" among them.
        seeds: by default.
        swept: rows of runs that were made before in a folder, where the study can take such; ``--runs``.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default=seeds)
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--table", action="store_true")
    if swept is not None:
        parser.add_argument("--runs", type=Path, help="a folder in which a sweep has finished; nothing is trained")
    options = parser.parse_args()
    if swept is not None and options.runs is not None:
        keep(results, columns, ["cell", "seed"], swept(options.runs))
    elif not options.table:
        with tempfile.TemporaryDirectory(prefix=f"{results.stem}_") as folder:
            for cell in (name for name in cells if options.only in name):
                keep(results, columns, ["cell", "seed"], run(cell, options.seeds, Path(folder)))
    print(table(read(results)))
