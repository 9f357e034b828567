"""Noticing that losses and parameters are no longer numbers, whatever the module; the agents look for more."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.utilities.types import STEP_OUTPUT
from tensordict import TensorDictBase
from torch import nn

from dsob_pl.diagnostics import save_diagnostics
from dsob_pl.errors import RunFailed


def first_non_finite(module: nn.Module) -> str | None:
    """Name of the first parameter with a NaN or infinite entry, None if there is none."""
    return next((name for name, p in module.named_parameters() if not bool(p.isfinite().all())), None)


class StopOnNonFiniteLoss(L.Callback):
    """Stops the run when a logged loss is NaN or infinite, whatever the module; checked at the logging cadence.

    Raises:
        RunFailed: names the loss, the environment step and the file of a diagnostic batch.
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
                step = trainer.global_step
                reason = f"{name} became non-finite at environment step {step}"
                drawn = getattr(batch, "batch", None)
                kept = save_diagnostics(
                    trainer,
                    step,
                    reason,
                    drawn if isinstance(drawn, TensorDictBase) else None,
                    {name: value.flatten().tolist()},
                    pl_module,
                )
                raise RunFailed(reason + kept)
