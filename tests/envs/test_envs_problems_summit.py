"""SUMMIT: a step and its gradient by hand, the law of the throw, and what the mean next state hides."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsob_pl.envs import Summit, make_env
from dsob_pl.errors import UsageError


def vector(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_a_step_by_hand() -> None:
    problem = Summit(directions=4).double()
    s, a = vector(0.2, -0.1), vector(0.5, 1.0)
    throw = 1.2 * math.exp(-(0.35**2 + 0.2**2) / 0.245)
    paid = math.exp(-0.05 / 0.245) + 0.6 * math.exp(-((0.2 - 0.5**0.5) ** 2 + (-0.1 - 0.5**0.5) ** 2) / 0.245)
    # quarters of the normal law, in order: right, up, left, down
    for eps, (x, y) in zip((-1.0, -0.3, 0.3, 1.0), ((1, 0), (0, 1), (-1, 0), (0, -1))):
        outcome = problem(s, a, vector(2.0, -1.0, eps))
        expected = vector(0.35 + throw * x + 0.1, 0.2 + throw * y - 0.05)
        torch.testing.assert_close(outcome.s_next, expected, atol=1e-7, rtol=0)  # its constants are float32
        assert outcome.r.item() == pytest.approx(paid, abs=1e-6)
        assert outcome.terminated.item() == 0.0


def test_the_gradient_by_hand() -> None:
    problem = Summit(directions=1).double()
    s, a, eps = vector(0.2, -0.1), vector(0.5, 1.0), vector(0.0, 0.0, 0.7)
    by_a = torch.autograd.functional.jacobian(lambda x: problem(s, x, eps).s_next, a)
    y = vector(0.35, 0.2)
    expected = torch.eye(2).double()
    expected[0] -= 1.2 * math.exp(-float(y.square().sum()) / 0.245) * y / 0.35**2  # thrown to the right
    torch.testing.assert_close(by_a, 0.3 * expected)
    by_s = torch.autograd.functional.jacobian(lambda x: problem(x, a, eps).r, s)
    bumps = [math.exp(-float((s - c).square().sum()) / 0.245) for c in (vector(0, 0), vector(-1, 0))]
    slope = -(bumps[0] * s + 0.6 * bumps[1] * (s - vector(-1, 0))) / 0.35**2
    torch.testing.assert_close(by_s, slope, atol=1e-6, rtol=0)


@pytest.mark.parametrize("n", [1, 2, 5, 10])
def test_directions_are_equally_likely(n: int) -> None:
    problem = Summit(directions=n, noise=0.0).double()
    count = 40_000
    origin = torch.zeros(count, 2).double()
    landed = problem(origin, origin, torch.randn(count, 3).double()).s_next
    torch.testing.assert_close(landed.norm(dim=-1), torch.full((count,), 1.2).double())
    k = (torch.atan2(landed[:, 1], landed[:, 0]) * n / (2 * math.pi)).round().long() % n
    drawn = torch.bincount(k, minlength=n) / count
    assert (drawn - 1 / n).abs().max() < 4 * math.sqrt((1 - 1 / n) / n / count) + 1e-9


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_mean_next_state_stays_on_the_summit_and_no_throw_lands_on_a_bump(n: int) -> None:
    problem = Summit(directions=n, noise=0.0).double()
    nodes, weights = problem.noise_nodes(1)
    zero = torch.zeros(n, 2).double()
    landed = problem(zero, zero, nodes).s_next
    torch.testing.assert_close((weights.unsqueeze(-1) * landed).sum(0), vector(0, 0), atol=1e-6, rtol=0)
    assert problem.present_reward(landed).max() < (0.02 if n < 5 else 0.25)
    assert problem.present_reward(zero[0]).item() == pytest.approx(1.0, abs=0.02)
    assert problem.present_reward(problem.side).item() == pytest.approx(0.6, abs=0.02)


@given(n=st.integers(1, 12), turn=st.integers(0, 11), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_the_throw_turns_with_the_directions(n: int, turn: int, seed: int) -> None:
    """Turning position and action by one direction more turns the set of next positions, and leaves its weights."""
    problem = Summit(directions=n, noise=0.0).double()
    nodes, _ = problem.noise_nodes(1)
    angle = 2 * math.pi * (turn % n) / n
    matrix = vector(math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)).view(2, 2)
    s, a = torch.rand(2, 2, generator=torch.Generator().manual_seed(seed)).double() - 0.5
    here = problem(s.expand(n, 2), a.expand(n, 2), nodes).s_next @ matrix.mT
    there = problem((matrix @ s).expand(n, 2), (matrix @ a).expand(n, 2), nodes).s_next
    torch.testing.assert_close(here.roll(turn % n, 0), there, atol=1e-6, rtol=0)


def test_registered_with_a_limit_and_first_positions_near_the_summit() -> None:
    env = make_env("dsob_pl/Summit-v0", env_kwargs={"directions": 2})
    assert env.unwrapped.problem.directions == 2  # type: ignore[attr-defined]
    assert env.spec is not None
    assert env.spec.max_episode_steps == 30
    assert max(abs(env.reset(seed=i)[0]).max() for i in range(50)) <= 0.25


@pytest.mark.parametrize(
    ("arguments", "text"),
    [({"directions": 0}, "Summit.directions"), ({"width": 0.0}, "Summit.width"), ({"noise": -1}, "Summit.noise")],
)
def test_bad_arguments(arguments: dict, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Summit(**arguments)
