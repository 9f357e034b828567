"""Noise on the dynamics: the simulator's own state is moved after each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
from gymnasium.utils import RecordConstructorArgs

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
        spread_kwargs: arguments of ``gymnasium.make`` for the environment in which that spread is measured, such as
            those of training where this one is for evaluation; None means those of ``env``.

    Raises:
        UsageError: another environment or scale, or arguments that make one with another state.
    """

    tag = 1004

    def __init__(self, env: gymnasium.Env, scale: float = 0.02, spread_kwargs: dict[str, Any] | None = None) -> None:
        RecordConstructorArgs.__init__(self, scale=scale, spread_kwargs=spread_kwargs)
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
        self.spread_kwargs: dict[str, Any] | None = None
        if spread_kwargs is not None:
            self.measure_with(spread_kwargs)

    def measure_with(self, spread_kwargs: dict[str, Any]) -> None:
        """From here on the unit is that of an environment made with these arguments."""
        assert self.env.unwrapped.spec is not None
        try:
            other = gymnasium.make(self.env.unwrapped.spec.id, **{"disable_env_checker": True, **spread_kwargs})
        except Exception as error:  # whatever the environment's constructor raises
            self.refuse(f"the environment with {spread_kwargs}, in which its unit is measured, cannot be made: {error}")
        spread = state_spread(other)
        other.close()
        if spread.shape != self._deviation.shape:
            self.refuse(
                f"expected an environment with a state of size {self._deviation.size} to measure its unit in, "
                f"{spread_kwargs} makes one of {spread.size}"
            )
        self._deviation = self.scale * spread
        self.spread_kwargs = self._saved_kwargs["spread_kwargs"] = dict(spread_kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """A step, then the noise."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self.scale > 0.0:  # writing the same state back would still round differently
            noise = self._deviation * self.generator.standard_normal(self._deviation.shape)
            observation = self._state.write(self._state.read() + noise)
        return observation, reward, terminated, truncated, info


def in_units_of(
    noise: Sequence[Callable[[gymnasium.Env], gymnasium.Env]], env_kwargs: dict[str, Any] | None
) -> list[Callable[[gymnasium.Env], gymnasium.Env]]:
    """The same wrappers, where dynamics noise has the size that it has in an environment made with ``env_kwargs``.

    Training and evaluation may differ in the arguments of their environments and are to have the same noise.
    """

    def measured(wrap: Callable[[gymnasium.Env], gymnasium.Env]) -> Callable[[gymnasium.Env], gymnasium.Env]:
        def apply(env: gymnasium.Env) -> gymnasium.Env:
            noisy = layer = wrap(env)
            while layer is not env and isinstance(layer, gymnasium.Wrapper):
                if isinstance(layer, DynamicsNoise) and layer.spread_kwargs is None:
                    layer.measure_with(env_kwargs or {})
                layer = layer.env
            return noisy

        return apply

    return [measured(wrap) for wrap in noise]
