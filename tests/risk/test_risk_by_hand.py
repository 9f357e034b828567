"""Values and gradients of the risk measures on a few samples, by hand, and what they refuse."""

from __future__ import annotations

import math
import re

import pytest
import torch
from jsonargparse import ArgumentParser

from dsob_pl.errors import UsageError
from dsob_pl.risk import CVaR, Distortion, Entropic, Mean, MeanStd, Power, Quantile, RiskMeasure, Wang

# Four returns, out of order.
Z = [3.0, -1.0, 5.0, 1.0]
PHI = 0.5 * math.erfc(-0.5 / math.sqrt(2))  # Phi(0.5)

# measure, value, weights of the samples as they stand
CASES: dict[str, tuple[RiskMeasure, float, list[float]]] = {
    "mean": (Mean(), 2.0, [0.25] * 4),
    "half": (CVaR(0.5), 0.0, [0, 0.5, 0, 0.5]),
    # n alpha = 1.5: all of -1, half of 1
    "a sample and a half": (CVaR(0.375), (-1 + 0.5 * 1) / 1.5, [0, 1 / 1.5, 0, 0.5 / 1.5]),
    "less than a sample": (CVaR(0.1), -1.0, [0, 1, 0, 0]),
    "all": (CVaR(1.0), 2.0, [0.25] * 4),
    # n alpha = 2.5: all of 5 and 3, half of 1
    "the best": (CVaR(0.625, "upper"), (5 + 3 + 0.5 * 1) / 2.5, [0.4, 0, 0.4, 0.2]),
    # 1 - (1 - u)^2 at 0, 1/4, .. 1 is 0, 7, 12, 15, 16 sixteenths: steps 7, 5, 3, 1
    "power": (Power(1.0), (7 * -1 + 5 * 1 + 3 * 3 + 1 * 5) / 16, [3 / 16, 7 / 16, 1 / 16, 5 / 16]),
    "power, seeking": (Power(-1.0), (1 * -1 + 3 * 1 + 5 * 3 + 7 * 5) / 16, [5 / 16, 1 / 16, 7 / 16, 3 / 16]),
    "first quartile": (Quantile(0.25), -1.0, [0, 1, 0, 0]),
    "just above": (Quantile(0.26), 1.0, [0, 0, 0, 1]),
    "median": (Quantile(0.5), 1.0, [0, 0, 0, 1]),
    "largest": (Quantile(1.0), 5.0, [0, 0, 1, 0]),
    # variance (1 + 9 + 9 + 1) / 4 = 5; weights (1 - 2 d / sqrt 5) / 4
    "mean and std": (
        MeanStd(2.0),
        2 - 2 * math.sqrt(5),
        [(1 - 2 * d / math.sqrt(5)) / 4 for d in (1, -3, 3, -1)],
    ),
}


@pytest.fixture
def z(float64: None) -> torch.Tensor:
    return torch.tensor(Z, requires_grad=True)


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name: str, z: torch.Tensor) -> None:
    measure, value, weights = CASES[name]
    got, expected = measure(z), torch.tensor(weights).double()
    assert got.item() == pytest.approx(value, abs=1e-12)
    torch.testing.assert_close(torch.autograd.grad(got, z)[0], expected)
    torch.testing.assert_close(measure.weights(z).detach(), expected)


def test_wang_of_two_samples(float64: None) -> None:
    # g(1/2) = Phi(Phi^-1(1/2) + 1/2) = Phi(1/2)
    measure, z = Wang(0.5), torch.tensor([4.0, 1.0])
    torch.testing.assert_close(measure.weights(z), torch.tensor([1 - PHI, PHI]))
    assert measure(z).item() == pytest.approx(4 * (1 - PHI) + PHI)


@pytest.mark.parametrize("sign", [1, -1])
def test_entropic_of_two_samples(sign: int, float64: None) -> None:
    # exp(-beta z) is 1 and 3 for z = 0 and -log(3) / beta: mean 2, weights 1/4 and 3/4
    beta = 0.5 * sign
    z = torch.tensor([0.0, -math.log(3) / beta], requires_grad=True)
    value = Entropic(beta)(z)
    assert value.item() == pytest.approx(-math.log(2) / beta)
    torch.testing.assert_close(torch.autograd.grad(value, z)[0], torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(Entropic(beta).weights(z).detach(), torch.tensor([0.25, 0.75]))


def test_entropic_keeps_its_digits_at_both_ends() -> None:
    z = torch.tensor([-1.0, 0.0, 4.0])  # float32
    for beta, variance_part in ((1e-6, 14 / 3 / 2), (-1e-6, 14 / 3 / 2)):
        assert Entropic(beta)(z).item() == pytest.approx(1 - beta * variance_part, abs=3e-7)
    assert Entropic(1e4)(z).item() == pytest.approx(-1.0, abs=2e-4)  # exp(1e4) is not a number of float32
    assert Entropic(-1e4)(z).item() == pytest.approx(4.0, abs=2e-4)
    assert Entropic(0.0)(z).item() == 1.0


MEASURES = [Mean(), CVaR(0.3), CVaR(0.3, "upper"), Wang(), Power(), Quantile(), MeanStd(), Entropic(), Entropic(-1.0)]


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: type(m).__name__)
def test_a_law_without_spread_is_worth_its_one_return(measure: RiskMeasure, float64: None) -> None:
    for count in (1, 5):
        z = torch.full((2, count), 7.0, requires_grad=True)
        value = measure(z)
        torch.testing.assert_close(value.detach(), torch.full((2,), 7.0))
        (gradient,) = torch.autograd.grad(value.sum(), z)
        assert gradient.isfinite().all()  # a standard deviation has no derivative there
        torch.testing.assert_close(gradient.sum(-1), torch.ones(2))
        torch.testing.assert_close(measure.weights(z).detach(), gradient)


@pytest.mark.parametrize(
    ("level", "count", "place"), [(0.3, 10, 3), (0.7, 10, 7), (0.1, 3, 1), (0.29, 100, 29), (0.07, 100, 7)]
)
def test_a_quantile_at_a_step_is_the_lower_one_whatever_the_rounding(level: float, count: int, place: int) -> None:
    assert Quantile(level)(torch.arange(1.0, count + 1)).item() == place


@pytest.mark.parametrize("alpha", [0, -0.1, 1.01, math.nan, math.inf])
@pytest.mark.parametrize("measure", [CVaR, Quantile])
def test_levels_out_of_range_are_refused(measure: type, alpha: float) -> None:
    line = rf"^{measure.__name__}\.alpha: expected a number in \(0, 1\], got {re.escape(str(alpha))}$"
    with pytest.raises(UsageError, match=line):
        measure(alpha)


@pytest.mark.parametrize(
    ("measure", "name"), [(Wang, "eta"), (Power, "eta"), (Entropic, "beta"), (MeanStd, "std_weight")]
)
def test_parameters_that_are_not_finite_are_refused(measure: type, name: str) -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(UsageError, match=rf"^{measure.__name__}\.{name}: expected a finite number, got {value}$"):
            measure(value)


def test_another_tail_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"CVaR\.tail: expected one of lower, upper, got 'uper'; did you .* 'upper'\?"):
        CVaR(0.1, "uper")  # type: ignore[arg-type]


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: type(m).__name__)
def test_no_samples_are_refused(measure: RiskMeasure) -> None:
    for shape in ((3, 0), ()):
        with pytest.raises(ValueError, match=rf"{type(measure).__name__}: expected returns \[\.\.\., n\]"):
            measure(torch.zeros(shape))


class Worst(RiskMeasure):
    """A user's measure: ``weights`` alone."""

    def weights(self, returns):  # type: ignore[no-untyped-def]
        return torch.nn.functional.one_hot(returns.argmin(-1), returns.shape[-1]).to(returns.dtype)


class MinMaxVar(Distortion):
    """A user's distortion (Cherny and Madan 2009), of a parameter."""

    def __init__(self, eta: float = 1.0) -> None:
        self.eta = eta

    def distort(self, level):  # type: ignore[no-untyped-def]
        return 1 - (1 - level ** (1 / (1 + self.eta))) ** (1 + self.eta)


def test_parts_of_ones_own_and_of_the_room_by_class_path(z: torch.Tensor) -> None:
    parser = ArgumentParser(parser_mode="omegaconf", exit_on_error=False)
    parser.add_argument("--risk", type=RiskMeasure)

    def configured(name: str, **arguments: object) -> RiskMeasure:
        part = {"class_path": name, "init_args": arguments}
        return parser.instantiate_classes(parser.parse_object({"risk": part})).risk

    assert configured(f"{__name__}.Worst")(z).item() == -1
    assert -1 < configured(f"{__name__}.MinMaxVar", eta=0.5)(z).item() < 2
    cvar = configured("dsob_pl.risk.CVaR", alpha=0.2, tail="upper")
    assert isinstance(cvar, CVaR)
    assert (cvar.alpha, cvar.tail) == (0.2, "upper")
    with pytest.raises(Exception, match="tail"):
        configured("dsob_pl.risk.CVaR", tail="uper")
