"""Draws the two figures of learning in the README: the default on its tasks under each noise, and all methods on SUMMIT(5).

    python notebooks/learning_curves.py

From results/compare/, the tables that `report` writes after sweeps of conf/suite/default.yaml and conf/suite/summit.yaml;
nothing is run. Each file says in itself of what data it was made, so that a test can tell an old one.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]

from compare_tables import DEFAULTS, GOALS, RESULTS  # noqa: E402

from dsob_pl.analysis import read_csv  # noqa: E402
from dsob_pl.analysis.comparison import compare  # noqa: E402
from dsob_pl.analysis.figures import learning_curves  # noqa: E402
from dsob_pl.analysis.panels import new_figure  # noqa: E402
from dsob_pl.analysis.statistics import interquartile_mean  # noqa: E402

TITLES = {
    "pendulum": "Pendulum-v1",
    "inverted_pendulum": "InvertedPendulum-v5",
    "inverted_double_pendulum": "InvertedDoublePendulum-v5",
}
COLOURS = {
    "none": "#1b6ca8",
    "observation": "#c8553d",
    "dynamics": "#5b8c5a",
    "action": "#8e6bb0",
    "reward": "#b58a2b",
}


def figure(curves: pd.DataFrame) -> Figure:
    """A panel for each task: every seed a thin line, their interquartile mean a thick one, for each noise a colour."""
    curves = curves[curves["method"] == DEFAULTS[0][1]]
    tasks = [task for task in TITLES if (curves["task"] == task).any()]
    drawn, axes = new_figure(1, len(tasks), (3.9 * len(tasks), 3.2))
    for axis, task in zip(axes[0], tasks):
        for noise, colour in COLOURS.items():
            own = curves[(curves["task"] == task) & (curves["noise"] == noise)]
            if own.empty:
                continue
            by_seed = own.pivot(index="environment_step", columns="seed", values="eval/return_mean")
            axis.plot(by_seed.index, by_seed, color=colour, linewidth=0.6, alpha=0.35)
            middle = interquartile_mean([by_seed.to_numpy()])
            label = "no noise" if noise == "none" else f"{noise} noise"
            axis.plot(by_seed.index, middle, color=colour, linewidth=2, label=label)
        axis.axhline(GOALS[task][0], color="0.4", linewidth=0.8, linestyle=":")
        axis.set(title=TITLES[task], xlabel="environment steps")
        axis.legend(frameon=False, fontsize=8)
    axes[0][0].set_ylabel("mean evaluation return")
    return drawn


def digest(suite: str) -> str:
    """Of the learning curves of ``suite``."""
    return hashlib.sha256((RESULTS / "compare" / suite / "curves.csv").read_bytes()).hexdigest()


def default_figure() -> Figure:
    """Of the default."""
    return figure(read_csv(RESULTS / "compare" / "default").curves)


def summit_figure() -> Figure:
    """Of all methods on SUMMIT(5), as the report draws it."""
    return learning_curves(compare(read_csv(RESULTS / "compare" / "summit"), "mage"), "summit_5", "none")


# File: suite, what draws it, dots per inch.
FIGURES = {"learning_curves.png": ("default", default_figure, 130), "summit.png": ("summit", summit_figure, 120)}
SOURCE = "curves.csv, sha256"

if __name__ == "__main__":
    for name, (suite, draw, dots) in FIGURES.items():
        place = ROOT / "notebooks" / "figures" / name
        draw().savefig(place, dpi=dots, facecolor="white", metadata={SOURCE: digest(suite)})
