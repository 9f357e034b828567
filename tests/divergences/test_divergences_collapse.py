"""The spread that a divergence teaches, against closed forms: fits of the generator ``z = m + s xi`` to known laws.

The energy distance between N(0, s^2) and N(0, t^2) is, up to factor and constant, ``2 sqrt(s^2 + t^2) - c sqrt(2) s``.
The biased mean over all pairs of N predicted samples, 1/N of which are zero, makes c = (N-1)/N; without the diagonal
c = 1. The derivative in s vanishes at ``s = t c / sqrt(2 - c^2)``. At unit scale the multiquadric with h = 100 is the
same kernel.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dsob_pl.divergences import MMD, Divergence, MaxSlicedMMD

N = 10


def learned_spread(
    divergence: Divergence,
    size: int = 1,
    gamma: float = 0.0,
    batch: int = 256,
    targets: int = 10,
    steps: int = 300,
    seed: int = 0,
) -> Tensor:
    """Standard deviation ``s [size]`` learned by ``m + s xi`` from targets ``r + gamma (m' + s' xi')``, r ~ N(0, I).

    m' and s' are a Polyak copy: i.i.d. rewards make every state the same. The mean of the second half of the fit.
    """
    generator = torch.Generator().manual_seed(seed)
    m, s = torch.zeros(size, requires_grad=True), torch.full((size,), 0.5, requires_grad=True)
    slow_m, slow_s = m.detach().clone(), s.detach().clone()
    adam = torch.optim.Adam([m, s], 0.05, betas=(0.9, 0.99))
    decay = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.05, steps)
    total = torch.zeros(size)
    for step in range(steps):
        xi, r, slow_xi = (torch.randn(batch, n, size, generator=generator) for n in (N, targets, targets))
        loss = divergence(m + s * xi, r + gamma * (slow_m + slow_s * slow_xi)).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        decay.step()
        slow_m.lerp_(m.detach(), 0.2)
        slow_s.lerp_(s.detach(), 0.2)
        if 2 * step >= steps:
            total += s.detach().abs()
    return total / (steps - steps // 2)


def one_step_ratio(c: float) -> float:
    """``c / sqrt(2 - c^2)``."""
    return c / math.sqrt(2 - c**2)


def bootstrapped_ratio(c: float, gamma: float) -> float:
    """Learned over true standard deviation: ``s = k t``, ``t^2 = 1 + gamma^2 s^2``, and ``1 / sqrt(1 - gamma^2)``."""
    k = one_step_ratio(c)
    return k * math.sqrt((1 - gamma**2) / (1 - gamma**2 * k**2))


def test_closed_forms() -> None:
    biased = (N - 1) / N
    assert one_step_ratio(biased) == pytest.approx(0.825, abs=5e-4)
    assert bootstrapped_ratio(biased, 0.9) == pytest.approx(0.537, abs=5e-4)
    assert bootstrapped_ratio(biased, 0.99) == pytest.approx(0.202, abs=5e-4)
    assert one_step_ratio(1.0) == bootstrapped_ratio(1.0, 0.9) == 1


@pytest.mark.parametrize(("estimator", "c"), [("biased", (N - 1) / N), ("unbiased", 1.0)])
def test_one_step(estimator: str, c: float) -> None:
    spread = learned_spread(MMD(estimator=estimator))
    assert spread.item() == pytest.approx(one_step_ratio(c), abs=0.03)


@pytest.mark.parametrize(
    ("estimator", "c", "targets"),
    [("biased", (N - 1) / N, 10), ("biased", (N - 1) / N, 40), ("unbiased", 1.0, 10)],
    ids=["biased, M = 10", "biased, M = 40", "unbiased"],
)
def test_bootstrapping_compounds_the_collapse_and_more_targets_do_not_help(
    estimator: str, c: float, targets: int
) -> None:
    gamma = 0.9
    spread = learned_spread(MMD(estimator=estimator), gamma=gamma, batch=128, targets=targets, steps=600)
    assert spread.item() * math.sqrt(1 - gamma**2) == pytest.approx(bootstrapped_ratio(c, gamma), abs=0.03)


def test_a_direction_per_transition_shrinks_the_spread() -> None:
    """The joint law of a return and two derivatives, all independent: measured 0.83 in each component."""
    spread = learned_spread(MaxSlicedMMD(direction="transition"), size=3)
    assert (spread > 0.75).all()
    assert (spread < 0.9).all()


@pytest.mark.parametrize("direction", ["batch", "cross_fitted"])
def test_a_shared_or_cross_fitted_direction_does_not(direction: str) -> None:
    spread = learned_spread(MaxSlicedMMD(direction=direction), size=3)
    assert (spread > 0.95).all()
    assert (spread < 1.05).all()
