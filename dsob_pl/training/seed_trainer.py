"""The Trainer as the callbacks of one of many seeds see it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from torch import Tensor


class SeedTrainer:
    """Stands for the Trainer of a run of one seed alone, while the real one trains all seeds.

    Agent, data, callbacks, loggers, metrics, folders and checkpoints are the seed's; everything else is the Trainer's.
    A seed that sets ``should_stop`` goes on until all of them have.

    Args:
        trainer: the real one; its module has ``seeds``, ``agents`` and ``seed_checkpoint``, its data module ``view``.
        seed: one of those seeds.
        callbacks: the seed's own.
        loggers: the seed's own.
    """

    def __init__(
        self, trainer: L.Trainer, seed: int, callbacks: Sequence[Callback] = (), loggers: Sequence[Logger] = ()
    ) -> None:
        self._trainer = trainer
        self.seed = seed
        self.callbacks = list(callbacks)
        self.loggers = list(loggers)
        self.should_stop = False
        self.callback_metrics: dict[str, Tensor] = {}
        self.logged_metrics: dict[str, Tensor] = {}
        self.progress_bar_metrics: dict[str, float] = {}
        self._agent: Any = None
        self._data: Any = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_trainer":
            raise AttributeError(name)
        return getattr(self._trainer, name)

    @property
    def _position(self) -> int | None:
        """Among the seeds; it changes when another seed leaves. None when this one has left."""
        seeds: list[int] = self._trainer.lightning_module.seeds  # type: ignore[assignment]
        return seeds.index(self.seed) if self.seed in seeds else None

    @property
    def lightning_module(self) -> Any:
        """The seed's agent; one that has left keeps its last."""
        position = self._position
        if position is not None:
            self._agent = self._trainer.lightning_module.agents[position]  # type: ignore[index]
        return self._agent

    model = lightning_module

    @property
    def datamodule(self) -> Any:
        """The seed's data; one that has left keeps its last."""
        position, data = self._position, self._trainer.datamodule  # type: ignore[attr-defined]
        if position is not None and data is not None:
            self._data = data.view(position)
        return self._data

    @property
    def logger(self) -> Logger | None:
        """The first of the seed's loggers."""
        return self.loggers[0] if self.loggers else None

    @property
    def checkpoint_callbacks(self) -> list[Checkpoint]:
        """Those of the seed's callbacks that save checkpoints."""
        return [callback for callback in self.callbacks if isinstance(callback, Checkpoint)]

    @property
    def checkpoint_callback(self) -> Checkpoint | None:
        """The first of them."""
        return self.checkpoint_callbacks[0] if self.checkpoint_callbacks else None

    @property
    def default_root_dir(self) -> str:
        """Folder of what has no other place."""
        return str(Path(self._trainer.default_root_dir) / f"seed_{self.seed}")

    @property
    def log_dir(self) -> str:
        """Folder of the logs."""
        folders = (getattr(self.logger, name, None) for name in ("log_dir", "save_dir"))
        return str(next((folder for folder in folders if folder), self.default_root_dir))

    def record(self, metrics: dict[str, float]) -> None:
        """Remembers ``metrics`` as the latest."""
        tensors = {name: torch.tensor(value) for name, value in metrics.items()}
        self.callback_metrics.update(tensors)
        self.logged_metrics.update(tensors)
        self.progress_bar_metrics.update(metrics)

    def save_checkpoint(
        self, filepath: str | Path, weights_only: bool | None = None, storage_options: Any | None = None
    ) -> None:
        """Writes the checkpoint of the seed's run as Lightning would, without the data."""
        many: Any = self._trainer.lightning_module
        joint = _CheckpointConnector(_WithoutData(self._trainer)).dump_checkpoint(False)  # type: ignore[arg-type]
        own = many.seed_checkpoint(self.seed, joint)
        if weights_only:
            for key in ("callbacks", "optimizer_states", "lr_schedulers"):
                own.pop(key, None)
        else:
            own["callbacks"] = call._call_callbacks_state_dict(self)  # type: ignore[arg-type]
            call._call_callbacks_on_save_checkpoint(self, own)  # type: ignore[arg-type]
        self._trainer.strategy.save_checkpoint(own, filepath, storage_options=storage_options)


class _WithoutData:
    """The Trainer without data and callbacks: the replay of all seeds is not gathered for a file of one."""

    datamodule = None
    callbacks: ClassVar[list[Callback]] = []

    def __init__(self, trainer: L.Trainer) -> None:
        self._trainer = trainer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)
