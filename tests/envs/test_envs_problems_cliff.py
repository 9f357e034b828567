"""CLIFF: a step and its gradient by hand, how often it gusts, and where nothing happens."""

from __future__ import annotations

import math

import pytest
import torch

from dsob_pl.envs import Cliff, make_env
from dsob_pl.errors import UsageError


def vector(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def reward_by_hand(x: float, y: float) -> float:
    u, v = (x + y) / math.sqrt(2), (y - x) / math.sqrt(2)
    goal = 1 / (1 + ((x - 0.75) ** 2 + (y - 0.75) ** 2) / 0.8**2)
    return goal - 4.0 * math.exp(-(u**2) / (2 * 0.35**2)) / (1 + math.exp((v + 0.35) / 0.1))


@pytest.mark.parametrize("hit", [False, True])
def test_a_step_and_its_gradient_by_hand(hit: bool) -> None:
    problem = Cliff().double()
    boundary = float(torch.special.ndtri(vector(0.9)))
    s, a, eps = vector(-0.2, 0.1), vector(1.0, -0.5), vector(2.0, -1.0, boundary + (1e-5 if hit else -1e-5))
    x, y = -0.2 + 0.3, 0.1 - 0.15
    thrown = 0.8 * math.exp(-((x + y) ** 2 / 2) / (2 * 0.35**2)) if hit else 0.0
    x, y = x + thrown / math.sqrt(2) + 0.1, y - thrown / math.sqrt(2) - 0.05
    outcome = problem(s, a, eps)
    assert outcome.s_next.tolist() == pytest.approx([x, y], abs=1e-6)
    assert outcome.r.item() == pytest.approx(reward_by_hand(x, y), abs=1e-5)
    assert outcome.terminated.item() == 0.0
    # With the throw a function of the position along the diagonal, its slope along either axis is the same.
    here = -0.2 + 0.3 + 0.1 - 0.15
    bend = 0.8 * math.exp(-(here**2) / (4 * 0.35**2)) * here / (2 * 0.35**2) / math.sqrt(2) if hit else 0.0
    expected = 0.3 * vector(1 - bend, -bend, bend, 1 + bend).view(2, 2)
    slope = torch.autograd.functional.jacobian(lambda a: problem(s, a, eps).s_next, a)
    torch.testing.assert_close(slope, expected, atol=1e-6, rtol=1e-6)
    d = 1e-5
    differences = [
        (reward_by_hand(x + i * d, y + j * d) - reward_by_hand(x - i * d, y - j * d)) / (2 * d)
        for i, j in ((1, 0), (0, 1))
    ]
    found = torch.autograd.functional.jacobian(lambda a: problem(s, a, eps).r, a)
    torch.testing.assert_close(found, vector(*differences) @ expected, atol=1e-4, rtol=1e-4)


def test_gusts_come_as_often_as_they_should_and_only_in_the_gap() -> None:
    problem = Cliff(gust_probability=0.3, noise=0.0).double()
    n = 20_000
    eps = torch.randn(n, 3, generator=torch.Generator().manual_seed(0)).double()
    thrown = problem(torch.zeros(n, 2).double(), torch.zeros(n, 2).double(), eps).s_next.norm(dim=-1)
    assert set(thrown.round(decimals=6).tolist()) == {0.0, 0.8}
    assert (thrown > 0).double().mean().item() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / n))
    at_the_goal = problem.goal.expand(n, 2)
    moved = problem(at_the_goal, torch.zeros(n, 2).double(), eps)
    assert (moved.s_next - at_the_goal).abs().max() < 0.01
    assert moved.r.min() > 0.95


def test_the_ground_ends_at_the_edge_and_only_in_the_gap() -> None:
    problem = Cliff().double()
    across = vector(-1, 1) / math.sqrt(2)
    assert problem.fall(-0.35 * across).item() == pytest.approx(0.5)
    assert problem.fall(-1.0 * across) > 0.99
    assert problem.fall(0.0 * across) < 0.04
    assert problem.fall(-problem.goal - across) < 0.02


def test_first_positions_are_around_the_start() -> None:
    first = Cliff(spread=0.2).initial_state(torch.randn(1000, 2))
    assert first.min() >= -0.95
    assert first.max() <= -0.55
    torch.testing.assert_close(first.mean(0), torch.tensor([-0.75, -0.75]), atol=0.02, rtol=0)


def test_noise_nodes_have_the_law_of_a_step() -> None:
    problem = Cliff().double()
    nodes, weights = problem.noise_nodes(5)
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    n = 200_000
    s, a = vector(-0.3, -0.1), vector(0.5, 0.5)
    by_nodes = problem(s.expand(len(nodes), 2), a.expand(len(nodes), 2), nodes)
    drawn = problem(
        s.expand(n, 2), a.expand(n, 2), torch.randn(n, 3, generator=torch.Generator().manual_seed(0)).double()
    )
    for ours, theirs in ((by_nodes.s_next[:, 0], drawn.s_next[:, 0]), (by_nodes.r, drawn.r)):
        assert abs((weights * ours).sum() - theirs.mean()) < 4 * theirs.std() / math.sqrt(n)


def test_registered_with_thirty_steps() -> None:
    env = make_env("dsob_pl/Cliff-v0", env_kwargs={"gust": 0.5})
    assert env.unwrapped.problem.gust == 0.5  # type: ignore[attr-defined]
    assert env.spec is not None
    assert env.spec.max_episode_steps == 30


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"gust_probability": 1.0}, r"Cliff.gust_probability: expected a finite number in \(0, 1\), got 1.0"),
        ({"softness": 0.0}, "Cliff.softness"),
        ({"width": -1.0}, "Cliff.width"),
        ({"goal_width": "wide"}, "Cliff.goal_width"),
        ({"depth": math.nan}, "Cliff.depth"),
        ({"noise": -0.1}, "Cliff.noise"),
    ],
)
def test_bad_arguments(arguments: dict, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Cliff(**arguments)
