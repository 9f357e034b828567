"""The environment factory: spaces, the exactness of the action map, and one clear line for every bad id."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from gymnasium.utils.env_checker import check_env

from dsob_pl.envs import make_env
from dsob_pl.errors import UsageError

PACKAGE = '''
import gymnasium
import numpy as np
from gymnasium.spaces import Box


class Echo(gymnasium.Env):
    """Returns the action it was given as a picture, the one way to see what arrives behind the wrappers."""

    def __init__(self, actions=None, observations=None):
        self.action_space = actions or Box(np.array([[-3.0], [1.0]]), np.array([[7.0], [1.5]]), dtype=np.float64)
        self.observation_space = observations or Box(-np.inf, np.inf, (2, 1), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros((2, 1)), {}

    def step(self, action):
        assert action.dtype == self.action_space.dtype and action.shape == (2, 1)
        return action, 0.0, False, False, {}


gymnasium.register("Echo-v0", Echo, disable_env_checker=True)
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "echo_package.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "echo_package"
    gymnasium.registry.pop("Echo-v0", None)
    sys.modules.pop("echo_package", None)


@pytest.mark.parametrize(("env_id", "s", "a"), [("Pendulum-v1", 3, 1), ("Hopper-v5", 11, 3), ("Walker2d-v5", 17, 6)])
def test_spaces_are_flat_and_unit(env_id: str, s: int, a: int) -> None:
    env = make_env(env_id)
    assert env.observation_space.shape == (s,)
    assert env.action_space == Box(-1.0, 1.0, (a,), np.float32)


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version.*")
def test_the_wrapped_environment_passes_gymnasiums_own_check() -> None:
    check_env(make_env("Pendulum-v1"), skip_render_check=True)


def test_actions_are_mapped_exactly_clipped_and_reshaped(package: str) -> None:
    env = make_env(f"{package}:Echo-v0")
    env.reset(seed=0)
    assert env.action_space == Box(-1.0, 1.0, (2,), np.float32)
    assert env.observation_space.shape == (2,)
    for action, arrived in [
        ([-1.0, -1.0], [-3.0, 1.0]),
        ([1.0, 1.0], [7.0, 1.5]),
        ([0.0, 0.0], [2.0, 1.25]),
        ([0.5, -0.5], [4.5, 1.125]),
        ([-9.0, 1.0 + 1e-6], [-3.0, 1.5]),
    ]:
        observation = env.step(np.array(action, dtype=np.float32))[0]
        np.testing.assert_array_equal(observation, arrived)


def test_pendulum_torque_is_twice_the_action() -> None:
    env, raw = make_env("Pendulum-v1"), gymnasium.make("Pendulum-v1")
    env.reset(seed=3)
    raw.reset(seed=3)
    for action in np.linspace(-1.0, 1.0, 9, dtype=np.float32):
        ours, theirs = env.step(np.array([action])), raw.step(np.array([2.0 * action]))
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1:4] == theirs[1:4]


def test_env_kwargs_reach_gymnasium_and_the_environment() -> None:
    env = make_env("Walker2d-v5", env_kwargs={"max_episode_steps": 7, "forward_reward_weight": 3.0})
    assert env.spec is not None
    assert env.spec.max_episode_steps == 7
    assert env.unwrapped._forward_reward_weight == 3.0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("env_id", "env_kwargs", "parts"),
    [
        ("Walker2D-v5", None, ["Walker2D-v5", "did you mean 'Walker2d-v5'?"]),
        ("Walker2d", None, ["did you mean 'Walker2d-v5'?"]),
        ("Walker2d-v9", None, ["did you mean 'Walker2d-v5'?"]),
        ("Wlker2d-v5", None, ["did you mean 'Walker2d-v5'?"]),
        ("Walker2d-v3", None, ["Walker2d-v3", "moved to the gymnasium-robotics"]),
        ("nowhere/Walker-v0", None, ["nowhere/Walker-v0"]),
        ("not_a_module:Thing-v0", None, ["not_a_module", "cannot be imported"]),
        ("json:Thing-v0", None, ["no environment 'Thing-v0'"]),
        ("a:b:c", None, ["data.env_id", "'a:b:c'"]),
        ("", None, ["data.env_id"]),
        (None, None, ["data.env_id", "None"]),
        ("CartPole-v1", None, ["CartPole-v1", "Discrete(2)", "continuous Box"]),
        ("Blackjack-v1", None, ["observation space", "Box"]),
        ("Walker2d-v5", {"frame_skp": 4}, ["data.env_kwargs", "'frame_skp'", "did you mean 'frame_skip'?"]),
        ("Pendulum-v1", {"gravity_of_mars": 3.7}, ["data.env_kwargs", "'gravity_of_mars'", "Pendulum-v1"]),
        ("Walker2d-v5", {"xml_file": "missing.xml"}, ["missing.xml"]),
        ("Pendulum-v1", {"max_episode_steps": -5}, ["max_episode_steps", "positive"]),
        ("Pendulum-v1", {"render_mode": "human"}, ["data.env_kwargs", "render_mode"]),
        ("Pendulum-v1", ["g"], ["data.env_kwargs", "mapping"]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*out of date.*")
def test_bad_input_is_one_line_that_names_it(env_id: str, env_kwargs: dict | None, parts: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        make_env(env_id, env_kwargs=env_kwargs)
    message = str(raised.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("spaces", "part"),
    [
        ({"actions": Box(np.array([[-np.inf], [0.0]]), np.ones((2, 1)), dtype=np.float64)}, "unbounded action space"),
        ({"actions": Box(0, 5, (2, 1), np.int64)}, "continuous Box"),
        ({"observations": gymnasium.spaces.Dict({"x": Box(0.0, 1.0, (2,))})}, "observation space"),
    ],
)
def test_spaces_that_do_not_fit_are_refused(package: str, spaces: dict, part: str) -> None:
    with pytest.raises(UsageError, match=part) as raised:
        make_env(f"{package}:Echo-v0", env_kwargs=spaces)
    assert "\n" not in str(raised.value)
