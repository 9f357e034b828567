"""Laws of the return on a lattice of positions in the plane, for dynamic programming."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from dsob_pl.envs.problems.optimum import plan
from dsob_pl.envs.problems.planar import PlanarProblem

_FINER = 4  # points of the action lattice per point of the lattice of positions, along one axis


class Interpolation:
    """A matrix ``[N, P]`` of few entries in each row.

    Args:
        columns: where they stand ``[N, 16]``.
        weights: the entries ``[N, 16]``; what stands in the same place is added.
        size: P.
    """

    def __init__(self, columns: Tensor, weights: Tensor, size: int):
        from scipy.sparse import csr_array  # not at the top: every run would load it with the environments

        rows = torch.arange(len(columns)).unsqueeze(1).expand_as(columns)
        place = rows.flatten().numpy(), columns.flatten().numpy()
        # torch's own sparse matrices warn that they are in beta
        self._matrix = csr_array((weights.flatten().numpy(), place), shape=(len(columns), size))
        self._matrix.eliminate_zeros()

    def __call__(self, law: Tensor) -> Tensor:
        """``[P, K] -> [N, K]``."""
        return torch.from_numpy(self._matrix @ law.numpy())


class LawLattice:
    """Laws of the return on a lattice of positions, as ``W(b) = E (b - G)^+`` at equally spaced budgets b ``[P, K]``.

    G is the rest of the episode's return, discounted to the beginning of the episode.

    W is the integral of the distribution function, so that it says the whole law: ``E G = b - W(b)`` for b above all
    returns, and ``CVaR = max_b b - W(b) / alpha`` (Rockafellar and Uryasev 2000).

    Args:
        problem: in float64.
        gamma: discount.
        resolution: lattice points per ``problem.width``, at least.
        order: nodes of the quadrature along each axis of noise.
        budgets: K.
        steps: of an episode.
        cubic: cubic interpolation between positions, or linear, which mixes laws and so keeps them laws: a cubic beside
            a jump does not, and an objective that is a functional of the law would go for what is promised there.
    """

    def __init__(
        self,
        problem: PlanarProblem,
        gamma: float,
        resolution: int,
        order: int,
        budgets: int,
        steps: int,
        cubic: bool = True,
    ):
        self.cubic = cubic
        step_size = abs(problem.step_size)
        self.per_step = math.ceil(step_size * resolution / problem.width)  # actions lead from lattice to lattice
        spacing = step_size / self.per_step if self.per_step else problem.width / resolution
        half = math.ceil(problem.reach / spacing)
        self.side, self.reach = 2 * half + 1, half * spacing
        axis = torch.linspace(-self.reach, self.reach, self.side, dtype=torch.float64)
        self.points = torch.cartesian_prod(axis, axis)
        fine = torch.linspace(-self.reach, self.reach, (self.side - 1) * _FINER + 1, dtype=torch.float64)
        self.fine = torch.cartesian_prod(fine, fine)
        self.present = problem.present_reward(self.points)
        nodes, self.weights = problem.noise_nodes(order)
        y = self.points.expand(len(nodes), -1, -1)
        reached, r, self.terminated = problem(y, torch.zeros_like(y), nodes.unsqueeze(1).expand(-1, y.shape[1], -1))
        self.at_reached = [self.interpolation(points) for points in reached]
        self.at_fine = self.interpolation(self.fine)
        self.paid = r - self.present  # [Q, P]; what is paid for the position before a step is added behind it
        # Where the mean is worst, and one bad step less, or what every step paying the least makes, if that is more.
        # Returns below are rare, and what W misses there is small.
        worst = plan(problem, gamma, steps, resolution, order).moved_values[0].min() + self.present.min()
        discounts = sum(gamma**t for t in range(steps))
        self.low = min(max(float(worst - (r.max() - r.min())), float(r.min()) * discounts), 0.0) - 0.1
        self.high = max(float(r.max()), 0.0) * discounts + 0.1
        self.budgets = torch.linspace(self.low, self.high, budgets, dtype=torch.float64)

    def moved(self, law: Tensor, discount: float) -> Tensor:
        """Laws before the noise from laws behind it, of rewards that count ``discount``: ``[P, K] -> [P, K]``."""
        result = torch.zeros_like(law)
        for at_reached, r, terminated, weight in zip(self.at_reached, self.paid, self.terminated, self.weights):
            ahead = self.earning(at_reached(law), discount * r)
            if terminated.any():
                left = (self.budgets - discount * r.unsqueeze(1)).clamp_min(0)
                ahead = torch.where(terminated.unsqueeze(1) > 0, left, ahead)
            result += weight * ahead
        return result

    def interpolation(self, points: Tensor) -> Interpolation:
        """The matrix of interpolation at ``points [N, 2]``, held to the lattice, for laws ``[P, K] -> [N, K]``."""
        place = ((points / self.reach + 1) * (self.side - 1) / 2).clamp(0, self.side - 1)
        first = place.floor().clamp(max=self.side - 2)
        taps = _cubic(place - first) if self.cubic else _linear(place - first)  # [N, 2, 4]
        index = (first.long().unsqueeze(-1) + torch.arange(-1, 3)).clamp(0, self.side - 1)
        columns = (index[:, 0, :, None] * self.side + index[:, 1, None, :]).flatten(1)
        weights = (taps[:, 0, :, None] * taps[:, 1, None, :]).flatten(1)
        return Interpolation(columns, weights, self.side**2)

    def earning(self, law: Tensor, r: Tensor) -> Tensor:
        """The laws with r added to each return, ``W(b - r)``: ``[P, K], [P] -> [P, K]``.

        Cubic between the budgets; 0 below the smallest, and with the slope 1 above the largest.
        """
        spacing = (self.high - self.low) / (len(self.budgets) - 1)
        room = int(r.abs().max() / spacing) + 3
        place = -r / spacing
        first = place.floor()
        above = law[:, -1:] + spacing * torch.arange(1, room + 1, dtype=torch.float64)
        padded = torch.cat([law.new_zeros(len(law), room), law, above], 1)
        taps = _cubic(place - first).unsqueeze(-1)  # [P, 4, 1]
        # The fraction of a spacing is the same for all budgets of a row; what is left is a shift by whole ones.
        length = padded.shape[1] - 3
        mixed = torch.stack([taps[:, i] * padded[:, i : i + length] for i in range(4)]).sum(0)
        return mixed.gather(1, (first.long() + room - 1).unsqueeze(1) + torch.arange(law.shape[1]))

    def mean(self, law: Tensor) -> Tensor:
        """``[P, K] -> [P]``."""
        return self.high - law[:, -1]

    def cvar(self, law: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        """CVaR and the budget at which it is found, the value at risk: ``[P, K] -> [P], [P]``."""
        best, place = (self.budgets - law / alpha).max(1)
        return best, self.budgets[place]

    def best_move(self, score: Tensor) -> Tensor:
        """Where within one action the score is largest: ``[P] -> [P, 2]``."""
        finer = self.at_fine(score.unsqueeze(1)).view(1, 1, (self.side - 1) * _FINER + 1, -1)
        window = self.per_step * _FINER
        return self.fine[max_pool2d(finer, 2 * window + 1, _FINER, window, return_indices=True)[1].flatten()]

    def best_value(self, score: Tensor) -> Tensor:
        """The largest scores within one action: ``[P, K] -> [P, K]``."""
        window, best = self.per_step * _FINER, []
        for some in score.split(100, 1):  # the finer lattice of all of them would be large
            finer = self.at_fine(some).T.reshape(1, some.shape[1], (self.side - 1) * _FINER + 1, -1)
            # The maximum over a square is that over its rows and then over its columns.
            finer = max_pool2d(finer, (2 * window + 1, 1), (_FINER, 1), (window, 0))
            best.append(max_pool2d(finer, (1, 2 * window + 1), (1, _FINER), (0, window)).flatten(2)[0].T)
        return torch.cat(best, 1)


def _linear(x: Tensor) -> Tensor:
    """Weights of the points -1, 0, 1 and 2 in the line from 0 to 1 at x in [0, 1]: ``[..., 4]``."""
    return torch.stack([torch.zeros_like(x), 1 - x, x, torch.zeros_like(x)], -1)


def _cubic(x: Tensor) -> Tensor:
    """Weights of the points -1, 0, 1 and 2 in the cubic of Catmull and Rom at x in [0, 1]: ``[..., 4]``."""
    before, after = x * (x * (1 - x / 2) - 0.5), x * x * (x - 1) / 2
    return torch.stack([before, 1 + x * x * (1.5 * x - 2.5), x * (0.5 + x * (2 - 1.5 * x)), after], -1)
