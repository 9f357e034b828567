"""The range of the rewards seen so far and the one factor that rewards are multiplied by."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RewardScale(nn.Module):
    """Multiplies rewards by one constant; keeps the smallest and the largest reward seen, unscaled.

    The factor is 1 until its owner sets it. Buffers, so that they travel with the checkpoint and the device.
    """

    low: Tensor
    high: Tensor
    factor: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor(torch.inf))
        self.register_buffer("high", torch.tensor(-torch.inf))
        self.register_buffer("factor", torch.tensor(1.0))

    def update(self, reward: Tensor) -> None:
        """Takes in rewards ``[...]``."""
        torch.minimum(self.low, reward.min(), out=self.low)
        torch.maximum(self.high, reward.max(), out=self.high)

    def forward(self, reward: Tensor) -> Tensor:
        """Rewards, or returns, in the networks' units: ``[...] -> [...]``."""
        return reward * self.factor

    def inverse(self, scaled: Tensor) -> Tensor:
        """Back in units of reward: ``[...] -> [...]``."""
        return scaled / self.factor
