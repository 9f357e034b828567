"""The environment factory: any gymnasium id with Box spaces, as a flat observation and actions in [-1, 1]."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.spaces import Box
from gymnasium.wrappers import FlattenObservation, TransformAction

from dsob_pl.envs.rendering import check_backend, choose_backend
from dsob_pl.errors import UsageError, nearest


def make_env(
    env_id: str,
    *,
    render_mode: str | None = None,
    env_kwargs: dict[str, Any] | None = None,
    noise: Sequence[Callable[[gymnasium.Env], gymnasium.Env]] | None = None,
) -> gymnasium.Env:
    """An environment with observation space ``Box [S]`` and action space exactly ``[-1, 1]^A``, float32.

    Observations of other ranks are flattened; their dtype is left alone. Actions are clipped to [-1, 1] and mapped
    affinely to the bounds of the environment, -1 to the lower and 1 to the upper one.

    Args:
        env_id: an id known to gymnasium, or ``module:Id-v0``, which imports ``module`` first.
        render_mode: as in ``gymnasium.make``; ``"rgb_array"`` renders without a screen where EGL is installed.
        env_kwargs: further arguments of ``gymnasium.make`` (``max_episode_steps``) or of the environment itself.
        noise: wrappers around what ``gymnasium.make`` gives, its time limit included, the first one innermost. They
            act on the environment's own observations, actions and bounds, inside the flattening and the map of actions.

    Raises:
        UsageError: unknown id or module, arguments that the environment does not take, an observation space that is
            not a Box, an action space that is not a bounded, continuous Box, frames asked for without EGL, noise that
            cannot act on the environment.
    """
    kwargs = _checked_kwargs(env_kwargs)
    _check_id(env_id)
    if render_mode is not None:
        choose_backend()
        kwargs["render_mode"] = render_mode
    try:
        env = gymnasium.make(env_id, **kwargs)
    except UsageError as error:
        raise UsageError(f"data.env_kwargs: {error}") from error
    except Exception as error:
        raise UsageError(_why_not_made(env_id, kwargs, error)) from error
    if render_mode is not None and hasattr(env.unwrapped, "mujoco_renderer"):
        check_backend()
    return _with_flat_spaces(_with_noise(env, env_id, noise or ()), env_id)


def _with_noise(
    env: gymnasium.Env, env_id: str, noise: Sequence[Callable[[gymnasium.Env], gymnasium.Env]]
) -> gymnasium.Env:
    for wrap in noise:
        try:
            env = wrap(env)
        except UsageError as error:
            raise UsageError(f"data.noise: {error}") from error
        if not isinstance(env, gymnasium.Env):
            raise UsageError(f"data.noise: expected wrappers of '{env_id}', got one that makes a {type(env).__name__}")
    return env


def _checked_kwargs(env_kwargs: dict[str, Any] | None) -> dict[str, Any]:
    if env_kwargs is None:
        return {}
    if not isinstance(env_kwargs, dict) or not all(isinstance(key, str) for key in env_kwargs):
        raise UsageError(f"data.env_kwargs: expected a mapping from argument names to values, got {env_kwargs!r}")
    if "render_mode" in env_kwargs:
        raise UsageError("data.env_kwargs: render_mode is set by the program itself; use `evaluate --video` for frames")
    return dict(env_kwargs)


def _check_id(env_id: str) -> None:
    if not isinstance(env_id, str) or not env_id or env_id.count(":") > 1:
        raise UsageError(f"data.env_id: expected an id such as 'Walker2d-v5' or 'module:Id-v0', got {env_id!r}")
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever the code of that module raises
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UsageError(f"data.env_id: module '{module}' of '{env_id}' cannot be imported ({reason})") from error
    try:
        gymnasium.spec(name)
    except gymnasium.error.Error as error:
        raise UsageError(f"data.env_id: no environment '{name}' is registered{_nearest_id(name)}") from error


def _nearest_id(name: str) -> str:
    """The newest version of the same name, or else the id that looks most alike."""
    base = name.rpartition("-v")[0] or name
    versions = [spec for spec in gymnasium.registry.values() if spec.id.rpartition("-v")[0].lower() == base.lower()]
    newest = max(versions, key=lambda spec: spec.version or 0, default=None)
    return nearest(newest.id if newest else name, gymnasium.registry)


def _why_not_made(env_id: str, kwargs: dict[str, Any], error: Exception) -> str:
    """One line for whatever the environment's constructor raised."""
    unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if unexpected and unexpected[1] in kwargs:
        hint = nearest(unexpected[1], _argument_names(env_id))
        return f"data.env_kwargs: '{unexpected[1]}' is not an argument of {env_id}{hint}"
    # gymnasium repeats the arguments after the reason; the reason alone is what the user can act on
    reason = " ".join(str(error).split(" was raised from the environment creator")[0].split())
    given = {key: value for key, value in kwargs.items() if key != "render_mode"}
    made_with = f" with {given}" if given else ""
    return f"data.env_id: '{env_id}'{made_with} cannot be made: {reason or type(error).__name__}"


def _argument_names(env_id: str) -> list[str]:
    entry_point = gymnasium.spec(env_id.rpartition(":")[2]).entry_point
    creator: Any = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    # a constructor that takes **kwargs hands them to its base class
    constructors = [c for c in creator.__mro__ if "__init__" in vars(c)] if inspect.isclass(creator) else [creator]
    return [name for constructor in constructors for name in inspect.signature(constructor).parameters]


def _with_flat_spaces(env: gymnasium.Env, env_id: str) -> gymnasium.Env:
    observations, actions = env.observation_space, env.action_space
    if not isinstance(observations, Box):
        raise UsageError(f"data.env_id: '{env_id}' has the observation space {_short(observations)}; a Box is needed")
    if not isinstance(actions, Box) or not np.issubdtype(actions.dtype, np.floating):
        raise UsageError(f"data.env_id: '{env_id}' has the action space {_short(actions)}; a continuous Box is needed")
    if not (np.isfinite(actions.low).all() and np.isfinite(actions.high).all()):
        raise UsageError(
            f"data.env_id: '{env_id}' has the unbounded action space {_short(actions)}; finite bounds are needed"
        )
    if len(observations.shape) != 1:
        env = FlattenObservation(env)

    low, high = actions.low.astype(np.float64), actions.high.astype(np.float64)
    centre, half_width = (high + low) / 2.0, (high - low) / 2.0

    def to_bounds(action: np.ndarray) -> np.ndarray:
        scaled = centre + half_width * np.asarray(action, np.float64).reshape(actions.shape)
        return np.clip(scaled, low, high).astype(actions.dtype)

    # RescaleAction does not clip, and ClipAction replaces the action space by an unbounded one
    flat = Box(-1.0, 1.0, (int(np.prod(actions.shape)),), np.float32)
    return TransformAction(env, to_bounds, flat)


def _short(space: gymnasium.Space) -> str:
    """The space in one line, however large its bounds are."""
    text = " ".join(str(space).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
