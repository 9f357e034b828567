"""The brute force for mean and CVaR against enumeration, rollouts, another family of policies, and the mean's own."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor

from dsob_pl.envs import Cliff, Jack, RiskPlan, Summit, plan, play
from dsob_pl.envs import risk_plan as plan_anew
from dsob_pl.envs.problems.law_lattice import LawLattice
from dsob_pl.errors import UsageError
from dsob_pl.risk import CVaR

STEPS = 20
EPISODES = 3000
OBJECTIVES = ("mean", "nested_cvar", "episode_cvar")
SMALL = {"resolution": 4, "order": 2, "budgets": 90}


@functools.cache
def cliff(objective: str) -> RiskPlan:
    """Dynamic programming is deterministic, and the tests share its results."""
    return plan_anew(Cliff(), 0.9, STEPS, objective, 0.1, **SMALL)  # type: ignore[arg-type]


@functools.cache
def played(objective: str) -> tuple[Tensor, Tensor]:
    return play(Cliff(), cliff(objective), EPISODES, torch.Generator().manual_seed(0))


def worst(returns: Tensor) -> float:
    return float(CVaR(0.1)(returns))


def cvar_of_law(values: Tensor, weights: Tensor, alpha: float) -> float:
    """Of finitely many values, by definition."""
    values, order = values.sort()
    kept = (alpha - (weights[order].cumsum(0) - weights[order])).clamp(min=0).minimum(weights[order])
    return float((kept * values).sum() / alpha)


@pytest.mark.parametrize("alpha", [0.05, 0.3])
def test_one_step_is_what_enumeration_finds(alpha: float) -> None:
    # From the edge of the gap: the gust and the goal pull apart. All objectives are one.
    problem = Cliff(
        distance=0.2, spread=0.0, depth=2.0, softness=0.3, gust=0.4, gust_probability=0.2, noise=0.02
    ).double()
    nodes, weights = problem.noise_nodes(3)
    axis = torch.linspace(-1, 1, 41, dtype=torch.float64)
    actions = torch.cartesian_prod(axis, axis)
    first = problem.initial_state(torch.zeros(2).double())
    r = problem(first.expand(len(actions), len(nodes), 2), actions.unsqueeze(1).expand(-1, len(nodes), -1), nodes).r
    best = max(cvar_of_law(row, weights, alpha) for row in r)
    for objective in ("nested_cvar", "episode_cvar"):
        found = plan_anew(problem, 0.9, 1, objective, alpha, resolution=8, budgets=160)  # type: ignore[arg-type]
        assert found.cvar == pytest.approx(best, abs=0.02)
    mean = plan_anew(problem, 0.9, 1, "mean", alpha, resolution=8, budgets=160)
    assert mean.mean == pytest.approx(float((r @ weights).max()), abs=0.01)


@pytest.mark.parametrize("problem", [Cliff(), Summit(2)], ids=["cliff", "summit"])
def test_the_mean_is_that_of_planning_without_laws(problem: Cliff | Summit) -> None:
    ours = plan_anew(problem, 0.9, 6, "mean", 0.1, resolution=4, order=2, budgets=60)
    assert ours.mean == pytest.approx(plan(problem, 0.9, 6, resolution=4, order=2).optimum, rel=0.01)
    returns, _ = play(problem, ours, 2000, torch.Generator().manual_seed(0))
    assert abs(returns.mean() - ours.mean) < 4 * returns.std() / math.sqrt(2000) + 0.01 * ours.mean


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_policy_earns_what_is_promised(objective: str) -> None:
    found, (returns, _) = cliff(objective), played(objective)
    error = float(((returns.quantile(0.1) - returns).clamp_min(0) / 0.1).std()) / math.sqrt(EPISODES)
    assert abs(worst(returns) - found.cvar) < 4 * error + 0.06 * abs(found.cvar)
    if objective == "episode_cvar":
        assert math.isnan(found.mean)
    else:
        assert abs(returns.mean() - found.mean) < 4 * returns.std() / math.sqrt(EPISODES) + 0.03 * found.mean


def test_mean_and_cvar_lead_to_different_ways() -> None:
    cvars = {name: worst(played(name)[0]) for name in OBJECTIVES}
    means = {name: float(played(name)[0].mean()) for name in OBJECTIVES}
    assert cvars["episode_cvar"] > 1.03 * cvars["nested_cvar"] > 1.5 * cvars["mean"]
    assert means["mean"] > 1.08 * max(means["nested_cvar"], means["episode_cvar"])
    # How high above the diagonal the gap is crossed: around, or past the edge.
    heights = {}
    for name in OBJECTIVES:
        path = played(name)[1]
        v = (path[..., 1] - path[..., 0]) / math.sqrt(2)
        heights[name] = float(v[path.sum(-1).abs() < 0.3].median())
    assert heights["mean"] < 0.3 < 0.45 < heights["episode_cvar"] < heights["nested_cvar"]


class Recorded(RiskPlan):
    """Keeps the budgets that it is asked with."""

    def act(self, s: Tensor, step: int, budget: Tensor | None = None) -> Tensor:
        budgets.append(budget)
        return super().act(s, step, budget)


budgets: list[Tensor | None] = []


def test_what_has_been_paid_is_taken_off_the_budget_and_decides() -> None:
    budgets.clear()
    found, problem = cliff("episode_cvar"), Cliff().double()
    returns, path = play(problem, Recorded(*found), 50, torch.Generator().manual_seed(3))
    assert len(budgets) == STEPS
    paid = 1 / (1 + (path - problem.goal).square().sum(-1) / 0.8**2) - 4 * problem.fall(path)
    paid = (0.9 ** torch.arange(STEPS).unsqueeze(1) * paid[1:]).cumsum(0)
    torch.testing.assert_close(returns, paid[-1], atol=1e-5, rtol=1e-5)
    for budget, before in zip(budgets[1:], paid):
        assert budget is not None
        torch.testing.assert_close(budget, found.budget - before, atol=1e-5, rtol=1e-5)
    # Who is to get more than any return can be goes for the mean, straight on; who has something to lose goes around.
    s = torch.tensor([[-0.5, -0.3]]).double()
    averse, bold = (found.act(s, 2, torch.tensor([b]))[0] for b in (found.budget, found.high))
    assert averse[1] - averse[0] > bold[1] - bold[0] + 0.5


def test_a_law_stays_one_where_a_policy_is_of_two_minds() -> None:
    # With little time left some go around and others give up; a CVaR above the mean would be that of no law.
    found = plan_anew(Cliff(goal_width=0.4), 0.9, 15, "nested_cvar", 0.1, **SMALL)  # type: ignore[arg-type]
    assert found.cvar < found.mean


def test_no_way_at_one_height_has_a_better_cvar_than_is_promised() -> None:
    # Another family of policies: up to a height above the diagonal, across the gap at it, then to the goal.
    problem, n = Cliff().double(), 4000
    turn = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]).double() / math.sqrt(2)  # to distances along and across
    found = []
    for height in torch.linspace(0.0, 1.0, 9).tolist():
        generator = torch.Generator().manual_seed(1)
        s = problem.initial_state(torch.randn(n, 2, generator=generator).double())
        total = torch.zeros(n).double()
        for t in range(STEPS):
            u, v = (s @ turn.T).unbind(-1)
            rise, cross = (torch.tensor([x, height]).double() @ turn for x in (-0.6, 0.8))
            target = torch.where(((v < height - 0.2) & (u < -0.4)).unsqueeze(-1), rise, cross)
            target = torch.where((u > 0.3).unsqueeze(-1), problem.goal, target)
            step = (target - s) / problem.step_size
            step = step / step.abs().amax(-1, keepdim=True).clamp_min(1)
            s, r, _ = problem(s, step, torch.randn(n, 3, generator=generator).double())
            total += 0.9**t * r
        found.append(worst(total))
    assert max(found) < cliff("episode_cvar").cvar
    assert max(found) > 0.7 * cliff("episode_cvar").cvar, found
    assert max(range(9), key=found.__getitem__) >= 3  # around


def test_jack_is_left_for_the_sure_payment_by_who_minds_risk() -> None:
    sides = {}
    for objective in OBJECTIVES:
        found = plan_anew(Jack(10), 0.9, 5, objective, 0.1, resolution=4, order=2, budgets=200)  # type: ignore[arg-type]
        returns, path = play(Jack(10), found, 1000, torch.Generator().manual_seed(0))
        sides[objective] = float((path[-1, :, 0] < 0).double().mean()), worst(returns)
    assert sides["mean"][0] < 0.4
    assert sides["nested_cvar"][0] > 0.9
    assert sides["episode_cvar"][0] > 0.9
    assert sides["episode_cvar"][1] > 2 * sides["mean"][1]


def test_laws_by_hand() -> None:
    lattice = LawLattice(Cliff(), 0.9, 3, 1, 300, 5)
    low, high = -1.0, 2.0  # two equally likely returns
    law = ((lattice.budgets - low).clamp_min(0) / 2 + (lattice.budgets - high).clamp_min(0) / 2).unsqueeze(0)
    assert lattice.mean(law).item() == pytest.approx(0.5)
    for alpha, expected in ((0.5, low), (1.0, 0.5), (0.75, (0.5 * low + 0.25 * high) / 0.75)):
        assert lattice.cvar(law, alpha)[0].item() == pytest.approx(expected, abs=0.05)
    for r in (-0.3, 0.0, 0.5):
        moved = lattice.earning(law, torch.tensor([r]).double())
        assert lattice.mean(moved).item() == pytest.approx(0.5 + r, abs=1e-6)
        assert lattice.cvar(moved, 0.5)[0].item() == pytest.approx(low + r, abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"objective": "nested_cvr"}, "objective: expected one of mean, .* did you mean 'nested_cvar'"),
        ({"alpha": 0.0}, r"alpha: expected a finite number in \(0, 1\], got 0.0"),
        ({"alpha": 1.5}, "alpha"),
        ({"gamma": 1.0}, r"gamma: expected a finite number in \[0, 1\)"),
        ({"limit": 0}, "limit: expected an integer of at least 1"),
    ],
)
def test_bad_arguments(arguments: dict, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        plan_anew(**{"problem": Cliff(), "gamma": 0.9, "limit": 2, "objective": "mean", **arguments})
