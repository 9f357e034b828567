"""Noticing numbers that go wrong: what is not finite, and values that no return can have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dsob_pl.bellman import ReturnBounds

if TYPE_CHECKING:
    from dsob_pl.agents.sobolev_actor_critic import SobolevActorCritic

EXCESS = "critic/range_excess"
_ENDS = ("/loss", "/grad_norm")
_FURTHER = ("critic/target", "critic/target_gradient_norm", "bellman/jacobian_penalty", EXCESS)


def range_excess(values: Tensor, bounds: ReturnBounds) -> Tensor:
    """How far the farthest of ``values [...]`` lies outside of ``bounds``, in widths of them (0-d).

    Positive above, negative below, 0 where all lie inside or where all rewards so far were equal to 0. NaN stays NaN.
    """
    width = bounds.high - bounds.low
    above, below = values.amax() - bounds.high, bounds.low - values.amin()
    farthest = torch.where(above >= below, above.clamp(min=0), -below.clamp(min=0))
    return torch.where(width > 0, farthest / width, torch.zeros_like(width))


class Reading(NamedTuple):
    """What an agent's updates of one environment step gave.

    Attributes:
        history: watched metrics by name, one number for each update that had it, in order.
        broken: the first that was not finite, and which of that name's numbers it was; None where all were.
        excess: the farthest ``range_excess`` that was a number.
    """

    history: dict[str, list[float]]
    broken: tuple[str, int] | None
    excess: float


class Numbers:
    """Collects the watched metrics of an environment step, of one agent or of S, and reads them back at its end.

    Reading them is the one time in a step that a device is waited for; until then they stay where they are.
    """

    def __init__(self) -> None:
        self._taken: list[tuple[str, Tensor]] = []

    def take(self, metrics: dict[str, Tensor]) -> None:
        """Takes the metrics (0-d, or ``[S]``) of one update, in the order in which they were computed."""
        self._taken += [(name, x) for name, x in metrics.items() if name.endswith(_ENDS) or name in _FURTHER]

    def read(self) -> list[Reading]:
        """One reading for each agent, none where nothing was taken; begins anew."""
        taken, self._taken = self._taken, []
        if not taken:
            return []
        names = [name for name, _ in taken]
        rows = torch.stack([x.reshape(-1) for _, x in taken], 1).tolist()
        return [_reading(names, row) for row in rows]


def _reading(names: Sequence[str], row: Sequence[float]) -> Reading:
    history: dict[str, list[float]] = {}
    broken, excess = None, 0.0
    for name, value in zip(names, row):
        numbers = history.setdefault(name, [])
        if name == EXCESS:
            excess = value if abs(value) > abs(excess) else excess
        elif broken is None and not math.isfinite(value):
            broken = name, len(numbers)
        numbers.append(value)
    return Reading(history, broken, excess)


def described(name: str, gradients: Sequence[str], step: int) -> str:
    """Why a run ends, in one line: what became non-finite, in which parameter first where that is known, and when."""
    where = f" of {gradients[0]}" if gradients else ""
    return f"{name}{where} became non-finite at environment step {step}"


def divergence_warning(agent: SobolevActorCritic, excess: float, step: int, gamma_kappa: Tensor | None) -> str:
    """One line about values that are ``excess`` widths outside of what rewards and discount allow, in units of reward.

    Args:
        agent: whose bounds of the returns were exceeded.
        excess: see ``range_excess``.
        step: environment step.
        gamma_kappa: as last measured (0-d), None where there is no world model or it was not measured yet.
    """
    low, high = (float(agent.reward_scale.inverse(bound)) for bound in agent.scales.bounds)
    value = (high if excess > 0 else low) + excess * (high - low)
    what = "target" if agent.gradient_bound is None else "predicted"
    contracts = "" if gamma_kappa is None else f"; bellman/gamma_kappa was {float(gamma_kappa):.3g}"
    return (
        f"a {what} mean return of {value:,.4g} at environment step {step} lies {abs(excess):.3g} widths outside of the "
        f"range from {low:,.4g} to {high:,.4g} that rewards and model.gamma allow: training diverges{contracts}"
    )
