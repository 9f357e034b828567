"""Noise on observations, actions and rewards: its law, its seeds, and an environment that does not notice."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import FlattenObservation
from hypothesis import given, settings
from hypothesis import strategies as st

from dsob_pl.envs import (
    ActionNoise,
    DynamicsNoise,
    ObservationNoise,
    RewardNoise,
    join_environments,
    make_env,
)
from dsob_pl.envs.rows import ProblemRows, SeparateRows
from dsob_pl.errors import UsageError

KINDS = [ObservationNoise, DynamicsNoise, ActionNoise, RewardNoise]


class Echo(gymnasium.Env):
    """Ones to observe and to be paid, the action it was given, and the number its own generator draws, in info."""

    def __init__(self, low: float = -1.0, high: float = 3.0, dtype: Any = np.float32) -> None:
        self.observation_space = Box(-2.0, 4.0, (3,), dtype)
        self.action_space = Box(low, high, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.ones(3, self.observation_space.dtype), {"own": self.np_random.random()}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert action.dtype == np.float32
        info = {"action": action, "own": self.np_random.random()}
        return np.ones(3, self.observation_space.dtype), 1.0, False, False, info


def rollout(env: gymnasium.Env, seed: int | None, steps: int, action: float = 0.0) -> list[tuple]:
    env.reset(seed=seed)
    return [env.step(np.full(env.action_space.shape, action, np.float32)) for _ in range(steps)]  # type: ignore[arg-type]


def assert_independent(x: np.ndarray) -> None:
    """Columns of ``x [n, D]`` that have no correlation with each other nor with their own last value."""
    n, columns = x.shape
    z = (x - x.mean(0)) / x.std(0)
    between = z.T @ z / n - np.eye(columns)
    before = z[1:].T @ z[:-1] / (n - 1)
    assert np.abs(between).max() < 5 / np.sqrt(n)
    assert np.abs(before).max() < 5 / np.sqrt(n)


@pytest.mark.parametrize("scale", [0.2, 1.0])
def test_observations_are_multiplied_by_independent_uniform_numbers(scale: float) -> None:
    n = 8000
    steps = rollout(ObservationNoise(Echo(dtype=np.float64), scale), 0, n)
    factors = np.stack([step[0] for step in steps])
    assert ((factors >= 1 - scale) & (factors <= 1 + scale)).all()
    np.testing.assert_allclose(factors.mean(0), 1.0, atol=5 * scale / np.sqrt(3 * n))
    np.testing.assert_allclose(factors.std(0), scale / np.sqrt(3), rtol=0.03)
    # fourth central moment of a uniform law: scale^4 / 5
    np.testing.assert_allclose(((factors - 1) ** 4).mean(0), scale**4 / 5, rtol=0.06)
    assert_independent(factors)
    assert all(step[1:4] == (1.0, False, False) for step in steps)


def test_the_first_observation_has_noise_too_and_keeps_its_type() -> None:
    env = ObservationNoise(Echo())
    first, _ = env.reset(seed=1)
    assert first.dtype == np.float32
    assert (first != 1.0).all()
    assert ((first >= 0.8) & (first <= 1.2)).all()
    assert len(set(first.tolist())) == 3


def test_an_environment_that_gives_integers_has_them_multiplied_and_not_cut_off() -> None:
    env = Echo()
    env.reset = lambda **_: (np.array([3, 7, 100]), {})  # type: ignore[method-assign]
    noisy = ObservationNoise(env, 0.2)
    seen = np.stack([noisy.reset()[0] for _ in range(400)])
    assert seen.dtype == np.float32
    np.testing.assert_allclose(seen.mean(0), [3, 7, 100], rtol=0.02)


def test_the_space_of_observations_grows_by_what_can_be_seen() -> None:
    np.testing.assert_allclose(ObservationNoise(Echo(), 0.5).observation_space.low, -3.0)  # type: ignore[attr-defined]
    np.testing.assert_allclose(ObservationNoise(Echo(), 0.5).observation_space.high, 6.0)  # type: ignore[attr-defined]
    env = Echo()
    env.observation_space = Box(np.array([1.0, -3.0, -np.inf]), np.array([2.0, -1.0, np.inf]), dtype=np.float64)
    space = ObservationNoise(env, 1.0).observation_space
    np.testing.assert_array_equal(space.low, [0.0, -6.0, -np.inf])  # type: ignore[attr-defined]
    np.testing.assert_array_equal(space.high, [4.0, 0.0, np.inf])  # type: ignore[attr-defined]


def test_actions_get_gaussian_noise_in_units_of_half_their_range() -> None:
    n = 8000
    noise = np.stack([step[4]["action"] for step in rollout(ActionNoise(Echo(), 0.1), 0, n, 1.0)]) - 1.0
    np.testing.assert_allclose(noise.mean(0), 0.0, atol=5 * 0.2 / np.sqrt(n))
    np.testing.assert_allclose(noise.std(0), 0.2, rtol=0.04)  # 0.1 * (3 - -1) / 2
    np.testing.assert_allclose((noise**4).mean(0), 3 * 0.2**4, rtol=0.15)
    assert_independent(noise)


def test_actions_are_clipped_to_their_range() -> None:
    taken = np.stack([step[4]["action"] for step in rollout(ActionNoise(Echo(), 0.5), 0, 2000, 3.0)])
    assert taken.max() == 3.0
    assert taken.min() >= -1.0
    assert (taken == 3.0).mean() == pytest.approx(0.5, abs=0.05)
    beyond = rollout(ActionNoise(Echo(), 0.0), 0, 1, 7.0)[0]
    assert beyond[4]["action"].tolist() == [3.0, 3.0]


def test_rewards_get_gaussian_noise_and_keep_their_mean() -> None:
    n = 8000
    rewards = np.array([[step[1]] for step in rollout(RewardNoise(Echo(), 0.7), 0, n)])
    assert rewards.mean() == pytest.approx(1.0, abs=5 * 0.7 / np.sqrt(n))
    assert rewards.std() == pytest.approx(0.7, rel=0.04)
    assert ((rewards - 1) ** 4).mean() == pytest.approx(3 * 0.7**4, rel=0.15)
    assert_independent(rewards)


def flat(env: gymnasium.Env, seed: int | None, steps: int = 30) -> list[float]:
    first, info = env.reset(seed=seed)
    numbers = [*first, info.get("own", 0.0)]
    for t in range(steps):
        action = np.full(env.action_space.shape, np.sin(t), np.float32)  # type: ignore[arg-type]
        observation, reward, terminated, truncated, info = env.step(action)
        numbers += [*observation, reward, terminated, truncated, *info.get("action", []), info.get("own", 0.0)]
        if terminated or truncated:
            numbers += [*env.reset()[0]]
    return [float(x) for x in numbers]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("env_id", ["Pendulum-v1", "Hopper-v5", "dsob_pl/PointMass-v0"])
def test_a_seed_decides_every_number_and_another_gives_others(kind: type, env_id: str) -> None:
    env = kind(gymnasium.make(env_id))
    first = flat(env, 7)
    assert flat(env, 7) == first  # whatever was drawn before
    assert flat(kind(gymnasium.make(env_id)), 7) == first
    assert flat(env, 8) != first
    assert flat(env, 7) != flat(gymnasium.make(env_id), 7)
    again = flat(env, None)  # the stream goes on
    assert again != flat(env, None)


@pytest.mark.parametrize("kind", [ObservationNoise, ActionNoise, RewardNoise])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), scale=st.floats(0.01, 1.0))
def test_the_environments_own_random_numbers_stay_as_they_are(kind: type, seed: int, scale: float) -> None:
    plain, noisy = Echo(), kind(Echo(), scale)
    for reset in (seed, None, seed + 1):
        assert plain.reset(seed=reset)[1]["own"] == noisy.reset(seed=reset)[1]["own"]
        for _ in range(3):
            action = np.zeros(2, np.float32)
            assert plain.step(action)[4]["own"] == noisy.step(action)[4]["own"]


@pytest.mark.parametrize("kind", KINDS)
def test_scale_0_changes_nothing(kind: type) -> None:
    for env_id in ("Pendulum-v1", "Walker2d-v5", "dsob_pl/PointMass-v0"):
        assert flat(kind(gymnasium.make(env_id), 0.0), 3) == flat(gymnasium.make(env_id), 3)


def test_kinds_and_layers_draw_different_numbers() -> None:
    env = ObservationNoise(ObservationNoise(Echo(dtype=np.float64), 0.3), 0.3)
    outer = env.reset(seed=5)[0]
    inner = ObservationNoise(Echo(dtype=np.float64), 0.3).reset(seed=5)[0]
    assert not np.allclose(outer, inner**2)
    # another kind below it does not shift the stream
    mixed = ObservationNoise(RewardNoise(ActionNoise(Echo(dtype=np.float64))), 0.3).reset(seed=5)[0]
    np.testing.assert_array_equal(mixed, inner)
    tags = {kind.tag for kind in KINDS}
    assert len(tags) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version.*", "ignore:.*not (ob)?served.*")
def test_gymnasium_accepts_and_remakes_the_wrapper(kind: type) -> None:
    env = kind(gymnasium.make("Pendulum-v1"), 0.3)
    check_env(env, skip_render_check=True)
    assert env.spec is not None
    again = gymnasium.make(pickle.loads(pickle.dumps(env.spec)))
    assert (type(again), again.scale) == (kind, 0.3)  # type: ignore[attr-defined]
    assert flat(again, 2) == flat(env, 2)
    assert str(env).startswith(f"<{kind.__name__}(scale=0.3)<")


def test_make_env_puts_noise_inside_its_own_map_of_actions() -> None:
    seen: list[np.ndarray] = []
    env = make_env("Pendulum-v1", noise=[lambda env: _Seen(env, seen), lambda env: ActionNoise(env, 0.5)])
    env.reset(seed=0)
    for _ in range(200):
        env.step(np.zeros(1, np.float32))
    assert np.std(seen) == pytest.approx(1.0, rel=0.15)  # half of the torque's bound 2
    assert env.action_space == Box(-1.0, 1.0, (1,), np.float32)
    assert np.abs(seen).max() <= 2.0
    assert "<TransformAction<ActionNoise(scale=0.5)<_Seen<TimeLimit" in str(env)


class _Seen(gymnasium.Wrapper):
    def __init__(self, env: gymnasium.Env, seen: list[np.ndarray]) -> None:
        super().__init__(env)
        self.seen = seen

    def step(self, action: np.ndarray) -> Any:
        self.seen.append(action)
        return self.env.step(action)


def test_problems_with_noise_step_one_by_one() -> None:
    plain = [make_env("dsob_pl/PointMass-v0") for _ in range(2)]
    noisy = [make_env("dsob_pl/PointMass-v0", noise=[RewardNoise]) for _ in range(2)]
    assert isinstance(join_environments(plain), ProblemRows)
    assert isinstance(join_environments(noisy), SeparateRows)


@pytest.mark.parametrize(
    ("env_id", "noise", "parts"),
    [
        ("Pendulum-v1", lambda env: ObservationNoise(env, -0.1), ["ObservationNoise: scale", "at least 0", "-0.1"]),
        ("Pendulum-v1", lambda env: ObservationNoise(env, 1.5), ["ObservationNoise: scale", "between 0 and 1", "1.5"]),
        ("Pendulum-v1", lambda env: RewardNoise(env, float("inf")), ["RewardNoise: scale", "finite", "inf"]),
        ("Pendulum-v1", lambda env: RewardNoise(env, float("nan")), ["RewardNoise: scale", "nan"]),
        ("Pendulum-v1", lambda env: RewardNoise(env, "much"), ["RewardNoise: scale", "'much'"]),
        ("Pendulum-v1", lambda env: RewardNoise(env, True), ["RewardNoise: scale", "True"]),
        ("CartPole-v1", ActionNoise, ["ActionNoise", "bounded, floating Box of actions", "Discrete(2)"]),
        ("CartPole-v1", DynamicsNoise, ["DynamicsNoise", "'CartPole-v1' cannot be set", "MuJoCo"]),
        ("MountainCarContinuous-v0", DynamicsNoise, ["'MountainCarContinuous-v0' cannot be set"]),
        ("Blackjack-v1", ObservationNoise, ["ObservationNoise", "floating Box of observations", "Tuple"]),
        ("Pendulum-v1", lambda env: DynamicsNoise(ObservationNoise(env)), ["DynamicsNoise", "put this noise first"]),
        ("Hopper-v5", lambda env: DynamicsNoise(FlattenObservation(env)), ["DynamicsNoise", "put this noise first"]),
        ("Pendulum-v1", lambda env: None, ["expected wrappers of 'Pendulum-v1'", "NoneType"]),
    ],
)
def test_noise_that_cannot_be_is_one_line(env_id: str, noise: Callable, parts: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        make_env(env_id, noise=[noise])
    message = str(raised.value)
    assert message.startswith("data.noise: ")
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_an_environment_without_a_spec_has_no_dynamics_noise() -> None:
    from gymnasium.envs.classic_control.pendulum import PendulumEnv

    with pytest.raises(UsageError, match=r"DynamicsNoise: 'PendulumEnv' was made without gymnasium\.make"):
        DynamicsNoise(PendulumEnv())
