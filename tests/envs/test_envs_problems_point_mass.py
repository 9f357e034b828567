"""The point mass: geometry without symmetry, and the laws of reward and end under both draws."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from dsob_pl.envs import PointMass


def bumps(problem: PointMass, p: Tensor) -> Tensor:
    """What each location would pay at ``p [2]``: ``[N]``."""
    squares = (p - problem.centres).square().sum(-1)
    return problem.heights * torch.exp(-squares / (2 * problem.width**2))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("locations", [1, 2, 3, 5, 10])
def test_locations_have_no_symmetry(locations: int, seed: int) -> None:
    problem = PointMass(locations=locations, seed=seed).double()
    radii = problem.centres.norm(dim=-1)
    assert problem.centres.shape == (locations, 2)
    assert radii.min() >= 0.8
    assert radii.max() <= 1.6
    assert problem.weights.sum().item() == pytest.approx(1, abs=1e-6)
    assert (problem.weights > 1 / (3.5 * locations)).all()
    assert problem.heights.min() >= 0.5
    assert problem.heights.max() <= 1.5
    # distinct by a margin, so that an isometry that maps the set to itself has to fix every location
    for values, range_ in ((radii, 0.8), (problem.heights, 1.0), (problem.weights * locations, 0.5)):
        gaps = values.sort().values.diff()
        assert (gaps > 0.1 * range_ / locations).all()
    # three of them do not lie on one line, so that only the identity fixes them all
    if locations >= 3:
        corners = [problem.centres[list(i)] for i in itertools.combinations(range(locations), 3)]
        areas = [torch.linalg.det(c[1:] - c[0]).abs().item() for c in corners]
        assert max(areas) > 0.2
    # apart: no two in the same direction
    angle = torch.atan2(problem.centres[:, 1], problem.centres[:, 0]).sort().values
    if locations >= 3:
        around = torch.cat([angle, angle[:1] + 2 * math.pi]).diff()
        assert around.min() > 0.19 * 2 * math.pi / locations
        assert around.max() - around.min() > 0.01 * 2 * math.pi / locations


def test_the_seed_decides_the_locations_and_nothing_else_does() -> None:
    one, same, other = PointMass(seed=3), PointMass(seed=3, draw="end", width=0.2), PointMass(seed=4)
    torch.manual_seed(99)
    again = PointMass(seed=3)
    for name in ("centres", "weights", "heights"):
        assert torch.equal(getattr(one, name), getattr(same, name))
        assert torch.equal(getattr(one, name), getattr(again, name))
        assert not torch.isclose(getattr(one, name), getattr(other, name)).all()
    state = torch.random.get_rng_state()
    PointMass()
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_step_by_hand() -> None:
    problem = PointMass(locations=2, step_size=0.3, noise=0.1, width=0.5).double()
    s, a = torch.tensor([0.5, -0.5]).double(), torch.tensor([1.0, -0.5]).double()
    reached = torch.tensor([0.5 + 0.3 + 0.2, -0.5 - 0.15 - 0.1]).double()
    boundary = torch.distributions.Normal(0, 1).icdf(problem.weights[0])
    for k, offset in ((0, -1e-6), (1, 1e-6)):
        outcome = problem(s, a, torch.tensor([2.0, -1.0, boundary + offset]).double())
        torch.testing.assert_close(outcome.s_next, reached)
        square = (reached - problem.centres[k]).square().sum()
        assert outcome.r.item() == pytest.approx((problem.heights[k] * torch.exp(-square / 0.5)).item(), rel=1e-6)
        assert outcome.terminated.item() == 0.0


@pytest.mark.parametrize("locations", [1, 5])
@pytest.mark.parametrize("draw", ["step", "end"])
def test_locations_are_drawn_with_their_weights(locations: int, draw: str) -> None:
    # without noise of the position a reward takes one of N values, or 0
    problem = PointMass(locations=locations, noise=0.0, draw=draw, end_probability=0.25).double()
    n, p = 40_000, torch.tensor([0.3, 0.1]).double()
    outcome = problem(p.expand(n, 2), torch.zeros(n, 2).double(), torch.randn(n, problem.noise_size).double())
    paid = (outcome.r.unsqueeze(-1) - bumps(problem, p)).abs() < 1e-9
    chance = problem.weights * (0.25 if draw == "end" else 1.0)
    error = (chance * (1 - chance) / n).sqrt()
    assert ((paid.double().mean(0) - chance).abs() <= 4 * error + 1e-6).all()
    if draw == "step":
        assert not outcome.terminated.any()
        assert paid.any(-1).all()
    else:
        ended = outcome.terminated.bool()
        assert set(outcome.terminated.tolist()) == {0.0, 1.0}
        assert abs(ended.double().mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / n)
        assert (outcome.r[~ended] == 0).all()
        assert paid[ended].any(-1).all()
        assert not paid[~ended].any()


def test_end_and_location_are_independent_of_each_other_and_of_the_position() -> None:
    problem = PointMass(locations=2, noise=0.1, draw="end", end_probability=0.5)
    eps = torch.randn(50_000, 4)
    zero = torch.zeros(50_000, 2)
    ended = problem(zero, zero, eps).terminated
    # another position and action: the same draws
    assert torch.equal(ended, problem(zero + 3, zero - 1, eps).terminated)
    first = eps[:, 2] < torch.distributions.Normal(0, 1).icdf(problem.weights[0])
    correlation = torch.corrcoef(torch.stack([ended, first.float(), eps[:, 0], eps[:, 1]]))
    assert (correlation - torch.eye(4)).abs().max() < 4 / math.sqrt(50_000)


def test_a_sure_end() -> None:
    problem = PointMass(draw="end", end_probability=1.0)
    assert problem(torch.zeros(99, 2), torch.zeros(99, 2), torch.randn(99, 4)).terminated.all()


def test_the_return_has_as_many_modes_as_there_are_distant_payments() -> None:
    problem = PointMass(locations=3, noise=0.0, draw="end", end_probability=1.0)
    p = problem.centres[0].expand(1000, 2)
    r = problem(p, torch.zeros_like(p), torch.randn(1000, 4)).r
    assert len(r.unique()) == 3


def test_first_positions_are_uniform_in_the_square() -> None:
    s = PointMass(spread=1.5).double().initial_state(torch.randn(40_000, 2).double())
    assert s.abs().max() <= 1.5
    for axis in s.mT:
        counts = torch.histc(axis, 10, -1.5, 1.5)
        assert ((counts - 4000).abs() < 4 * math.sqrt(40_000 * 0.09)).all()
    assert abs(torch.corrcoef(s.mT)[0, 1]) < 0.02
