"""Draws the figures of learning in the README: the default under each noise, all methods on SUMMIT(5), and all on control.

    python notebooks/learning_curves.py

From results/compare/, the tables that `report` writes after sweeps of the suites in conf/suite/; nothing is run. Each file
says in itself of what data it was made, so that a test can tell an old one.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]

from compare_tables import CONTROL_NOISES, CONTROL_TASKS, DEFAULTS, GOALS, RESULTS, control_areas  # noqa: E402

from dsob_pl.analysis import read_csv  # noqa: E402
from dsob_pl.analysis.comparison import compare, estimate_of  # noqa: E402
from dsob_pl.analysis.figures import learning_curves  # noqa: E402
from dsob_pl.analysis.methods import in_order, is_ours  # noqa: E402
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
            axis.plot(by_seed.index, middle, color=colour, linewidth=2, label=_noise_label(noise))
        axis.axhline(GOALS[task][0], color="0.4", linewidth=0.8, linestyle=":")
        axis.set(title=TITLES[task], xlabel="environment steps")
        axis.legend(frameon=False, fontsize=8)
    axes[0][0].set_ylabel("mean evaluation return")
    return drawn


def control(areas: pd.DataFrame) -> Figure:
    """A panel for each task: the area under the curve of every method with its interval, for each noise a colour.

    Methods apart from the best of their task and noise have open markers.

    Args:
        areas: as of ``control_areas``.
    """
    methods = in_order(areas["method"])
    drawn, axes = new_figure(1, len(TITLES), (3.9 * len(TITLES), 0.27 * len(methods) + 0.9), sharey=True)
    for axis, (task, title) in zip(axes[0], TITLES.items()):
        for shift, noise in zip((-0.25, 0.0, 0.25), CONTROL_NOISES, strict=True):
            for _, row in areas[(areas["task"] == task) & (areas["noise"] == noise)].iterrows():
                area, place = estimate_of(row, "area"), methods.index(row["method"]) + shift
                face = "white" if row["apart"] else COLOURS[noise]
                axis.plot([area.low, area.high], [place, place], color=COLOURS[noise], linewidth=1.2)
                axis.plot(area.value, place, "o", color=COLOURS[noise], markersize=4.5, markerfacecolor=face)
        axis.axhline(sum(not is_ours(method) for method in methods) - 0.5, color="0.4", linewidth=0.6)
        for place in range(0, len(methods), 2):
            axis.axhspan(place - 0.5, place + 0.5, color="0.95", zorder=0, linewidth=0)
        axis.set(title=title, xlabel="mean evaluation return over the run", ylim=(len(methods) - 0.5, -0.5))
        axis.set_yticks(range(len(methods)), methods, fontsize=8)
    for noise in CONTROL_NOISES:
        axes[0][0].plot([], [], "o-", color=COLOURS[noise], markersize=4.5, linewidth=1.2, label=_noise_label(noise))
    drawn.legend(frameon=False, fontsize=8, ncols=len(CONTROL_NOISES), loc="outside upper center")
    return drawn


def _noise_label(noise: str) -> str:
    return "no noise" if noise == "none" else f"{noise} noise"


def digest(suites: tuple[str, ...]) -> str:
    """Of the learning curves of ``suites``."""
    return hashlib.sha256(
        b"".join((RESULTS / "compare" / suite / "curves.csv").read_bytes() for suite in suites)
    ).hexdigest()


def default_figure() -> Figure:
    """Of the default."""
    return figure(read_csv(RESULTS / "compare" / "default").curves)


def summit_figure() -> Figure:
    """Of all methods on SUMMIT(5), as the report draws it."""
    return learning_curves(compare(read_csv(RESULTS / "compare" / "summit"), "mage"), "summit_5", "none")


def control_figure() -> Figure:
    """Of all methods on the three pendulums, beginning from the earlier default; without those that change its pessimism."""
    areas = control_areas()
    everywhere = areas.groupby("method")["task"].nunique() == len(TITLES)
    return control(areas[areas["method"].map(everywhere)])


# File: suites, what draws it, dots per inch.
FIGURES = {
    "learning_curves.png": (("default",), default_figure, 130),
    "summit.png": (("summit",), summit_figure, 120),
    "control.png": (tuple(CONTROL_TASKS), control_figure, 120),
}
SOURCE = "curves.csv, sha256"

if __name__ == "__main__":
    for name, (suites, draw, dots) in FIGURES.items():
        place = ROOT / "notebooks" / "figures" / name
        draw().savefig(place, dpi=dots, facecolor="white", metadata={SOURCE: digest(suites)})
