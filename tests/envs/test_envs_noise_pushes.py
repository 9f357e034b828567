"""Random pushes: their momentum by hand, how often and whereto, their seeds, and a robot that goes on where it was."""

from __future__ import annotations

from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dsob_pl.envs import RandomPushes, RewardNoise, environment_state, make_env, restore_environment
from dsob_pl.errors import UsageError


def play(env: gymnasium.Env, steps: int, seed: int | None = 0) -> list[tuple]:
    env.reset(seed=seed)
    played = []
    for t in range(steps):
        played.append(env.step(np.full(env.action_space.shape, np.sin(t), np.float32)))  # type: ignore[arg-type]
        if played[-1][2] or played[-1][3]:
            env.reset()
    return played


def momentum(env: gymnasium.Env) -> np.ndarray:
    """Linear momentum of the whole robot ``[3]``."""
    model, data = env.unwrapped.model, env.unwrapped.data  # type: ignore[attr-defined]
    mujoco.mj_subtreeVel(model, data)
    return np.array(model.body_subtreemass[1] * data.subtree_linvel[1])


@pytest.mark.parametrize("env_id", ["Walker2d-v5", "Hopper-v5", "Humanoid-v5"])
def test_a_push_gives_the_whole_robot_its_speed(env_id: str) -> None:
    pushed, plain = RandomPushes(gymnasium.make(env_id), 0.01, 1.0), gymnasium.make(env_id)
    still: Any = np.zeros(plain.action_space.shape, np.float32)  # type: ignore[arg-type]
    found = []
    for env in (pushed, plain):
        env.reset(seed=3)
        env.unwrapped.model.opt.gravity[:] = 0  # type: ignore[attr-defined]  (in the air, where nothing else acts on it)
        lifted = env.unwrapped.data.qpos.copy()  # type: ignore[attr-defined]
        lifted[2 if env_id == "Humanoid-v5" else 1] += 3.0
        env.unwrapped.set_state(lifted, np.zeros_like(env.unwrapped.data.qvel))  # type: ignore[attr-defined]
        info = env.step(still)[4]
        mujoco.mj_forward(env.unwrapped.model, env.unwrapped.data)  # type: ignore[attr-defined]
        found.append(momentum(env))
        if env is pushed:
            force, mass = info["push"], env.unwrapped.model.body_subtreemass[1]  # type: ignore[attr-defined]
    assert np.linalg.norm(force) == pytest.approx(mass * 0.01 / plain.unwrapped.dt)  # type: ignore[attr-defined]
    # Friction in the joints of a rail acts too, and the force turns the robot a little within the step.
    np.testing.assert_allclose((found[0] - found[1])[:2], force * plain.unwrapped.dt, rtol=0.05, atol=0.002 * mass)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("env_id", "free"), [("Walker2d-v5", False), ("Ant-v5", True)])
def test_how_often_and_whereto(env_id: str, free: bool) -> None:
    n, probability = 1500, 0.2
    played = play(RandomPushes(gymnasium.make(env_id), 0.001, probability), n)
    pushes = np.stack([step[4]["push"] for step in played])
    hit = np.linalg.norm(pushes, axis=1) > 0
    assert hit.mean() == pytest.approx(probability, abs=4 * np.sqrt(probability * (1 - probability) / n))
    assert abs((hit[1:] & hit[:-1]).mean() - probability**2) < 0.03
    turns = pushes[hit] / np.linalg.norm(pushes[hit], axis=1, keepdims=True)
    np.testing.assert_allclose(turns.mean(0), 0, atol=4 / np.sqrt(hit.sum()))
    if free:
        np.testing.assert_allclose(np.cov(turns.T), np.eye(2) / 2, atol=0.15)
    else:
        np.testing.assert_array_equal(np.abs(turns), np.array([[1.0, 0.0]]).repeat(len(turns), 0))


def test_a_push_lasts_one_step_and_its_reward_is_that_of_the_simulator() -> None:
    env, twin = RandomPushes(gymnasium.make("Walker2d-v5"), 0.3, 1.0), gymnasium.make("Walker2d-v5")
    inner, other = env.unwrapped, twin.unwrapped
    action = np.zeros(6, np.float32)
    for e in (env, twin):
        e.reset(seed=5)
    _, reward, _, _, info = env.step(action)
    assert not inner.data.xfrc_applied.any()  # type: ignore[attr-defined]
    other.data.xfrc_applied[1, 0] = info["push"][0]  # type: ignore[attr-defined]
    observation, expected = twin.step(action)[:2]
    assert reward == expected
    np.testing.assert_array_equal(observation, inner._get_obs())  # type: ignore[attr-defined]


def test_seeds_decide_and_the_environments_own_numbers_stay() -> None:
    def numbers(env: gymnasium.Env, seed: int) -> np.ndarray:
        return np.stack([step[0] for step in play(env, 60, seed)])

    env = RandomPushes(gymnasium.make("Hopper-v5"), 0.1, 0.3)
    first = numbers(env, 7)
    np.testing.assert_array_equal(first, numbers(env, 7))
    np.testing.assert_array_equal(first, numbers(RandomPushes(gymnasium.make("Hopper-v5"), 0.1, 0.3), 7))
    assert not np.array_equal(first, numbers(env, 8))
    plain = numbers(gymnasium.make("Hopper-v5"), 7)
    for scale, probability in ((0.0, 1.0), (1.0, 0.0)):
        silent = RandomPushes(gymnasium.make("Hopper-v5"), scale, probability)
        np.testing.assert_array_equal(numbers(silent, 7), plain)
    # The times of pushes that come rarely are among those that come often, and so are their directions.
    few, many = (
        np.stack([s[4]["push"] for s in play(RandomPushes(gymnasium.make("Hopper-v5"), 1e-6, p), 200)])
        for p in (0.1, 0.5)
    )
    assert 0 < few.any(1).sum() < many.any(1).sum()
    np.testing.assert_array_equal(few[few.any(1)], many[few.any(1)])
    assert RandomPushes.tag != RewardNoise.tag


def test_it_goes_on_in_mid_episode_as_it_would_have() -> None:
    noise = [lambda env: RandomPushes(env, 0.2, 0.3)]
    env, other = make_env("Walker2d-v5", noise=noise), make_env("Walker2d-v5", noise=noise)
    play(env, 23)
    state = environment_state(env)

    def rest(env: gymnasium.Env) -> list[bytes]:
        return [env.step(np.full(6, np.cos(t), np.float32))[0].tobytes() for t in range(30)]

    expected = rest(env)
    restore_environment(other, state)
    assert rest(other) == expected


@pytest.mark.filterwarnings("ignore")
def test_gymnasium_accepts_and_remakes_the_wrapper() -> None:
    env = RandomPushes(gymnasium.make("Walker2d-v5"), 0.1, 0.25)
    check_env(env, skip_render_check=True)
    assert env.spec is not None
    again = gymnasium.make(env.spec)
    assert isinstance(again, RandomPushes)
    assert (again.scale, again.probability) == (0.1, 0.25)


@pytest.mark.parametrize(
    ("env_id", "arguments", "parts"),
    [
        ("Pendulum-v1", {}, ["'Pendulum-v1' is not a MuJoCo environment", "Walker2d-v5"]),
        ("Walker2d-v5", {"probability": 1.1}, ["probability: expected a number in [0, 1], got 1.1"]),
        ("Walker2d-v5", {"probability": True}, ["probability", "True"]),
        ("Walker2d-v5", {"scale": -1.0}, ["scale", "-1.0"]),
    ],
)
def test_pushes_that_cannot_be_are_one_line(env_id: str, arguments: dict, parts: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        make_env(env_id, noise=[lambda env: RandomPushes(env, **arguments)])
    message = str(raised.value)
    assert message.startswith("data.noise: RandomPushes: ")
    assert "\n" not in message
    for part in parts:
        assert part in message
