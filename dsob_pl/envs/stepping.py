"""Resetting and stepping an environment that may be anyone's: whatever it does wrong is one line with its name."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np

from dsob_pl.errors import RunFailed

LARGEST_REWARD = float(np.finfo(np.float32).max)  # that replay can hold


class EnvironmentFailed(RunFailed):
    """An environment raised, or returned what is not finite, no number or flag, or of another shape. Exit code 3."""


def reset_environment(env: gymnasium.Env, seed: int | None, step: int) -> np.ndarray:
    """The first observation [S] float32 of a new episode; ``step`` is for the message.

    Raises:
        EnvironmentFailed: the environment raises, or its observation cannot be used; names environment and step.
    """
    try:
        observation, _ = env.reset(seed=seed)
    except RunFailed as error:
        raise EnvironmentFailed(str(error)) from error
    except Exception as error:
        raise _raised(env, error, "in reset after", step) from error
    return flat_observation(observation, env, step)


def step_environment(env: gymnasium.Env, action: np.ndarray, step: int) -> tuple[np.ndarray, float, bool, bool]:
    """Observation [S] float32, reward, terminated and truncated of one step, which is the environment step ``step``.

    Raises:
        EnvironmentFailed: the environment raises, or what it returns cannot be used; names environment and step.
    """
    try:
        observation, reward, terminated, truncated, _ = env.step(action)
    except RunFailed as error:
        raise EnvironmentFailed(str(error)) from error
    except Exception as error:
        raise _raised(env, error, "at", step) from error
    flat = flat_observation(observation, env, step)
    number = _reward(reward, env, step)
    return flat, number, _flag(terminated, "terminated", env, step), _flag(truncated, "truncated", env, step)


def flat_observation(observation: Any, env: gymnasium.Env, step: int) -> np.ndarray:
    """A float32 copy [S] of what the environment returned.

    Raises:
        EnvironmentFailed: it is no array of numbers, has another shape than the environment's observation space, or an
            entry is NaN or infinite; names the environment and the step.
    """
    try:
        flat = np.array(observation, dtype=np.float32)
    except Exception as error:  # an array's or a tensor's own
        given = _short(repr(observation))
        raise EnvironmentFailed(
            f"{env_name(env)} returned the observation {given} at environment step {step}; numbers are needed"
        ) from error
    expected = env.observation_space.shape
    if flat.shape != expected:
        raise EnvironmentFailed(
            f"{env_name(env)} returned an observation of shape {list(flat.shape)} at environment step {step}; "
            f"its observation space has {list(expected or ())}"
        )
    if not np.isfinite(flat).all():
        raise EnvironmentFailed(
            f"{env_name(env)} returned an observation that is not finite at environment step {step}"
        )
    return flat


def env_name(env: gymnasium.Env) -> str:
    """The id of the environment, or its class where it was built without the registry."""
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__


def _reward(given: Any, env: gymnasium.Env, step: int) -> float:
    try:
        number = float(given)
    except Exception as error:  # an array's or a tensor's own
        raise EnvironmentFailed(
            f"{env_name(env)} returned the reward {_short(repr(given))} at environment step {step}; a number is needed"
        ) from error
    if not abs(number) <= LARGEST_REWARD:
        reason = "; it has to fit into 32 bits" if math.isfinite(number) else ""
        raise EnvironmentFailed(f"{env_name(env)} returned the reward {number} at environment step {step}{reason}")
    return number


def _flag(given: Any, name: str, env: gymnasium.Env, step: int) -> bool:
    """True or false; not by ``bool``, for which None is false and the list [False] is true."""
    if isinstance(given, bool):
        return given
    cause: Exception | None = None
    try:
        value = given.item() if hasattr(given, "item") else given  # of an array or a tensor with one entry
        if isinstance(value, bool | int | float) and not math.isnan(value):
            return bool(value)
    except Exception as error:  # an array's or a tensor's own
        cause = error
    raise EnvironmentFailed(
        f"{env_name(env)} returned {_short(repr(given))} for {name} at environment step {step}; true or false is needed"
    ) from cause


def _raised(env: gymnasium.Env, error: Exception, when: str, step: int) -> EnvironmentFailed:
    text = _short(str(error))
    reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return EnvironmentFailed(f"{env_name(env)} raised {when} environment step {step}: {reason}")


def _short(text: str) -> str:
    """In one line of bearable length."""
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:197]}..."
