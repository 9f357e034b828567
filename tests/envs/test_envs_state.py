"""Environments put back in mid-episode go on as if nothing had happened, bit by bit."""

from __future__ import annotations

import io
from collections import deque
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import PendulumEnv

from dsob_pl.envs import (
    ActionNoise,
    CannotSave,
    DynamicsNoise,
    ObservationNoise,
    RewardNoise,
    environment_state,
    make_env,
    restore_environment,
)

NOISE = [DynamicsNoise, ObservationNoise, ActionNoise, RewardNoise]
MUJOCO = ["Ant", "Humanoid", "HumanoidStandup", "Walker2d", "Hopper", "HalfCheetah", "Swimmer", "Reacher", "Pusher"]
MUJOCO += ["InvertedPendulum", "InvertedDoublePendulum"]
CASES = [(f"{name}-v5", []) for name in MUJOCO]
CASES += [(name, NOISE) for name in ("Ant-v5", "Walker2d-v5", "Pendulum-v1", "dsob_pl/Summit-v0")]
CASES += [(name, []) for name in ("Pendulum-v1", "MountainCarContinuous-v0", "dsob_pl/PointMass-v0")]


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    result: dict[str, Any] = torch.load(buffer, weights_only=True)
    return result


def play(env: gymnasium.Env, actions: np.ndarray) -> list[tuple[Any, ...]]:
    played = []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        played.append((observation.tobytes(), float(reward), bool(terminated), bool(truncated)))
        if terminated or truncated:
            played.append((env.reset()[0].tobytes(),))
    return played


@pytest.mark.parametrize(("env_id", "noise"), CASES)
def test_the_rest_is_the_same(env_id: str, noise: list[Any]) -> None:
    env, other = make_env(env_id, noise=noise), make_env(env_id, noise=noise)
    actions = np.random.default_rng(0).uniform(-1, 1, (260, *env.action_space.shape)).astype(np.float32)
    env.reset(seed=3)
    play(env, actions[:57])
    state = through_a_file(environment_state(env))
    expected = play(env, actions[57:])
    restore_environment(other, state)  # one that was never reset
    assert play(other, actions[57:]) == expected
    restore_environment(other, state)  # one in the middle of another episode
    assert play(other, actions[57:]) == expected


class Odd(PendulumEnv):
    """Holds what can be saved, in all its forms."""

    def __init__(self) -> None:
        super().__init__()
        self.history = deque([1.0], maxlen=3)
        self.nested = {"a": [np.float32(1.5), (2, None)], 3: {"x"}}
        self.own = np.random.RandomState(3)
        self.torch = torch.Generator().manual_seed(4)
        self.tensor = torch.zeros(2)

    def step(self, action: np.ndarray) -> Any:
        observation, reward, *rest = super().step(action)
        drawn = float(self.own.rand()) + float(torch.rand((), generator=self.torch))
        self.history.append(drawn)
        self.nested["a"][0] += np.float32(drawn)
        self.tensor = self.tensor + drawn
        return observation, reward + sum(self.history) + float(self.nested["a"][0]) + float(self.tensor[0]), *rest


class WithItsOwn(PendulumEnv):
    """Has a state of its own, and something beside it that has no plain form."""

    def __init__(self) -> None:
        super().__init__()
        self.world = memoryview(b"x")

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.state.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state["state"]


class Foreign(PendulumEnv):
    def __init__(self) -> None:
        super().__init__()
        self.world = memoryview(b"x")


@pytest.mark.parametrize("kind", [Odd, WithItsOwn])
def test_environments_of_ones_own(kind: type[gymnasium.Env]) -> None:
    def made() -> gymnasium.Env:
        return gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.wrappers.TimeLimit(kind(), 500))

    env, other = made(), made()
    actions = np.random.default_rng(0).uniform(-2, 2, (60, 1)).astype(np.float32)
    env.reset(seed=1)
    play(env, actions[:20])
    restore_environment(other, through_a_file(environment_state(env)))
    assert play(other, actions[20:]) == play(env, actions[20:])


def test_what_cannot_be_saved_is_named() -> None:
    env = Foreign()
    env.reset(seed=0)
    with pytest.raises(CannotSave, match=r"Foreign\.world is a builtins\.memoryview"):
        environment_state(env)


def test_another_environment_is_refused() -> None:
    state = environment_state(make_env("Pendulum-v1"))
    with pytest.raises(CannotSave, match=r"it is made of .*ObservationNoise.*, the saved one was of"):
        restore_environment(make_env("Pendulum-v1", noise=[ObservationNoise]), state)
    walker = environment_state(make_env("Walker2d-v5"))
    walker["names"] = environment_state(make_env("Hopper-v5"))["names"]
    with pytest.raises(CannotSave, match="another size"):
        restore_environment(make_env("Hopper-v5"), walker)


def test_only_generators_of_numpy_are_made() -> None:
    env = make_env("Pendulum-v1")
    env.reset(seed=0)
    state = environment_state(env)
    generator = state["layers"][-1]["_np_random"]
    pairs = generator["value"]["value"]
    generator["value"]["value"] = [(key, "seterr" if key == "bit_generator" else value) for key, value in pairs]
    with pytest.raises(CannotSave, match="no generator of numpy called 'seterr'"):
        restore_environment(env, state)
