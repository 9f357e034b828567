"""Huber, squared error and quantile Huber: numerical contracts and independent references."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dsob_pl.divergences import Divergence, Huber, QuantileHuber, SobolevHuber, SquaredError, quantile_huber
from dsob_pl.errors import UsageError


def samples(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def check(divergence: Divergence, x: Tensor, y: Tensor, value: float, gradient: Tensor) -> None:
    x = x.clone().requires_grad_()
    loss = divergence(x, y)
    assert loss.item() == pytest.approx(value, abs=1e-14)
    (slope,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(slope, gradient)


def test_huber_of_the_whole_vector_by_hand() -> None:
    # distances 5 (linear: 5 - 1/2) and 1/2 (quadratic: 1/8) to the two targets
    y = samples((3.0, 0.0, 4.0), (0.0, 0.3, 0.4))
    expected = samples((-0.6, -0.3, -0.8 - 0.4)) / 2
    check(Huber(1.0), samples((0.0, 0.0, 0.0)), y, (4.5 + 0.125) / 2, expected)
    # threshold 10: both quadratic
    check(Huber(10.0), samples((0.0, 0.0, 0.0)), y, (12.5 + 0.125) / 2, -y.sum(0, keepdim=True) / 2)


def test_sobolev_huber_by_hand() -> None:
    # errors 2 of the value and (3, 4) of the gradient: huber 3/2, 9/2 of the norm, 5/2 + 7/2 of the components
    x, y = samples((0.0, 0.0, 0.0)), samples((2.0, 3.0, 4.0))
    check(SobolevHuber(1.0, 0.5, "norm"), x, y, 1.5 + 2.25, samples((-1.0, -0.3, -0.4)))
    check(SobolevHuber(1.0, 0.5, "componentwise"), x, y, 1.5 + 3.0, samples((-1.0, -0.5, -0.5)))


def test_squared_error_by_hand() -> None:
    # pairs (2; 3, 4) and (-1; 0, 1)
    x, y = samples((0.0, 0.0, 0.0)), samples((2.0, 3.0, 4.0), (-1.0, 0.0, 1.0))
    gradient = samples((2 * -0.5, 0.1 * -3.0, 0.1 * -5.0))
    check(SquaredError(1.0, 0.1), x, y, ((4 + 2.5) + (1 + 0.1)) / 2, gradient)


@pytest.mark.parametrize("divergence", [SobolevHuber(), SobolevHuber(gradient="componentwise")])
def test_sobolev_huber_of_the_return_alone_is_torch_huber(divergence: Divergence) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (3 * torch.randn(6, n, 1, dtype=torch.float64, generator=generator) for n in (1, 1))
    expected = torch.nn.functional.huber_loss(x, y, reduction="none").flatten()
    torch.testing.assert_close(divergence(x, y), expected)
    torch.testing.assert_close(Huber()(x, y), expected)


@pytest.mark.parametrize("threshold", [0.3, 1.0, 4.0])
def test_against_loops_over_pairs(threshold: float) -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = (2 * torch.randn(n, 3, dtype=torch.float64, generator=generator) for n in (4, 5))

    def huber(e: float) -> float:
        return e**2 / 2 if abs(e) <= threshold else threshold * (abs(e) - threshold / 2)

    def mean(pair: object) -> float:
        return sum(pair(u.tolist(), v.tolist()) for u in x for v in y) / 20  # type: ignore[operator]

    for divergence, pair in (
        (Huber(threshold), lambda u, v: huber(math.dist(u, v))),
        (SobolevHuber(threshold, 0.7), lambda u, v: huber(u[0] - v[0]) + 0.7 * huber(math.dist(u[1:], v[1:]))),
        (
            SobolevHuber(threshold, 0.7, "componentwise"),
            lambda u, v: huber(u[0] - v[0]) + 0.7 * sum(huber(a - b) for a, b in zip(u[1:], v[1:])),
        ),
        (SquaredError(2.0, 0.7), lambda u, v: 2 * (u[0] - v[0]) ** 2 + 0.7 * math.dist(u[1:], v[1:]) ** 2),
    ):
        assert divergence(x, y).item() == pytest.approx(mean(pair), rel=1e-12)


def test_quantile_huber_by_hand() -> None:
    # levels 1/4 and 3/4, predictions 0 and 1. Target 2: u = 2, 1, huber 3/2, 1/2, weights tau
    x = samples((0.0,), (1.0,))
    check(QuantileHuber(), x, samples((2.0,)), (0.25 * 1.5 + 0.75 * 0.5) / 2, samples((-0.125,), (-0.375,)))
    # target -2: u = -2, -3, huber 3/2, 5/2, weights 1 - tau
    check(QuantileHuber(), x, samples((-2.0,)), (0.75 * 1.5 + 0.25 * 2.5) / 2, samples((0.375,), (0.125,)))
    # threshold 2 and target 1: u = 1, 0, huber 1/2, 0, divided by the threshold
    check(QuantileHuber(2.0), x, samples((1.0,)), 0.25 * 0.5 / 2 / 2, samples((-0.25 / 4,), (0.0,)))
    # levels of one's own
    tau = torch.tensor([0.9, 0.1], dtype=torch.float64)
    assert quantile_huber(x, samples((2.0,)), tau).item() == pytest.approx((0.9 * 1.5 + 0.1 * 0.5) / 2)


def test_quantile_huber_against_loops() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(3, 4, 1, dtype=torch.float64, generator=generator)
    y = 2 * torch.randn(3, 6, 1, dtype=torch.float64, generator=generator)
    tau = torch.rand(3, 4, dtype=torch.float64, generator=generator)
    for threshold in (0.2, 1.0):
        loss = quantile_huber(x, y, tau, threshold)
        for b in range(3):
            total = 0.0
            for i in range(4):
                for j in range(6):
                    u = (y[b, j] - x[b, i]).item()
                    size = u**2 / 2 if abs(u) <= threshold else threshold * (abs(u) - threshold / 2)
                    total += abs(tau[b, i].item() - (u < 0)) * size / threshold
            assert loss[b].item() == pytest.approx(total / 24, rel=1e-12)


def test_quantile_huber_is_stationary_at_the_quantiles() -> None:
    # small threshold: quantile regression; 101 targets leave one at each level's quantile, where the slope changes sign
    y = torch.arange(101, dtype=torch.float64).unsqueeze(-1)
    tau = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    for offset, sign in ((-0.5, -1.0), (0.5, 1.0)):
        x = (torch.tensor([[10.0], [50.0], [90.0]], dtype=torch.float64) + offset).requires_grad_()
        (slope,) = torch.autograd.grad(quantile_huber(x, y, tau, threshold=1e-3), x)
        assert (slope.sign() == sign).all()
        assert slope.abs().max() < 1 / 101


def test_quantiles_are_of_the_return_alone() -> None:
    x = torch.zeros(2, 5, 3, dtype=torch.float64)
    with pytest.raises(UsageError, match=r"samples have 3 components, but quantiles exist for the return alone"):
        QuantileHuber()(x, x)
    with pytest.raises(ValueError, match=r"tau \[4\] does not fit the 5 samples of x \[2, 5, 1\]"):
        quantile_huber(x[..., :1], x[..., :1], torch.rand(4))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Huber(0.0), "Huber.threshold: expected a positive number"),
        (lambda: SobolevHuber(-1.0), "SobolevHuber.threshold: expected a positive number"),
        (lambda: SobolevHuber(gradient_weight=-1.0), "SobolevHuber.gradient_weight: expected a number of at least 0"),
        (lambda: SobolevHuber(gradient="nrom"), "SobolevHuber.gradient: .* did you mean 'norm'"),
        (lambda: SquaredError(value_weight=math.nan), "SquaredError.value_weight: expected a number of at least 0"),
        (lambda: SquaredError(gradient_weight=-0.1), "SquaredError.gradient_weight: expected a number of at least 0"),
        (lambda: QuantileHuber(-2.0), "QuantileHuber.threshold: expected a positive number"),
    ],
)
def test_bad_arguments(build: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build()  # type: ignore[operator]
