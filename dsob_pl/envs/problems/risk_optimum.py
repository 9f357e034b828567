"""The best mean and the best CVaR of the return of a problem in the plane by brute force, and the policies to them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from dsob_pl.envs.problems.arguments import discount, integer, real
from dsob_pl.envs.problems.law_lattice import LawLattice
from dsob_pl.envs.problems.optimum import at_points
from dsob_pl.envs.problems.planar import PlanarProblem
from dsob_pl.errors import UsageError, nearest

Objective = Literal["mean", "episode_cvar", "nested_cvar"]

_OBJECTIVES = ("mean", "episode_cvar", "nested_cvar")
_FIRST = 30  # first positions along one axis
_COARSE, _ZOOMED = 13, 9  # actions along one axis in the two rounds of a search


class RiskPlan(NamedTuple):
    """What dynamic programming found for one objective.

    Attributes:
        mean: of the discounted return under the policy that was found, over first positions; not a number for
            ``episode_cvar``, whose law at other budgets than its own is that of other policies: see ``play``.
        cvar: of the same, the mean of the worst ``alpha``.
        budget: the value at risk, which ``episode_cvar`` stays above where it can; see :meth:`act`.
        alpha: in (0, 1].
        gamma: discount.
        scores: how good it is to have been moved to a position, for each step ``[T, K, G, G]`` on the square
            ``[-reach, reach]^2``, first axis first; K is 1, but for ``episode_cvar`` the number of budgets.
        low: smallest of the budgets, which are equally spaced.
        high: largest of them.
        reach: of the lattice.
        step_size: of the problem.
    """

    mean: float
    cvar: float
    budget: float
    alpha: float
    gamma: float
    scores: Tensor
    low: float
    high: float
    reach: float
    step_size: float

    def act(self, s: Tensor, step: int, budget: Tensor | None = None) -> Tensor:
        """The best action, to a twenty-fourth of its range.

        Args:
            s: positions ``[n, 2]``.
            step: steps since the beginning of the episode.
            budget: ``[n]``, needed by ``episode_cvar`` only: ``self.budget`` less the discounted rewards paid so far.

        Returns:
            ``[n, 2]``.
        """
        best = torch.zeros(len(s), 1, 2, dtype=torch.float64)
        for count, width in ((_COARSE, 1.0), (_ZOOMED, 2 / (_COARSE - 1))):
            axis = width * torch.linspace(-1, 1, count, dtype=torch.float64)
            actions = (best + torch.cartesian_prod(axis, axis)).clamp(-1, 1)
            moved = s.double().unsqueeze(1) + self.step_size * actions
            place = self._score(step, moved, budget).argmax(1)
            best = actions.expand(len(s), -1, 2)[torch.arange(len(s)), place].unsqueeze(1)
        return best.squeeze(1).to(s.dtype)

    def _score(self, step: int, moved: Tensor, budget: Tensor | None) -> Tensor:
        """``moved [n, m, 2], budget [n] -> [n, m]``."""
        scores = self.scores[step]
        if len(scores) == 1:
            return at_points(scores, moved, self.reach)[0]
        assert budget is not None, "a policy for the CVaR of the episode depends on what has been paid so far"
        place = 2 * (budget.double() - self.low) / (self.high - self.low) - 1
        where = torch.cat([(moved / self.reach).flip(-1), place[:, None, None].expand(*moved.shape[:2], 1)], -1)
        return grid_sample(scores[None, None], where[None, None], padding_mode="border", align_corners=True)[0, 0, 0]


def risk_plan(
    problem: PlanarProblem,
    gamma: float,
    limit: int,
    objective: Objective,
    alpha: float = 0.1,
    resolution: int = 8,
    order: int = 3,
    budgets: int = 160,
) -> RiskPlan:
    """Dynamic programming backwards over the steps of an episode, on laws of the return, in float64.

    Objectives, each over all policies that know the position, the step and what the last column says:

    - ``"mean"``: E G, the policy of ``plan`` with the law of its return.
    - ``"episode_cvar"``: CVaR of the episode's discounted return, decided on once, at its start; the policy knows the
      rewards paid so far too (their sum is the state that Baeuerle and Ott 2011 add). No policy has a larger CVaR.
    - ``"nested_cvar"``: at each step the action of largest CVaR of the return from there, while all later steps do the
      same: the subgame-perfect, Markov policy. It is what an actor that ascends the CVaR of its critic's samples
      converges to if it does; the CVaR of its episodes is at most that of ``episode_cvar``. (It is not the iterated
      risk measure, the CVaR of a CVaR, either: each CVaR is that of the whole return to come.)

    Positions lie on a lattice as in ``plan``, with cubic interpolation, and so do the budgets of a law. Interpolated
    values are maximised over, so that what is promised is a little more than what is earned: ``play`` says what the
    policy earns. ``notebooks/results/risk_optimum.csv`` has both, with standard errors, on CLIFF and JACK.

    Args:
        problem: on any device and of any type; it is copied.
        gamma: discount in (0, 1).
        limit: steps of an episode.
        objective: see above.
        alpha: part of the worst returns that CVaR is the mean of, in (0, 1].
        resolution: lattice points per ``problem.width``, at least.
        order: nodes of the quadrature along each axis of noise.
        budgets: points of the law.

    Raises:
        UsageError: gamma, limit or alpha out of range, another objective.
    """
    if objective not in _OBJECTIVES:
        hint = nearest(str(objective), _OBJECTIVES)
        raise UsageError(f"objective: expected one of {', '.join(_OBJECTIVES)}, got {objective!r}{hint}")
    alpha = real("alpha", alpha, "in (0, 1]", lambda x: 0 < x <= 1)
    gamma, steps = real("gamma", discount(gamma), "above 0", lambda x: x > 0), integer("limit", limit, 1)
    problem = copy.deepcopy(problem).cpu().double()
    lattice = LawLattice(problem, gamma, resolution, order, budgets, steps, cubic=objective != "nested_cvar")
    law = lattice.budgets.clamp_min(0).repeat(len(lattice.points), 1)  # nothing more is paid
    scores = []
    for t in reversed(range(steps)):
        law = lattice.moved(law, gamma**t)
        if objective == "episode_cvar":
            score = -law
            law = -lattice.best_value(score)
        else:
            score = (lattice.mean(law) if objective == "mean" else lattice.cvar(law, alpha)[0]).unsqueeze(1)
            law = lattice.interpolation(lattice.best_move(score[:, 0]))(law)
        if lattice.present.any():
            law = lattice.earning(law, gamma**t * lattice.present)
        scores.append(score.T.reshape(-1, lattice.side, lattice.side))
    uniform = torch.special.ndtri((torch.arange(_FIRST, dtype=torch.float64) + 0.5) / _FIRST)
    first = problem.initial_state(torch.cartesian_prod(uniform, uniform))
    law = lattice.interpolation(first)(law).mean(0, keepdim=True)
    cvar, budget = lattice.cvar(law, alpha)
    found = torch.stack(scores[::-1])
    ends = lattice.low, lattice.high, lattice.reach, problem.step_size
    mean = math.nan if objective == "episode_cvar" else lattice.mean(law).item()
    return RiskPlan(mean, cvar.item(), budget.item(), alpha, gamma, found, *ends)


def play(
    problem: PlanarProblem, found: RiskPlan, episodes: int, generator: torch.Generator, clockless: bool = False
) -> tuple[Tensor, Tensor]:
    """Episodes of a plan's policy in the problem itself.

    Args:
        problem: that the plan was made for.
        found: the plan.
        episodes: n.
        generator: of first positions and noise.
        clockless: take the first step's policy at every step, as an agent does that does not see the time.

    Returns:
        As ``play_policy``.
    """

    def policy(s: Tensor, step: int, earned: Tensor) -> Tensor:
        return found.act(s, 0 if clockless else step, found.budget - earned)

    return play_policy(problem, policy, found.gamma, len(found.scores), episodes, generator)


def play_policy(
    problem: PlanarProblem,
    policy: Callable[[Tensor, int, Tensor], Tensor],
    gamma: float,
    limit: int,
    episodes: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Episodes of any policy in the problem itself, which is copied.

    Args:
        problem: of any type.
        policy: positions ``[n, 2]``, step and discounted rewards so far ``[n]``, to actions ``[n, 2]``; float64.
        gamma: discount.
        limit: steps of an episode.
        episodes: n.
        generator: of first positions and noise.

    Returns:
        Discounted returns ``[n]`` and positions ``[T + 1, n, 2]``, float64.
    """
    problem = copy.deepcopy(problem).cpu().double()

    def normal(size: int) -> Tensor:
        return torch.randn(episodes, size, generator=generator, dtype=torch.float64)

    s, total, alive = problem.initial_state(normal(2)), torch.zeros(episodes).double(), torch.ones(episodes).double()
    path = [s]
    for t in range(limit):
        s, r, terminated = problem(s, policy(s, t, total), normal(problem.noise_size))
        total, alive = total + gamma**t * alive * r, alive * (1 - terminated)
        path.append(s)
    return total, torch.stack(path)
