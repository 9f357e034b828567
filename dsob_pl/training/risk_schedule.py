"""A callback that begins with the mean return and turns to the agent's risk measure in the course of training."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from dsob_pl.agents import SobolevActorCritic
from dsob_pl.errors import UsageError
from dsob_pl.risk import Mean, RiskMeasure


class RiskSchedule(Callback):
    """Leads what the policy ascends from the mean, until ``begin``, to ``model.risk``, from ``end`` on.

    An averse objective sees the worst outcomes only, and those say nothing about what lies behind a danger: the policy
    stays in front of it and collects no data from beyond. The mean finds the way first; what is averse then changes it
    (soft risk levels, Greenberg et al. 2022, *Efficient Risk-Averse Reinforcement Learning*, who lower alpha linearly).
    In between it is ``risk.softened((step - begin) / (end - begin))``, for ``CVaR`` that of the level
    ``alpha ** fraction``. A function of the environment step alone, so a run that is resumed goes on as it would have.

    Args:
        begin: environment step, of those in which warm-up counts as well.
        end: environment step, above ``begin``.

    Raises:
        UsageError: steps out of order; at the start of a fit, a risk measure that is the mean, or another model.
    """

    def __init__(self, begin: int, end: int) -> None:
        if not 0 <= begin < end:
            raise UsageError(f"RiskSchedule: expected 0 <= begin < end, got begin {begin} and end {end}")
        self.begin = begin
        self.end = end
        self._risk: RiskMeasure | None = None

    def fraction(self, step: int) -> float:
        """How far on the way from the mean it is at an environment step, in [0, 1]."""
        return min(max((step - self.begin) / (self.end - self.begin), 0.0), 1.0)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the agent's measure as the one to arrive at."""
        if not isinstance(pl_module, SobolevActorCritic):
            raise UsageError(f"RiskSchedule: expected model SobolevActorCritic, got {type(pl_module).__name__}")
        if isinstance(pl_module.risk, Mean):
            raise UsageError("RiskSchedule: model.risk is the mean already; expected e.g. dsob_pl.risk.CVaR")
        self._risk = pl_module.risk
        pl_module.risk_varies = True  # compiled, it would be so anew at every step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Sets what the updates of this step ascend."""
        assert self._risk is not None
        pl_module.risk = self._risk.softened(self.fraction(trainer.global_step))  # type: ignore[assignment]

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leaves the agent with its own measure."""
        self._give_back(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Likewise."""
        self._give_back(pl_module)

    def _give_back(self, pl_module: L.LightningModule) -> None:
        if self._risk is None:
            return
        pl_module.risk = self._risk  # type: ignore[assignment]
        pl_module.risk_varies = False  # type: ignore[assignment]
        self._risk = None
