"""Max-sliced maximum mean discrepancy: MMD along the one direction in which two sample sets differ most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from dsob_pl.divergences.base import Divergence, check_choice, check_positive, check_samples
from dsob_pl.divergences.directions import start_direction, unit
from dsob_pl.divergences.kernels import Kernel, Multiquadric
from dsob_pl.divergences.mmd import Estimator, mmd_objective, mmd_squared, pair_weights
from dsob_pl.errors import UsageError

Direction = Literal["batch", "transition", "cross_fitted"]


def project(x: Tensor, theta: Tensor) -> Tensor:
    """``<theta, x_i>``: ``(x [..., N, D], theta [..., D]) -> [..., N, 1]``."""
    return x @ theta.unsqueeze(-1)


def fit_direction(
    x: Tensor,
    y: Tensor,
    kernel: Kernel,
    estimator: Estimator = "unbiased",
    steps: int = 5,
    step_size: float = 1.0,
    shared: bool = False,
) -> Tensor:
    """Unit vector that (nearly) maximises ``MMD^2(<theta, x>, <theta, y>)``, by gradient ascent on the sphere.

    Starts at the mean difference; a shared direction, at the leading direction of all mean differences. Step t turns
    theta by ``arctan(step_size / 2^t)`` towards the gradient's tangent part, whatever the gradient's length, so that
    kernel and units of the samples do not matter; of the directions visited the best is returned. Five steps reach 0.95
    of the maximum that a long search with restarts finds (the start alone 0.7), averaged over equal and different laws,
    N = 10, D = 2 to 24.

    Args:
        x: samples ``[..., N, D]``; gradients do not flow back to them.
        y: samples ``[..., M, D]``; likewise.
        kernel: radial kernel.
        estimator: of the MMD that is maximised.
        steps: number of steps; 0 stays at the mean difference.
        step_size: tangent of the first rotation.
        shared: one direction for the last batch dimension, maximising the mean over it.

    Returns:
        theta ``[..., D]``, or ``[..., 1, D]`` when it is shared by ``x [..., B, N, D]``; detached, of norm 1. Where the
        means are equal the ascent starts at a fixed vector.

    Raises:
        ValueError: shapes that do not fit.
        UsageError: unknown estimator.
    """
    check_samples("max-sliced MMD", x, y)
    check_choice("estimator", estimator, get_args(Estimator))
    # The supremum's derivative is that of the slice at which it is taken (envelope theorem): theta is a constant.
    x, y = x.detach(), y.detach()
    weights = _pooled_weights(x.shape[-2], y.shape[-2], estimator, x)
    shared = shared and x.ndim > 2
    # From here on the batch comes last, samples [N+M, D, ...] and theta [D, ...]: the inner loops then run over
    # thousands of transitions and not over a handful of components.
    z = torch.cat([x, y], dim=-2).movedim((-2, -1), (0, 1)).contiguous()
    weights = weights.reshape(*weights.shape, *[1] * (z.ndim - 2))

    def value_and_gradient(theta: Tensor) -> tuple[Tensor, Tensor]:
        # MMD^2 = sum_ij w_ij f(d_ij^2) with d_ij = <theta, z_i - z_j>; w is symmetric and d antisymmetric, so its
        # gradient sum_ij w_ij f'(d_ij^2) 2 d_ij (z_i - z_j) is 4 sum_i z_i sum_j w_ij f'(d_ij^2) d_ij.
        points = (z * theta).sum(1)
        difference = points.unsqueeze(1) - points
        profile, slope = kernel.profile_and_slope(difference.square())
        value = (weights * profile).sum((0, 1))
        force = 4 * (weights * slope * difference).sum(1)
        gradient = (force.unsqueeze(1) * z).sum(0)
        return (value.mean(-1, keepdim=True), gradient.mean(-1, keepdim=True)) if shared else (value, gradient)

    theta = start_direction((x.mean(-2) - y.mean(-2)).movedim(-1, 0), shared)
    value, gradient = value_and_gradient(theta)
    best, best_value = theta, value
    for step in range(steps):
        tangent = gradient - (gradient * theta).sum(0) * theta
        turn = unit(tangent, otherwise=torch.zeros_like(tangent))
        theta = unit(theta + step_size * 0.5**step * turn, otherwise=theta)
        value, gradient = value_and_gradient(theta)
        best = torch.where(value > best_value, theta, best)
        best_value = torch.maximum(value, best_value)
    return best.movedim(0, -1).detach()


def _pooled_weights(n: int, m: int, estimator: Estimator, like: Tensor) -> Tensor:
    """``w [N+M, N+M]`` with which ``MMD^2 = sum_ij w_ij k(z_i, z_j)`` over the pooled samples ``z = (x, y)``."""
    across = torch.full((n, m), -1 / (n * m), dtype=like.dtype, device=like.device)
    upper = torch.cat([pair_weights(n, estimator, like), across], dim=1)
    lower = torch.cat([across.mT, pair_weights(m, estimator, like)], dim=1)
    return torch.cat([upper, lower])


class MaxSlicedMMD(Divergence):
    """Max-sliced MMD^2: ``sup over unit theta of MMD^2(<theta, x>, <theta, y>)``, theta constant in the backward pass.

    A direction chosen on the very samples on which the loss is then taken reports a difference between equal laws
    (selection bias) and pulls the learned spread down. In brackets the mean loss between standard normals, energy
    distance, N = 10, at D = 3 / 7 / 24, where 0 is right:

    - 'transition': one theta for each transition, the plain reading of the definition (0.31 / 0.88 / 2.8).
    - 'batch': one theta for the last batch dimension (B transitions; other batch dimensions keep their own). The bias
      falls with B (at B = 256: 0.02 / 0.03 / 0.08). Under ``torch.func.vmap`` the batch is what one call sees.
    - 'cross_fitted' (0.00 at each D): per transition, theta fitted on every other sample, the loss taken on the rest,
      both ways round and averaged, so that every sample is used. Halves alternate because a truncated target may come
      sorted by return; they are (N+1)//2 and N//2 samples. What is nearly the same sample must not be in both halves:
      of several critics' targets that share their draws see :func:`dsob_pl.bellman.pooled`. Of an odd number of draws
      one is, and the learned spread is wide where components are many: two critics whose samples of a draw correlate
      by 0.95, N = 5, five draws, D = 24: 1.08 of the true spread where truncated, 1.14 else; N = 10, ten draws: 1.03
      and 1.00; D = 7: within 0.02. Two or three samples cannot be halved without losing the repulsion between
      predictions, and raise. A single sample (deterministic critic or target) is a whole law and serves in both folds.

    Args:
        kernel: radial kernel; by default ``Multiquadric()``.
        estimator: 'unbiased' or 'biased', for theta and for the loss.
        direction: which samples choose theta.
        ascent_steps: steps of gradient ascent; see :func:`fit_direction`.
        step_size: tangent of the first rotation; it halves from step to step.

    Raises:
        UsageError: unknown estimator or direction, negative steps, step size not positive.
        ValueError: on call, shapes that do not fit, or 2 or 3 samples with 'cross_fitted'.
    """

    def __init__(
        self,
        kernel: Kernel | None = None,
        estimator: Estimator = "unbiased",
        direction: Direction = "batch",
        ascent_steps: int = 5,
        step_size: float = 1.0,
    ) -> None:
        check_choice("MaxSlicedMMD.estimator", estimator, get_args(Estimator))
        check_choice("MaxSlicedMMD.direction", direction, get_args(Direction))
        if ascent_steps < 0:
            raise UsageError(f"MaxSlicedMMD.ascent_steps: expected a number of at least 0, got {ascent_steps}")
        self.kernel = Multiquadric() if kernel is None else kernel
        self.estimator = estimator
        self.direction = direction
        self.ascent_steps = ascent_steps
        self.step_size = check_positive("MaxSlicedMMD.step_size", step_size)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """``(x [..., N, D], y [..., M, D]) -> [...]``."""
        return self._evaluate(x, y, mmd_squared)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """Without the term ``mean k(y, y')`` of the slice."""
        return self._evaluate(x, y, mmd_objective)

    def _evaluate(self, x: Tensor, y: Tensor, mmd: Callable[[Tensor, Tensor, Kernel, Estimator], Tensor]) -> Tensor:
        check_samples("MaxSlicedMMD", x, y)
        # Nothing but differences matters, yet here they are taken after projecting: without this, float32 would blur
        # returns that are large compared with their spread.
        centre = y.detach().mean(-2, keepdim=True)
        x, y = x - centre, y - centre

        def along(x: Tensor, y: Tensor, theta: Tensor) -> Tensor:
            return mmd(project(x, theta), project(y, theta), self.kernel, self.estimator)

        if self.direction != "cross_fitted":
            return along(x, y, self._fit(x, y))
        (x0, x1), (y0, y1) = _halves("x", x), _halves("y", y)
        if x0.shape == x1.shape and y0.shape == y1.shape:  # both folds in one go
            x, y = torch.stack([x0, x1]), torch.stack([y0, y1])
            return along(x, y, self._fit(x, y).flip(0)).mean(0)
        return (along(x1, y1, self._fit(x0, y0)) + along(x0, y0, self._fit(x1, y1))) / 2

    def _fit(self, x: Tensor, y: Tensor) -> Tensor:
        shared = self.direction == "batch"
        return fit_direction(x, y, self.kernel, self.estimator, self.ascent_steps, self.step_size, shared)


def _halves(name: str, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Every other sample, and the rest: ``[..., N, D] -> [..., (N+1)//2, D], [..., N//2, D]``."""
    count = samples.shape[-2]
    if count == 1:
        return samples, samples
    if count < 4:
        raise ValueError(f"MaxSlicedMMD: cross_fitted needs 1 or at least 4 samples, got {count} in {name}")
    return samples[..., 0::2, :], samples[..., 1::2, :]
