"""JACK: a step and its gradient by hand, the law of the jackpot, and a mean that does not depend on its rarity."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsob_pl.envs import Jack, make_env
from dsob_pl.errors import UsageError


def vector(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def bump(x: torch.Tensor, centre: float) -> float:
    return math.exp(-float((x - vector(centre, 0.0)).square().sum()) / (2 * 0.4**2))


def test_a_step_and_its_gradient_by_hand() -> None:
    problem = Jack(rarity=10).double()
    s, a = vector(0.5, 0.2), vector(1.0, -0.5)
    reached = vector(0.5 + 0.3 + 0.1, 0.2 - 0.15 - 0.05)
    boundary = float(torch.special.ndtri(vector(0.9)))
    for eps, jackpot in ((boundary - 1e-5, 0.0), (boundary + 1e-5, 10.0)):
        noise = vector(2.0, -1.0, eps)
        outcome = problem(s, a, noise)
        torch.testing.assert_close(outcome.s_next, reached)
        assert outcome.r.item() == pytest.approx(jackpot * bump(reached, 1.0) + 0.6 * bump(reached, -1.0), rel=1e-6)
        assert outcome.terminated.item() == 0.0
        slope = torch.autograd.functional.jacobian(lambda x, noise=noise: problem(s, x, noise).r, a)
        right, left = reached - vector(1, 0), reached + vector(1, 0)
        expected = -0.3 * (jackpot * bump(reached, 1.0) * right + 0.6 * bump(reached, -1.0) * left) / 0.16
        torch.testing.assert_close(slope, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 10])
def test_a_jackpot_of_n_comes_once_in_n_steps(n: int) -> None:
    problem = Jack(rarity=n, noise=0.0, sure=0.0).double()
    count = 40_000
    place = torch.tensor([1.0, 0.0]).double().expand(count, 2)
    r = problem(place, torch.zeros_like(place), torch.randn(count, 3).double()).r
    assert set(r.unique().tolist()) == ({0.0, float(n)} if n > 1 else {1.0})
    assert abs(r.mean() - 1) < 4 * math.sqrt((n - 1) / count) + 1e-12


@given(n=st.integers(1, 1000), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_the_mean_reward_is_the_same_for_every_n(n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    s, a = (2 * torch.rand(2, 2, generator=generator) - 1).double()
    means = []
    for problem in (Jack(rarity=1).double(), Jack(rarity=n).double()):
        nodes, weights = problem.noise_nodes(5)
        assert weights.sum().item() == pytest.approx(1, abs=1e-12)
        outcome = problem(s.expand(len(nodes), 2), a.expand(len(nodes), 2), nodes)
        means.append(float((weights * outcome.r).sum()))
    assert means[0] == pytest.approx(means[1], rel=1e-9)


def test_registered_with_ten_steps() -> None:
    env = make_env("dsob_pl/Jack-v0", env_kwargs={"rarity": 3})
    assert env.unwrapped.problem.rarity == 3  # type: ignore[attr-defined]
    assert env.spec is not None
    assert env.spec.max_episode_steps == 10


@pytest.mark.parametrize(
    ("arguments", "text"),
    [({"rarity": 0}, "Jack.rarity"), ({"rarity": 2.5}, "Jack.rarity"), ({"width": -1.0}, "Jack.width")],
)
def test_bad_arguments(arguments: dict, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Jack(**arguments)
