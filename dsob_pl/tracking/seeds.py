"""Loggers of the runs of many seeds, each under the run or in the folder of all of them."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger

from dsob_pl.errors import UsageError
from dsob_pl.tracking.mlflow_logger import MLflowLogger


def seed_loggers(loggers: Sequence[Logger], seed: int) -> list[Logger]:
    """Loggers of the run of one seed: a child of an MLflow run, a folder seed_<s> in that of a CSV or TensorBoard log.

    Args:
        loggers: those of the run of all seeds, which may not have begun.
        seed: the seed.

    Raises:
        UsageError: any other logger.
    """
    return [_seed_logger(logger, seed) for logger in loggers]


def _seed_logger(logger: Logger, seed: int) -> Logger:
    if isinstance(logger, MLflowLogger):
        return logger.child(seed)
    if isinstance(logger, DummyLogger):  # of a fast development run
        return DummyLogger()
    if not isinstance(logger, CSVLogger | TensorBoardLogger):
        supported = "MLflowLogger, CSVLogger and TensorBoardLogger"
        raise UsageError(f"trainer.logger: {type(logger).__name__} cannot be used with many seeds; {supported} can")
    own = copy.copy(logger)
    own._experiment = None
    if isinstance(own, CSVLogger):
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        own._version = os.path.join(version, f"seed_{seed}")
    else:
        own._version = logger.version  # found out once, or the seeds would take the parent's folder for a run before
        own._sub_dir = os.path.join(own._sub_dir or "", f"seed_{seed}")
        own.hparams = {}
    return own
