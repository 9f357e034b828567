"""What training minimises has the divergence's derivative; distances and their derivatives by the obvious version."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dsob_pl.divergences import (
    MMD,
    RBF,
    Divergence,
    EnergyDistance,
    Huber,
    Kernel,
    MaxSlicedMMD,
    Multiquadric,
    ValueAnchored,
)
from dsob_pl.divergences.kernels import squared_distances

CROSS_FITTED = MaxSlicedMMD(EnergyDistance(), direction="cross_fitted")
DIVERGENCES: dict[str, Divergence] = {
    "mmd": MMD(Multiquadric(2.0)),
    "biased": MMD(RBF(0.5), "biased"),
    "cross_fitted": CROSS_FITTED,
    "batch": MaxSlicedMMD(Multiquadric(2.0)),
    "huber": Huber(0.7),
    "anchored": ValueAnchored(CROSS_FITTED, MMD(Multiquadric(2.0)), 0.5),
}


def sets(*shape: int, m: int = 7, d: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(*shape, 6, d, dtype=torch.float64, generator=generator)
    return x, 1.5 * torch.randn(*shape, m, d, dtype=torch.float64, generator=generator) + 1


@pytest.mark.parametrize("m", [1, 7, 8])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_objective_has_the_derivative_of_the_divergence(name: str, m: int) -> None:
    divergence, (x, y) = DIVERGENCES[name], sets(2, 5, m=m)
    of_objective = torch.func.grad(lambda u: divergence.objective(u, y).sum())
    gradient = torch.func.grad(lambda u: divergence(u, y).sum())
    torch.testing.assert_close(of_objective(x), gradient(x))
    # and what it leaves out depends on y alone
    left_out = [divergence(u, y) - divergence.objective(u, y) for u in (x, x.flip(0) * 2)]
    if "sliced" not in type(divergence).__name__.lower() and name != "anchored":  # there y is seen along a slice of x's
        torch.testing.assert_close(*left_out)


def test_objective_of_mmd_by_hand() -> None:
    # x = {0, 3}, y = {1, 2}, energy distance: mean over x-x' of -|x - x'| is -3; 2 mean |x - y| = 2 (1+2+2+1)/4 = 3
    x, y = torch.tensor([[0.0], [3.0]], requires_grad=True), torch.tensor([[1.0], [2.0]])
    loss = MMD(EnergyDistance()).objective(x, y)
    assert loss.item() == pytest.approx(0.0)
    assert MMD(EnergyDistance())(x, y).item() == pytest.approx(-1.0)  # with mean over y-y', -1
    # d/dx_1 of -|x_1 - x_2| + (|x_1 - 1| + |x_1 - 2|)/2: 1 - 1, and its mirror image
    assert torch.autograd.grad(loss, x)[0].tolist() == [[0.0], [0.0]]


def plain_distances(u: Tensor, v: Tensor) -> Tensor:
    return (u.unsqueeze(-2) - v.unsqueeze(-3)).square().sum(-1)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_distances_and_derivatives_are_those_of_the_differences(d: int) -> None:
    u, v = sets(4, d=d)

    def loss(distances, u, v):
        return (1 + distances(u, v)).sqrt().sin().sum()

    for transform in (
        lambda f: f,
        lambda f: torch.func.grad(f, (0, 1)),
        lambda f: torch.func.vmap(torch.func.grad(f, (0, 1))),
        lambda f: torch.func.vmap(torch.func.grad(f), in_dims=(None, 0)),  # one set shared by the batch
        lambda f: torch.func.hessian(f),
    ):
        ours, theirs = (transform(lambda u, v, g=g: loss(g, u, v)) for g in (squared_distances, plain_distances))
        torch.testing.assert_close(ours(u, v), theirs(u, v))
    leaves = [x.clone().requires_grad_() for x in (u, v)]
    assert torch.autograd.gradcheck(squared_distances, leaves)
    assert torch.autograd.gradgradcheck(squared_distances, leaves)
    assert torch.autograd.gradcheck(squared_distances, (leaves[0], v))


def test_derivative_keeps_its_digits_far_from_the_origin() -> None:
    u, v = sets(4)
    far = [torch.tensor(x * 64, dtype=torch.float32).round() / 64 + 4096 for x in (u.tolist(), v.tolist())]
    near = [x.double() - 4096 for x in far]
    exact = torch.func.grad(lambda x: Multiquadric(100.0)(x, near[1]).sum())(near[0])
    ours = torch.func.grad(lambda x: Multiquadric(100.0)(x, far[1]).sum())(far[0])
    torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "kernel", [Multiquadric(3.0), EnergyDistance(), RBF([0.5, 2.0])], ids=lambda k: type(k).__name__
)
def test_profile_and_slope_at_once(kernel: Kernel) -> None:
    squared = torch.tensor([0.0, 1e-9, 0.3, 50.0], dtype=torch.float64)
    profile, slope = kernel.profile_and_slope(squared)
    torch.testing.assert_close(profile, kernel.profile(squared))
    torch.testing.assert_close(slope, kernel.slope(squared))
