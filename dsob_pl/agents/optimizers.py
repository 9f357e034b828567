"""Optimizers and schedulers that one agent, or many at once, give to Lightning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from dsob_pl.agents.objectives import PARTS, Part


def build_optimizers(
    parameters: Mapping[Part, list[nn.Parameter]],
    factories: Sequence[OptimizerCallable | None],
    schedulers: Sequence[LRSchedulerCallable | None],
) -> Any:
    """What ``configure_optimizers`` returns: an optimizer of every part, the clock, and the schedulers there are.

    Args:
        parameters: those that learn, by part.
        factories: of every part, in the order of ``PARTS``; a part with None gets an optimizer that moves nothing.
        schedulers: of the first parts; None where the rate stays as it is.
    """

    def idle() -> torch.optim.Optimizer:
        return torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=0.0)

    optimizers = [
        idle() if factory is None else factory(parameters.get(part, [])) for part, factory in zip(PARTS, factories)
    ]
    optimizers.append(idle())
    return optimizers, [make(optimizer) for make, optimizer in zip(schedulers, optimizers) if make is not None]


def step_schedulers(module: L.LightningModule) -> None:
    """One environment step of the schedulers that ``module`` got from :func:`build_optimizers`."""
    found = module.lr_schedulers()
    for scheduler in found if isinstance(found, list) else [found]:
        if scheduler is not None:
            scheduler.step()
