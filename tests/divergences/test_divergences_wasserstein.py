"""Sliced and max-sliced Wasserstein distances against hand computation and POT."""

from __future__ import annotations

import math

import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsob_pl.divergences import MMD, EnergyDistance, MaxSlicedWasserstein, SlicedWasserstein
from dsob_pl.divergences.wasserstein import spread_directions, wasserstein_power
from dsob_pl.errors import UsageError


def test_by_hand_on_a_line() -> None:
    # x = {0, 3}, y = {1, 2, 6}: thirds and halves meet at 0, 1/3, 1/2, 2/3, 1; differences 1, 2, 1, 3
    x = torch.tensor([[3.0], [0.0]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[2.0], [1.0], [6.0]], dtype=torch.float64)
    first, second = SlicedWasserstein(1)(x, y), SlicedWasserstein(2)(x, y)
    assert first.item() == pytest.approx(1 / 3 + 2 / 6 + 1 / 6 + 3 / 3)
    assert second.item() == pytest.approx(1 / 3 + 4 / 6 + 1 / 6 + 9 / 3)
    (gradient,) = torch.autograd.grad(second, x)  # 3: 2 (1/6 - 3/3), and 0: -2 (1/3 + 2/6)
    torch.testing.assert_close(gradient, torch.tensor([[2 * (1 / 6 - 1)], [-2 * (2 / 3)]], dtype=torch.float64))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 2), st.integers(0, 1000))
def test_the_distance_on_a_line_is_that_of_pot(n: int, m: int, order: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(k, dtype=torch.float64, generator=generator) for k in (n, m))
    expected = ot.wasserstein_1d(x.numpy(), y.numpy(), p=order)
    torch.testing.assert_close(wasserstein_power(x, y, order).item(), float(expected))


@pytest.mark.parametrize("order", [1, 2])
def test_the_average_over_directions_is_that_of_pot(order: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(k, 4, dtype=torch.float64, generator=generator) for k in (6, 9))
    theta = spread_directions(50, 4, x)
    expected = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=theta.T.numpy(), p=order)
    torch.testing.assert_close(SlicedWasserstein(order, 50)(x, y).item(), float(expected) ** order)


@pytest.mark.parametrize("size", [2, 5, 24])
def test_directions_are_spread_over_the_sphere(size: int) -> None:
    theta = spread_directions(64, size, torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(theta.norm(dim=-1), torch.ones(64, dtype=torch.float64))
    assert torch.linalg.matrix_rank(theta) == size
    assert theta.mean(0).abs().max() < 0.15
    # A sample of 64 Gaussian directions has eigenvalues of (1 +- sqrt(D/64))^2 / D.
    eigenvalues = torch.linalg.eigvalsh(theta.mT @ theta / 64) * size
    assert eigenvalues.max() < (1 + math.sqrt(size / 64)) ** 2 + 0.1


@pytest.mark.parametrize("order", [1, 2])
def test_max_sliced_finds_nearly_the_largest_slice(order: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(20, 8, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    y = y * torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
    theta = spread_directions(3000, 3, x)
    slices = wasserstein_power(theta @ x.mT, theta @ y.mT, order)  # [20, 3000]
    found = MaxSlicedWasserstein(order, "transition", steps=10)(x, y)
    assert (found <= slices.max(-1).values * 1.01).all()
    assert (found / slices.max(-1).values).mean() > 0.85  # the search is local
    shared = MaxSlicedWasserstein(order, "batch", steps=10)
    one = shared.fit(x, y)
    assert one.shape == (20, 1, 3) or one.shape == (1, 3)
    assert shared(x, y).mean() > 0.9 * slices.mean(0).max()


def test_the_direction_is_constant_in_the_backward_pass() -> None:
    x = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(5, 6, 3, dtype=torch.float64)
    divergence = MaxSlicedWasserstein()
    theta = divergence.fit(x.detach(), y)
    expected = wasserstein_power((x @ theta.unsqueeze(-1)).squeeze(-1), (y @ theta.unsqueeze(-1)).squeeze(-1), 2)
    gradients = [torch.autograd.grad(loss.sum(), x)[0] for loss in (divergence(x, y), expected)]
    torch.testing.assert_close(*gradients)


def test_the_energy_distance_is_the_cramer_distance_averaged_over_all_directions() -> None:
    """What conf/method/sliced_cramer_sobolev.yaml says: E|<theta, v>| = |v| gamma(D/2) / (sqrt(pi) gamma((D+1)/2))."""
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.randn(k, 3, dtype=torch.float64, generator=generator) for k in (5, 7))
    theta = spread_directions(20_000, 3, x)
    energy = MMD(EnergyDistance(), "biased")
    average = energy((theta @ x.mT).unsqueeze(-1), (theta @ y.mT).unsqueeze(-1)).mean()
    constant = math.gamma(1.5) / (math.sqrt(math.pi) * math.gamma(2))
    torch.testing.assert_close(average, constant * energy(x, y), rtol=5e-3, atol=0)
    # and on a line the Cramer distance, the integral of (F - G)^2, is half of it
    u, v = x[:, :1], y[:, :1]
    points = torch.cat([u, v]).flatten().sort().values
    f, g = ((z.flatten() <= points[:-1, None]).double().mean(-1) for z in (u, v))
    torch.testing.assert_close(((f - g).square() * points.diff()).sum(), energy(u, v) / 2)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (SlicedWasserstein, {"order": 3}, "order: expected 1 or 2"),
        (SlicedWasserstein, {"directions": 0}, "directions: expected at least 1"),
        (MaxSlicedWasserstein, {"direction": "bach"}, "did you mean 'batch'"),
        (MaxSlicedWasserstein, {"steps": -1}, "steps: expected a number of at least 0"),
    ],
)
def test_bad_options_are_refused(kind: type, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        kind(**options)
