"""Max-sliced MMD: numerical contracts, the ascent against independent searches, theta as a constant."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dsob_pl.divergences import (
    MMD,
    RBF,
    EnergyDistance,
    Kernel,
    MaxSlicedMMD,
    Multiquadric,
    fit_direction,
    mmd_squared,
    project,
)
from dsob_pl.errors import UsageError

DIRECTIONS = ["batch", "transition", "cross_fitted"]
KERNELS = [EnergyDistance(), Multiquadric(1.0), Multiquadric(100.0), RBF(1.0)]


class Cauchy(Kernel):
    """A user's kernel, its derivative left to automatic differentiation."""

    def profile(self, squared: Tensor) -> Tensor:
        return 1 / (1 + squared)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def value_and_gradient(divergence: MaxSlicedMMD, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    loss = divergence(x, y)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    return loss.detach(), gradient


def slice_value(x: Tensor, y: Tensor, theta: Tensor, kernel: Kernel) -> Tensor:
    return mmd_squared(project(x, theta), project(y, theta), kernel)


@pytest.mark.parametrize("direction", ["batch", "transition"])
def test_samples_on_a_line_by_hand(direction: str) -> None:
    # along u = (3, 4)/5, x = {0, 2} and y = {3, 6}: -2 - 3 + 2 * (3 + 6 + 1 + 4)/4 = 2; slopes +1 - 1 and -1 - 1.
    # The slice of the energy distance scales with |cos|, so theta = u is the maximum, and the start.
    u = torch.tensor([0.6, 0.8], dtype=torch.float64)
    x, y = (torch.tensor(t, dtype=torch.float64).view(1, 2, 1) * u for t in ([0.0, 2.0], [3.0, 6.0]))
    loss, gradient = value_and_gradient(MaxSlicedMMD(EnergyDistance(), direction=direction), x, y)
    torch.testing.assert_close(loss, torch.tensor([2.0], dtype=torch.float64))
    torch.testing.assert_close(gradient, torch.tensor([[[0.0, 0.0], [-1.2, -1.6]]], dtype=torch.float64))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_two_points_by_hand(direction: str) -> None:
    # a deterministic critic at 0 and one target at distance 5: 2 * 5, pulled with force 2 along the line between them
    x, y = torch.zeros(1, 1, 2, dtype=torch.float64), torch.tensor([[[3.0, 4.0]]], dtype=torch.float64)
    loss, gradient = value_and_gradient(MaxSlicedMMD(EnergyDistance(), direction=direction), x, y)
    assert loss.item() == pytest.approx(10.0)
    torch.testing.assert_close(gradient, torch.tensor([[[-1.2, -1.6]]], dtype=torch.float64))


def test_direction_shared_by_the_batch_by_hand() -> None:
    # targets (3, 0) and (0, 3) of two transitions: the mean slice 3|a| + 3|b| is largest at theta = (1, 1)/sqrt(2)
    x = torch.zeros(2, 1, 2, dtype=torch.float64)
    y = torch.tensor([[[3.0, 0.0]], [[0.0, 3.0]]], dtype=torch.float64)
    loss, gradient = value_and_gradient(MaxSlicedMMD(EnergyDistance(), direction="batch"), x, y)
    torch.testing.assert_close(loss, torch.full((2,), 6 / math.sqrt(2), dtype=torch.float64))
    torch.testing.assert_close(gradient, torch.full((2, 1, 2), -math.sqrt(2), dtype=torch.float64))
    own = MaxSlicedMMD(EnergyDistance(), direction="transition")(x, y)
    torch.testing.assert_close(own, torch.full((2,), 6.0, dtype=torch.float64))


@pytest.mark.parametrize(("n", "m"), [(4, 6), (5, 7), (1, 5), (9, 1)])
def test_cross_fitting_swaps_the_interleaved_halves(n: int, m: int) -> None:
    kernel, x, y = Multiquadric(1.0), normal(3, n, 4), normal(3, m, 4, seed=1) + 0.5
    (x0, x1), (y0, y1) = ((z, z) if z.shape[-2] == 1 else (z[:, 0::2], z[:, 1::2]) for z in (x, y))
    expected = 0.5 * slice_value(x1, y1, fit_direction(x0, y0, kernel), kernel)
    expected = expected + 0.5 * slice_value(x0, y0, fit_direction(x1, y1, kernel), kernel)
    loss, gradient = value_and_gradient(MaxSlicedMMD(kernel, direction="cross_fitted"), x, y)
    torch.testing.assert_close(loss, expected)
    assert (gradient.abs().sum(-1) > 0).all()  # every sample takes part


@pytest.mark.parametrize("count", [2, 3])
def test_cross_fitting_refuses_sets_too_small_to_halve(count: int) -> None:
    with pytest.raises(ValueError, match=f"cross_fitted needs 1 or at least 4 samples, got {count} in x"):
        MaxSlicedMMD(direction="cross_fitted")(normal(2, count, 3), normal(2, 8, 3))
    with pytest.raises(ValueError, match=f"cross_fitted needs 1 or at least 4 samples, got {count} in y"):
        MaxSlicedMMD(direction="cross_fitted")(normal(2, 8, 3), normal(2, count, 3))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("kernel", [*KERNELS, Cauchy()], ids=lambda k: type(k).__name__)
def test_ascent_against_automatic_differentiation(kernel: Kernel, estimator: str, shared: bool) -> None:
    """The closed-form gradient: the same ascent with autograd through the loss itself ends at the same theta."""
    x, y = normal(2, 3, 6, 4), 1.5 * normal(2, 3, 5, 4, seed=1) + 0.3

    def objective(theta: Tensor) -> Tensor:
        value = mmd_squared(project(x, theta), project(y, theta), kernel, estimator)
        return value.mean(-1, keepdim=True) if shared else value

    theta = difference = x.mean(-2) - y.mean(-2)
    if shared:  # power iterations of the matrix of mean differences
        matrix = torch.einsum("...bi,...bj->...ij", difference, difference).unsqueeze(-3)
        theta = (torch.linalg.matrix_power(matrix, 3) @ difference.mean(-2, keepdim=True).unsqueeze(-1)).squeeze(-1)
    theta = torch.nn.functional.normalize(theta, dim=-1)
    visited = [theta]
    for step in range(5):
        theta = theta.requires_grad_()
        (slope,) = torch.autograd.grad(objective(theta).sum(), theta)
        theta = theta.detach()
        tangent = slope - (slope * theta).sum(-1, keepdim=True) * theta
        angle = math.atan(0.8 / 2**step)
        theta = math.cos(angle) * theta + math.sin(angle) * torch.nn.functional.normalize(tangent, dim=-1)
        visited.append(theta)
    values = torch.stack([objective(t) for t in visited])
    choice = values.argmax(0)
    expected = torch.stack(visited).gather(0, choice[None, ..., None].expand(1, *theta.shape))[0]
    actual = fit_direction(x, y, kernel, estimator, steps=5, step_size=0.8, shared=shared)
    assert actual.shape == ((2, 1, 4) if shared else (2, 3, 4))
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)


def test_five_steps_come_near_the_true_maximum_in_two_and_three_dimensions() -> None:
    # reference: all directions of a fine grid (D = 2), and 1,500 random ones (D = 3)
    kernel, ratios, starts = EnergyDistance(), [], []
    for d in (2, 3):
        angles = torch.arange(360, dtype=torch.float64) * math.pi / 360
        grid = torch.stack([angles.cos(), angles.sin()], -1) if d == 2 else normal(1500, 3, seed=9)
        grid = torch.nn.functional.normalize(grid, dim=-1)
        for shift, spread in ((0.0, 1.0), (0.7, 1.0), (0.0, 2.5)):
            x, y = normal(20, 10, d), spread * normal(20, 10, d, seed=1) + shift
            pairs = [z.unsqueeze(1).expand(-1, len(grid), -1, -1) for z in (x, y)]
            best = slice_value(*pairs, grid, kernel).amax(1).mean()
            ratios.append((slice_value(x, y, fit_direction(x, y, kernel), kernel).mean() / best).item())
            starts.append((slice_value(x, y, fit_direction(x, y, kernel, steps=0), kernel).mean() / best).item())
    assert min(ratios) > 0.85, ratios
    assert sum(ratios) / len(ratios) > 0.93, ratios
    assert sum(starts) / len(starts) < 0.85  # the ascent is needed


@pytest.mark.parametrize("shared", [False, True])
def test_five_steps_come_near_the_maximum_of_a_long_search(shared: bool) -> None:
    """Reference: Adam on an unconstrained vector from 8 random starts, 100 steps each."""
    kernel, ratios = Multiquadric(100.0), []
    for d, shift, spread in ((3, 0.0, 1.0), (7, 0.7, 1.0), (7, 0.0, 2.0), (24, 0.0, 1.0), (24, 0.4, 2.0)):
        x, y = normal(16, 10, d), spread * normal(16, 10, d, seed=1)
        y[..., 0] += shift
        free = normal(8, 1 if shared else 16, d, seed=2).requires_grad_()
        many = [z.expand(8, *z.shape) for z in (x, y)]
        optimizer = torch.optim.Adam([free], lr=0.1)

        def values(free: Tensor = free, many: list[Tensor] = many) -> Tensor:
            value = slice_value(*many, torch.nn.functional.normalize(free, dim=-1), kernel)
            return value.mean(-1) if shared else value

        for _ in range(100):
            optimizer.zero_grad()
            (-values().sum()).backward()
            optimizer.step()
        longest = values().amax(0).mean().item()
        found = slice_value(x, y, fit_direction(x, y, kernel, shared=shared), kernel).mean().item()
        ratios.append(found / longest)
    assert sum(ratios) / len(ratios) > 0.92, ratios
    assert min(ratios) > 0.8, ratios


@pytest.mark.parametrize("d", [3, 7, 24])
def test_a_shared_direction_is_found_where_mean_differences_cancel(d: int) -> None:
    # half of the transitions are off by +u, half by -u: the average of their differences is noise
    x, y = normal(64, 10, d), normal(64, 10, d, seed=1)
    u = torch.nn.functional.normalize(normal(d, seed=2), dim=-1)
    y[0::2] += u
    y[1::2] -= u
    for steps, cosine in ((0, 0.75), (5, 0.95)):
        theta = fit_direction(x, y, EnergyDistance(), steps=steps, shared=True).squeeze()
        assert (theta @ u).abs() > cosine


def test_the_ascent_never_ends_below_its_start() -> None:
    for kernel in KERNELS:
        for step_size in (0.1, 1.0, 30.0):
            x, y = normal(50, 6, 5), normal(50, 4, 5, seed=1)
            start = slice_value(x, y, fit_direction(x, y, kernel, steps=0), kernel)
            end = slice_value(x, y, fit_direction(x, y, kernel, step_size=step_size), kernel)
            assert (end >= start - 1e-12).all()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_theta_is_a_unit_vector_also_where_means_are_equal(dtype: torch.dtype, shared: bool) -> None:
    # equal sets, sets that differ in spread alone, all samples at one point, and far or minute scales
    z = normal(4, 6, 3).to(dtype)
    z = z - z.mean(-2, keepdim=True)
    point = torch.ones(4, 6, 3, dtype=dtype)
    mirrored = torch.cat([z[:, :3], -z[:, :3]], dim=1)
    for x, y in ((z, z), (mirrored, 2 * mirrored), (point, point), (1e8 * z, -1e8 * z + 1), (1e-12 * z, z * 0)):
        for kernel in KERNELS:
            theta = fit_direction(x, y, kernel, shared=shared)
            assert theta.dtype == dtype
            torch.testing.assert_close(theta.norm(dim=-1), torch.ones_like(theta[..., 0]))
            _, gradient = value_and_gradient(MaxSlicedMMD(kernel, direction="batch" if shared else "transition"), x, y)
            assert gradient.isfinite().all()


def test_ascent_leaves_the_fallback_when_means_are_equal() -> None:
    # equal means, spread along different axes: the maximum is one of the axes, the start neither
    t = torch.linspace(-1, 1, 10, dtype=torch.float64).unsqueeze(-1)
    x, y = t * torch.tensor([1.0, 0.0], dtype=torch.float64), t * torch.tensor([0.0, 1.0], dtype=torch.float64)
    loss = MaxSlicedMMD(EnergyDistance(), "biased", "transition")(x, y)
    axis = MMD(EnergyDistance(), "biased")(t, torch.zeros_like(t))
    assert 0.95 * axis < loss <= axis + 1e-12


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_large_returns_of_small_spread_keep_their_precision_in_float32(direction: str) -> None:
    # multiples of 2^-10, so that float32 holds the samples themselves exactly
    x, y = (10_000 + (z * 20).round() / 1024 for z in (normal(8, 10, 3), 2 * normal(8, 10, 3, seed=1)))
    divergence = MaxSlicedMMD(EnergyDistance(), direction=direction)
    torch.testing.assert_close(divergence(x.float(), y.float()).double(), divergence(x, y), rtol=1e-3, atol=1e-6)


def test_in_one_dimension_it_is_mmd() -> None:
    x, y = normal(5, 6, 1), normal(5, 4, 1, seed=1)
    for direction in ("batch", "transition"):
        torch.testing.assert_close(MaxSlicedMMD(direction=direction)(x, y), MMD()(x, y))


@pytest.mark.parametrize("direction", ["batch", "transition"])
def test_theta_is_constant_in_the_backward_pass(direction: str) -> None:
    x, y, kernel = normal(5, 6, 3), normal(5, 4, 3, seed=1) + 0.2, Multiquadric(3.0)
    divergence = MaxSlicedMMD(kernel, direction=direction)
    theta = fit_direction(x, y, kernel, shared=direction == "batch")
    z = x.clone().requires_grad_()
    assert not fit_direction(z, y, kernel).requires_grad
    (frozen,) = torch.autograd.grad(slice_value(z, y, theta, kernel).sum(), z)
    torch.testing.assert_close(value_and_gradient(divergence, x, y)[1], frozen)
    torch.testing.assert_close(torch.func.grad(lambda v: divergence(v, y).sum())(x), frozen)
    # also the second derivative sees no theta, and along theta alone does the loss push
    hessian = torch.func.hessian(lambda v: divergence(v, y).sum())(x)
    expected = torch.func.hessian(lambda v: slice_value(v, y, theta, kernel).sum())(x)
    torch.testing.assert_close(hessian, expected)
    along = (frozen * theta.unsqueeze(-2)).sum(-1, keepdim=True) * theta.unsqueeze(-2)
    torch.testing.assert_close(frozen, along)


def test_leading_dimensions_keep_their_own_shared_direction() -> None:
    x, y = normal(2, 4, 6, 3), normal(2, 4, 5, 3, seed=1) + 0.5
    divergence = MaxSlicedMMD(Multiquadric(1.0), direction="batch")
    both = divergence(x, y)
    torch.testing.assert_close(both, torch.stack([divergence(a, b) for a, b in zip(x, y)]))
    torch.testing.assert_close(both, torch.func.vmap(divergence)(x, y))
    theta = fit_direction(x, y, Multiquadric(1.0), shared=True)
    assert theta.shape == (2, 1, 3)
    torch.testing.assert_close(both[1], slice_value(x[1], y[1], theta[1], Multiquadric(1.0)))


def test_bad_arguments() -> None:
    with pytest.raises(UsageError, match=r"MaxSlicedMMD.direction: .*got 'crossfitted'; did you mean 'cross_fitted'"):
        MaxSlicedMMD(direction="crossfitted")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"MaxSlicedMMD.estimator: expected one of unbiased, biased, got 'u'"):
        MaxSlicedMMD(estimator="u")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"MaxSlicedMMD.ascent_steps: expected a number of at least 0, got -1"):
        MaxSlicedMMD(ascent_steps=-1)
    with pytest.raises(UsageError, match=r"MaxSlicedMMD.step_size: expected a positive number, got 0"):
        MaxSlicedMMD(step_size=0.0)
