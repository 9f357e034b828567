"""A callback that draws how well the predicted laws of the return were calibrated in the last evaluation."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from dsob_pl.agents.calibration_figure import calibration_figure
from dsob_pl.world_models.figure import log_figure


class CalibrationReport(Callback):
    """Stores figures/calibration.png at the end of a run, and at that of a validation or test on its own.

    Nothing is drawn of a module that judges no calibration, such as an agent with a deterministic critic, nor where
    nothing is logged.
    """

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws the last evaluation of the run."""
        self._draw(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws one that is not part of a run."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._draw(trainer, pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws it."""
        self._draw(trainer, pl_module)

    def _draw(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        calibration = getattr(pl_module, "calibration", None)
        if calibration is not None and trainer.loggers:
            log_figure(trainer, calibration_figure(calibration), "figures/calibration.png")
