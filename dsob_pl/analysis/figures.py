"""Figures of a comparison: baselines left, ours right, one style per method throughout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd

from dsob_pl.analysis.comparison import Comparison, in_noise_order, scaled_scores
from dsob_pl.analysis.methods import INK, in_order, styles
from dsob_pl.analysis.panels import (
    LOOK,
    draw_intervals,
    draw_line,
    name_ends,
    names_below,
    new_figure,
    of_side,
    two_panels,
)
from dsob_pl.analysis.statistics import AGGREGATES, estimate, interquartile_mean, performance_profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_PER_METHOD = 0.27  # inches of width


def learning_curves(comparison: Comparison, task: str, noise: str) -> Figure:
    """Score against environment steps: IQM over seeds with its 95 % band, each line named at its end.

    The method that is compared against is drawn in both panels.
    """
    results, names = comparison.results, _methods_of(comparison.tasks, task, noise)
    with mpl.rc_context(LOOK):
        figure, panels = two_panels(5.4, names, 3.6)
        style = styles(results.cells["method"])
        for axis, side in panels:
            ends = {}
            for method in of_side(names, side, comparison.against):
                table = results.aligned(results.score, task, noise, method)
                if table.empty:
                    continue
                curve = estimate(interquartile_mean, [table.to_numpy(float)], resamples=1000)
                draw_line(axis, table.index.to_numpy(float), curve, method, style[method])
                ends[method] = (float(table.index[-1]), float(curve.value[-1]))
            axis.set(xlabel="environment steps", title=side)
            axis.margins(x=0.01)
            name_ends(axis, ends, style)
        panels[0][0].set_ylabel(_readable(results.score))
    return figure


def final_scores(comparison: Comparison, noise: str) -> Figure:
    """Final scores on every task: each seed, and their IQM with its 95 % interval."""
    table = comparison.tasks[comparison.tasks["noise"] == noise]
    tasks, names = sorted(set(table["task"])), in_order(table["method"])
    columns = 1 if len(tasks) == 1 or len(names) > 24 else 2
    rows = -(-len(tasks) // columns)
    with mpl.rc_context(LOOK):
        size = (columns * (0.9 + _PER_METHOD * max(len(names), 6)), 2.1 * rows + 1.5)
        figure, grid = new_figure(rows, columns, size, sharex=True)
        style = styles(comparison.results.cells["method"])
        for axis, task in zip(grid.flat, tasks):
            own = table[table["task"] == task].set_index("method")
            for place, method in enumerate(names):
                seeds = comparison.results.final_scores(task, noise, method)
                if method in own.index and len(seeds):
                    across = place + np.linspace(-0.22, 0.22, len(seeds)) if len(seeds) > 1 else [place]
                    axis.plot(across, seeds, ".", color=style[method].color, alpha=0.45, markersize=3.5, mec="none")
            draw_intervals(axis, own, "score", names, style)
            axis.set_title(task)
        for axis in grid.flat[len(tasks) :]:
            axis.remove()
        for axis in grid[:, 0]:
            axis.set_ylabel(_readable(comparison.results.score))
        names_below(grid, len(tasks), names, style)
    return figure


def aggregate_scores(comparison: Comparison, noise: str) -> Figure:
    """Aggregates over all tasks of a noise with their 95 % intervals."""
    return _over_noise(comparison, [(noise, name) for name in AGGREGATES], list(AGGREGATES))


def improvements(comparison: Comparison) -> Figure:
    """Probability that a seed of each method is better than one of the compared method, for every noise."""
    noises = in_noise_order(comparison.noises["noise"])
    names = [name for name in in_order(comparison.noises["method"]) if name != comparison.against]
    figure = _over_noise(comparison, [(noise, "improvement") for noise in noises], _noise_titles(noises), names)
    for axis in figure.axes:
        axis.axhline(0.5, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axis.set_ylim(-0.04, 1.04)
        if _is_first(axis):
            axis.set_ylabel(f"P(method > {comparison.against})")
    return figure


def ranks(comparison: Comparison) -> Figure:
    """Mean rank over tasks for every noise, the best on top."""
    noises = in_noise_order(comparison.noises["noise"])
    figure = _over_noise(comparison, [(noise, "rank") for noise in noises], _noise_titles(noises))
    for axis in figure.axes:
        axis.invert_yaxis()
        if _is_first(axis):
            axis.set_ylabel("mean rank (1 is best)")
    return figure


def profiles(comparison: Comparison, noise: str) -> Figure:
    """Part of all seeds and tasks with a score above each threshold, with 95 % bands."""
    table = comparison.noises[comparison.noises["noise"] == noise]
    scores = {method: scaled_scores(comparison, noise, method) for method in in_order(table["method"])}
    scores = {method: own for method, own in scores.items() if own}
    pooled = np.concatenate([task for own in scores.values() for task in own]) if scores else np.zeros(1)
    low, high = np.quantile(pooled, [0.01, 0.99])
    thresholds = np.linspace(min(low, 0.0), max(high, 1.0), 101)
    with mpl.rc_context(LOOK):
        figure, panels = two_panels(5.0, list(scores), 3.4)
        style = styles(comparison.results.cells["method"])
        for axis, side in panels:
            means = {}
            for method in of_side(list(scores), side, comparison.against):
                profile = performance_profile(scores[method], thresholds, resamples=1000)
                draw_line(axis, thresholds, profile, method, style[method], markers=False)
                means[method] = float(profile.value.mean())
            axis.set(xlabel=f"threshold of {_readable(comparison.results.score)}", title=side, ylim=(-0.02, 1.02))
            handles = {line.get_label(): line for line in axis.lines}
            ordered = sorted(means, key=lambda method: -means[method])
            if ordered:
                place: dict[str, Any] = {
                    "loc": "upper left",
                    "bbox_to_anchor": (1.0, 1.0),
                    "fontsize": 7.5,
                    "handlelength": 2.4,
                }
                axis.legend([handles[method] for method in ordered], ordered, **place)
        panels[0][0].set_ylabel("part of runs above it")
    return figure


def all_figures(comparison: Comparison) -> Iterator[tuple[str, Figure]]:
    """Every figure of a report with its name, one at a time."""
    for noise in in_noise_order(comparison.noises["noise"]):
        yield f"aggregates_{noise}", aggregate_scores(comparison, noise)
        yield f"profiles_{noise}", profiles(comparison, noise)
        yield f"finals_{noise}", final_scores(comparison, noise)
    yield "ranks", ranks(comparison)
    if comparison.against is not None:
        yield "improvement", improvements(comparison)
    for noise, task in comparison.tasks[["noise", "task"]].drop_duplicates().itertuples(index=False):
        yield f"curves_{task},{noise}", learning_curves(comparison, task, noise)


def _over_noise(
    comparison: Comparison, what: Sequence[tuple[str, str]], titles: Sequence[str], names: Sequence[str] = ()
) -> Figure:
    """Panels of intervals of ``(noise, column)`` of ``comparison.noises``, for ``names`` or all methods."""
    names = names or in_order(comparison.noises["method"])
    columns = min(2, len(what))
    rows = -(-len(what) // columns)
    with mpl.rc_context(LOOK):
        size = (columns * (0.9 + _PER_METHOD * max(len(names), 6)), 1.9 * rows + 1.5)
        figure, grid = new_figure(rows, columns, size, sharex=True)
        style = styles(comparison.results.cells["method"])
        for axis, (noise, column), title in zip(grid.flat, what, titles):
            table = comparison.noises[comparison.noises["noise"] == noise].set_index("method")
            draw_intervals(axis, table, column, names, style)
            axis.set_title(title)
        for axis in grid.flat[len(what) :]:
            axis.remove()
        names_below(grid, len(what), names, style)
    return figure


def _is_first(axis: Axes) -> bool:
    place = axis.get_subplotspec()
    return place is not None and place.is_first_col()


def _methods_of(table: pd.DataFrame, task: str, noise: str) -> list[str]:
    return in_order(table.loc[(table["task"] == task) & (table["noise"] == noise), "method"])


def _noise_titles(noises: Sequence[str]) -> list[str]:
    return [f"noise: {noise}" for noise in noises]


def _readable(metric: str) -> str:
    return metric.rpartition("/")[2].replace("_", " ") + (" without noise" if metric.startswith("eval_clean") else "")
