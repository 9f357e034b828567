"""Environments put back in mid-episode go on as if nothing had happened, bit by bit."""

from __future__ import annotations

import io
from collections import deque
from enum import Enum
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import PendulumEnv
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv

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
from dsob_pl.envs.state import put_back, saved_environment

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
    generator = state["layers"][-1]["_np_random"]["value"]
    numbers = generator["value"]["value"]
    pairs = numbers["value"]
    numbers["value"] = [(key, "seterr" if key == "bit_generator" else value) for key, value in pairs]
    with pytest.raises(CannotSave, match="no generator of numpy called 'seterr'"):
        restore_environment(env, state)


class Views(PendulumEnv):
    """An observation that is a view of the state: put back as two arrays, it would not move any more."""

    def __init__(self) -> None:
        super().__init__()
        self.x = np.zeros(4)
        self.position = self.x[:2]


class Simulated(InvertedPendulumEnv):
    def __init__(self) -> None:
        super().__init__()
        self.q = self.data.qpos


class Weighed(InvertedPendulumEnv):
    def __init__(self) -> None:
        super().__init__()
        self.mass = self.model.body_mass


class Drawing(PendulumEnv):
    def reset(self, **options: Any) -> Any:
        result = super().reset(**options)
        self.draw = self.np_random.normal
        return result


class Part:
    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator


class Shared(PendulumEnv):
    def reset(self, **options: Any) -> Any:
        result = super().reset(**options)
        self.part = Part(self.np_random)
        return result


class TensorView(PendulumEnv):
    def __init__(self) -> None:
        super().__init__()
        self.x = torch.zeros(4)
        self.tail = self.x[2:].numpy()


class Cyclic(PendulumEnv):
    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, Any] = {}
        self.parts["whole"] = self.parts


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Views, r"Views\.position shares memory with Views\.x"),
        (Simulated, r"shares memory with Simulated\.data\.qpos|data\.qpos shares memory"),
        (Weighed, r"Weighed\.mass shares memory with Weighed\.model\.body_mass|model\.body_mass shares memory"),
        (Drawing, r"Drawing\.draw is a function of a .*Generator"),
        (Cyclic, r"Cyclic\.parts\['whole'\] refers to what holds it"),
        (TensorView, r"TensorView\.tail shares memory with TensorView\.x"),
    ],
)
def test_what_stands_in_two_places_is_not_saved_as_two_things(kind: type[gymnasium.Env], message: str) -> None:
    env = kind()
    env.reset(seed=0)
    with pytest.raises(CannotSave, match=message):
        environment_state(env)
    assert saved_environment(env) is None


class Aliased(PendulumEnv):
    """Holds the same things in several places, which differ from episode to episode."""

    def __init__(self) -> None:
        super().__init__()
        self.goals = [{"at": 0}, {"at": 1}]
        self.parts = [Part(np.random.default_rng(1)), Part(np.random.default_rng(2))]
        self.goal, self.part, self.last = self.goals[0], self.parts[0], np.zeros(1)
        self.before = self.last

    def step(self, action: np.ndarray) -> Any:
        observation, reward, *rest = super().step(action)
        self.goal, self.part = self.goals[1], self.parts[1]
        self.goal["at"] += 1
        self.before, self.last = self.last, observation
        drawn = float(self.part.generator.normal()) + float(self.np_random.normal())
        return observation, reward + drawn + self.goals[1]["at"] + float(self.before[0]), *rest


def stacked() -> gymnasium.Env:
    return gymnasium.wrappers.FrameStackObservation(PendulumEnv(), 3)  # of one array three times after a reset


@pytest.mark.parametrize("made", [Aliased, Shared, stacked])
@pytest.mark.parametrize("steps", [0, 1, 9])
def test_what_stands_in_several_places_comes_back_as_one_thing(made: Any, steps: int) -> None:
    actions = np.random.default_rng(0).uniform(-2, 2, (60, 1)).astype(np.float32)
    env, other = made(), made()
    other.reset(seed=7)
    play(other, actions[40:43])
    env.reset(seed=1)
    play(env, actions[:steps])
    restore_environment(other, through_a_file(environment_state(env)))
    if made is Aliased and steps:
        assert other.goal is other.goals[1]
        assert other.part is other.parts[1]
    if made is Shared:
        assert other.part.generator is other.np_random
    assert play(other, actions[20:]) == play(env, actions[20:])


def test_states_that_were_saved_before_things_had_numbers_are_restored() -> None:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return plain(value["value"]) if value.get("__kind__") == "new" else {k: plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(plain(item) for item in value)
        return value

    env, other = Odd(), Odd()
    env.reset(seed=1)
    actions = np.random.default_rng(0).uniform(-2, 2, (60, 1)).astype(np.float32)
    play(env, actions[:20])
    restore_environment(other, through_a_file(plain(environment_state(env))))
    assert play(other, actions[20:]) == play(env, actions[20:])


def test_a_tensor_of_a_kind_that_numpy_has_not_is_saved() -> None:
    env = Odd()
    env.reset(seed=0)
    env.tensor = torch.ones(2, dtype=torch.bfloat16)
    state = through_a_file(environment_state(env))
    other = Odd()
    restore_environment(other, state)
    assert torch.equal(other.tensor, env.tensor)


class Phase(Enum):
    CLIMB = 1
    DIVE = 2


def slow(u: float) -> float:
    return u / 2


def fast(u: float) -> float:
    return 2 * u


class Phased(PendulumEnv):
    """What it does depends on a constant, and on a function."""

    def __init__(self, later: bool = False) -> None:
        super().__init__()
        self.phase, self.rule, self.steps = Phase.CLIMB, slow, 0
        self.later = later

    def step(self, action: np.ndarray) -> Any:
        self.steps += 1
        if self.steps == 10:
            self.phase = Phase.DIVE
            self.rule = fast if self.later else slow
        observation, reward, *rest = super().step(action)
        return observation, reward + self.phase.value + self.rule(float(action[0])), *rest


def test_constants_are_put_back_by_name_and_another_function_is_noticed() -> None:
    actions = np.random.default_rng(0).uniform(-2, 2, (40, 1)).astype(np.float32)
    env, other = Phased(), Phased()
    env.reset(seed=1)
    play(env, actions[:20])
    restore_environment(other, through_a_file(environment_state(env)))
    assert other.phase is Phase.DIVE
    assert play(other, actions[20:]) == play(env, actions[20:])
    env = Phased(later=True)
    env.reset(seed=1)
    play(env, actions[:20])
    state = environment_state(env)
    with pytest.raises(CannotSave, match=r"another function in the place of '.*fast'"):
        restore_environment(Phased(), state)
    assert put_back(Phased(), state) is False
