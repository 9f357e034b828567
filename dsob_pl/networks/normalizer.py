"""Running mean and standard deviation, kept in buffers so that they travel with the checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningNormalizer(nn.Module):
    """Affine normalisation by running mean and variance (Chan's parallel update): ``x [..., D] -> [..., D]``.

    Before the first update it is the identity. Statistics are kept in float64: the update is a difference of
    large sums.

    Args:
        size: D.
        clip: normalised values are limited to [-clip, clip]; infinity leaves them alone.
        minimum_std: lower bound of the standard deviation, for components that hardly move: noise of a constant is not
            blown up. A component given in so large a unit that it spreads by less comes out smaller than the others.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, size: int, clip: float = float("inf"), minimum_std: float = 1e-2) -> None:
        super().__init__()
        self.clip = clip
        self.minimum_std = minimum_std
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Takes in the rows of ``x [..., D]``."""
        rows = x.reshape(-1, x.shape[-1]).double()
        count = self.count + rows.shape[0]
        delta = rows.mean(0) - self.mean
        squares = self.variance * self.count + rows.var(0, unbiased=False) * rows.shape[0]
        squares = squares + delta.square() * self.count * rows.shape[0] / count
        self.mean.add_(delta * rows.shape[0] / count)
        self.variance.copy_(squares / count)
        self.count.copy_(count)
        self.shift.copy_(self.mean)
        self.scale.copy_(self.variance.sqrt().clamp_min(self.minimum_std))

    def forward(self, x: Tensor) -> Tensor:
        """``(x - mean) / std``, clipped."""
        return ((x - self.shift) / self.scale).clamp(-self.clip, self.clip)

    def derivative(self, x: Tensor) -> Tensor:
        """That of ``forward`` in each component: ``1 / std``, and 0 where it is clipped."""
        return torch.where(((x - self.shift) / self.scale).abs() < self.clip, 1 / self.scale, 0.0)

    def inverse(self, x: Tensor) -> Tensor:
        """``x * std + mean``."""
        return x * self.scale + self.shift
