"""The Sobolev Bellman operator: samples with gradients, targets, overestimation correction, contraction factor."""

from dsob_pl.bellman.operator import StepJacobians, affine_backup, gamma_kappa
from dsob_pl.bellman.overestimation import (
    LowerMean,
    NoCorrection,
    OverestimationCorrection,
    Truncation,
    truncate,
)
from dsob_pl.bellman.sobolev import SobolevOrder, sobolev_samples, with_gradients
from dsob_pl.bellman.target import ReturnBounds, backup, bound_target, sobolev_target

__all__ = [
    "LowerMean",
    "NoCorrection",
    "OverestimationCorrection",
    "ReturnBounds",
    "SobolevOrder",
    "StepJacobians",
    "Truncation",
    "affine_backup",
    "backup",
    "bound_target",
    "gamma_kappa",
    "sobolev_samples",
    "sobolev_target",
    "truncate",
    "with_gradients",
]
