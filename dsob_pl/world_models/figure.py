"""The predicted-against-true figure of a world model, and its way to the run's logger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsob_pl.world_models.heads import join_target
from dsob_pl.world_models.metrics import sample_targets

if TYPE_CHECKING:
    from lightning import Trainer
    from matplotlib.figure import Figure

    from dsob_pl.world_models.base import Transition, WorldModel

_COLUMNS = 4
_MOST_COMPONENTS = 12
_MOST_POINTS = 200
_POINT, _BAR, _DIAGONAL, _INK = "#1f5a96", "#9dbfdf", "#c8553d", "#333333"


def prediction_figure(model: WorldModel, transition: Transition, eps: Tensor) -> Figure:
    """Predicted against true change of each state component, and reward, on transitions not trained on.

    A point is the mean of the model's samples, a bar their 5-95 % interval; points on the diagonal are right. Each
    panel's title says how many of the real values lie within their interval (90 % if calibrated). State changes are
    in the environment's units. Of many components the twelve that change most, the reward among them, are shown.

    Args:
        model: any model.
        transition: ``[B]``; at most 200 of them are drawn.
        eps: standard normal ``[N, B, noise_size]``.
    """
    from matplotlib.figure import Figure

    real = join_target(transition.s, transition.s_next, transition.r)
    samples = sample_targets(model, transition.s, transition.a, eps)
    quantiles = samples.quantile(torch.tensor([0.05, 0.95], device=samples.device, dtype=samples.dtype), 0)
    covered = ((real >= quantiles[0]) & (real <= quantiles[1])).float().mean(0).tolist()
    unit = torch.cat([model.normalizer.scale, torch.ones_like(model.normalizer.scale[:1])])
    lines = torch.stack([real, samples.mean(0), *quantiles]) * unit
    lines = lines[:, :_MOST_POINTS].cpu()

    size = model.observation_size
    shown = [*sorted(real[:, :size].std(0).topk(min(size, _MOST_COMPONENTS - 1)).indices.tolist()), size]
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(2.7 * columns, 2.7 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes, component in zip(grid, shown):
        true, mean, low, high = lines[:, :, component].numpy()
        axes.vlines(true, low, high, color=_BAR, linewidth=1.0, alpha=0.7, zorder=1)
        axes.scatter(true, mean, s=7, color=_POINT, linewidths=0, zorder=2)
        axes.axline((true.mean(), true.mean()), slope=1, color=_DIAGONAL, linewidth=0.9, zorder=3)
        name = "reward" if component == size else f"change of s[{component}]"
        axes.set_title(f"{name}: {covered[component]:.0%} covered", fontsize=9, color=_INK)
        axes.locator_params(nbins=5)
        axes.tick_params(labelsize=7, colors=_INK)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in list(grid)[len(shown) :]:
        axes.set_visible(False)
    figure.suptitle("One step of the world model: mean and 5-95 % interval of its samples", fontsize=10, color=_INK)
    figure.supxlabel("true", fontsize=9, color=_INK)
    figure.supylabel("predicted", fontsize=9, color=_INK)
    return figure


def log_figure(trainer: Trainer, figure: Figure, name: str) -> None:
    """Stores ``figure`` under ``name`` as an artifact of each MLflow run, or as a file where no logger is MLflow's.

    Args:
        trainer: whose loggers receive it, from the process of rank zero.
        figure: to be stored.
        name: path within the run's artifacts or, failing those, within the folder of the run's logs.
    """
    if not trainer.is_global_zero:
        return
    runs = [logger for logger in trainer.loggers if hasattr(getattr(logger, "experiment", None), "log_figure")]
    for logger in runs:
        logger.experiment.log_figure(logger.run_id, figure, name)  # type: ignore[attr-defined]
    if not runs:
        path = Path(trainer.log_dir or trainer.default_root_dir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
