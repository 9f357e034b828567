"""Optimizers and schedulers that one agent, or many at once, give to Lightning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from dsob_pl.agents.objectives import PARTS, Part
from dsob_pl.errors import UsageError


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


def check_optimizers(
    factories: Sequence[OptimizerCallable | None], schedulers: Sequence[LRSchedulerCallable | None]
) -> None:
    """Raises UsageError, naming the option, where an optimizer or a scheduler cannot be built or cannot make a step.

    Each is tried on a parameter of its own: otherwise a run would end at its first update, after the warm-up.
    """
    for i, (part, factory) in enumerate(zip(PARTS, factories)):
        if factory is None:
            continue
        parameter = nn.Parameter(torch.zeros(2, 2))
        parameter.grad = torch.zeros(2, 2)
        with _refused(f"model.{part}_optimizer"):
            optimizer = factory([parameter])
            optimizer.step()
        make = schedulers[i] if i < len(schedulers) else None
        if make is not None:
            with _refused(f"model.{part}_scheduler"):
                scheduler = make(optimizer)
                optimizer.step()  # as a scheduler expects it
                scheduler.step()


@contextmanager
def _refused(option: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of any library
        reason = " ".join(str(error).split())
        raise UsageError(f"{option}: cannot be used ({type(error).__name__}: {reason})") from error


class Annealing:
    """All learning rates of a module, led to a fraction of themselves at the end of its run.

    A function of the environment step alone: a run that is resumed goes on as it would have.

    Args:
        after: fraction of the run after which the rates fall linearly; None keeps them.
        to: what is left of them at the end.
        policy_at: fraction of the run at which nothing is left of the policy's; None treats it as the others.
    """

    def __init__(self, after: float | None, to: float, policy_at: float | None = None) -> None:
        self.after = after
        self.to = to
        self.policy_at = policy_at
        self._rates: list[list[float]] = []

    def begin(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Takes the rates of new optimizers as those to begin with."""
        self._rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]

    def factor(self, step: int, steps: int, part: Part = "critic") -> float:
        """Of a part's rates at environment step ``step`` (from 0) of ``steps``: in [0, 1]."""
        if self.after is None:
            return 1.0
        end, to = 1.0, self.to
        if part == "policy" and self.policy_at is not None:
            end, to = self.policy_at, 0.0
        left = min(1.0, max(0.0, (end - step / steps) / (end - self.after)))
        return to + (1 - to) * left

    def policy_moves(self, module: L.LightningModule) -> float:
        """What is left of the policy's rate where it comes to rest within the run; 1 where it does not, or has none."""
        if self.policy_at is None or module._trainer is None:
            return 1.0
        return self.factor(module.trainer.global_step, module.trainer.max_steps, "policy")

    def apply(self, module: L.LightningModule) -> None:
        """Sets the rates of this step."""
        step, steps = module.trainer.global_step, module.trainer.max_steps
        optimizers = module.optimizers(use_pl_optimizer=False)
        for part, optimizer, rates in zip(PARTS, optimizers, self._rates):  # type: ignore[arg-type]
            factor = self.factor(step, steps, part)
            for group, rate in zip(optimizer.param_groups, rates):
                if self.after is not None:
                    group["annealed_from"], group["lr"] = rate, factor * rate
                elif "annealed_from" in group:  # gone on with from a checkpoint of a run that was annealed
                    group["lr"] = group.pop("annealed_from")


def step_schedulers(module: L.LightningModule) -> None:
    """One environment step of the schedulers that ``module`` got from :func:`build_optimizers`."""
    found = module.lr_schedulers()
    for scheduler in found if isinstance(found, list) else [found]:
        if scheduler is not None:
            scheduler.step()
