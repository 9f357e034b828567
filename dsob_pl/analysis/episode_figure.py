"""The picture of an explained episode: the predicted law over time, what was realised, and the gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from dsob_pl.agents.calibration import COVERAGE_LEVELS, LARGEST_REST, coverage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dsob_pl.analysis.episode import ExplainedEpisode, Field

_BANDS = ("#d6e4f2", "#b3cce4", "#8fb3d6")
_MEAN, _REAL, _TAIL, _INK = "#1f5a96", "#c8553d", "#5b3f8f", "#333333"
_COMPONENTS, _FIELDS = 3, 3


def coverage_line(episode: ExplainedEpisode) -> str:
    """How many of the realised returns lay within the central intervals of their laws."""
    seen = episode.rest <= LARGEST_REST
    if not seen.any():
        return "no step is far enough from where the episode was cut off to tell its return"
    places = torch.from_numpy(episode.places[seen])
    parts = [f"{level:.0%}: {float(coverage(places, level)):.0%}" for level in COVERAGE_LEVELS]
    return f"realised returns within their central intervals ({int(seen.sum())} steps): {', '.join(parts)}"


def episode_figure(episode: ExplainedEpisode, title: str) -> Figure:
    """Fan chart of the predicted return, PIT, and action gradients or, for two action components, their field."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 7.4), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.15, 1.0), squeeze=False)[:, 0]
    fan, histogram = top.subplots(1, 2, width_ratios=(3.2, 1.0))
    _draw_fan(fan, episode)
    seen = episode.rest <= LARGEST_REST
    places = episode.places[seen]
    if len(places):
        histogram.hist(places, bins=10, range=(0, 1), density=True, color=_BANDS[1], rwidth=0.92)
    histogram.axhline(1.0, color=_REAL, linewidth=1.0)
    histogram.set(xlabel="place of the realised return (PIT)", xlim=(0, 1))
    if episode.field is None:
        count = min(_COMPONENTS, episode.gradient.shape[1])
        for i, axes in enumerate(np.atleast_1d(bottom.subplots(1, count))):
            time = np.arange(len(episode.rewards))
            axes.fill_between(
                time, episode.gradient_low[:, i], episode.gradient_high[:, i], color=_BANDS[0], linewidth=0
            )
            axes.plot(time, episode.gradient[:, i], color=_MEAN, linewidth=1.2)
            axes.axhline(0, color=_INK, linewidth=0.6)
            axes.set(xlabel="step", title=f"dG/da[{i}]: mean, 10-90 %")
            _plain(axes)
    else:
        chosen = np.linspace(0, len(episode.field.steps) - 1, _FIELDS).astype(int)
        for axes, i in zip(bottom.subplots(1, _FIELDS), chosen):
            _draw_field(axes, episode.field, int(i), episode.actions[episode.field.steps[i]])
    _plain(fan)
    _plain(histogram)
    figure.suptitle(f"{title}\n{coverage_line(episode)}", fontsize=10, color=_INK)
    return figure


def _draw_fan(axes: Axes, episode: ExplainedEpisode) -> None:
    time = np.arange(len(episode.rewards))
    for i, (color, name) in enumerate(zip(_BANDS, ("95 %", "80 %", "50 %"))):
        low, high = episode.quantiles[:, i], episode.quantiles[:, -1 - i]
        axes.fill_between(time, low, high, color=color, linewidth=0, label=f"{name} interval")
    axes.plot(time, episode.quantiles[:, 3], color=_MEAN, linewidth=1.2, label="median")
    axes.plot(time, episode.cvar, color=_TAIL, linewidth=1.0, linestyle=":", label="CVaR 0.1")
    seen = episode.rest <= LARGEST_REST
    axes.plot(time, np.where(seen, episode.realised, np.nan), color=_REAL, linewidth=1.4, label="realised")
    axes.plot(time, np.where(seen, np.nan, episode.realised), color=_REAL, linewidth=1.0, linestyle="--")
    axes.set(xlabel="step", ylabel="return from here on", xlim=(0, max(1, len(time) - 1)))
    axes.legend(frameon=False, fontsize=7, ncols=2)


def _draw_field(axes: Axes, field: Field, i: int, action: np.ndarray) -> None:
    x, y = np.meshgrid(field.axis, field.axis, indexing="ij")
    shown = axes.pcolormesh(x, y, field.mean[i], cmap="Blues", shading="nearest", alpha=0.6)
    axes.figure.colorbar(shown, ax=axes, shrink=0.8)
    axes.quiver(x, y, field.gradient[i, ..., 0], field.gradient[i, ..., 1], color=_INK, width=0.006)
    axes.quiver(x, y, field.cvar_gradient[i, ..., 0], field.cvar_gradient[i, ..., 1], color=_TAIL, width=0.006)
    axes.plot(*action, marker="o", color=_REAL, markersize=6)
    axes.set(title=f"step {field.steps[i]}: mean return, dG/da (black),\nCVaR's gradient (violet)", aspect="equal")
    axes.title.set_fontsize(8)


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=7, colors=_INK)
    axes.title.set_fontsize(9)
    axes.spines[["top", "right"]].set_visible(False)
