"""Noticing a run that went wrong: losses and parameters that are no longer numbers."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn

from dsob_pl.errors import RunFailed


def first_non_finite(module: nn.Module) -> str | None:
    """Name of the first parameter with a NaN or infinite entry, None if there is none."""
    return next((name for name, p in module.named_parameters() if not bool(p.isfinite().all())), None)


class StopOnNonFiniteLoss(L.Callback):
    """Stops the run when a logged loss is NaN or infinite, whatever the module; checked at the logging cadence.

    Raises:
        RunFailed: names the loss and the environment step.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Looks at every metric whose name ends in loss."""
        cadence = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not cadence or trainer.global_step % cadence:
            return
        for name, value in trainer.callback_metrics.items():
            if name.endswith("loss") and not bool(value.isfinite().all()):
                raise RunFailed(f"{name} became non-finite at environment step {trainer.global_step}")
