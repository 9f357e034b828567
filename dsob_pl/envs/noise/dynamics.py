"""Noise on the dynamics: the simulator's own state is moved after each step."""

from __future__ import annotations

from typing import Any

import gymnasium

from dsob_pl.envs.noise.base import Noise
from dsob_pl.envs.noise.spread import state_spread
from dsob_pl.envs.noise.state import simulator_state
from dsob_pl.envs.rollout import env_name


class DynamicsNoise(Noise):
    """Adds Gaussian noise to each component of the simulator's state after each step.

    The state is positions and velocities of a MuJoCo environment (quaternions normalised afterwards), angle and
    angular velocity of Pendulum-v1 (the velocity clipped to its limit), the state of a problem with known dynamics.
    The observation returned is that of the moved state. Reward, termination and info are those of the simulator's own
    step, before the state is moved: a state that noise makes unhealthy ends the episode at the next step. The state
    that a reset draws is left alone.

    Args:
        env: without wrappers that change observations; those belong around this one.
        scale: standard deviation per step, in units of each component's spread under random actions; see
            ``state_spread``.

    Raises:
        UsageError: another environment or scale.
    """

    tag = 1004

    def __init__(self, env: gymnasium.Env, scale: float = 0.02) -> None:
        super().__init__(env, scale)
        name = env_name(env)
        state = simulator_state(env)
        if state is None:
            self.refuse(f"the state of '{name}' cannot be set; it can for MuJoCo, Pendulum-v1 and dsob_pl's problems")
        if env.observation_space is not env.unwrapped.observation_space:
            self.refuse(f"a wrapper of '{name}' below changes observations; put this noise first")
        if env.unwrapped.spec is None:
            self.refuse(f"'{name}' was made without gymnasium.make, which its spread is measured through")
        self._state = state
        self._deviation = self.scale * state_spread(env)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """A step, then the noise."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self.scale > 0.0:  # writing the same state back would still round differently
            noise = self._deviation * self.generator.standard_normal(self._deviation.shape)
            observation = self._state.write(self._state.read() + noise)
        return observation, reward, terminated, truncated, info
