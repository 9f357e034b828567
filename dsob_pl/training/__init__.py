"""Training: checkpoints, progress, and noticing a run that went wrong."""

from dsob_pl.training.checkpoint import BestAndLast
from dsob_pl.training.checkpoint_file import check_fits, checkpoint_config, read_checkpoint
from dsob_pl.training.failure import StopOnNonFiniteLoss, first_non_finite
from dsob_pl.training.progress import Progress

__all__ = [
    "BestAndLast",
    "Progress",
    "StopOnNonFiniteLoss",
    "check_fits",
    "checkpoint_config",
    "first_non_finite",
    "read_checkpoint",
]
