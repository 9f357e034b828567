"""Parts of figures: their look, panels, lines named at their ends, intervals by method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dsob_pl.analysis.comparison import estimate_of
from dsob_pl.analysis.methods import INK, Style, is_ours
from dsob_pl.analysis.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOK: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "text.color": INK,
    "font.family": "sans-serif",
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "svg.fonttype": "none",
    "text.parse_math": False,
}
_SIDES = ("baselines", "ours")
_LABEL_HEIGHT = 0.05  # of a direct label, in units of the panel's height


def new_figure(rows: int, columns: int, size: tuple[float, float], **shared: Any) -> tuple[Figure, np.ndarray]:
    """A figure and its panels ``[rows, columns]``, without pyplot, which keeps every figure alive."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def two_panels(width: float, names: Sequence[str], height: float) -> tuple[Figure, list[tuple[Axes, str]]]:
    """Baselines left and ours right; one panel where only one side is there."""
    sides = [side for side in _SIDES if any(is_ours(name) == (side == "ours") for name in names)] or ["baselines"]
    figure, grid = new_figure(1, len(sides), (width * len(sides) + 0.6, height), sharey=True)
    return figure, list(zip(grid[0], sides))


def of_side(names: Sequence[str], side: str, against: str | None) -> list[str]:
    """Methods of one panel, the one that is compared against in either."""
    return [name for name in names if is_ours(name) == (side == "ours") or name == against]


def draw_line(axis: Axes, x: np.ndarray, curve: Estimate, name: str, style: Style, markers: bool = True) -> None:
    """A line with its band."""
    value, low, high = curve
    every = max(1, len(x) // 8)
    marker: dict[str, Any] = {"marker": style.marker, "markersize": 3.5, "markevery": every} if markers else {}
    axis.plot(x, value, color=style.color, linestyle=style.dashes, linewidth=1.5, label=name, **marker)
    axis.fill_between(x, low, high, color=style.color, alpha=0.13, linewidth=0)


def name_ends(axis: Axes, ends: Mapping[str, tuple[float, float]], style: Mapping[str, Style]) -> None:
    """Names lines at their ends, pushed apart where they would overlap and joined to their line."""
    if not ends:
        return
    low, high = axis.get_ylim()
    span = (high - low) or 1.0
    order = sorted(ends, key=lambda method: ends[method][1])
    wanted = [(ends[method][1] - low) / span for method in order]
    places = spread(wanted, _LABEL_HEIGHT)
    for method, wish, place in zip(order, wanted, places):
        x = ends[method][0]
        text: dict[str, Any] = {"fontsize": 7.5, "color": style[method].color, "va": "center", "annotation_clip": False}
        arrow: dict[str, Any] = {"arrowstyle": "-", "color": style[method].color, "linewidth": 0.6}
        arrow |= {"shrinkA": 2, "shrinkB": 0, "relpos": (0, 0.5)}  # from the left edge: not across other names
        axis.annotate(
            method,
            (x, low + wish * span),
            xytext=(1.05, place),
            textcoords="axes fraction",
            arrowprops=arrow,
            **text,
        )


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Rising places at least ``gap`` apart and as near to ``wanted`` (rising) as may be: blocks around their means."""
    blocks: list[list[float]] = []  # centre, count
    for place in wanted:
        blocks.append([place, 1.0])
        while len(blocks) > 1 and blocks[-1][0] - blocks[-2][0] < gap * (blocks[-1][1] + blocks[-2][1]) / 2:
            (second, m), (first, n) = blocks.pop(), blocks.pop()
            blocks.append([(first * n + second * m) / (n + m), n + m])
    return [centre + gap * (i - (count - 1) / 2) for centre, count in blocks for i in range(int(count))]


def draw_intervals(
    axis: Axes, table: pd.DataFrame, column: str, names: Sequence[str], style: Mapping[str, Style]
) -> None:
    """A marker with its interval for every method, a line between baselines and ours."""
    for place, method in enumerate(names):
        if method in table.index:
            value, low, high = estimate_of(table.loc[method], column)
            if np.isfinite(low):
                axis.plot([place, place], [low, high], color=style[method].color, linewidth=2.2, solid_capstyle="butt")
            axis.plot(place, value, marker="o", color=style[method].color, markersize=5, linestyle="")
    border = sum(not is_ours(name) for name in names)
    if 0 < border < len(names):
        axis.axvline(border - 0.5, color=INK, linewidth=0.5, alpha=0.5)
        above: dict[str, Any] = {"transform": axis.get_xaxis_transform(), "fontsize": 7, "alpha": 0.7, "va": "bottom"}
        axis.text(border - 0.7, 1.01, _SIDES[0], ha="right", **above)
        axis.text(border - 0.3, 1.01, _SIDES[1], ha="left", **above)
    axis.grid(axis="y", linewidth=0.4, alpha=0.35)
    axis.set_xlim(-0.6, len(names) - 0.4)


def names_below(grid: np.ndarray, used: int, names: Sequence[str], style: Mapping[str, Style]) -> None:
    """Names of the methods below the lowest panel of each column."""
    columns = grid.shape[1]
    for i, axis in enumerate(grid.flat[:used]):
        axis.set_xticks(range(len(names)))
        lowest = i + columns >= used
        axis.tick_params(axis="x", length=2, labelbottom=lowest)
        if lowest:
            axis.set_xticklabels(names, rotation=90, fontsize=7.5)
            for label, name in zip(axis.get_xticklabels(), names):
                label.set_color(style[name].color)
