"""Problems with known dynamics: the environment is the torch model, and every bad argument is one clear line."""

from __future__ import annotations

import copy
import math
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from dsob_pl.envs import (
    Cliff,
    Jack,
    LinearQuadratic,
    MultiplicativeLinearQuadratic,
    PlanarProblem,
    PointMass,
    Problem,
    ProblemEnv,
    RewardChain,
    Rotation,
    Summit,
    make_env,
)
from dsob_pl.errors import UsageError

ENVIRONMENTS = {
    "dsob_pl/Cliff-v0": (Cliff, {"gust": 0.5}, 30),
    "dsob_pl/Jack-v0": (Jack, {"rarity": 3}, 10),
    "dsob_pl/LinearQuadratic-v0": (LinearQuadratic, {"noise": [0.3, 0.1]}, 20),
    "dsob_pl/MultiplicativeLinearQuadratic-v0": (MultiplicativeLinearQuadratic, {"noise": [0.3, 0.1]}, 20),
    "dsob_pl/PointMass-v0": (PointMass, {"locations": 3, "draw": "end"}, 30),
    "dsob_pl/Rotation-v0": (Rotation, {"rho": 1.15}, 20),
    "dsob_pl/RewardChain-v0": (RewardChain, {"action_size": 3}, 20),
    "dsob_pl/Summit-v0": (Summit, {"directions": 3}, 30),
}
NAMES = sorted(ENVIRONMENTS)
PROBLEMS = [
    LinearQuadratic(),
    LinearQuadratic(A=[[0.5]], B=[[1.0, 2.0]], noise=0.0),
    MultiplicativeLinearQuadratic(),
    MultiplicativeLinearQuadratic(A=[[0.5]], B=[[1.0, 2.0]], D=[[0.3, 0.1]]),
    Cliff(),
    PointMass(),
    PointMass(locations=1, draw="end"),
    Rotation(),
    RewardChain(),
    Summit(),
    Summit(directions=1),
    Jack(),
    Jack(rarity=1),
]


def distance(x: torch.Tensor, y: object) -> float:
    return float((x - torch.as_tensor(y)).abs().max())


@pytest.mark.parametrize("through", ["make_env", "gymnasium", "module"])
@pytest.mark.parametrize("env_id", NAMES)
def test_environment_and_model_agree_on_a_whole_episode(env_id: str, through: str) -> None:
    problem_class, arguments, limit = ENVIRONMENTS[env_id]
    if through == "make_env":
        env = make_env(env_id, env_kwargs=arguments)
    else:
        env = gymnasium.make(f"dsob_pl.envs:{env_id}" if through == "module" else env_id, **arguments)
    problem = problem_class(**arguments)
    assert isinstance(env.unwrapped.problem, problem_class)  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    ends = []
    for episode in range(5):
        observation, _ = env.reset(seed=episode)
        # the model's own states are carried on, so that errors would add up
        s = torch.from_numpy(observation)
        for step in range(1, limit + 1):
            action = rng.uniform(-1, 1, problem.action_size).astype(np.float32)
            observation, reward, terminated, truncated, info = env.step(action)
            assert observation.dtype == np.float32
            assert info["noise"].shape == (problem.noise_size,)
            s, r, ended = problem(s, torch.from_numpy(action), torch.from_numpy(info["noise"]))
            assert distance(s, observation) <= 1e-6 * max(1.0, float(s.abs().max()))
            assert float(r) == pytest.approx(reward, abs=1e-6, rel=1e-6)
            assert bool(ended) == terminated
            assert truncated == (step == limit)
            if terminated or truncated:
                break
        ends.append(step)
    draws_ends = arguments.get("draw") == "end"
    assert (min(ends) < limit) == draws_ends


@pytest.mark.filterwarnings("ignore:.*Box observation space (minimum|maximum) value is.*infinity.*")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("env_id", NAMES)
def test_gymnasiums_own_check_passes(env_id: str) -> None:
    check_env(gymnasium.make(env_id, **ENVIRONMENTS[env_id][1]).unwrapped)
    check_env(gymnasium.make(env_id).unwrapped)


def test_importing_the_environments_registers_them() -> None:
    code = (
        "import gymnasium; env = gymnasium.make('dsob_pl.envs:dsob_pl/PointMass-v0', locations=2); "
        "print(env.spec.max_episode_steps, len(env.unwrapped.problem.weights))"
    )
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["30", "2"], done.stderr


def test_the_spec_can_be_stored_as_json() -> None:
    spec = make_env("dsob_pl/PointMass-v0", env_kwargs={"locations": 2}).unwrapped.spec
    assert spec is not None
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(spec.to_json()))
    assert again.unwrapped.problem.weights.shape == (2,)  # type: ignore[attr-defined]


def test_noise_is_standard_normal_new_at_each_step_and_follows_the_seed() -> None:
    env = ProblemEnv(RewardChain(action_size=2))
    zero = np.zeros(2, np.float32)

    def draws(seed: int) -> np.ndarray:
        first = env.reset(seed=seed)[0]
        return np.stack([np.append(env.step(zero)[4]["noise"], first) for _ in range(2000)])

    one = draws(0)
    np.testing.assert_array_equal(one, draws(0))
    assert not np.isclose(one, draws(1)).any()
    assert np.abs(one[:, :4].mean(0)).max() < 4 / math.sqrt(2000)
    np.testing.assert_allclose(np.cov(one[:, :4].T), np.eye(4), atol=0.15)


def test_an_episode_can_begin_in_a_given_state() -> None:
    env = make_env("dsob_pl/PointMass-v0")
    observation, _ = env.reset(options={"state": [0.25, -3.0]})
    np.testing.assert_array_equal(observation, np.float32([0.25, -3.0]))
    observation[:] = 100.0  # the caller's own copy
    reached = env.step(np.zeros(2, np.float32))[0]
    assert np.abs(reached - [0.25, -3.0]).max() < 1.0
    kept = reached.copy()
    later = env.step(np.ones(2, np.float32))[0]
    np.testing.assert_array_equal(reached, kept)
    later[:] = 100.0
    assert np.abs(env.step(np.zeros(2, np.float32))[0] - kept).max() < 2.0
    for bad in ([1.0], [[0.0, 0.0]], [np.nan, 0.0], "ab"):
        with pytest.raises(UsageError, match="reset: state"):
            env.reset(options={"state": bad})
    with pytest.raises(UsageError, match="'sate'; did you mean 'state'"):
        env.reset(options={"sate": [0.0, 0.0]})


def test_an_action_of_another_size_is_not_broadcast_and_a_step_needs_a_reset() -> None:
    env = ProblemEnv(PointMass())
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(2, np.float32))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="reshape"):
        env.step(np.zeros(1, np.float32))


def test_actions_are_clipped_by_the_factory_and_not_by_the_environment() -> None:
    far = np.array([3.0, 0.0], np.float32)
    reached = {}
    for name, env in {"raw": ProblemEnv(PointMass(noise=0.0)), "made": make_env("dsob_pl/PointMass-v0")}.items():
        env.reset(options={"state": [0.0, 0.0]})
        reached[name] = env.step(far)[0][0]
    assert reached["raw"] == pytest.approx(0.9)
    assert reached["made"] < 0.3 + 0.6


@pytest.mark.parametrize("env_id", NAMES)
def test_there_are_no_frames(env_id: str) -> None:
    env = make_env(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render() is None


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: type(p).__name__)
@given(shape=st.lists(st.integers(1, 3), max_size=3), seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_any_batch_shape_gives_what_single_rows_give(problem: Problem, shape: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = (problem.observation_size, problem.action_size, problem.noise_size)
    s, a, eps = (torch.randn(*shape, n, generator=generator).double() for n in sizes)
    exact = copy.deepcopy(problem).double()
    outcome = exact(s, a, eps)
    assert outcome.s_next.shape == s.shape
    assert outcome.r.shape == outcome.terminated.shape == tuple(shape)
    assert all(x.dtype == torch.float64 for x in outcome)
    rows = [exact(*row) for row in zip(*(x.reshape(-1, n) for x, n in zip((s, a, eps), sizes)))]
    for whole, single in zip(outcome, zip(*rows)):
        torch.testing.assert_close(whole.reshape(len(rows), -1), torch.stack(single).reshape(len(rows), -1))
    # noise of a transition broadcasts over the samples of a target
    torch.testing.assert_close(exact(s.expand(4, *s.shape), a.expand(4, *a.shape), eps).r[2], outcome.r)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: type(p).__name__)
def test_derivatives_exist_and_equal_differences(problem: Problem) -> None:
    exact = copy.deepcopy(problem).double()
    sizes = (exact.observation_size, exact.action_size, exact.noise_size)
    s, a, eps = (torch.randn(6, n).double() for n in sizes)
    s, a = s.requires_grad_(), a.requires_grad_()

    def step(s: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outcome = exact(s, a, eps)
        assert not outcome.terminated.requires_grad
        return outcome.s_next, outcome.r

    assert torch.autograd.gradcheck(step, (s, a))
    # neither input may be cut off: autograd raises where one plays no part
    torch.autograd.grad(sum(x.sum() for x in step(s, a)), (s, a))
    # and the transforms that measure gamma*kappa go through
    torch.func.vmap(torch.func.jacrev(lambda s, a, eps: exact(s, a, eps).s_next))(s.detach(), a.detach(), eps)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: type(p).__name__)
def test_a_problem_leaves_nothing_in_a_checkpoint(problem: Problem) -> None:
    assert not problem.state_dict()
    assert not list(problem.parameters())


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: type(p).__name__)
def test_inferred_noise_repeats_the_step(problem: Problem) -> None:
    exact = copy.deepcopy(problem).double()
    s, a, eps = (torch.randn(9, n).double() for n in (exact.observation_size, exact.action_size, exact.noise_size))
    outcome = exact(s, a, eps)
    inferred = exact.infer_noise(s, a, outcome.r, outcome.s_next)
    if isinstance(problem, MultiplicativeLinearQuadratic | PlanarProblem | RewardChain):
        assert inferred is None
        return
    silent = isinstance(problem, LinearQuadratic) and bool((problem.noise == 0).any())
    torch.testing.assert_close(inferred, torch.zeros_like(eps) if silent else eps)
    torch.testing.assert_close(exact(s, a, inferred), outcome)


BAD = [
    ("LinearQuadratic", {"A": [[1.0, 0.0]]}, ["LinearQuadratic.A", "shape [1, 1]", "got [1, 2]"]),
    ("LinearQuadratic", {"A": [1.0, 0.0]}, ["LinearQuadratic.A", "got [2]"]),
    ("LinearQuadratic", {"A": []}, ["LinearQuadratic.A", "got [0]"]),
    ("LinearQuadratic", {"A": [[]]}, ["LinearQuadratic.A", "got [1, 0]"]),
    ("LinearQuadratic", {"A": [[1.0, 0.0], [1.0]]}, ["LinearQuadratic.A", "numbers"]),
    ("LinearQuadratic", {"A": "eye"}, ["LinearQuadratic.A", "'eye'"]),
    ("LinearQuadratic", {"A": [[math.nan, 0.0], [0.0, 1.0]]}, ["LinearQuadratic.A", "finite", "nan"]),
    ("LinearQuadratic", {"B": [[1.0, 0.0]]}, ["LinearQuadratic.B", "shape [2, any]", "got [1, 2]"]),
    ("LinearQuadratic", {"B": [[1.0], [0.0]], "R": [[1.0, 0.0], [0.0, 1.0]]}, ["LinearQuadratic.R", "shape [1, 1]"]),
    ("LinearQuadratic", {"Q": [[1.0]]}, ["LinearQuadratic.Q", "shape [2, 2]", "got [1, 1]"]),
    ("LinearQuadratic", {"Q": [[1.0, 0.5], [0.0, 1.0]]}, ["LinearQuadratic.Q", "symmetric"]),
    ("LinearQuadratic", {"R": [[1.0, 0.5], [0.4, 1.0]]}, ["LinearQuadratic.R", "symmetric"]),
    ("LinearQuadratic", {"R": [[math.inf, 0.0], [0.0, 1.0]]}, ["LinearQuadratic.R", "finite"]),
    ("LinearQuadratic", {"noise": -0.1}, ["LinearQuadratic.noise", "-0.1"]),
    ("LinearQuadratic", {"noise": [0.1, -0.1]}, ["LinearQuadratic.noise", "at least 0"]),
    ("LinearQuadratic", {"noise": [0.1]}, ["LinearQuadratic.noise", "shape [2]", "got [1]"]),
    ("LinearQuadratic", {"noise": "loud"}, ["LinearQuadratic.noise", "'loud'"]),
    ("LinearQuadratic", {"spread": math.inf}, ["LinearQuadratic.spread", "inf"]),
    ("LinearQuadratic", {"a": [[1.0]]}, ["'a' is not an argument of LinearQuadratic"]),
    ("PointMass", {"locations": 0}, ["PointMass.locations", "at least 1", "0"]),
    ("PointMass", {"locations": 2.5}, ["PointMass.locations", "2.5"]),
    ("PointMass", {"locations": True}, ["PointMass.locations", "True"]),
    ("PointMass", {"width": 0.0}, ["PointMass.width", "above 0"]),
    ("PointMass", {"width": "wide"}, ["PointMass.width", "'wide'"]),
    ("PointMass", {"draw": "stop"}, ["PointMass.draw", "'step' or 'end'", "did you mean 'step'?"]),
    ("PointMass", {"draw": None}, ["PointMass.draw", "None"]),
    ("PointMass", {"end_probability": 0.0}, ["PointMass.end_probability", "(0, 1]"]),
    ("PointMass", {"end_probability": 1.1}, ["PointMass.end_probability", "(0, 1]"]),
    ("PointMass", {"seed": -1}, ["PointMass.seed", "-1"]),
    ("PointMass", {"noise": -1.0}, ["PointMass.noise"]),
    ("PointMass", {"spread": math.nan}, ["PointMass.spread", "nan"]),
    ("PointMass", {"step_size": math.inf}, ["PointMass.step_size", "inf"]),
    ("PointMass", {"widht": 1.0}, ["'widht' is not an argument of PointMass", "did you mean 'width'?"]),
    ("Cliff", {"gst": 0.0}, ["'gst' is not an argument of Cliff", "did you mean 'gust'?"]),
    ("Rotation", {"rho": -0.1}, ["Rotation.rho", "at least 0"]),
    ("Rotation", {"phi": "right"}, ["Rotation.phi", "'right'"]),
    ("Rotation", {"action_gain": math.nan}, ["Rotation.action_gain", "nan"]),
    ("Rotation", {"noise": -1}, ["Rotation.noise", "-1"]),
    ("RewardChain", {"action_size": 0}, ["RewardChain.action_size", "at least 1"]),
    ("RewardChain", {"reward_std": -1.0}, ["RewardChain.reward_std"]),
    ("RewardChain", {"gradient_std": math.inf}, ["RewardChain.gradient_std"]),
]


@pytest.mark.parametrize(("name", "arguments", "parts"), BAD)
def test_bad_arguments_are_one_line_through_the_factory(name: str, arguments: dict, parts: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        make_env(f"dsob_pl/{name}-v0", env_kwargs=arguments)
    message = str(raised.value)
    assert message.startswith("data.env_kwargs: ")
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_an_unknown_id_names_the_nearest_problem() -> None:
    with pytest.raises(UsageError, match="did you mean 'dsob_pl/PointMass-v0'"):
        make_env("dsob_pl/PointMas-v0")


def test_a_problem_can_be_written_in_a_config_file() -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(Problem, "problem")
    text = '{"class_path": "dsob_pl.envs.LinearQuadratic", "init_args": {"A": [[0.5]], "noise": [0.1], "B": [[1, 2]]}}'
    problem = parser.instantiate_classes(parser.parse_args([f"--problem={text}"])).problem
    assert isinstance(problem, LinearQuadratic)
    torch.testing.assert_close(problem.B, torch.tensor([[1.0, 2.0]]))
