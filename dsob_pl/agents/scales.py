"""The units of the networks: running normalisation of observations, one factor for rewards, bounds on returns."""

from __future__ import annotations

import math

import torch
from tensordict import TensorDictBase
from torch import nn

from dsob_pl.bellman import ReturnBounds
from dsob_pl.networks import RewardScale, RunningNormalizer


class Scales(nn.Module):
    """Takes in every transition seen and keeps the units in which networks see observations and rewards.

    Args:
        observation_size: S.
        gamma: discount.
        return_range: width of the possible returns in the networks' units; None leaves rewards alone.
        normalize_observations: False leaves observations alone.
    """

    def __init__(
        self, observation_size: int, gamma: float, return_range: float | None, normalize_observations: bool
    ) -> None:
        super().__init__()
        self.gamma = gamma
        self.return_range = return_range
        self.normalize_observations = normalize_observations
        self.normalizer = RunningNormalizer(observation_size, clip=10.0 if normalize_observations else math.inf)
        self.reward_scale = RewardScale()

    def take_in(self, transitions: TensorDictBase, learning: bool, fixed_policy: bool = False) -> None:
        """Takes newly seen transitions ``[...]`` into the statistics.

        Args:
            transitions: of a replay.
            learning: updates have begun.
            fixed_policy: it is to stay as it is, and so what it sees as an observation.
        """
        if self.normalize_observations and not fixed_policy:
            self.normalizer.update(transitions["observation"])
        silent = (self.reward_scale.low == 0) & (self.reward_scale.high == 0)
        self.reward_scale.update(transitions["next", "reward"])
        if self.return_range is None:
            return
        # Fixed once learning begins: a scale that moved with the rewards would move every value already learned. Only
        # where all rewards so far were 0 there is nothing learned yet, and the first one that is not sets the scale.
        scale = self.reward_scale
        bounds = ReturnBounds.from_rewards(scale.low, scale.high, self.gamma)
        width = bounds.high - bounds.low
        open_ = (width > 0) & silent if learning else width > 0
        scale.factor.copy_(torch.where(open_, self.return_range / width, scale.factor))

    @property
    def bounds(self) -> ReturnBounds:
        """What the rewards seen so far allow, in the networks' units."""
        scale = self.reward_scale
        return ReturnBounds.from_rewards(scale(scale.low), scale(scale.high), self.gamma)
