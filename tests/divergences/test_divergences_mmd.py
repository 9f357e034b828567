"""MMD^2: numerical contracts, independent references, and what the two estimators do to the learned spread."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from geomloss import SamplesLoss
from scipy.stats import energy_distance
from torch import Tensor

from dsob_pl.divergences import MMD, RBF, EnergyDistance, Kernel, Multiquadric, ValueAnchored, mmd_squared
from dsob_pl.errors import UsageError


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(-1)


def sets(*shape: int, m: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two sample sets ``[*shape]`` and the same with m samples, of different laws."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, dtype=torch.float64, generator=generator)
    y = torch.randn(*shape[:-2], m, shape[-1], dtype=torch.float64, generator=generator)
    return x, 1.5 * y + 0.4


def value_and_gradient(divergence: MMD | ValueAnchored, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    loss = divergence(x, y)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    return loss.detach(), gradient


@pytest.mark.parametrize(
    ("estimator", "value", "slope"), [("unbiased", -1.0, (0.0, -1.0)), ("biased", 1.5, (-0.5, -0.5))]
)
def test_energy_distance_by_hand(estimator: str, value: float, slope: tuple[float, float]) -> None:
    # x = {0, 2}, y = {1, 4}: |x-x'| = 2, |y-y'| = 3, mean |x-y| = (1 + 4 + 1 + 2) / 4 = 2.
    # unbiased: -2 - 3 + 2*2; biased halves the first two. x_0 is pushed +1 (+1/2) from x_1 and -1 towards y.
    loss, gradient = value_and_gradient(MMD(EnergyDistance(), estimator), column(0, 2), column(1, 4))
    assert loss.item() == value
    assert gradient.flatten().tolist() == list(slope)


def test_multiquadric_by_hand() -> None:
    # h = 2; h|x_0 - y| = 3/4, h|x_1 - y| = 4/3, h^2 |x_0 - x_1|^2 = 337/144, so the roots are 5/4, 5/3, sqrt(481)/12
    x = torch.tensor([[3 / 8, 0.0], [0.0, -2 / 3]], dtype=torch.float64)
    loss, gradient = value_and_gradient(MMD(Multiquadric(2.0)), x, torch.zeros(1, 2, dtype=torch.float64))
    root = math.sqrt(481)
    assert loss.item() == pytest.approx((23 - root) / 12, abs=1e-14)
    expected = torch.tensor([[1.2 - 18 / root, -32 / root], [18 / root, 32 / root - 1.6]], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected)


def test_rbf_by_hand() -> None:
    # |x - y|^2 / 2 = ln 2: k(x, y) = 1/2, MMD^2 = 1 + 1 - 2/2 and its slope -2 k'(x) = x - y
    distance = math.sqrt(2 * math.log(2))
    loss, gradient = value_and_gradient(MMD(RBF(1.0)), column(0), column(distance))
    assert loss.item() == pytest.approx(1.0)
    assert gradient.item() == pytest.approx(-distance)


@pytest.mark.parametrize("kernel", [EnergyDistance(), Multiquadric(100.0), RBF(1.0)], ids=lambda k: type(k).__name__)
def test_a_single_sample_is_a_point_mass(kernel: Kernel) -> None:
    x, y = sets(5, 1, 3, m=4)
    unbiased, biased = MMD(kernel, "unbiased"), MMD(kernel, "biased")
    # one sample against one: nothing is left to estimate, and equal points are at zero
    assert unbiased(y[:, :1], y[:, :1]).abs().max() < 1e-12
    torch.testing.assert_close(unbiased(x, y[:, :1]), biased(x, y[:, :1]))
    # one against several: the prediction feels the targets alone
    _, gradient = value_and_gradient(unbiased, x, y)
    pull = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(-2 * kernel(pull, y).mean((-2, -1)).sum(), pull)
    torch.testing.assert_close(gradient, expected)


def loop_mmd(x: np.ndarray, y: np.ndarray, k: str, h: float, unbiased: bool) -> float:
    """The definition, one pair at a time."""

    def kernel(u: np.ndarray, v: np.ndarray) -> float:
        r = math.dist(u, v)
        return {"mq": -math.sqrt(1 + (h * r) ** 2), "energy": -r, "rbf": math.exp(-((h * r) ** 2) / 2)}[k]

    def within(z: np.ndarray) -> float:
        pairs = [(i, j) for i in range(len(z)) for j in range(len(z)) if not (unbiased and i == j)]
        return sum(kernel(z[i], z[j]) for i, j in pairs) / len(pairs)

    across = sum(kernel(u, v) for u in x for v in y) / (len(x) * len(y))
    return within(x) + within(y) - 2 * across


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize(
    ("kernel", "name", "h"),
    [(Multiquadric(100.0), "mq", 100.0), (EnergyDistance(), "energy", 1.0), (RBF(0.6), "rbf", 0.6)],
)
def test_against_a_double_loop(kernel: Kernel, name: str, h: float, estimator: str) -> None:
    x, y = sets(2, 3, 6, 4, m=9)
    loss = mmd_squared(x, y, kernel, estimator)
    assert loss.shape == (2, 3)
    for index in np.ndindex(2, 3):
        expected = loop_mmd(x[index].numpy(), y[index].numpy(), name, h, estimator == "unbiased")
        assert loss[index].item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_against_geomloss_and_its_gradient() -> None:
    # geomloss returns half of the biased MMD^2; its Gaussian kernel has standard deviation blur = 1/h; it bounds
    # distances below by 1e-4, which the diagonals show
    x, y = sets(3, 7, 4, m=5)
    for kernel, reference, diagonals in (
        (EnergyDistance(), SamplesLoss("energy", backend="tensorized"), 1e-4 * (1 / 7 + 1 / 5)),
        (RBF(0.4), SamplesLoss("gaussian", blur=2.5, backend="tensorized"), 0.0),
    ):
        loss, gradient = value_and_gradient(MMD(kernel, "biased"), x, y)
        z = x.clone().requires_grad_()
        half = reference(z, y)
        (expected,) = torch.autograd.grad(half.sum(), z)
        torch.testing.assert_close(loss, 2 * half.detach() + diagonals, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(gradient, 2 * expected, rtol=1e-5, atol=1e-7)


def test_against_scipy_in_one_dimension() -> None:
    # scipy returns the square root, computed from distribution functions and not from pairs
    x, y = sets(8, 1, m=11)
    expected = energy_distance(x.flatten().numpy(), y.flatten().numpy()) ** 2
    assert MMD(EnergyDistance(), "biased")(x, y).item() == pytest.approx(expected, rel=1e-10)


def test_the_biased_estimator_shrinks_the_spread_as_its_closed_form_says() -> None:
    # x ~ s N(0,1), y ~ N(0,1), energy distance: the biased estimator is stationary at s = c / sqrt(2 - c^2),
    # c = (N-1)/N (0.825 at N = 10), the unbiased one at s = 1
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(20_000, 10, 1, dtype=torch.float64, generator=generator) for _ in range(2))
    c = 0.9
    for estimator, stationary in (("unbiased", 1.0), ("biased", c / math.sqrt(2 - c**2))):
        scale = torch.tensor(stationary, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(MMD(EnergyDistance(), estimator)(scale * x, y).mean(), scale)
        assert slope.abs() < 0.006
    (slope,) = torch.autograd.grad(
        MMD(EnergyDistance(), "biased")((one := torch.ones((), requires_grad=True)) * x, y).mean(), one
    )
    assert slope > 0.1


def test_value_anchored_adds_the_divergence_of_the_return() -> None:
    x, y = sets(4, 5, 3, m=6)
    joint, value = MMD(EnergyDistance()), MMD(Multiquadric(1.0), "biased")
    same = ValueAnchored(joint, weight=0.5)
    other = ValueAnchored(joint, value, weight=2.0)
    torch.testing.assert_close(same(x, y), joint(x, y) + 0.5 * joint(x[..., :1], y[..., :1]))
    torch.testing.assert_close(other(x, y), joint(x, y) + 2.0 * value(x[..., :1], y[..., :1]))
    _, with_anchor = value_and_gradient(other, x, y)
    _, without = value_and_gradient(joint, x, y)
    torch.testing.assert_close(with_anchor[..., 1:], without[..., 1:])
    assert (with_anchor[..., 0] - without[..., 0]).abs().min() > 0
    # by hand: |x - y| = 5 for the whole vector and 3 for the return, each twice
    point = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    loss, gradient = value_and_gradient(ValueAnchored(joint), point, torch.zeros_like(point))
    assert loss.item() == 16.0
    assert gradient.tolist() == [[2 * 0.6 + 2, 2 * 0.8]]


def test_bad_arguments() -> None:
    with pytest.raises(
        UsageError, match=r"MMD.estimator: expected one of unbiased, biased, got 'unbiassed'; did you mean"
    ):
        MMD(estimator="unbiassed")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="estimator"):
        mmd_squared(column(0), column(1), EnergyDistance(), "V")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"ValueAnchored.weight: expected a number of at least 0, got -1"):
        ValueAnchored(MMD(), weight=-1.0)
