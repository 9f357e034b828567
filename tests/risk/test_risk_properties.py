"""What holds for every risk measure, any samples and shape; references by numpy, scipy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dsob_pl.risk import CVaR, Distortion, Entropic, Mean, MeanStd, Power, Quantile, RiskMeasure, Wang

MEASURES: dict[str, RiskMeasure] = {
    "mean": Mean(),
    "cvar": CVaR(0.23),
    "cvar_upper": CVaR(0.23, "upper"),
    "wang": Wang(0.75),
    "wang_seeking": Wang(-0.5),
    "power": Power(2.0),
    "power_seeking": Power(-0.7),
    "quantile": Quantile(0.4),
    "mean_std": MeanStd(0.8),
    "entropic": Entropic(0.6),
    "entropic_seeking": Entropic(-0.6),
}
MONOTONE = [name for name in MEASURES if name != "mean_std"]
HOMOGENEOUS = [name for name in MEASURES if "entropic" not in name]
COHERENT = ["mean", "cvar", "wang", "power"]  # superadditive, returns being gains
AVERSE = ["mean", "cvar", "wang", "power", "mean_std", "entropic"]

numbers = st.floats(-20, 20, allow_subnormal=False)
samples = st.lists(numbers, min_size=1, max_size=9)
every = pytest.mark.parametrize("name", MEASURES)
few = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def double(x: object) -> torch.Tensor:
    return torch.as_tensor(x, dtype=torch.float64)


@every
@few
@given(z=samples, shift=numbers)
def test_a_constant_is_added_to_the_value(name: str, z: list[float], shift: float) -> None:
    measure = MEASURES[name]
    torch.testing.assert_close(measure(double(z) + shift), measure(double(z)) + shift, rtol=0, atol=1e-11)


@every
@few
@given(z=samples)
def test_weights_are_the_gradient_and_sum_to_one(name: str, z: list[float]) -> None:
    measure, leaf = MEASURES[name], double(z).requires_grad_()
    (gradient,) = torch.autograd.grad(measure(leaf), leaf)
    weights = measure.weights(leaf).detach()
    torch.testing.assert_close(gradient, weights, rtol=1e-7, atol=1e-9)
    assert weights.sum().item() == pytest.approx(1)
    assert name not in MONOTONE or weights.min() >= -1e-15


@every
@pytest.mark.parametrize(("value", "count"), [(0.1, 10), (0.3, 10), (123.456, 7), (-77.7, 9)])
def test_equal_returns_have_weights_that_sum_to_one(name: str, value: float, count: int) -> None:
    """In float32, in which the mean of equal numbers may be another number."""
    weights = MEASURES[name].weights(torch.full((count,), value))
    assert weights.sum().item() == pytest.approx(1, rel=1e-5)
    if name == "mean_std":
        torch.testing.assert_close(weights, torch.full((count,), 1 / count))


@every
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    z = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(MEASURES[name], z)


@pytest.mark.parametrize("name", HOMOGENEOUS)
@few
@given(z=samples, factor=st.floats(0.01, 50))
def test_positive_homogeneity(name: str, z: list[float], factor: float) -> None:
    measure = MEASURES[name]
    torch.testing.assert_close(measure(factor * double(z)), factor * measure(double(z)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MONOTONE)
@few
@given(pairs=st.lists(st.tuples(numbers, st.floats(0, 10)), min_size=1, max_size=9))
def test_better_returns_are_not_worth_less(name: str, pairs: list[tuple[float, float]]) -> None:
    z, more = double(pairs).unbind(-1)
    assert MEASURES[name](z + more) >= MEASURES[name](z) - 1e-11


def test_mean_minus_std_is_not_monotone_as_its_docstring_says() -> None:
    measure = MeanStd(2.0)
    assert measure(double([0.0, 10.0])) < measure(double([0.0, 0.0]))
    assert measure.weights(double([0.0, 10.0])).min() < 0


@pytest.mark.parametrize("name", COHERENT)
@few
@given(pairs=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=9))
def test_a_sum_is_worth_at_least_its_parts(name: str, pairs: list[tuple[float, float]]) -> None:
    measure, (x, y) = MEASURES[name], double(pairs).unbind(-1)
    assert measure(x + y) >= measure(x) + measure(y) - 1e-10


@every
@few
@given(z=samples)
def test_between_the_worst_and_the_mean_where_averse_and_the_mirror_image_where_seeking(
    name: str, z: list[float]
) -> None:
    x, value = double(z), MEASURES[name](double(z)).item()
    if name in AVERSE:
        assert value <= x.mean() + 1e-11
    elif name != "quantile":
        assert value >= x.mean() - 1e-11
    if name in MONOTONE:
        assert x.min() - 1e-11 <= value <= x.max() + 1e-11


@few
@given(z=samples, alpha=st.floats(0.01, 1), larger=st.floats(0.01, 1))
def test_cvar_grows_with_alpha_and_its_tails_make_up_the_mean(z: list[float], alpha: float, larger: float) -> None:
    x, (alpha, larger) = double(z), sorted((alpha, larger))
    assert CVaR(alpha)(x) <= CVaR(larger)(x) + 1e-11
    torch.testing.assert_close(CVaR(alpha, "upper")(x), -CVaR(alpha)(-x))
    if alpha < 1:
        whole = alpha * CVaR(alpha)(x) + (1 - alpha) * CVaR(1 - alpha, "upper")(x)
        torch.testing.assert_close(whole, x.mean(), rtol=1e-9, atol=1e-9)


@few
@given(z=samples)
def test_the_mean_is_a_case_of_each(z: list[float]) -> None:
    x = double(z)
    for measure in (CVaR(1.0), CVaR(1.0, "upper"), Wang(0.0), Power(0.0), MeanStd(0.0), Entropic(0.0)):
        torch.testing.assert_close(measure(x), x.mean(), rtol=1e-12, atol=1e-12)


@every
@few
@given(z=samples, fraction=st.floats(0, 1))
def test_a_softened_measure_lies_between_the_mean_and_its_own(name: str, z: list[float], fraction: float) -> None:
    x, measure = double(z), MEASURES[name]
    torch.testing.assert_close(measure.softened(0.0)(x), x.mean(), rtol=0, atol=1e-9)
    torch.testing.assert_close(measure.softened(1.0)(x), measure(x), rtol=0, atol=1e-9)
    low, high = sorted((x.mean().item(), measure(x).item()))
    assert low - 1e-9 <= measure.softened(fraction)(x).item() <= high + 1e-9


@every
def test_the_weights_of_a_softened_measure_are_its_gradient(name: str) -> None:
    z = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    measure = MEASURES[name].softened(0.3)
    (gradient,) = torch.autograd.grad(measure(z).sum(), z)
    torch.testing.assert_close(gradient, measure.weights(z).detach())
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(measure))(z), gradient)


def test_softened_by_hand() -> None:
    z = double([1.0, 2.0, 3.0, 6.0])
    half = CVaR(0.25).softened(0.5)  # the level halfway, by factors, from 1 to 1/4: a half
    assert isinstance(half, CVaR)
    assert half.alpha == 0.5
    assert half(z).item() == 1.5
    assert CVaR(0.25, "upper").softened(0.5)(z).item() == 4.5
    # Mean 3, median (the second of four) 2: a quarter of the way
    assert Quantile(0.5).softened(0.25)(z).item() == pytest.approx(2.75)
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="fraction: expected a number in"):
            Quantile(0.5).softened(wrong)


@every
def test_order_batch_and_precision(name: str) -> None:
    measure, draw = MEASURES[name], torch.Generator().manual_seed(1)
    z = torch.randn(2, 3, 8, dtype=torch.float64, generator=draw)
    order = torch.randperm(8, generator=draw)
    torch.testing.assert_close(measure(z[..., order]), measure(z))
    torch.testing.assert_close(measure.weights(z[..., order]), measure.weights(z)[..., order])
    rows = torch.stack([torch.stack([measure(row) for row in rows]) for rows in z])
    torch.testing.assert_close(measure(z), rows)
    torch.testing.assert_close(torch.func.vmap(measure)(z), rows)
    of_rows = torch.func.vmap(torch.func.vmap(torch.func.grad(measure)))(z)
    torch.testing.assert_close(of_rows, measure.weights(z))
    assert measure(z.float()).dtype == measure.weights(z.float()).dtype == torch.float32
    torch.testing.assert_close(measure(z.float()).double(), rows, rtol=1e-5, atol=1e-5)


@every
def test_traced_whole_it_is_the_same(name: str) -> None:
    measure, z = MEASURES[name], torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    torch.compiler.reset()
    fast = torch.compile(torch.func.grad_and_value(lambda x: measure(x).sum()), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(fast(z), (measure.weights(z), measure(z).sum()))
    assert measure(z.to("meta")).shape == (4,)  # nothing is read back


# References -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 10])
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.25, 0.37, 1.0])
def test_cvar_is_the_integral_of_numpys_quantile_function(alpha: float, count: int) -> None:
    z = np.random.default_rng(0).normal(size=count)
    levels = (np.arange(200_000) + 0.5) / 200_000
    lower = np.quantile(z, alpha * levels, method="inverted_cdf").mean()
    upper = np.quantile(z, 1 - alpha + alpha * levels, method="inverted_cdf").mean()
    assert CVaR(alpha)(double(z)).item() == pytest.approx(lower, abs=1e-4)
    assert CVaR(alpha, "upper")(double(z)).item() == pytest.approx(upper, abs=1e-4)


@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.31, 0.5, 0.99, 1.0])
def test_a_quantile_is_numpys(alpha: float) -> None:
    for count in (1, 2, 7, 10):
        z = np.random.default_rng(count).normal(size=count)
        assert Quantile(alpha)(double(z)).item() == np.quantile(z, alpha, method="inverted_cdf")


@pytest.mark.parametrize("eta", [0.75, -0.75, 2.0, -2.0])
def test_wang_and_power_are_quantiles_at_distorted_levels_as_in_iqn(eta: float) -> None:
    # Dabney et al. (2018), section 4: E F^-1(beta(tau)), tau ~ U, with eta of the other sign; their Wang and Pow
    z = np.random.default_rng(1).normal(size=6)
    tau, theirs = (np.arange(400_000) + 0.5) / 400_000, -eta
    wang = stats.norm.cdf(stats.norm.ppf(tau) + theirs)
    exponent = 1 / (1 + abs(theirs))
    power = tau**exponent if theirs >= 0 else 1 - (1 - tau) ** exponent
    for measure, levels in ((Wang(eta), wang), (Power(eta), power)):
        reference = np.quantile(z, levels, method="inverted_cdf").mean()
        assert measure(double(z)).item() == pytest.approx(reference, abs=1e-4)


def test_closed_forms_of_a_gaussian() -> None:
    mean, std, count = 1.5, 2.0, 200_000
    z = mean + std * double(stats.norm.ppf((np.arange(count) + 0.5) / count))
    q = stats.norm.ppf(0.1)
    forms: list[tuple[RiskMeasure, float]] = [
        (CVaR(0.1), mean - std * stats.norm.pdf(q) / 0.1),
        (CVaR(0.1, "upper"), mean + std * stats.norm.pdf(q) / 0.1),
        (Wang(0.75), mean - 0.75 * std),
        (Wang(-0.3), mean + 0.3 * std),
        (Power(2.0), mean - std * 3 / (2 * math.sqrt(math.pi))),  # the expected smallest of three
        (Power(-1.0), mean + std / math.sqrt(math.pi)),  # the expected larger of two
        (Entropic(0.4), mean - 0.4 * std**2 / 2),
        (Entropic(-0.4), mean + 0.4 * std**2 / 2),
        (MeanStd(0.7), mean - 0.7 * std),
        (Quantile(0.1), mean + std * q),
    ]
    for measure, value in forms:
        assert measure(z).item() == pytest.approx(value, abs=2e-3), type(measure).__name__


@pytest.mark.parametrize(
    ("measure", "sign"),
    [
        (CVaR(0.25), 1),
        (CVaR(0.25, "upper"), -1),
        (Wang(0.75), 1),
        (Wang(-0.75), -1),
        (Power(2.0), 1),
        (Power(-2.0), -1),
        (MeanStd(1.0), 1),
        (Entropic(1.0), 1),
        (Entropic(-1.0), -1),
        (Mean(), 0),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, RiskMeasure) else str(x),
)
def test_the_bias_has_the_sign_of_the_docstring_and_goes_with_n(measure: RiskMeasure, sign: int) -> None:
    z = torch.randn(40_000, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    n = 200_000
    truth = measure(double(stats.norm.ppf((np.arange(n) + 0.5) / n)))
    biases = [(measure(z[:, :count]).mean() - truth).item() for count in (5, 40)]
    error = [4 * measure(z[:, :count]).std().item() / 200 for count in (5, 40)]
    if not sign:
        assert abs(biases[0]) < error[0]
        return
    assert sign * biases[0] > error[0]
    assert abs(biases[1]) < 0.4 * abs(biases[0]) + error[1]
    if isinstance(measure, MeanStd):
        assert biases[1] == pytest.approx(3 / (4 * 40), abs=error[1])


def test_the_gradient_of_cvar_is_the_mean_gradient_of_the_worst_outcomes() -> None:
    # Z = mu(a) + sigma(a) e with mu = a, sigma = 1 + a^2: dCVaR/da = 1 + 2a * CVaR of a standard normal.
    # Samples and gradients that are paired wrongly have the derivative of the mean, 1, instead.
    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    e = double(stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000))[torch.randperm(20_000)]
    z = a + (1 + a**2) * e
    truth = 1 - 1.4 * stats.norm.pdf(stats.norm.ppf(0.1)) / 0.1
    assert torch.autograd.grad(CVaR(0.1)(z), a, retain_graph=True)[0].item() == pytest.approx(truth, abs=5e-3)
    own = 1 + 1.4 * e  # dZ/da
    weights = CVaR(0.1).weights(z)
    assert (weights * own).sum().item() == pytest.approx(truth, abs=5e-3)
    assert (weights * own[torch.randperm(20_000)]).sum().item() == pytest.approx(1, abs=0.2)


def test_a_distortion_is_one() -> None:
    levels = torch.linspace(0, 1, 101, dtype=torch.float64)
    for name, measure in MEASURES.items():
        if isinstance(measure, Distortion):
            g = measure.distort(levels)
            assert (g[0].item(), g[-1].item()) == (0, 1), name
            assert (g.diff() >= 0).all(), name
