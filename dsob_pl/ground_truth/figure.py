"""The figure of learned against true joint samples of return and action gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dsob_pl.ground_truth.scores import conditional_means

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_MOST_ROWS = 4
_MOST_POINTS = 400
_BINS = 36
# Blue and vermilion of the colour-blind safe palette of Okabe and Ito.
_TRUE, _LEARNED, _INK = "#0072b2", "#d55e00", "#333333"
_EDGES = {"true": "#00456b", "learned": "#7f3800"}
# Axes span this share of each law's samples, and never more than this many times the truth's own span.
_SPAN, _WIDEST = 0.995, 4.0


def truth_figure(
    learned: Tensor,
    true: Tensor,
    state_size: int,
    titles: Sequence[str] | None = None,
    title: str = "Joint law of the return G and its action gradient: learned against true",
) -> Figure:
    """Learned against true joint samples of the return and one component of its action gradient, at up to four rows.

    Points are samples (a law of one sample, that of a deterministic critic, is a diamond), lines the mean gradient
    within each decile of the return, the part of the joint law that the returns' law identifies; at the margins
    the histograms of both. The component is the one of largest spread in the truth. The axes are wide enough for both
    laws unless the learned one is more than four times as wide as the true one; what is left out is counted.

    Args:
        learned: ``[R, K, 1+S+A]``, samples of ``[G, dG/ds, dG/da]`` in units of reward.
        true: ``[R, M, 1+S+A]``, likewise.
        state_size: S.
        titles: one for each of the R rows, such as its state and action; by default their numbers.
        title: of the whole figure.
    """
    from matplotlib.figure import Figure

    action = true[..., 1 + state_size :]
    component = int(action.var(1).mean(0).argmax())
    pair = [0, 1 + state_size + component]
    rows = torch.linspace(0, len(true) - 1, min(len(true), _MOST_ROWS)).round().long().tolist()
    figure = Figure(figsize=(max(3.4 * len(rows) + 0.3, 5.6), 4.3), layout="constrained")
    panels = figure.subfigures(1, len(rows), squeeze=False)[0]
    for panel, row in zip(panels, rows):
        name = f"row {row}" if titles is None else titles[row]
        laws = {"true": true[row, :, pair], "learned": learned[row, :, pair]}
        scatter = _panel(panel, {label: law.detach().cpu() for label, law in laws.items()}, name)
        scatter.set_xlabel("return G (reward)", fontsize=8, color=_INK)
        if row == rows[0]:
            scatter.set_ylabel(f"dG/da[{component}] (reward per unit of action)", fontsize=8, color=_INK)
            handles, labels = scatter.get_legend_handles_labels()
    figure.suptitle(title, fontsize=10, color=_INK)
    columns = len(labels) if len(rows) > 2 else 2
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    return figure


def _panel(panel: SubFigure, laws: dict[str, Tensor], name: str) -> Axes:
    """Scatter and margins of the ``laws``, true and learned samples ``[K, 2]`` of (return, gradient component)."""
    grid = panel.add_gridspec(2, 2, width_ratios=(5, 1), height_ratios=(1, 5), hspace=0.02, wspace=0.02)
    scatter = panel.add_subplot(grid[1, 0])
    margins = panel.add_subplot(grid[0, 0], sharex=scatter), panel.add_subplot(grid[1, 1], sharey=scatter)
    low, high = _limits(laws["true"], laws["learned"])
    for (label, law), color in zip(laws.items(), (_TRUE, _LEARNED)):
        points = law[:: max(1, len(law) // _MOST_POINTS)][:_MOST_POINTS]
        single = len(law) == 1
        style: dict[str, Any] = (
            {"s": 60, "marker": "D", "edgecolors": "white"} if single else {"s": 7, "alpha": 0.45, "linewidths": 0}
        )
        scatter.scatter(*points.T.numpy(), color=color, label=label, zorder=4 if single else 2, **style)
        if not single:
            together = law.unsqueeze(0)
            x, y = (conditional_means(together, slice(i, i + 1))[0].flatten().numpy() for i in (0, 1))
            style = {"linewidth": 1.2, "markersize": 3, "label": f"{label}, mean by decile of G", "zorder": 3}
            scatter.plot(x, y, "o-", color=_EDGES[label], **style)
        for axis, (axes, orientation) in enumerate(zip(margins, ("vertical", "horizontal"))):
            _density(axes, law[:, axis].numpy(), float(low[axis]), float(high[axis]), color, orientation)
    scatter.set_xlim(float(low[0]), float(high[0]))
    scatter.set_ylim(float(low[1]), float(high[1]))
    scatter.locator_params(nbins=5)
    scatter.tick_params(labelsize=7, colors=_INK)
    scatter.spines[["top", "right"]].set_visible(False)
    for axes in margins:
        axes.axis("off")
    margins[0].set_title(name, fontsize=9, color=_INK)
    outside = ((laws["learned"] < low) | (laws["learned"] > high) | laws["learned"].isnan()).any(-1).double().mean()
    if outside > 1 - _SPAN**2:
        text = f"{float(outside):.0%} of learned samples outside"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        style = {"fontsize": 7, "color": _EDGES["learned"], "zorder": 5, "bbox": box}
        scatter.text(0.03, 0.03, text, transform=scatter.transAxes, **style)
    return scatter


def _limits(true: Tensor, learned: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper limit of both axes ``[2]`` for samples ``[M, 2]`` and ``[K, 2]``."""
    tails = torch.tensor([(1 - _SPAN) / 2, (1 + _SPAN) / 2], dtype=true.dtype)
    low, high = true.quantile(tails, 0)
    middle, span = (low + high) / 2, high - low
    other_low, other_high = torch.where(learned.isfinite(), learned, middle).quantile(tails, 0)
    # A truth in one place has no span to be compared with.
    widest = torch.where(span > 1e-6 * middle.abs(), _WIDEST * span / 2, torch.inf)
    low = torch.maximum(torch.minimum(low, other_low), middle - widest)
    high = torch.minimum(torch.maximum(high, other_high), middle + widest)
    margin = 0.05 * (high - low).clamp_min(1e-6)
    return low - margin, high + margin


def _density(axes: Axes, values: np.ndarray, low: float, high: float, color: str, orientation: str) -> None:
    """Histogram of one component along an axis of the scatter; a line where all of it is in one place."""
    if values.std() <= 1e-3 * (high - low):
        line = axes.axvline if orientation == "vertical" else axes.axhline
        line(values[0], color=color, linewidth=1.5)
        return
    values = values[np.isfinite(values)]
    share = np.full(len(values), 1 / max(1, len(values)))  # and not a density of what the axes show of it
    style: dict[str, Any] = {
        "bins": _BINS,
        "range": (low, high),
        "weights": share,
        "orientation": orientation,
        "color": color,
    }
    axes.hist(values, histtype="stepfilled", alpha=0.2, **style)
    axes.hist(values, histtype="step", linewidth=1.2, **style)
