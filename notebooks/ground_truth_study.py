"""Every cell of the ground-truth tables of RESULTS.md: fits, and their last scores as rows of results/ground_truth.csv.

python notebooks/ground_truth_study.py                 all cells, three seeds each; about an hour on two cores
python notebooks/ground_truth_study.py --only chain    cells whose name contains 'chain'
python notebooks/ground_truth_study.py --tables        the tables from the file, nothing is run
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

HERE = Path(__file__).resolve().parent
CONF = HERE.parent / "conf"
RESULTS = HERE / "results" / "ground_truth.csv"
SCORES = [
    "return_error",
    "return_spread",
    *(f"{of}{score}" for of in ("", "state_") for score in (
        "gradient_error", "gradient_cosine", "gradient_spread", "conditional_gradient_error", "energy_distance"
    )),
    *(f"cvar_{level}_gradient_{score}" for level in (10, 25) for score in ("error", "cosine")),
]  # fmt: skip
MODEL_SCORES = ["world_model/spread", "world_model/jacobian_error", "world_model/energy_distance"]
COLUMNS = ["cell", "seed", *SCORES, *MODEL_SCORES, "bellman/gamma_kappa", "cpu_seconds", "commit", "command"]

LQ, PM, ROT, CHAIN = (
    f"--config conf/ground_truth/{name}.yaml"
    for name in ("linear_quadratic", "point_mass", "smoothness", "reward_chain")
)
LEARNED = f"{LQ} --config conf/ground_truth/cvae.yaml"
MODEL = "--model.init_args"
LARGER = f"{MODEL}.samples 20 {MODEL}.critic.init_args.hidden [128,128]"
ARCHITECTURES = {
    "concatenated": "critics.GenerativeCritic --model.init_args.critic.init_args.noise_gain 0.3",
    "injected": "critics.InjectedCritic",
    "injected, head 32": "critics.InjectedCritic --model.init_args.critic.init_args.head 32",
    "FiLM": "critics.FiLMCritic",
    "FiLM, head 32": "critics.FiLMCritic --model.init_args.critic.init_args.head 32",
    "embedding, head 32": "critics.EmbeddingCritic --model.init_args.critic.init_args.noise_gain 1.0",
}


def method(name: str) -> str:
    """The option that puts a method on top."""
    return f"--config conf/method/{name}.yaml"


def cells() -> dict[str, str]:
    """Arguments of ``fit`` by name of the cell."""
    direction = f"{MODEL}.divergence.init_args.direction"
    found = {
        "linear-quadratic / MMD Sobolev": f"{LQ} {method('mmd_sobolev')}",
        "linear-quadratic / MMD Sobolev, biased": f"{LQ} {MODEL}.divergence.init_args.estimator biased",
        "linear-quadratic / MMD Sobolev, state-action": f"{LQ} {method('mmd_sobolev_state_action')}",
        "linear-quadratic / MSMMD Sobolev, cross_fitted": f"{LQ} {method('msmmd_sobolev')} {direction} cross_fitted",
        "linear-quadratic / MSMMD Sobolev, batch": f"{LQ} {method('msmmd_sobolev')} {direction} batch",
        "linear-quadratic / MSMMD Sobolev, transition": f"{LQ} {method('msmmd_sobolev')} {direction} transition",
        "linear-quadratic / MSMMD Sobolev, state-action": f"{LQ} {method('msmmd_sobolev_state_action')}",
        "linear-quadratic / MMD": f"{LQ} {method('mmd')}",
        "cVAE / MMD Sobolev": LEARNED,
        "cVAE / MMD Sobolev, no decoder noise": f"{LEARNED} {MODEL}.world_model.init_args.sample_decoder_noise false",
        "cVAE / MMD Sobolev, inferred noise": f"{LEARNED} {MODEL}.target_source replayed",
        "point mass / MMD Sobolev, state-action": PM,
        "point mass / MMD Sobolev, state-action, N = 20, 128 units": (f"{PM} {LARGER}"),
        "point mass / MMD Sobolev, state-action, N = 20, 128 units, 12,000 updates": (
            f"{PM} {LARGER} --trainer.max_steps 3200 {MODEL}.critic_scheduler.init_args.total_iters 1200"
        ),
        "point mass / MMD Sobolev": f"{PM} {method('mmd_sobolev')}",
        "point mass / MSMMD Sobolev": f"{PM} {method('msmmd_sobolev')} {direction} cross_fitted",
        "point mass / MSMMD Sobolev, state-action": f"{PM} {method('msmmd_sobolev_state_action')}",
        "point mass / MMD": f"{PM} {method('mmd')}",
        "rotation 0.9 / MMD Sobolev": ROT,
        "rotation 0.9 / MMD Sobolev, state-action": f"{ROT} {method('mmd_sobolev_state_action')}",
        "rotation 1.15 / MMD Sobolev": f"{ROT} --data.env_kwargs.rho 1.15",
        "rotation 1.15 / MMD Sobolev, state-action": (
            f"{ROT} {method('mmd_sobolev_state_action')} --data.env_kwargs.rho 1.15"
        ),
        "rotation 1.15 / MMD": f"{ROT} {method('mmd')} --data.env_kwargs.rho 1.15",
        "chain / MMD Sobolev": CHAIN,
        "chain / MMD Sobolev, biased": f"{CHAIN} {MODEL}.divergence.init_args.estimator biased",
        "chain / MSMMD Sobolev, transition": f"{CHAIN} {method('msmmd_sobolev')} {direction} transition",
        "chain / MSMMD Sobolev, batch": f"{CHAIN} {method('msmmd_sobolev')} {direction} batch",
        "chain / MSMMD Sobolev, cross_fitted": f"{CHAIN} {method('msmmd_sobolev')} {direction} cross_fitted",
    }
    for name, critic in ARCHITECTURES.items():
        for units in (64, 256):
            sizes = f"{MODEL}.critic.init_args.members 1 {MODEL}.critic.init_args.hidden [{units},{units}]"
            found[f"critic {units} / {name}"] = f"{LQ} {MODEL}.critic dsob_pl.{critic} {sizes}"
    return found


def run(cell: str, arguments: str, seed: int) -> dict[str, str]:
    """One fit, in a folder of its own that is removed; its last scores."""
    from dsob_pl.cli import main

    command = f"fit {arguments} --seed_everything {seed}".split()
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        (Path(folder) / "conf").symlink_to(CONF)
        start = time.process_time()
        logger = "--trainer.logger=lightning.pytorch.loggers.CSVLogger"
        more = [logger, "--trainer.logger.save_dir=logs", "--trainer.enable_progress_bar=false"]
        code = main([*command, *more, "--trainer.enable_checkpointing=false"])
        spent = time.process_time() - start
        os.chdir(before)
        rows = [row for path in Path(folder).rglob("metrics.csv") for row in csv.DictReader(path.open())]
    last = {name: value for row in rows for name, value in row.items() if value}
    scores = {name: last.get(f"truth/{name}", "") for name in SCORES}
    others = {name: last.get(name, "") for name in (*MODEL_SCORES, "bellman/gamma_kappa")}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    described = {"cell": cell, "seed": str(seed), "commit": commit.stdout.strip(), "command": " ".join(command)}
    if code:
        raise SystemExit(f"{cell}, seed {seed}: exit code {code}")
    return described | scores | others | {"cpu_seconds": f"{spent:.1f}"}


def append(row: dict[str, str]) -> None:
    """One more row, in place of an older one of the same cell and seed."""
    RESULTS.parent.mkdir(exist_ok=True)
    partial = RESULTS.with_suffix(".partial")
    with FileLock(RESULTS.with_suffix(".lock")):  # several of these scripts may run at once
        rows = [old for old in read() if (old["cell"], old["seed"]) != (row["cell"], row["seed"])]
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            for one in sorted([*rows, row], key=lambda r: (r["cell"], int(r["seed"]))):
                writer.writerow({k: shortened(v) for k, v in one.items()})
        partial.replace(RESULTS)


def shortened(value: str) -> str:
    """Five digits are more than the scores have."""
    try:
        return value if value.isdigit() else f"{float(value):.5g}"
    except ValueError:
        return value


def read() -> list[dict[str, str]]:
    """The rows so far."""
    return list(csv.DictReader(RESULTS.open())) if RESULTS.is_file() else []


SHOWN = {
    "return error": "return_error",
    "return spread": "return_spread",
    "gradient error": "gradient_error",
    "gradient spread": "gradient_spread",
    "error of E[dG/da given G]": "conditional_gradient_error",
    "energy distance": "energy_distance",
}
TAILS = {
    f"CVaR {level / 100:g}: gradient {score}": f"cvar_{level}_gradient_{score}"
    for level in (10, 25)
    for score in ("error", "cosine")
}
PROBLEMS = ("linear-quadratic", "cVAE", "point mass", "rotation", "chain")


def table(prefixes: Sequence[str], columns: dict[str, str], having: str = "return_error") -> str:
    """Mean over seeds and, in parentheses, smallest and largest, one line for each cell of some problems with a score."""
    rows = [row for prefix in prefixes for row in read() if row["cell"].startswith(prefix) and row.get(having)]
    lines = ["| problem / method | seeds | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name in [name for name in cells() if name in {row["cell"] for row in rows}]:
        mine = [row for row in rows if row["cell"] == name]
        # On the chain the true mean gradient is 0, and an error relative to it means nothing.
        blank = ("gradient_error", "conditional_gradient_error") if name.startswith("chain") else ()
        entries = [
            entry([float(row[column]) for row in mine if row.get(column) and column not in blank])
            for column in columns.values()
        ]
        lines.append(f"| {name} | {len(mine)} | " + " | ".join(entries) + " |")
    return "\n".join(lines)


def entry(values: list[float]) -> str:
    """``mean (smallest to largest)`` to two digits behind the point, three for small numbers; empty without values."""
    if not values:
        return ""
    digits = 3 if abs(sum(values)) < 0.3 * len(values) else 2 if abs(sum(values)) < 10 * len(values) else 0
    mean, low, high = (f"{value:.{digits}f}" for value in (sum(values) / len(values), min(values), max(values)))
    return f"{mean} ({low} to {high})" if len(values) > 1 else mean


def tables() -> dict[str, str]:
    """The tables of RESULTS.md by name."""
    return {
        "ground truth": table(PROBLEMS, SHOWN),
        "tails": table(PROBLEMS, TAILS, having="cvar_10_gradient_error"),
        "critics": table(("critic",), {**SHOWN, "CPU seconds": "cpu_seconds"}),
    }


def main_() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--again", action="store_true", help="also cells that the file has")
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    if options.tables:
        print("\n\n".join(tables().values()))
        return
    sys.path.insert(0, str(HERE.parent))
    chosen = {name: arguments for name, arguments in cells().items() if options.only in name}
    for seed in range(options.seeds):
        for name, arguments in chosen.items():
            if options.again or (name, str(seed)) not in {(row["cell"], row["seed"]) for row in read()}:
                append(run(name, arguments, seed))
                print(f"{name}, seed {seed}", flush=True)


if __name__ == "__main__":
    main_()
