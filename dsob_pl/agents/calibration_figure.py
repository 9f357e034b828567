"""The figure of a calibration: where realised returns fell within the laws that were predicted for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dsob_pl.agents.calibration import COVERAGE_LEVELS, Calibration, coverage, probability_integral_transform

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BINS = 10
_POINT, _BAR, _LINE, _INK = "#1f5a96", "#9dbfdf", "#c8553d", "#333333"


def calibration_figure(calibration: Calibration) -> Figure:
    """Histogram of the PIT, realised over nominal coverage, and realised returns over their predicted 80 % intervals.

    The red line is a calibrated law in each of the three. A U in the histogram, and coverage below the line, say that
    the law is too narrow; a hump, and coverage above, that it is too wide; a slope, that it is too high or too low.
    """
    from matplotlib.figure import Figure

    places = probability_integral_transform(calibration.predicted, calibration.realised)
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    histogram, reliability, intervals = figure.subplots(1, 3)

    counts = torch.histc(places, _BINS, 0.0, 1.0) / len(places) * _BINS
    edges = torch.arange(_BINS) / _BINS
    histogram.bar(edges.numpy(), counts.numpy(), width=0.92 / _BINS, align="edge", color=_BAR)
    histogram.axhline(1.0, color=_LINE, linewidth=1.0)
    histogram.set(xlabel="place in the predicted law (PIT)", ylabel="density", xlim=(0, 1))

    levels = torch.linspace(0, 1, 41)
    reached = torch.stack([coverage(places, float(level)) for level in levels])
    reliability.plot([0, 1], [0, 1], color=_LINE, linewidth=1.0)
    reliability.plot(levels.numpy(), reached.numpy(), color=_POINT, linewidth=1.6)
    shown = {f"{level:.0%}": coverage(places, level) for level in COVERAGE_LEVELS}
    title = ", ".join(f"{name}: {float(value):.0%}" for name, value in shown.items())
    reliability.set(xlabel="central interval", ylabel="realised returns within", xlim=(0, 1), ylim=(0, 1))
    reliability.set_title(title, fontsize=8, color=_INK)

    low, high = calibration.predicted.quantile(calibration.predicted.new_tensor([0.1, 0.9]), dim=-1).numpy()
    realised = calibration.realised.numpy()
    intervals.vlines(realised, low, high, color=_BAR, linewidth=1.0, alpha=0.7)
    intervals.scatter(realised, calibration.predicted.median(-1).values.numpy(), s=7, color=_POINT, linewidths=0)
    intervals.axline((realised.mean(), realised.mean()), slope=1, color=_LINE, linewidth=1.0)
    intervals.set(xlabel="realised return-to-go", ylabel="predicted: median, 80 % interval")
    for axes in (histogram, reliability, intervals):
        axes.tick_params(labelsize=7, colors=_INK)
        axes.spines[["top", "right"]].set_visible(False)
    episodes = len(calibration.episode.unique())
    figure.suptitle(
        f"Predicted laws of the return against {len(realised)} realised returns of {episodes} evaluation episodes",
        fontsize=10,
        color=_INK,
    )
    return figure
