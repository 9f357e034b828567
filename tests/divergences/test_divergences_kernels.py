"""Kernels: hand-computed values, derivatives, behaviour where points meet, what the bandwidth means."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dsob_pl.divergences import MMD, RBF, EnergyDistance, Kernel, Multiquadric, mmd_squared
from dsob_pl.errors import UsageError

KERNELS = [Multiquadric(100.0), Multiquadric(0.7), EnergyDistance(), RBF(0.5), RBF([0.3, 1.0, 2.0])]


class InverseMultiquadric(Kernel):
    """As a user would write one: the profile alone."""

    def profile(self, squared: Tensor) -> Tensor:
        return (1 + squared).rsqrt()


def test_values_by_hand() -> None:
    u = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    v = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    assert EnergyDistance()(u, v).tolist() == [[-5.0], [-0.0]]
    # h multiplies: h |u - v| = 0.15 * 5 = 3/4, and sqrt(1 + 9/16) = 5/4; as a divisor it would be 33
    torch.testing.assert_close(Multiquadric(0.15)(u, v), torch.tensor([[-1.25], [-1.0]], dtype=torch.float64))
    # exp(-h^2 |u - v|^2 / 2) = 1/2 for h |u - v| = sqrt(2 ln 2)
    h = math.sqrt(2 * math.log(2)) / 5
    torch.testing.assert_close(RBF(h)(u, v), torch.tensor([[0.5], [1.0]], dtype=torch.float64))
    torch.testing.assert_close(RBF([h, 2 * h])(u, v), torch.tensor([[9 / 32], [1.0]], dtype=torch.float64))


@pytest.mark.parametrize("kernel", [*KERNELS, InverseMultiquadric()], ids=lambda k: type(k).__name__)
def test_slope_is_the_derivative_of_the_profile(kernel: Kernel) -> None:
    squared = torch.tensor([1e-6, 0.01, 0.3, 1.0, 7.0, 400.0], dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(kernel.profile(squared).sum(), squared)
    torch.testing.assert_close(kernel.slope(squared.detach()), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance", [0.0, 1e-30, 1e-22, 1e-15, 1e-8])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: type(k).__name__)
def test_derivatives_stay_finite_where_points_meet(kernel: Kernel, distance: float, dtype: torch.dtype) -> None:
    v = torch.zeros(1, 3, dtype=dtype)
    u = torch.full((1, 3), distance, dtype=dtype, requires_grad=True)
    (first,) = torch.autograd.grad(kernel(u, v).sum(), u, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum() + first.sum(), u)
    assert first.isfinite().all()
    assert second.isfinite().all()
    assert kernel.slope(u.detach().square().sum(-1)).isfinite().all()
    if distance == 0:
        assert first.count_nonzero() == 0
    hessian = torch.func.hessian(lambda w: kernel(w, v).sum())(u.detach())
    assert hessian.isfinite().all()


def test_equal_points_have_distance_exactly_zero_in_float32() -> None:
    # |u|^2 + |v|^2 - 2 <u, v> would leave about 1e-2 here, which h = 100 makes 10
    u = torch.randn(20, 7) * 300
    assert Multiquadric(100.0)(u, u).diagonal().eq(-1).all()


def test_multiquadric_is_h_times_the_energy_distance_far_above_its_width() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 12, 3, dtype=torch.float64, generator=generator)
    y = torch.randn(4, 9, 3, dtype=torch.float64, generator=generator) * 2 + 1
    wide = mmd_squared(x, y, Multiquadric(1e5)) / 1e5
    torch.testing.assert_close(wide, mmd_squared(x, y, EnergyDistance()), atol=1e-4, rtol=1e-4)


def test_bandwidth_multiplies_the_distance_so_that_100_sees_the_spread_and_a_hundredth_only_the_mean() -> None:
    # equal means, spreads 1 and 2: exact quantile samples, so that nothing here is noise
    levels = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
    x = torch.special.ndtri(levels).unsqueeze(-1)
    y, shifted = 2 * x, x + 1
    sees = mmd_squared(x, y, Multiquadric(100.0), "biased") / mmd_squared(x, shifted, Multiquadric(100.0), "biased")
    blind = mmd_squared(x, y, Multiquadric(0.01), "biased") / mmd_squared(x, shifted, Multiquadric(0.01), "biased")
    assert sees > 0.2
    assert blind < 1e-3
    # and what is left at h = 1/100 is the squared difference of means times h^2
    torch.testing.assert_close(mmd_squared(x, shifted, Multiquadric(0.01), "biased").item(), 1e-4, rtol=1e-3, atol=0.0)


def test_rbf_of_width_100_exerts_no_force_between_separated_returns() -> None:
    x = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)
    for kernel, expected in ((RBF(100.0), 0.0), (Multiquadric(100.0), 200.0)):
        (force,) = torch.autograd.grad(MMD(kernel)(x, torch.ones(3, 1, dtype=torch.float64)), x)
        assert force.abs().sum().item() == pytest.approx(expected, rel=1e-3, abs=1e-12)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("kernel", [Multiquadric, RBF])
def test_bandwidth_must_be_positive(kernel: type[Multiquadric] | type[RBF], value: float) -> None:
    with pytest.raises(UsageError, match=rf"{kernel.__name__}.bandwidth: expected a positive number, got {value}"):
        kernel(value)


def test_rbf_needs_a_bandwidth() -> None:
    with pytest.raises(UsageError, match=r"RBF.bandwidth"):
        RBF([])
    with pytest.raises(UsageError, match=r"RBF.bandwidth"):
        RBF([1.0, -1.0])
