"""Noise on the dynamics: the simulator's state really moves, by the spread of each component, and is what one sees."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest

from dsob_pl.cli.loading import build_noise
from dsob_pl.data import ReplayDataModule
from dsob_pl.envs import DynamicsNoise, ObservationNoise, PointMass, ProblemEnv, in_units_of, make_env, state_spread
from dsob_pl.envs.noise.state import simulator_state
from dsob_pl.errors import UsageError

MUJOCO = ["Walker2d-v5", "InvertedPendulum-v5", "Ant-v5"]


def state(env: gymnasium.Env) -> np.ndarray:
    access = simulator_state(env)
    assert access is not None
    return access.read()


def displacements(env_id: str, scale: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """By how much the noise moved the state ``[steps, D]``, each step begun where the noise-free twin also begins."""
    noisy, plain = DynamicsNoise(gymnasium.make(env_id), scale), gymnasium.make(env_id)
    noisy.action_space.seed(0)
    noisy.reset(seed=1)
    plain.reset(seed=1)
    moved = []
    for _ in range(steps):
        start = simulator_state(noisy), simulator_state(plain)
        assert start[0] is not None
        assert start[1] is not None
        start[1].write(start[0].read())
        action = noisy.action_space.sample()
        # both from the same state, solver's warm start included
        if hasattr(plain.unwrapped, "data"):
            plain.unwrapped.data.qacc_warmstart[:] = noisy.unwrapped.data.qacc_warmstart  # type: ignore[attr-defined]
        theirs, ours = plain.step(action), noisy.step(action)
        # reward and end are those of the simulator's own step
        assert ours[1] == pytest.approx(theirs[1], rel=1e-6, abs=1e-6)
        assert ours[2] == theirs[2]
        moved.append(state(noisy) - state(plain))
        if ours[2] or ours[3] or theirs[3]:
            noisy.reset()
            plain.reset()
    return np.stack(moved), state_spread(noisy)


@pytest.mark.parametrize("env_id", [*MUJOCO[:2], "dsob_pl/PointMass-v0", "Pendulum-v1"])
def test_each_component_moves_by_its_own_spread(env_id: str) -> None:
    n, scale = 700, 0.01
    moved, spread = displacements(env_id, scale, n)
    z = moved / (scale * spread)
    if env_id == "Pendulum-v1":  # where the angle passes a whole turn the difference is one
        z = z[np.abs(z[:, 0]) < 20]
    np.testing.assert_allclose(z.std(0), 1.0, rtol=0.12)
    np.testing.assert_allclose(z.mean(0), 0.0, atol=5 / np.sqrt(n))
    assert np.abs(np.corrcoef(z.T) - np.eye(z.shape[1])).max() < 5 / np.sqrt(n)
    assert np.abs(z[1:].T @ z[:-1] / len(z)).max() < 5.5 / np.sqrt(n)
    np.testing.assert_allclose((z**4).mean(), 3.0, rtol=0.25)


@pytest.mark.parametrize("env_id", [*MUJOCO, "Humanoid-v5", "InvertedDoublePendulum-v5"])
def test_what_one_sees_is_the_moved_state_and_derived_quantities_follow(env_id: str) -> None:
    env = make_env(env_id, noise=[lambda env: DynamicsNoise(env, 0.05)])
    env.reset(seed=0)
    inner: Any = env.unwrapped
    for _ in range(5):
        seen = env.step(np.zeros(env.action_space.shape, np.float32))[0]  # type: ignore[arg-type]
        before = [inner.data.xpos.copy(), inner.data.cfrc_ext.copy()]
        np.testing.assert_array_equal(seen, inner._get_obs())
        mujoco.mj_forward(inner.model, inner.data)
        mujoco.mj_rnePostConstraint(inner.model, inner.data)
        np.testing.assert_allclose(inner.data.xpos, before[0], atol=1e-12)
        np.testing.assert_allclose(inner.data.cfrc_ext, before[1], rtol=1e-3, atol=1e-3)
        seen_positions = seen[: inner.model.nq - 1] if env_id == "Walker2d-v5" else None
        if seen_positions is not None:
            np.testing.assert_array_equal(seen_positions, inner.data.qpos[1:])


def test_the_next_step_starts_from_the_moved_state() -> None:
    env = DynamicsNoise(gymnasium.make("InvertedPendulum-v5"), 0.05)
    env.reset(seed=0)
    seen = env.step(np.zeros(1, np.float32))[0]
    twin: Any = gymnasium.make("InvertedPendulum-v5").unwrapped
    twin.reset(seed=9)
    twin.set_state(seen[:2], seen[2:])
    own = env.unwrapped
    own.step(np.zeros(1, np.float32))  # without the noise of that step
    twin.step(np.zeros(1, np.float32))
    np.testing.assert_allclose(state(own), state(twin), atol=1e-8)


def test_quaternions_stay_normalised_and_really_turn() -> None:
    env = DynamicsNoise(gymnasium.make("Ant-v5"), 0.3)
    env.reset(seed=0)
    inner: Any = env.unwrapped
    turned = []
    for _ in range(20):
        before = inner.data.qpos[3:7].copy()
        env.step(np.zeros(8, np.float32))
        assert np.linalg.norm(inner.data.qpos[3:7]) == pytest.approx(1.0, abs=1e-12)
        turned.append(np.abs(inner.data.qpos[3:7] - before).max())
        assert np.isfinite(inner.data.qpos).all()
    assert np.mean(turned) > 0.03


@pytest.mark.parametrize("env_id", ["dsob_pl/PointMass-v0", "Hopper-v5", "Pendulum-v1"])
def test_the_environments_own_random_numbers_stay_as_they_are(env_id: str) -> None:
    noisy, plain = DynamicsNoise(gymnasium.make(env_id), 0.05), gymnasium.make(env_id)
    for seed in (4, None, 4):
        np.testing.assert_array_equal(noisy.reset(seed=seed)[0], plain.reset(seed=seed)[0])
        for _ in range(3):
            action = np.zeros(noisy.action_space.shape, np.float32)  # type: ignore[arg-type]
            ours, theirs = noisy.step(action), plain.step(action)
            assert not np.array_equal(ours[0], theirs[0])
            if "noise" in theirs[4]:
                np.testing.assert_array_equal(ours[4]["noise"], theirs[4]["noise"])
        assert noisy.unwrapped.np_random.bit_generator.state == plain.unwrapped.np_random.bit_generator.state


def test_pendulum_keeps_the_limit_of_its_velocity() -> None:
    env = DynamicsNoise(gymnasium.make("Pendulum-v1"), 1.0)
    env.reset(seed=0)
    seen = [env.step(np.zeros(1, np.float32))[0] for _ in range(100)]
    assert all(env.observation_space.contains(o) for o in seen)
    assert max(abs(o[2]) for o in seen) == 8.0


def test_the_spread_depends_on_the_environment_alone() -> None:
    env = gymnasium.make("InvertedPendulum-v5", max_episode_steps=3)
    first = state_spread(env)
    env.reset(seed=12)
    first[:] = 0  # the caller's to change
    again = state_spread(gymnasium.make("InvertedPendulum-v5", render_mode="rgb_array"))
    assert (again > 0).all()
    np.testing.assert_array_equal(state_spread(env), again)
    stiff = state_spread(gymnasium.make("InvertedPendulum-v5", frame_skip=1))
    assert not np.allclose(stiff, again)


class Brittle(ProblemEnv):
    """A point mass that breaks at its fifth step, or that cannot be reset."""

    def __init__(self, whole: bool = True) -> None:
        super().__init__(PointMass())
        self.whole, self.left = whole, 4

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if not self.whole:
            raise OSError("no start")
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise OSError("snapped\nin two")
        return super().step(action)


def test_an_environment_that_fails_under_random_actions_is_named_in_one_line() -> None:
    gymnasium.register("Brittle-v0", Brittle)
    try:
        with pytest.raises(UsageError, match=r"data.noise: .*Brittle-v0 raised at .*step 5: OSError: snapped in two"):
            make_env("Brittle-v0", noise=[DynamicsNoise])
        with pytest.raises(UsageError, match=r"data.noise: .*Brittle-v0 raised in reset .*no start"):
            make_env("Brittle-v0", env_kwargs={"whole": False}, noise=[DynamicsNoise])
    finally:
        del gymnasium.registry["Brittle-v0"]


def test_the_spread_is_that_of_random_actions() -> None:
    """Against a rollout written out here, of the point mass, whose law of states random actions decide."""
    env = ProblemEnv(PointMass())
    random, states = np.random.default_rng(5), []
    for episode in range(400):
        states.append(env.reset(seed=episode)[0])
        for _ in range(30):
            states.append(env.step(random.uniform(-1, 1, 2).astype(np.float32))[0])
    np.testing.assert_allclose(state_spread(gymnasium.make("dsob_pl/PointMass-v0")), np.std(states, 0), rtol=0.2)


def test_what_no_step_moves_is_left_alone() -> None:
    """The target of Reacher-v5 is part of its positions, drawn at each reset."""
    env = DynamicsNoise(gymnasium.make("Reacher-v5"), 0.2)
    env.reset(seed=0)
    target = env.unwrapped.data.qpos[2:].copy()  # type: ignore[attr-defined]
    arm = env.unwrapped.data.qpos[:2].copy()  # type: ignore[attr-defined]
    for _ in range(5):
        env.step(np.zeros(2, np.float32))
    np.testing.assert_array_equal(env.unwrapped.data.qpos[2:], target)  # type: ignore[attr-defined]
    assert (np.abs(env.unwrapped.data.qpos[:2] - arm) > 0.1).any()  # type: ignore[attr-defined]


CLIFF = {"gust_probability": 0.1, "spread": 1.75}
OWN = {"spread": 0.2}


def test_training_and_evaluation_have_the_same_noise_though_their_environments_differ() -> None:
    """The states of CLIFF spread twice as far where an episode begins all over the plane."""
    training, evaluation = (gymnasium.make("dsob_pl/Cliff-v0", **{**CLIFF, **own}) for own in ({}, OWN))
    unit, other = state_spread(training), state_spread(evaluation)
    assert (unit > 1.3 * other).all()
    data = ReplayDataModule("dsob_pl/Cliff-v0", env_kwargs=CLIFF, evaluation_env_kwargs=OWN, noise=[DynamicsNoise])
    data.setup("fit")
    config = {
        "data": {
            "env_kwargs": CLIFF,
            "evaluation_env_kwargs": OWN,
            "noise": [{"class_path": "dsob_pl.envs.DynamicsNoise", "init_args": {"scale": 0.02}}],
        }
    }
    again = make_env("dsob_pl/Cliff-v0", env_kwargs={**CLIFF, **OWN}, noise=build_noise(config))
    for env in (data._make_env(), data.evaluation_env, again):
        np.testing.assert_array_equal(deviation_of(env), 0.02 * unit)
    elsewhere = make_env("dsob_pl/Cliff-v0", env_kwargs={**CLIFF, **OWN}, noise=build_noise(config, own_env=False))
    np.testing.assert_array_equal(deviation_of(elsewhere), 0.02 * other)
    data.teardown("fit")
    wrapped = in_units_of([lambda env: ObservationNoise(DynamicsNoise(env))], CLIFF)
    below = make_env("dsob_pl/Cliff-v0", env_kwargs={**CLIFF, **OWN, "disable_env_checker": True}, noise=wrapped)
    np.testing.assert_array_equal(deviation_of(below), 0.02 * unit)
    same = in_units_of([DynamicsNoise], {**CLIFF, "disable_env_checker": True})
    again = make_env("dsob_pl/Cliff-v0", env_kwargs={**CLIFF, **OWN}, noise=same)
    np.testing.assert_array_equal(deviation_of(again), 0.02 * unit)


def deviation_of(env: gymnasium.Env) -> np.ndarray:
    while not isinstance(env, DynamicsNoise):
        env = env.env  # type: ignore[attr-defined]
    return env._deviation


def test_where_the_unit_is_measured_is_part_of_the_spec() -> None:
    env = DynamicsNoise(gymnasium.make("InvertedPendulum-v5"), spread_kwargs={"frame_skip": 1})
    assert env.spec is not None
    again = gymnasium.make(pickle.loads(pickle.dumps(env.spec)))
    np.testing.assert_array_equal(deviation_of(again), deviation_of(env))
    plain = deviation_of(DynamicsNoise(gymnasium.make("InvertedPendulum-v5")))
    assert not np.allclose(deviation_of(env), plain)
    with pytest.raises(UsageError, match=r"the environment with \{'nothing': 1\}, in which its unit is"):
        DynamicsNoise(gymnasium.make("InvertedPendulum-v5"), spread_kwargs={"nothing": 1})
