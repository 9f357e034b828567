"""The whole state of an environment in mid-episode, as plain numbers and tensors: wrappers, generators, simulator.

What an environment is made of is walked through: numbers, arrays, generators and containers of them, and objects made
of those. A MuJoCo simulation is saved by MuJoCo itself. What the constructor sets and nothing moves (spaces, models)
and what only draws is left out. What stands in several places comes back as one thing. Whatever else an environment
holds cannot be saved, and neither can an array and a view of it, which would come back as two. A resumed run then
begins a new episode. Two things are not noticed: what a function keeps in its closure, and the generator of a space
that an environment draws from by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import gymnasium

from dsob_pl.envs.state.decoding import Made, decoded, restore_attributes
from dsob_pl.envs.state.encoding import Once, attributes, encoded
from dsob_pl.envs.state.kinds import KIND, CannotSave
from dsob_pl.envs.stepping import env_name

log = logging.getLogger(__name__)


def environment_state(env: gymnasium.Env) -> dict[str, Any]:
    """All that decides how ``env`` goes on, so that ``torch.load(weights_only=True)`` reads it.

    An unwrapped environment with ``state_dict`` and ``load_state_dict`` is asked for its own.

    Raises:
        CannotSave: names the attribute that has no plain form.
    """
    layers = list(_layers(env))
    once = Once(layers)
    try:
        states = [_layer_state(layer, once) for layer in layers]
    except RecursionError as error:
        raise CannotSave("it holds things within things, too deep to be walked through") from error
    return {"layers": states, "names": [type(layer).__name__ for layer in layers]}


def restore_environment(env: gymnasium.Env, state: dict[str, Any]) -> None:
    """Puts ``env``, made with the same arguments, where the saved one was.

    Raises:
        CannotSave: it is made of other parts.
    """
    layers = list(_layers(env))
    names = [type(layer).__name__ for layer in layers]
    if names != state["names"]:
        raise CannotSave(f"it is made of {', '.join(names)}, the saved one was of {', '.join(state['names'])}")
    made = Made()
    for layer, saved in zip(layers, state["layers"]):
        if saved.get(KIND) == "own":
            layer.load_state_dict(decoded(saved["state"], None, Made()))  # type: ignore[attr-defined]
        else:
            restore_attributes(layer, saved, made)


def saved_environment(env: gymnasium.Env) -> dict[str, Any] | None:
    """``environment_state``; None, with a warning, for an environment that has none.

    An environment is anyone's objects, which may raise anything when they are looked at: that costs an episode, not the
    run.
    """
    try:
        return environment_state(env)
    except Exception as error:
        log.warning("%s cannot be saved in mid-episode (%s); a resumed run begins a new one", env_name(env), error)
        return None


def put_back(env: gymnasium.Env, state: dict[str, Any] | None) -> bool:
    """``restore_environment``; False, with a warning where there is a state, if that cannot be done."""
    if state is None:
        return False
    try:
        restore_environment(env, state)
    except Exception as error:
        log.warning("%s cannot be put back in mid-episode (%s); a new one begins", env_name(env), error)
        return False
    return True


def _layers(env: gymnasium.Env) -> Iterator[gymnasium.Env]:
    yield env
    while isinstance(env, gymnasium.Wrapper):
        env = env.env
        yield env


def _layer_state(layer: gymnasium.Env, once: Once) -> dict[str, Any]:
    if hasattr(layer, "state_dict") and hasattr(layer, "load_state_dict") and not isinstance(layer, gymnasium.Wrapper):
        return {KIND: "own", "state": encoded(layer.state_dict(), type(layer).__name__, Once())}
    return attributes(layer, type(layer).__name__, once)


__all__ = ["CannotSave", "environment_state", "put_back", "restore_environment", "saved_environment"]
