"""Null tests: between equal laws a calibrated loss is zero on average, and does not ask for more or less spread."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dsob_pl.bellman import NoCorrection, OverestimationCorrection, Truncation
from dsob_pl.divergences import MMD, Divergence, EnergyDistance, MaxSlicedMMD

BATCHES, B, N, D = 30, 512, 10, 3


def loss_and_scale_derivative(divergence: Divergence, sort_targets: bool = False) -> tuple[float, float]:
    """Means over batches of the loss, and of its derivative in a factor on x, for x and y standard normal.

    Energy distance: its values are those of the multiquadric with h = 100 divided by 100.
    """
    generator = torch.Generator().manual_seed(0)
    losses: list[float] = []
    slopes: list[float] = []
    for _ in range(BATCHES):
        x, y = (torch.randn(B, N, D, dtype=torch.float64, generator=generator) for _ in range(2))
        if sort_targets:
            y = y.gather(-2, y[..., :1].argsort(-2).expand_as(y))
        scale: Tensor = torch.ones((), dtype=torch.float64, requires_grad=True)
        loss = divergence(scale * x, y).mean()
        losses.append(loss.item())
        slopes.append(torch.autograd.grad(loss, scale)[0].item())
    return sum(losses) / BATCHES, sum(slopes) / BATCHES


@pytest.mark.parametrize(
    "divergence",
    [
        MMD(EnergyDistance()),
        MaxSlicedMMD(EnergyDistance(), direction="batch"),
        MaxSlicedMMD(EnergyDistance(), direction="cross_fitted"),
    ],
    ids=["mmd", "batch", "cross_fitted"],
)
def test_calibrated_between_equal_laws(divergence: Divergence) -> None:
    loss, slope = loss_and_scale_derivative(divergence)
    assert abs(loss) < 0.02
    assert abs(slope) < 0.02


def test_a_direction_per_transition_reports_a_difference_and_shrinks_the_spread() -> None:
    loss, slope = loss_and_scale_derivative(MaxSlicedMMD(EnergyDistance(), direction="transition"))
    # the supremum itself, from a long search, is 0.34; the mean difference alone gives 0.22
    assert 0.25 < loss < 0.34
    assert slope > 0.1


def test_the_biased_estimator_shrinks_the_spread() -> None:
    loss, slope = loss_and_scale_derivative(MMD(EnergyDistance(), "biased"))
    assert loss > 0.3
    assert slope > 0.1


def test_cross_fitting_stays_calibrated_on_targets_sorted_by_return() -> None:
    # what truncation hands over; two contiguous halves would be the low and the high returns
    loss, slope = loss_and_scale_derivative(MaxSlicedMMD(EnergyDistance(), direction="cross_fitted"), sort_targets=True)
    assert abs(loss) < 0.02
    assert abs(slope) < 0.02


@pytest.mark.parametrize(
    ("correction", "draws", "bound"),
    # Beside each other in order of the return, or after an odd number of draws, -0.11 and -0.48.
    [(Truncation(0.1), N, 0.05), (NoCorrection(), 5, 0.2), (NoCorrection(), N, 0.02)],
    ids=["truncated", "odd", "even"],
)
def test_cross_fitting_stays_calibrated_on_targets_of_two_critics_that_share_their_draws(
    correction: OverestimationCorrection, draws: int, bound: float
) -> None:
    # Critics that agree: every target is there twice. Of many components the direction finds the one of a sample that
    # it has seen, and a copy of it in the other half would be judged by itself.
    generator = torch.Generator().manual_seed(0)
    scale: Tensor = torch.ones((), dtype=torch.float64, requires_grad=True)
    x, y = (torch.randn(4000, n, 24, dtype=torch.float64, generator=generator) for n in (N, draws))
    loss = MaxSlicedMMD(EnergyDistance(), direction="cross_fitted")(scale * x, correction(torch.stack([y, y]))).mean()
    (slope,) = torch.autograd.grad(loss, scale)
    assert abs(slope) < bound
