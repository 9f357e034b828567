"""Quantile Huber loss of quantile critics."""

from __future__ import annotations

import torch
from torch import Tensor

from dsob_pl.divergences.base import Divergence, check_positive, check_samples
from dsob_pl.divergences.huber import huber
from dsob_pl.errors import UsageError


def quantile_huber(x: Tensor, y: Tensor, tau: Tensor | None = None, threshold: float = 1.0) -> Tensor:
    """``mean_ij |tau_i - 1{u_ij < 0}| huber(u_ij) / threshold`` with ``u_ij = y_j - x_i``.

    Dabney et al. 2018, 1/N times "Implicit quantile networks", eq. 3, and with threshold 1 1/N times eq. 10 of
    "Distributional reinforcement learning with quantile regression": both sum over the N predicted quantiles. The limit
    of a small threshold is quantile regression.

    Args:
        x: predicted quantiles of the return ``[..., N, 1]``; sample i is the quantile of level tau_i.
        y: target samples ``[..., M, 1]``.
        tau: levels in (0, 1), ``[..., N]`` or ``[N]``; by default the midpoints (i + 1/2) / N.
        threshold: error at which the loss turns from quadratic to linear, in units of the return.

    Returns:
        ``[...]``.

    Raises:
        UsageError: samples with more than one component (quantiles have no counterpart for vectors), threshold not
            positive.
        ValueError: shapes that do not fit.
    """
    check_samples("quantile Huber", x, y)
    check_positive("threshold", threshold)
    count = x.shape[-2]
    if x.shape[-1] != 1:
        raise UsageError(
            f"quantile Huber: samples have {x.shape[-1]} components, but quantiles exist for the return alone; "
            "use a critic without gradients, or MMD"
        )
    if tau is None:
        tau = (torch.arange(count, dtype=x.dtype, device=x.device) + 0.5) / count
    if tau.ndim == 0 or tau.shape[-1] != count:
        raise ValueError(f"quantile Huber: tau {list(tau.shape)} does not fit the {count} samples of x {list(x.shape)}")
    error = y.mT - x
    weight = (tau.unsqueeze(-1) - (error < 0).to(x.dtype)).abs()
    return (weight * huber(error.square(), threshold)).mean((-2, -1)) / threshold


class QuantileHuber(Divergence):
    """Quantile Huber loss ``(x [..., N, 1], y [..., M, 1]) -> [...]``; see :func:`quantile_huber`.

    An agent tells it the levels of its critic's samples. Called by itself, sample i is the i-th of N quantiles.

    Args:
        threshold: error at which the loss turns from quadratic to linear, in units of the return.

    Raises:
        UsageError: threshold not positive; on call, samples with more than one component.
    """

    def __init__(self, threshold: float = 1.0) -> None:
        self.threshold = check_positive("QuantileHuber.threshold", threshold)
        self._tau: Tensor | None = None

    def __call__(self, x: Tensor, y: Tensor, tau: Tensor | None = None) -> Tensor:
        """``(x [..., N, 1], y [..., M, 1], tau [..., N]) -> [...]``."""
        return quantile_huber(x, y, self._tau if tau is None else tau, self.threshold)

    def at_levels(self, tau: Tensor | None) -> QuantileHuber:
        """The loss of predicted quantiles of levels ``tau [..., N]``.

        Raises:
            UsageError: the critic's samples have no levels.
        """
        if tau is None:
            raise UsageError("model.divergence: QuantileHuber needs a critic of quantiles; use QuantileCritic")
        bound = QuantileHuber(self.threshold)
        bound._tau = tau
        return bound
