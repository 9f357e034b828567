"""Maximum mean discrepancy (Gretton et al. 2012) between sample sets."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from dsob_pl.divergences.base import Divergence, check_choice, check_samples
from dsob_pl.divergences.kernels import Kernel, Multiquadric

Estimator = Literal["unbiased", "biased"]


def pair_weights(count: int, estimator: Estimator, like: Tensor) -> Tensor:
    """Weights ``[count, count]`` whose product with the gram matrix of one sample set estimates ``E k(x, x')``.

    'biased' is the plain mean. 'unbiased' leaves the diagonal out: k(x_i, x_i) says nothing about two independent
    draws, and with it the samples repel one another too little, so that the learned spread shrinks.
    A single sample has no pair to offer. It is taken for the whole law, that of a deterministic critic, for which
    ``E k(x, x') = k(x, x)``: a constant that makes the loss 0 where prediction and target coincide.

    Args:
        count: number of samples.
        estimator: which of the two.
        like: gives dtype and device.
    """
    if estimator == "biased" or count == 1:
        return torch.full((count, count), 1 / count**2, dtype=like.dtype, device=like.device)
    return (1 - torch.eye(count, dtype=like.dtype, device=like.device)) / (count * (count - 1))


def mmd_squared(x: Tensor, y: Tensor, kernel: Kernel, estimator: Estimator = "unbiased") -> Tensor:
    """``MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y)`` (Gretton et al. 2012, eq. 3 and 5).

    Args:
        x: samples ``[..., N, D]``.
        y: samples ``[..., M, D]``.
        kernel: radial kernel.
        estimator: 'unbiased' (without the diagonals of x-x and y-y; its mean over samples of equal laws is 0, single
            values may be negative) or 'biased' (with them; never negative, and 0 for equal sample sets).

    Returns:
        ``[...]``. With the kernel ``-|u - v|`` this is the energy distance ``2E|x-y| - E|x-x'| - E|y-y'|``.

    Raises:
        ValueError: shapes that do not fit.
        UsageError: unknown estimator.
    """
    of_x = mmd_objective(x, y, kernel, estimator)
    return of_x + (pair_weights(y.shape[-2], estimator, y) * kernel(y, y)).sum((-2, -1))


def mmd_objective(x: Tensor, y: Tensor, kernel: Kernel, estimator: Estimator = "unbiased") -> Tensor:
    """The terms of MMD^2 in which x occurs, ``mean k(x, x') - 2 mean k(x, y)``; see :func:`mmd_squared`."""
    check_samples("MMD", x, y)
    check_choice("estimator", estimator, get_args(Estimator))
    n, m = x.shape[-2], y.shape[-2]
    across = torch.full((n, m), -2 / (n * m), dtype=x.dtype, device=x.device)
    weights = torch.cat([pair_weights(n, estimator, x), across], 1)
    return (weights * kernel(x, torch.cat([x, y], -2))).sum((-2, -1))


class MMD(Divergence):
    """Squared maximum mean discrepancy: ``(x [..., N, D], y [..., M, D]) -> [...]``; see :func:`mmd_squared`.

    Args:
        kernel: radial kernel; by default ``Multiquadric()``.
        estimator: 'unbiased' or 'biased'.

    Raises:
        UsageError: unknown estimator.
    """

    def __init__(self, kernel: Kernel | None = None, estimator: Estimator = "unbiased") -> None:
        check_choice("MMD.estimator", estimator, get_args(Estimator))
        self.kernel = Multiquadric() if kernel is None else kernel
        self.estimator = estimator

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """``(x [..., N, D], y [..., M, D]) -> [...]``."""
        return mmd_squared(x, y, self.kernel, self.estimator)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """Without the term ``mean k(y, y')``."""
        return mmd_objective(x, y, self.kernel, self.estimator)
