"""How much longer a step of many seeds takes than a step of one: ratios of interleaved fits, in results/many_seeds.csv.

python notebooks/many_seeds_study.py                  all cells; about half an hour on one core
python notebooks/many_seeds_study.py --only toy       cells whose name contains 'toy'
python notebooks/many_seeds_study.py --table          the table from the file, nothing is run

A step is an environment step of every seed with all of its updates, and everything around them. Absolute times say
little on shared machines; one seed and many take turns in one process, and each turn gives a ratio of median steps.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results" / "many_seeds.csv"
COLUMNS = [
    "cell", "seeds", "compiled", "ratio", "lowest", "highest", "turns", "seconds_one", "threads", "commit", "command",
]  # fmt: skip

TOY = "--config conf/point_mass.yaml --trainer.callbacks null --data.warmup_steps 100"
WALKER = "--config conf/walker.yaml --data.warmup_steps 300 --data.updates_per_step 1 --threads 1"


class Cell(NamedTuple):
    """What is timed: the arguments of ``fit``, how many seeds, learning steps of a turn, and what is compiled."""

    arguments: str
    seeds: int
    steps: int
    compiled: str = "neither"  # or many, or both


def cells() -> dict[str, Cell]:
    """By name."""
    found = {
        "toy / MMD Sobolev, state-action": Cell(TOY, 10, 20),
        "toy / MMD Sobolev": Cell(f"{TOY} --config conf/method/mmd_sobolev.yaml", 10, 20),
        "toy / MSMMD Sobolev": Cell(f"{TOY} --config conf/method/msmmd_sobolev.yaml", 10, 20),
        "toy / MMD": Cell(f"{TOY} --config conf/method/mmd.yaml", 10, 20),
        "toy / MMD, real transitions": Cell(
            f"{TOY} --config conf/method/mmd.yaml --model.world_model null --model.target_source replayed", 10, 20
        ),
        "toy / TD3": Cell(f"{TOY} --config conf/method/td3.yaml", 10, 20),
        "toy / MMD Sobolev, state-action, compiled": Cell(TOY, 10, 20, "both"),
        "toy / MMD Sobolev, state-action, many compiled": Cell(TOY, 10, 20, "many"),
        "Walker2d / MSMMD Sobolev": Cell(WALKER, 8, 6),
        "Walker2d / MSMMD Sobolev, many compiled": Cell(WALKER, 8, 6, "many"),
    }
    return found


def step_seconds(arguments: Sequence[str], steps: int) -> float:
    """Median seconds of a learning step of one fit, in this process."""
    from lightning.pytorch.callbacks import Callback

    from dsob_pl.cli.config_files import read_sources
    from dsob_pl.cli.lightning_cli import CLI

    class Clock(Callback):
        def __init__(self) -> None:
            self.stamps: list[float] = []

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if pl_module.updates:
                self.stamps.append(time.perf_counter())

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        quiet = [
            "--trainer.logger=false",
            "--trainer.enable_progress_bar=false",
            "--trainer.enable_checkpointing=false",
        ]
        arguments = [*arguments, *quiet, f"--trainer.default_root_dir={folder}"]
        cli = CLI("fit", arguments, read_sources(list(arguments)))
        warmup = cli.config.fit.data.warmup_steps
        cli.trainer.fit_loop.epoch_loop.max_steps = warmup + steps + 2  # the first ones prepare or compile
        cli.trainer.val_check_interval = 10**9
        cli.trainer.callbacks.append(clock)
        cli.trainer.fit(cli.model, cli.datamodule)
    seconds = [b - a for a, b in zip(clock.stamps, clock.stamps[1:])]
    return statistics.median(seconds[1:])


def measure(name: str, cell: Cell, turns: int) -> dict[str, Any]:
    """One row: the median ratio over the turns, with the lowest and the highest."""
    import torch

    base = cell.arguments.split()
    slow, fast = ["--model.init_args.compile=false"], ["--model.init_args.compile=true"]
    one = [*base, *(fast if cell.compiled == "both" else slow), "--seed_everything=0"]
    many = [*base, *(slow if cell.compiled == "neither" else fast), f"--seeds=0-{cell.seeds - 1}"]
    ratios, alone = [], []
    for turn in range(turns):
        alone.append(step_seconds(one, cell.steps))
        ratios.append(step_seconds(many, cell.steps) / alone[-1])
        print(f"{name}: turn {turn + 1}, one {alone[-1] * 1e3:.0f} ms, ratio {ratios[-1]:.2f}", flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    return {
        "cell": name,
        "seeds": cell.seeds,
        "compiled": cell.compiled,
        "ratio": f"{statistics.median(ratios):.3g}",
        "lowest": f"{min(ratios):.3g}",
        "highest": f"{max(ratios):.3g}",
        "turns": turns,
        "seconds_one": f"{statistics.median(alone):.3g}",
        "threads": torch.get_num_threads(),
        "commit": commit.strip(),
        "command": f"python -m dsob_pl fit {cell.arguments} --seeds 0-{cell.seeds - 1}",
    }


def store(row: dict[str, Any]) -> None:
    """Writes the row in place of an earlier one of the same cell."""
    rows = [old for old in read() if old["cell"] != row["cell"]] + [row]
    order = list(cells())
    rows.sort(key=lambda r: order.index(r["cell"]) if r["cell"] in order else len(order))
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read() -> list[dict[str, str]]:
    """The rows of the file."""
    if not RESULTS.is_file():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def table() -> str:
    """The table of RESULTS.md."""
    lines = [
        "| one step of | seeds | compiled | time over that of one seed | lowest to highest |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['cell']} | {r['seeds']} | {r['compiled']} | {r['ratio']} | {r['lowest']} to {r['highest']} |"
        for r in read()
    ]
    return "\n".join(lines)


def main() -> None:
    """Runs the cells asked for, or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print(table())
        return
    os.chdir(ROOT)
    from dsob_pl.cli.memory import keep_freed_memory

    keep_freed_memory()  # as the command line does
    for name, cell in cells().items():
        if options.only in name:
            store(measure(name, cell, options.turns))


if __name__ == "__main__":
    main()
