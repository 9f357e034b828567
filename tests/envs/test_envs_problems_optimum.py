"""The brute force against closed forms, Monte-Carlo rollouts of its own policy, and finer grids."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
from torch import Tensor

from dsob_pl.envs import Jack, LinearQuadratic, Plan, PlanarProblem, PointMass, Summit, normalized_score, score_of
from dsob_pl.envs import plan as plan_anew
from dsob_pl.errors import UsageError

# Dynamic programming is deterministic, and the tests share its results.
plan = functools.cache(plan_anew)
PROBLEMS = {
    "summit_1": (Summit(1), 30),
    "summit_2": (Summit(2), 30),
    "summit_5": (Summit(5), 30),
    "jack": (Jack(2), 10),
    "point_mass": (PointMass(5), 30),
    "point_mass_end": (PointMass(3, draw="end"), 30),
}


def realised(problem: PlanarProblem, found: Plan | None, limit: int, n: int = 1500) -> tuple[float, float]:
    """Mean discounted return of ``found``'s policy, or of staying put, at gamma 0.9, and its standard error."""
    exact, generator = copy.deepcopy(problem).double(), torch.Generator().manual_seed(1)

    def normal(size: int) -> Tensor:
        return torch.randn(n, size, generator=generator, dtype=torch.float64)

    s, total, alive = exact.initial_state(normal(2)), torch.zeros(n).double(), torch.ones(n).double()
    for t in range(limit):
        a = torch.zeros(n, 2).double() if found is None else found.act(s, t, 13)
        s, r, terminated = exact(s, a, normal(exact.noise_size))
        total, alive = total + 0.9**t * alive * r, alive * (1 - terminated)
    return total.mean().item(), total.std().item() / math.sqrt(n)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_policy_earns_what_is_promised_and_so_does_staying_put(name: str) -> None:
    problem, limit = PROBLEMS[name]
    found = plan(problem, 0.9, limit)
    earned, error = realised(problem, found, limit)
    assert abs(earned - found.optimum) < 4 * error + 0.005 * found.optimum
    stayed, error = realised(problem, None, limit, 20_000)
    assert abs(stayed - found.staying_put) < 4 * error


@pytest.mark.parametrize("name", ["summit_2", "jack", "point_mass"])
def test_a_finer_grid_changes_little(name: str) -> None:
    problem, limit = PROBLEMS[name]
    coarse, fine = plan(problem, 0.9, limit), plan(problem, 0.9, limit, resolution=11, order=4)
    assert coarse.optimum == pytest.approx(fine.optimum, rel=0.005)
    assert coarse.staying_put == pytest.approx(fine.staying_put, rel=0.005)


def test_one_step_in_closed_form() -> None:
    # Without noise, one bump within one action of every first position: the best step ends on it.
    problem = PointMass(locations=1, noise=0.0, step_size=3.0, spread=0.5)
    found = plan(problem, 0.5, 1)
    centre, height = problem.centres[0].double(), float(problem.heights[0])
    assert found.optimum == pytest.approx(height, rel=1e-3)
    # Staying put: the integral of the bump over the square is a product of error functions.
    upper, lower = (torch.erf((x - centre) / (0.8 * math.sqrt(2))) for x in (0.5, -0.5))
    mean = height * float(((upper - lower) * 0.8 * math.sqrt(math.pi / 2)).prod())
    assert found.staying_put == pytest.approx(mean, rel=1e-4)
    # Two steps: the same place again, half as much worth.
    assert plan(problem, 0.5, 2).optimum == pytest.approx(1.5 * height, rel=1e-3)


@pytest.mark.parametrize("limit", [1, 2])
def test_an_action_reaches_as_far_as_it_does_along_each_axis(limit: int) -> None:
    # From the origin, towards a location that is further away than the largest action along either axis.
    problem = PointMass(locations=1, noise=0.0, spread=0.0, step_size=0.15)
    centre, height = problem.centres[0].double(), float(problem.heights[0])
    paid = []
    for step in range(1, limit + 1):
        nearest = centre.clamp(-0.15 * step, 0.15 * step)
        paid.append(0.9 ** (step - 1) * height * math.exp(-float((centre - nearest).square().sum()) / (2 * 0.8**2)))
    assert (centre.abs() > 0.3).all()
    assert plan(problem, 0.9, limit).optimum == pytest.approx(sum(paid), rel=1e-3)


def test_an_end_is_worth_nothing() -> None:
    # Ends with certainty: the first payment is all, whatever the limit.
    problem = PointMass(3, draw="end", end_probability=1.0)
    one, many = plan(problem, 0.9, 1), plan(problem, 0.9, 30)
    assert many.optimum == pytest.approx(one.optimum, abs=1e-12)
    assert many.staying_put == pytest.approx(one.staying_put, abs=1e-12)


def test_noise_widens_the_bump_as_in_closed_form() -> None:
    # One location, gamma 0: the bump is convolved with the noise.
    problem = PointMass(1, noise=0.3, step_size=0.0, spread=0.0)
    variance, distance = 0.8**2 + 0.3**2, float(problem.centres[0].norm())
    mean = float(problem.heights[0]) * 0.8**2 / variance * math.exp(-(distance**2) / (2 * variance))
    assert plan(problem, 0.0, 5, order=7).staying_put == pytest.approx(mean, rel=1e-5)


def test_what_is_far_beyond_the_horizon_is_cut() -> None:
    problem = Jack()
    endless = plan(problem, 0.5, None)
    assert len(endless.moved_values) == math.ceil(math.log(1e-5) / math.log(0.5))
    assert plan(problem, 0.5, 10_000).optimum == endless.optimum
    assert plan(problem, 0.5, 10).optimum < endless.optimum


def test_the_rarity_of_the_jackpot_changes_nothing() -> None:
    one, ten = plan(Jack(1), 0.9, 10), plan(Jack(10), 0.9, 10)
    assert one.optimum == pytest.approx(ten.optimum, rel=1e-9)
    assert one.staying_put == pytest.approx(ten.staying_put, rel=1e-9)


@pytest.mark.parametrize(("directions", "low", "high"), [(1, 0.95, 1.02), (2, 0.24, 0.31), (5, 0.3, 0.37)])
def test_what_a_perfect_deterministic_model_reaches_on_summit(directions: int, low: float, high: float) -> None:
    problem = PROBLEMS[f"summit_{directions}"][0]
    promised = plan(problem, 0.9, 30, mean=True)
    earned, _ = realised(problem, promised, 30)
    assert low < score_of(earned, plan(problem, 0.9, 30)) < high
    if directions > 1:
        assert promised.optimum > 8  # it believes in the summit


@pytest.mark.parametrize("problem", [Jack(10), PointMass(5)], ids=["jack", "point_mass"])
def test_a_deterministic_model_loses_nothing_where_noise_is_added(problem: PlanarProblem) -> None:
    mean, best = (plan(problem, 0.9, 10, mean=only_mean) for only_mean in (True, False))
    on_paper = realised(Jack(1) if isinstance(problem, Jack) else problem, mean, 10)  # the same means, less spread
    assert abs(on_paper[0] - best.optimum) < 4 * on_paper[1] + 0.01 * best.optimum


def test_the_ends_of_the_scale() -> None:
    problem = Jack(2)
    found = plan(problem, 0.9, 10)
    assert normalized_score(found.staying_put, problem, 0.9, 10) == 0.0
    assert normalized_score(found.optimum, problem, 0.9, 10) == 1.0
    middle = (found.optimum + found.staying_put) / 2
    assert normalized_score(middle, problem, 0.9, 10) == pytest.approx(0.5)


def test_the_problem_is_left_as_it_was() -> None:
    problem = Summit().float()
    plan(problem, 0.9, 2)
    assert problem.side.dtype == torch.float32


def test_bad_arguments() -> None:
    with pytest.raises(UsageError, match="LinearQuadratic has no brute-force optimum; expected one in the plane"):
        normalized_score(0.0, LinearQuadratic(), 0.9, 30)
    with pytest.raises(UsageError, match=r"gamma: expected a finite number in \[0, 1\)"):
        normalized_score(0.0, Jack(), 1.0, 30)
    with pytest.raises(UsageError, match="limit: expected an integer of at least 1"):
        plan(Jack(), 0.9, 0)
    with pytest.raises(UsageError, match="no policy is better than staying put"):
        normalized_score(0.0, Jack(step_size=0.0), 0.9, 10)
