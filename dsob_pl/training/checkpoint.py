"""The checkpoints of a run: the best one by evaluation return, and the last one with its replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.types import STEP_OUTPUT

from dsob_pl.errors import RunFailed
from dsob_pl.training.checkpoint_file import CONFIG_KEY, FORMAT_KEY, FORMAT_VERSION, SEEDS_KEY, SIZES_KEY
from dsob_pl.training.failure import first_non_finite


class BestAndLast(ModelCheckpoint):
    """Saves ``last.ckpt`` after every evaluation and at the end, and ``best.ckpt`` when ``monitor`` improves.

    Every file carries the resolved config and a format version and holds only tensors and plain types, so that
    ``torch.load(weights_only=True)`` reads it. The cadence is that of the evaluations, in environment steps.

    Args:
        monitor: metric that decides which checkpoint is the best; a run that never logs it has only a last one.
        mode: whether a larger (max) or a smaller (min) value is better.
        dirpath: folder of the files; None means the checkpoints folder of the run's artifacts.
        replay: whether last.ckpt carries the replay buffer, which going on with the run needs; best.ckpt never does.
    """

    def __init__(
        self,
        monitor: str = "eval/return_mean",
        mode: Literal["max", "min"] = "max",
        dirpath: str | None = None,
        replay: bool = True,
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            save_last=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self.replay = replay
        self.config = ""  # YAML of the resolved config, given by whoever knows it
        self._with_replay = replay

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Chooses no folder yet: that would create the run before its config is known to be good."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Chooses the folder."""
        super().on_train_start(trainer, pl_module)
        if self.dirpath is None:
            loggers = trainer.loggers[:1]
            folders = (getattr(x, name, None) for x in loggers for name in ("artifact_dir", "log_dir", "save_dir"))
            folder = next((f for f in folders if isinstance(f, str | Path)), trainer.default_root_dir)
            self.dirpath = str(Path(folder).absolute() / "checkpoints")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Nothing: evaluations set the cadence."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the best if it is one, and the last."""
        if self._should_skip_saving_checkpoint(trainer):
            return
        candidates = self._monitor_candidates(trainer)
        if self.monitor in candidates:
            self._save_monitor_checkpoint(trainer, candidates)
        self._save_last_checkpoint(trainer, candidates)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the last."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Saves the last when the process is told to stop, which Lightning notices between two steps.

        After any other exception the state is in doubt, and the last good checkpoint stays as it is.
        """
        if (
            isinstance(exception, SIGTERMException)
            and self.dirpath
            and not self._should_skip_saving_checkpoint(trainer)
        ):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        name = first_non_finite(trainer.lightning_module)
        if name is not None:
            raise RunFailed(f"{name} became non-finite by environment step {trainer.global_step}")
        self._with_replay = self.replay and Path(filepath).stem == self.CHECKPOINT_NAME_LAST
        super()._save_checkpoint(trainer, filepath)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds config, sizes, format version and the seeds of many, and drops the replay where it is not wanted."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        checkpoint[FORMAT_KEY] = FORMAT_VERSION
        checkpoint[CONFIG_KEY] = self.config
        sizes = {key: getattr(data, key, None) for key in ("observation_size", "action_size")}
        checkpoint[SIZES_KEY] = {key: int(value) for key, value in sizes.items() if value is not None}
        if hasattr(pl_module, "seeds"):
            checkpoint[SEEDS_KEY] = [int(seed) for seed in pl_module.seeds]  # type: ignore[union-attr]
        if not self._with_replay:
            checkpoint.pop(type(data).__qualname__, None)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Forgets the files of the run that is gone on with: the new run keeps its own best and last."""

    @property
    def kept(self) -> str:
        """The file to go back to: the best checkpoint, else the last, else nothing."""
        return self.best_model_path or self.last_model_path
