"""Training: checkpoints, progress, and noticing a run that went wrong."""

from dsob_pl.training.calibration_report import CalibrationReport
from dsob_pl.training.checkpoint import BestAndLast
from dsob_pl.training.checkpoint_file import SEEDS_KEY, check_fits, checkpoint_config, read_checkpoint
from dsob_pl.training.failure import StopOnNonFiniteLoss, first_non_finite
from dsob_pl.training.many_seeds import SeedRuns
from dsob_pl.training.progress import Progress
from dsob_pl.training.risk_schedule import RiskSchedule
from dsob_pl.training.seed_trainer import SeedTrainer
from dsob_pl.training.signals import StopOnSignal

__all__ = [
    "SEEDS_KEY",
    "BestAndLast",
    "CalibrationReport",
    "Progress",
    "RiskSchedule",
    "SeedRuns",
    "SeedTrainer",
    "StopOnNonFiniteLoss",
    "StopOnSignal",
    "check_fits",
    "checkpoint_config",
    "first_non_finite",
    "read_checkpoint",
]
