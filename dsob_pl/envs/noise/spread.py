"""The unit of dynamics noise: how widely each component of a simulator's state spreads under random actions."""

from __future__ import annotations

import gymnasium
import numpy as np

from dsob_pl.envs.noise.state import SimulatorState, simulator_state
from dsob_pl.envs.stepping import EnvironmentFailed, reset_environment, step_environment
from dsob_pl.errors import UsageError

STEPS = 1000
_SEED = 0
_known: dict[tuple[str, str], np.ndarray] = {}


def state_spread(env: gymnasium.Env) -> np.ndarray:
    """Standard deviation ``[D]`` of each state component over 1,000 steps with uniformly random actions.

    The steps are taken in an environment made anew from the id and the arguments of ``env``, with the registered time
    limit and fixed seeds, so they depend on nothing else; later calls return the same numbers. A component that no
    step moves, such as a goal that is drawn at reset, has the spread 0.

    Raises:
        UsageError: ``env`` was made without gymnasium's registry, its state cannot be read, or is not finite, or it
            fails under random actions.
    """
    spec = env.unwrapped.spec
    if spec is None:
        raise UsageError(f"state_spread: expected an environment of gymnasium.make, got {type(env.unwrapped).__name__}")
    arguments = {name: value for name, value in spec.kwargs.items() if name != "render_mode"}
    key = (spec.id, repr(sorted(arguments.items())))
    if key not in _known:
        _known[key] = _measure(gymnasium.make(spec.id, disable_env_checker=True, **arguments), spec.id)
    return _known[key].copy()


def _measure(env: gymnasium.Env, name: str) -> np.ndarray:
    access = simulator_state(env)
    if access is None:
        raise UsageError(f"state_spread: the state of '{name}' cannot be read")
    try:
        states, moved = _random_walk(env, access)
    except EnvironmentFailed as error:
        raise UsageError(f"state_spread: of random actions, {error}") from error
    finally:
        env.close()
    spread = np.where(moved, np.std(states, axis=0), 0.0)
    if not np.isfinite(spread).all():
        raise UsageError(f"state_spread: random actions take the state of '{name}' beyond all bounds")
    return spread


def _random_walk(env: gymnasium.Env, access: SimulatorState) -> tuple[np.ndarray, np.ndarray]:
    """The states ``[1 + STEPS, D]`` of random actions, and which components ``[D]`` a step has moved."""
    env.action_space.seed(_SEED)
    reset_environment(env, _SEED, 0)
    before = access.read()
    states, moved = [before], np.zeros(before.shape, bool)
    for step in range(1, STEPS + 1):
        _, _, terminated, truncated = step_environment(env, env.action_space.sample(), step)
        states.append(access.read())
        moved |= states[-1] != before
        if terminated or truncated:
            reset_environment(env, None, step)
        before = access.read()
    return np.stack(states), moved
