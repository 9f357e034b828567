"""A callback that ends the correction of overestimation in the course of training."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from dsob_pl.agents import SobolevActorCritic
from dsob_pl.bellman import NoCorrection, OverestimationCorrection
from dsob_pl.errors import UsageError


class CorrectionSchedule(Callback):
    """Corrects targets by ``model.overestimation`` until ``end``, and not at all from there on.

    Pessimism in the targets helps to find a policy where observations are noisy, and it adds up over the horizon: the
    law that is left behind lies below what is realised. Without it, from a policy that is there, the law becomes right.
    A function of the environment step alone, so a run that is resumed goes on as it would have.

    Args:
        end: environment step, of those in which warm-up counts as well.

    Raises:
        UsageError: a step below 1; at the start of a fit, an agent without a correction, or another model.
    """

    def __init__(self, end: int) -> None:
        if end < 1:
            raise UsageError(f"CorrectionSchedule.end: expected an environment step of at least 1, got {end}")
        self.end = end
        self._own: OverestimationCorrection | None = None
        self._none = NoCorrection()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the agent's correction as the one to begin with."""
        if not isinstance(pl_module, SobolevActorCritic):
            raise UsageError(f"CorrectionSchedule: expected model SobolevActorCritic, got {type(pl_module).__name__}")
        if isinstance(pl_module.overestimation, NoCorrection):
            raise UsageError("CorrectionSchedule: model.overestimation corrects nothing; expected e.g. LowerMean")
        self._own = pl_module.overestimation

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Sets the correction of this step's updates."""
        assert self._own is not None
        pl_module.overestimation = self._own if trainer.global_step < self.end else self._none  # type: ignore[assignment]

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leaves the agent with its own correction."""
        self._give_back(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Likewise."""
        self._give_back(pl_module)

    def _give_back(self, pl_module: L.LightningModule) -> None:
        if self._own is not None:
            pl_module.overestimation, self._own = self._own, None  # type: ignore[assignment]
