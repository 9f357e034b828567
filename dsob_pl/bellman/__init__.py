"""The Sobolev Bellman operator: samples with gradients, targets, overestimation correction, contraction."""

from dsob_pl.bellman.adaptive_pessimism import AdaptivePessimism, bounded_drift, net_over_total, towards_lowest
from dsob_pl.bellman.operator import (
    StepJacobians,
    affine_backup,
    gamma_kappa,
    gamma_kappa_statistics,
    spectral_norm,
)
from dsob_pl.bellman.overestimation import (
    LowerMean,
    NoCorrection,
    OverestimationCorrection,
    Truncation,
    pooled,
    truncate,
)
from dsob_pl.bellman.smoothness import jacobian_penalty, operator_norms
from dsob_pl.bellman.sobolev import SobolevOrder, sobolev_samples, with_gradients
from dsob_pl.bellman.target import BoundUnit, ReturnBounds, backup, bound_target, sobolev_target
from dsob_pl.bellman.target_smoothing import smoothed_policy

__all__ = [
    "AdaptivePessimism",
    "BoundUnit",
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
    "bounded_drift",
    "gamma_kappa",
    "gamma_kappa_statistics",
    "jacobian_penalty",
    "net_over_total",
    "operator_norms",
    "pooled",
    "smoothed_policy",
    "sobolev_samples",
    "sobolev_target",
    "spectral_norm",
    "towards_lowest",
    "truncate",
    "with_gradients",
]
