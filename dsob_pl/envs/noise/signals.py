"""Noise on what passes between agent and environment: observations, actions, rewards."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from dsob_pl.envs.noise.base import Noise


class ObservationNoise(Noise):
    """Multiplies each component of each observation by its own n ~ U[1 - scale, 1 + scale].

    The observation of a reset is one of them. The state goes on without noise: what the agent sees of a step, and
    stores, is drawn once. A bounded observation space grows to hold what can be seen.

    Args:
        env: with a floating Box of observations.
        scale: between 0 and 1.

    Raises:
        UsageError: another space or scale.
    """

    tag = 1001

    def __init__(self, env: gymnasium.Env, scale: float = 0.2) -> None:
        super().__init__(env, scale)
        space = env.observation_space
        if not isinstance(space, Box) or not np.issubdtype(space.dtype, np.floating):
            self.refuse(f"expected a floating Box of observations, got {type(space).__name__} of {space.dtype}")
        if self.scale > 1.0:
            self.refuse(f"scale: expected a number between 0 and 1, got {scale}")
        few, many = 1.0 - self.scale, 1.0 + self.scale
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        with np.errstate(invalid="ignore"):  # 0 * inf, on the side that is not chosen
            low, high = np.where(low < 0, low * many, low * few), np.where(high > 0, high * many, high * few)
        self.observation_space = Box(low.astype(space.dtype), high.astype(space.dtype), dtype=space.dtype.type)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The first observation, with noise."""
        observation, info = super().reset(seed=seed, options=options)
        return self._noisy(observation), info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """A step; its observation with noise."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._noisy(observation), reward, terminated, truncated, info

    def _noisy(self, observation: np.ndarray) -> np.ndarray:
        x = np.asarray(observation)
        noisy = x * self.generator.uniform(1.0 - self.scale, 1.0 + self.scale, x.shape)
        # The space's, not the observation's: an environment that gives integers would have them cut off.
        return noisy.astype(self.observation_space.dtype)


class ActionNoise(Noise):
    """Adds Gaussian noise to each component of each action, then clips to the bounds of the action space.

    Args:
        env: with a bounded, floating Box of actions.
        scale: standard deviation, in units of half the width between the bounds of a component.

    Raises:
        UsageError: another space or scale.
    """

    tag = 1002

    def __init__(self, env: gymnasium.Env, scale: float = 0.1) -> None:
        super().__init__(env, scale)
        space = env.action_space
        if not isinstance(space, Box) or not np.issubdtype(space.dtype, np.floating) or not space.is_bounded():
            self.refuse(f"expected a bounded, floating Box of actions, got {' '.join(str(space).split())[:80]}")
        self._low, self._high = space.low.astype(np.float64), space.high.astype(np.float64)
        self._deviation = self.scale * (self._high - self._low) / 2.0
        self._dtype = space.dtype

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """A step with an action that was disturbed."""
        disturbed = np.asarray(action, np.float64)
        disturbed = disturbed + self._deviation * self.generator.standard_normal(disturbed.shape)
        return self.env.step(np.clip(disturbed, self._low, self._high).astype(self._dtype))


class RewardNoise(Noise):
    """Adds Gaussian noise to each reward; returns keep their mean.

    Args:
        env: any environment.
        scale: standard deviation, in units of reward.

    Raises:
        UsageError: another scale.
    """

    tag = 1003

    def __init__(self, env: gymnasium.Env, scale: float = 0.5) -> None:
        super().__init__(env, scale)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """A step; its reward with noise."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        noisy = float(reward) + self.scale * self.generator.standard_normal()
        return observation, noisy, terminated, truncated, info
