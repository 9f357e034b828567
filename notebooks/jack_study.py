"""Why an agent misses a rare reward: JACK(10), the loss against where targets come from; a table of RESULTS.md.

    python notebooks/jack_study.py             ten seeds of each cell; an hour on one core
    python notebooks/jack_study.py --table     the table from the file, nothing is run

State-action gradients where there is a model, none where targets are real transitions; of two critics the one with the
lower mean, nothing truncated. Beside the score: what a learned world model draws where the jackpot is (its share is
0.1), and what the critics expect of the return there and at the sure payment.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]

from seed_runs import extremes, fit, provenance, study  # noqa: E402

RESULTS = ROOT / "notebooks" / "results" / "jack_study.csv"
LOOKS = ("jackpots", "imagined_reward", "value_right", "value_left")
COLUMNS = ["cell", "seed", "environment_step", "normalized_score", *LOOKS, "run", "commit", "command"]
STEPS, DRAWS = 1000, 20_000
# Of the jackpot's reward at its place; between nothing and that there is nothing.
HALF_A_JACKPOT = 5.0
LOWER = {"class_path": "dsob_pl.bellman.LowerMean", "init_args": {"drop": 0.0}}
MODELS = {"cVAE": {}, "known dynamics": {"world_model": {"class_path": "dsob_pl.world_models.KnownDynamics"}}}
REAL = {"world_model": None, "target_source": "replayed", "sobolev": "none"}


def mmd(bandwidth: float) -> dict[str, Any]:
    """MMD of the joint sample with another kernel."""
    kernel = {"class_path": "dsob_pl.divergences.Multiquadric", "init_args": {"bandwidth": bandwidth}}
    return {"divergence": {"class_path": "dsob_pl.divergences.MMD", "init_args": {"kernel": kernel}}}


# By "where targets come from / loss": a file of conf/method/ and what is changed in it.
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "MSE": ("mse_sobolev_state_action", {}),
    "MMD": ("mmd_sobolev_state_action", {}),
    "MMD, bandwidth 0.1": ("mmd_sobolev_state_action", mmd(0.1)),
}
CELLS = {
    f"{model} / {loss}": (file, own | new) for model, new in MODELS.items() for loss, (file, own) in LOSSES.items()
}
CELLS |= {
    "real transitions / MSE": ("mse_sobolev_state_action", REAL | {"target_samples": 1}),
    "real transitions / MMD": ("mmd", REAL),
    "real transitions / MMD, bandwidth 0.1": ("mmd", mmd(0.1) | REAL),
    "real transitions / quantiles": ("iqn", {}),
}


def run(cell: str, seeds: str, folder: Path) -> list[dict[str, object]]:
    """Trains all seeds of a cell in one process; a row for each."""
    method, own = CELLS[cell]
    place = folder / str(list(CELLS).index(cell))
    file = folder / f"{place.name}.yaml"
    init_args = own | {"overestimation": LOWER, "compile": True}
    trainer = {"max_steps": STEPS, "val_check_interval": 100}
    file.write_text(yaml.safe_dump({"trainer": trainer, "model": {"init_args": init_args}}), encoding="utf-8")
    runs = fit(place, [ROOT / "conf/jack.yaml", ROOT / f"conf/method/{method}.yaml", file], seeds)
    rows: list[dict[str, object]] = []
    for found in runs:
        score = f"{found.data.metrics['eval/normalized_score']:.4g}"
        rows.append({"cell": cell, "environment_step": STEPS, "normalized_score": score, **look(found)})
        rows[-1] |= provenance(found)
    return rows


@torch.no_grad()
def look(found: Any) -> dict[str, object]:
    """What the run's last agent draws and expects where it stands still on the jackpot, or on the sure payment."""
    from dsob_pl import load_agent

    agent = load_agent(Path(found.info.artifact_uri) / "checkpoints" / "last.ckpt")
    places, still = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.zeros(2, 2)
    right, left = agent.sobolev_returns(places, still, DRAWS)[..., 0].mean((0, 2)).tolist()
    looks: dict[str, object] = {"value_right": f"{right:.4g}", "value_left": f"{left:.4g}"}
    if agent.world_model is not None and agent.world_model.learns:
        eps = torch.randn(DRAWS, agent.world_model.noise_size, generator=torch.Generator().manual_seed(0))
        s, a = agent.normalizer(places[:1]).expand(DRAWS, -1), still[:1].expand(DRAWS, -1)
        r = agent.reward_scale.inverse(agent.world_model(s, a, eps).r)
        looks |= {"jackpots": f"{(r > HALF_A_JACKPOT).float().mean():.4g}", "imagined_reward": f"{r.mean():.4g}"}
    return {name: looks.get(name, "") for name in LOOKS}


def table(rows: list[dict[str, str]]) -> str:
    """Interquartile mean of the score with its 95 % bootstrap interval; of the looks the mean, lowest and highest seed."""
    from dsob_pl.analysis.statistics import estimate, interquartile_mean
    from dsob_pl.analysis.text import interval

    lines = [
        "| targets from / loss | seeds | score after 1,000 environment steps | above 0.55 | imagined share of jackpots (0.1) "
        "| imagined mean reward there (1.0) | expected return there | expected return at the sure payment |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell in CELLS:
        own = [row for row in rows if row["cell"] == cell]
        if not own:
            continue
        scores = np.array([float(row["normalized_score"]) for row in own])
        texts = [interval(estimate(interquartile_mean, [scores])), f"{(scores > 0.55).sum()} of {len(own)}"]
        for name in LOOKS:
            values = np.array([float(row[name]) for row in own if row[name]])
            texts.append(extremes(values, 2) if values.size else "")
        lines.append(f"| {cell} | {len(own)} | {' | '.join(texts)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    study(__doc__, list(CELLS), run, table, RESULTS, COLUMNS, seeds="0-9")
