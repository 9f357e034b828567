"""Multiplicative noise: a step by hand, the Riccati equation, and mean and variance against rollouts and by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dsob_pl.envs import LinearQuadratic, MultiplicativeLinearQuadratic
from dsob_pl.errors import UsageError

SCALAR = {"A": [[0.9]], "B": [[0.5]], "Q": [[1.0]], "R": [[0.2]], "C": [[0.3]], "D": [[0.2]], "noise": 0.0}


def returns(
    problem: MultiplicativeLinearQuadratic,
    gain: Tensor,
    gamma: float,
    n: int,
    start: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Sampled returns ``[n]`` of ``a = K s``, from a state and an action or from first states."""
    exact, generator = MultiplicativeLinearQuadratic.__call__, torch.Generator().manual_seed(0)
    s = problem.initial_state(torch.randn(n, problem.observation_size, generator=generator).double())
    a, total = s @ gain.T, torch.zeros(n).double()
    if start is not None:
        s, a = start[0].expand(n, -1), start[1].expand(n, -1)
    for t in range(math.ceil(math.log(1e-6) / math.log(gamma))):
        eps = torch.randn(n, problem.noise_size, generator=generator).double()
        s, r, _ = exact(problem, s, a, eps)
        total, a = total + gamma**t * r, s @ gain.T
    return total


def assert_moments(total: Tensor, mean: Tensor, variance: Tensor) -> None:
    n, centred = len(total), total - total.mean()
    assert abs(total.mean() - mean) < 4 * total.std() / math.sqrt(n)
    assert abs(total.var() - variance) < 4 * centred.square().std() / math.sqrt(n)


def test_a_step_by_hand() -> None:
    problem = MultiplicativeLinearQuadratic(C=[[0.1, 0.2], [0.0, 0.3]], D=[[0.5, 0.0], [0.0, 0.0]], noise=0.5).double()
    s, a, eps = (torch.tensor(x).double() for x in ([1.0, 2.0], [-1.0, 0.5], [2.0, 1.0, -1.0]))
    plain = LinearQuadratic(noise=0.5).double()(s, a, eps[1:])
    outcome = problem(s, a, eps)
    torch.testing.assert_close(outcome.s_next, plain.s_next + 2 * torch.tensor([0.5 - 0.5, 0.6]).double())
    assert outcome.r.item() == plain.r.item() == pytest.approx(-(5 + 0.3 * 1.25))
    assert problem.infer_noise(s, a, outcome.r, outcome.s_next) is None


def test_without_multiplicative_noise_it_is_the_linear_quadratic_problem() -> None:
    none = torch.zeros(2, 2)
    ours, theirs = MultiplicativeLinearQuadratic(C=none, D=none, noise=0.4), LinearQuadratic()
    gain = [[-0.5, 0.1], [0.0, -0.4]]
    s, a = torch.randn(5, 2).double(), torch.randn(5, 2).double()
    expected = theirs.exact(gain, 0.9).mean_return(s, a)
    torch.testing.assert_close(ours.exact(gain, 0.9).mean_return(s, a), expected)


def test_the_scalar_problem_by_hand() -> None:
    # Without added noise the return from s is -s^2 X with X = c + gamma M^2 X' and moments of M = f + h eps.
    problem, gamma, k = MultiplicativeLinearQuadratic(**SCALAR).double(), 0.9, -0.6
    f, h, c = 0.9 - 0.3, 0.3 - 0.12, 1 + 0.2 * 0.36
    m2, m4 = f**2 + h**2, f**4 + 6 * f**2 * h**2 + 3 * h**4
    x = c / (1 - gamma * m2)
    square = (c**2 + 2 * c * gamma * m2 * x) / (1 - gamma**2 * m4)
    exact = problem.exact([[k]], gamma)
    s = torch.tensor([[2.0], [-0.5]]).double()
    torch.testing.assert_close(exact.mean_return(s, k * s), -(s[:, 0] ** 2) * x, rtol=1e-6, atol=0)
    torch.testing.assert_close(exact.variance(s, k * s), s[:, 0] ** 4 * (square - x**2), rtol=1e-5, atol=0)


def test_mean_and_variance_are_those_of_rollouts() -> None:
    problem = MultiplicativeLinearQuadratic(C=[[0.3, 0.1], [0.0, 0.4]], D=[[0.3, 0.0], [-0.2, 0.1]]).double()
    gain = torch.tensor([[-0.6, 0.1], [-0.1, -0.5]]).double()
    exact = problem.exact(gain, 0.8)
    assert_moments(returns(problem, gain, 0.8, 100_000), *exact.of_first_states())
    s, a = torch.tensor([0.8, -0.5]).double(), torch.tensor([0.3, 0.9]).double()
    assert_moments(returns(problem, gain, 0.8, 100_000, (s, a)), exact.mean_return(s, a), exact.variance(s, a))
    assert torch.autograd.gradcheck(exact.mean_return, (s.requires_grad_(), a.requires_grad_()))
    assert torch.autograd.gradcheck(exact.variance, (s, a))


@pytest.mark.parametrize("gamma", [0.8, 0.9, 0.99])
@pytest.mark.parametrize("noise", [{}, {"C": torch.zeros(2, 2), "D": [[0.6, 0.0], [0.0, 0.6]]}], ids=["own", "action"])
def test_under_the_best_gain_no_action_is_better(noise: dict[str, Any], gamma: float) -> None:
    problem = MultiplicativeLinearQuadratic(**noise).double()
    gain = problem.best_gain(gamma)
    exact = problem.exact(gain, gamma)
    s = torch.randn(20, 2).double()
    own = exact.mean_return(s, s @ gain.T)
    # A policy whose every action is the best under its own value is optimal.
    a = (s @ gain.T).requires_grad_()
    (slope,) = torch.autograd.grad(exact.mean_return(s, a).sum(), a)
    assert slope.abs().max() < 1e-8
    for step in 0.3 * torch.randn(20, 2).double():
        assert (exact.mean_return(s, s @ gain.T + step) < own).all()


def test_the_best_gain_is_cautious() -> None:
    none = torch.zeros(2, 2)
    gain = MultiplicativeLinearQuadratic(C=none, D=[[0.6, 0.0], [0.0, 0.6]]).double().best_gain(0.9)
    bold = MultiplicativeLinearQuadratic(C=none).double().best_gain(0.9)
    assert gain.norm() < 0.9 * bold.norm()
    torch.testing.assert_close(
        MultiplicativeLinearQuadratic(C=none, D=none).best_gain(0.0), torch.zeros(2, 2).double(), rtol=0, atol=1e-12
    )


def test_mean_minus_variance_has_its_own_best_gain() -> None:
    problem, gamma = MultiplicativeLinearQuadratic(**{**SCALAR, "noise": 0.3}).double(), 0.9
    for weight in (0.0, 0.1, 1.0):
        found = problem.mean_variance_gain(weight, gamma)

        def objective(k: float, weight: float = weight) -> float:
            mean, variance = problem.exact([[k]], gamma).of_first_states()
            return float(mean - weight * variance)

        best = max(torch.linspace(-1.8, 0.0, 181).tolist(), key=objective)
        assert found.item() == pytest.approx(best, abs=0.011)
        assert objective(found.item()) >= objective(best) - 1e-9
    torch.testing.assert_close(problem.mean_variance_gain(0.0, gamma), problem.best_gain(gamma), atol=1e-4, rtol=0)


def test_a_weight_on_variance_costs_mean_and_earns_calm() -> None:
    problem = MultiplicativeLinearQuadratic().double()
    gains = [problem.best_gain(0.8), problem.mean_variance_gain(1.0, 0.8)]
    (mean, variance), (calm_mean, calm_variance) = (problem.exact(gain, 0.8).of_first_states() for gain in gains)
    assert calm_mean < mean
    assert calm_variance < 0.99 * variance
    samples = [returns(problem, gain, 0.8, 50_000) for gain in gains]  # the same noise
    assert samples[1].mean() - samples[1].var() > samples[0].mean() - samples[0].var()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda p: p.exact([[0.0]], 0.9), "gain: expected shape"),
        (lambda p: p.exact([[2.0, 0.0], [0.0, 2.0]], 0.9), "the return's mean is infinite under this gain"),
        (
            lambda p: MultiplicativeLinearQuadratic([[0.0]], [[1.0]], C=[[1.0]]).exact([[0.0]], 0.9),
            "the return's variance is infinite under this gain",
        ),
        (lambda p: p.best_gain(1.0), "gamma: expected"),
        (lambda p: p.mean_variance_gain(-1.0, 0.9), "weight: expected a finite number of at least 0"),
        (lambda p: MultiplicativeLinearQuadratic(C=[[1.0]]), "MultiplicativeLinearQuadratic.C: expected shape"),
        (lambda p: MultiplicativeLinearQuadratic(D=[[1.0]]), "MultiplicativeLinearQuadratic.D: expected shape"),
        (
            lambda p: MultiplicativeLinearQuadratic(C=(3 * torch.eye(2)).tolist()).best_gain(0.9),
            "no linear policy keeps",
        ),
    ],
)
def test_bad_arguments(call, text: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=text):
        call(MultiplicativeLinearQuadratic())
