"""Kernels of the maximum mean discrepancy. Here h is always an inverse length: it MULTIPLIES the distance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dsob_pl.divergences.base import check_positive
from dsob_pl.errors import UsageError


class Kernel(ABC):
    """A radial kernel ``k(u, v) = f(|u - v|^2)``. A subclass that gives f can be configured."""

    @abstractmethod
    def profile(self, squared: Tensor) -> Tensor:
        """``f(s)``, elementwise."""

    def slope(self, squared: Tensor) -> Tensor:
        """``f'(s)``, elementwise. By automatic differentiation; written out it makes the search for a slice faster."""
        _, pull_back = torch.func.vjp(self.profile, squared)[:2]
        return pull_back(torch.ones_like(squared))[0]

    def profile_and_slope(self, squared: Tensor) -> tuple[Tensor, Tensor]:
        """Both at once, for kernels in which they have something in common."""
        return self.profile(squared), self.slope(squared)

    def __call__(self, u: Tensor, v: Tensor) -> Tensor:
        """``(u [..., N, D], v [..., M, D]) -> k(u_i, v_j) [..., N, M]``."""
        return self.profile(squared_distances(u, v))


def squared_distances(u: Tensor, v: Tensor) -> Tensor:
    """``|u_i - v_j|^2`` of all pairs: ``(u [..., N, D], v [..., M, D]) -> [..., N, M]``, exactly 0 for equal points."""
    # Not |u|^2 + |v|^2 - 2 <u, v>: that cancels, and a multiquadric with h = 100 magnifies what is left of it.
    if u.shape[-1] == 1:
        return (u - v.mT).square()
    if torch.compiler.is_compiling():  # which fuses the sum, and cannot trace forward mode
        return (u.unsqueeze(-2) - v.unsqueeze(-3)).square().sum(-1)
    return _SquaredDistances.apply(u, v)


class _SquaredDistances(torch.autograd.Function):
    """Of all pairs, without the differences ``[..., N, M, D]`` in memory: there they cost more than all the rest.

    Differentiable any number of times, in both modes: the derivatives are made of differentiable operations.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, v: Tensor) -> Tensor:
        return torch.cdist(u, v, compute_mode="donot_use_mm_for_euclid_dist").square()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        u, v = ctx.saved_tensors
        # sum_j g_ij (u_i - v_j) = (sum_j g_ij) u_i - sum_j g_ij v_j: from a point among the samples, wherever they lie,
        # or the difference of two large numbers would be left.
        centre = v.detach().mean(-2, keepdim=True)
        u, v = u - centre, v - centre
        of_u = of_v = None
        if ctx.needs_input_grad[0]:
            of_u = 2 * (gradient.sum(-1).unsqueeze(-1) * u - gradient @ v)
        if ctx.needs_input_grad[1]:
            of_v = 2 * (gradient.sum(-2).unsqueeze(-1) * v - gradient.mT @ u)
        return of_u, of_v

    @staticmethod
    def jvp(ctx: Any, of_u: Tensor, of_v: Tensor) -> Tensor:
        u, v = ctx.saved_tensors
        difference, change = (a.unsqueeze(-2) - b.unsqueeze(-3) for a, b in ((u, v), (of_u, of_v)))
        return 2 * (difference * change).sum(-1)


class Multiquadric(Kernel):
    """Multiquadric kernel ``k(u, v) = -sqrt(1 + h^2 |u - v|^2)``, conditionally positive definite and smooth.

    For distances far above 1/h it is h times the energy-distance kernel, and pulls on all samples with the same force
    wherever they are; for distances far below 1/h it is quadratic, and MMD^2 is ``h^2 |mean x - mean y|^2``: blind to
    everything but the mean. So h = 100 on returns of scale 1 sees the spread, and h = 1/100 does not.

    Args:
        bandwidth: h, in units of 1 / (component of a sample). 100 is the paper's (Debes and Tuytelaars 2026).

    Raises:
        UsageError: h is not positive.
    """

    def __init__(self, bandwidth: float = 100.0) -> None:
        self.bandwidth = check_positive("Multiquadric.bandwidth", bandwidth)

    def profile(self, squared: Tensor) -> Tensor:
        """``-sqrt(1 + h^2 s)``."""
        return -(1 + self.bandwidth**2 * squared).sqrt()

    def slope(self, squared: Tensor) -> Tensor:
        """``-h^2 / (2 sqrt(1 + h^2 s))``."""
        return -(self.bandwidth**2) / 2 * (1 + self.bandwidth**2 * squared).rsqrt()

    def profile_and_slope(self, squared: Tensor) -> tuple[Tensor, Tensor]:
        """Both from one root."""
        inside = 1 + self.bandwidth**2 * squared
        slope = -(self.bandwidth**2) / 2 * inside.rsqrt()
        return 2 / self.bandwidth**2 * inside * slope, slope


class EnergyDistance(Kernel):
    """Kernel of the energy distance, ``k(u, v) = -|u - v|`` (Szekely and Rizzo 2013). No scale to choose.

    Not differentiable where two points meet; there all derivatives are taken to be 0.
    """

    def profile(self, squared: Tensor) -> Tensor:
        """``-sqrt(s)``."""
        # Masked before the square root, not after: 0 * inf in its backward pass would be NaN. The bound (a distance of
        # 3e-10 in float32) rather than 0 keeps the second derivative, squared^(-3/2), from overflowing. NaN stays NaN.
        meet = squared <= torch.finfo(squared.dtype).tiny ** 0.5
        return -torch.where(meet, 0.0, torch.where(meet, 1.0, squared).sqrt())

    def slope(self, squared: Tensor) -> Tensor:
        """``-1 / (2 sqrt(s))``, and 0 where points meet."""
        meet = squared <= torch.finfo(squared.dtype).tiny ** 0.5
        return torch.where(meet, 0.0, -0.5 * squared.rsqrt())


class RBF(Kernel):
    """Gaussian kernel ``k(u, v) = exp(-h^2 |u - v|^2 / 2)``, i.e. of standard deviation 1/h; or a mean of several.

    Its force vanishes for distances far above 1/h: with a single h it needs to be of the scale of the samples.

    Args:
        bandwidth: h, in units of 1 / (component of a sample), or several of them (Nguyen-Tang et al. 2021 mix scales).

    Raises:
        UsageError: no h, or one that is not positive.
    """

    def __init__(self, bandwidth: float | Sequence[float] = 1.0) -> None:
        values = bandwidth if isinstance(bandwidth, Sequence) else [bandwidth]
        if not values:
            raise UsageError("RBF.bandwidth: expected a positive number or several, got an empty list")
        self.bandwidths = tuple(check_positive("RBF.bandwidth", h) for h in values)

    def profile(self, squared: Tensor) -> Tensor:
        """``mean_h exp(-h^2 s / 2)``."""
        return torch.stack([(-0.5 * h**2 * squared).exp() for h in self.bandwidths]).mean(0)

    def slope(self, squared: Tensor) -> Tensor:
        """``-mean_h h^2 / 2 exp(-h^2 s / 2)``."""
        return torch.stack([-0.5 * h**2 * (-0.5 * h**2 * squared).exp() for h in self.bandwidths]).mean(0)
