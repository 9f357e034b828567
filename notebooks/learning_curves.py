"""Draws how the default of conf/pendulum.yaml learns its tasks under each noise: the figure of the README.

    python notebooks/learning_curves.py

From results/compare/default/, the tables that `report` writes after a sweep of conf/suite/default.yaml; nothing is run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]

from compare_tables import DEFAULTS, GOALS, RESULTS  # noqa: E402

from dsob_pl.analysis import read_csv  # noqa: E402
from dsob_pl.analysis.panels import new_figure  # noqa: E402
from dsob_pl.analysis.statistics import interquartile_mean  # noqa: E402

TITLES = {
    "pendulum": "Pendulum-v1",
    "inverted_pendulum": "InvertedPendulum-v5",
    "inverted_double_pendulum": "InvertedDoublePendulum-v5",
}
COLOURS = {"none": "#1b6ca8", "observation": "#c8553d", "dynamics": "#5b8c5a"}


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


if __name__ == "__main__":
    place = ROOT / "notebooks" / "figures" / "learning_curves.png"
    figure(read_csv(RESULTS / "compare" / "default").curves).savefig(place, dpi=130)
