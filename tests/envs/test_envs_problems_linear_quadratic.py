"""The linear-quadratic problem: the closed form against scipy, simulation and differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsob_pl.envs import LinearQuadratic
from dsob_pl.errors import UsageError


def random_problem(seed: int, size: int, actions: int) -> tuple[LinearQuadratic, Tensor]:
    """A problem of any shape, with a gain."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, r = normal(size, size), normal(actions, actions)
    problem = LinearQuadratic(
        A=0.5 * normal(size, size),
        B=normal(size, actions),
        Q=q @ q.mT,
        R=r @ r.mT,
        noise=normal(size).abs(),
    )
    return problem.double(), 0.3 * normal(actions, size)


def reference(problem: LinearQuadratic, gain: Tensor, gamma: float) -> tuple[np.ndarray, float]:
    """P by scipy's Lyapunov solver, and what the noise costs."""
    A, B, Q, R = (x.double().numpy() for x in (problem.A, problem.B, problem.Q, problem.R))
    K = gain.numpy()
    closed = math.sqrt(gamma) * (A + B @ K)
    P = scipy.linalg.solve_discrete_lyapunov(closed.T, Q + K.T @ R @ K)
    return P, gamma / (1 - gamma) * float(np.trace(P @ np.diag(problem.noise.double().numpy() ** 2)))


@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 4),
    actions=st.integers(1, 3),
    gamma=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
)
@settings(max_examples=40, deadline=None)
@pytest.mark.usefixtures("float64")
def test_closed_form_equals_scipys_lyapunov_and_its_bellman_equation(
    seed: int, size: int, actions: int, gamma: float
) -> None:
    problem, gain = random_problem(seed, size, actions)
    try:
        problem.check_stable(gain, gamma)
    except UsageError:
        assume(False)
    exact = problem.exact(gain, gamma)
    P, constant = reference(problem, gain, gamma)
    np.testing.assert_allclose(exact.P.numpy(), P, rtol=1e-8, atol=1e-8 * np.abs(P).max())
    assert exact.constant == pytest.approx(constant, rel=1e-8)
    # E[G | s, a] = r + gamma E[G | s', K s'], with the mean over the noise by quadrature: exact for a quadratic
    s, a = torch.randn(5, size), torch.randn(5, actions)
    points = torch.cat([torch.eye(size), -torch.eye(size)]) * math.sqrt(size)
    outcome = problem(s.expand(2 * size, 5, size), a.expand(2 * size, 5, actions), points.unsqueeze(1))
    later = exact.mean_return(outcome.s_next, outcome.s_next @ gain.mT).mean(0)
    torch.testing.assert_close(exact.mean_return(s, a), outcome.r[0] + gamma * later, rtol=1e-8, atol=1e-8)


def test_scalar_by_hand() -> None:
    problem = LinearQuadratic(A=[[0.5]], B=[[1.0]], Q=[[2.0]], R=[[1.0]], noise=0.2).double()
    exact = problem.exact([[-0.25]], 0.8)
    # closed loop 1/4: P = (2 + 1/16) / (1 - 0.8/16); y = 0.5 s + a
    p = (2 + 1 / 16) / (1 - 0.8 / 16)
    s, a = torch.tensor([3.0]).double(), torch.tensor([-1.0]).double()
    variance = problem.noise.item() ** 2
    assert exact.mean_return(s, a).item() == pytest.approx(-(18 + 1 + 0.8 * p * 0.25) - 4 * p * variance, rel=1e-12)
    ds, da = exact.mean_gradient(s, a)
    assert ds.item() == pytest.approx(-(12 + 0.8 * p * 2 * 0.5 * 0.5), rel=1e-12)
    assert da.item() == pytest.approx(-(-2 + 0.8 * p * 2 * 0.5), rel=1e-12)


@pytest.mark.usefixtures("float64")
def test_gradient_equals_differences_of_the_mean_return() -> None:
    problem, gain = random_problem(3, 3, 2)
    exact = problem.exact(gain, 0.6)
    s, a = torch.randn(4, 2, 3), torch.randn(4, 2, 2)
    ds, da = exact.mean_gradient(s, a)
    h = 1e-5
    for i in range(3):
        step = h * torch.eye(3)[i]
        difference = (exact.mean_return(s + step, a) - exact.mean_return(s - step, a)) / (2 * h)
        torch.testing.assert_close(ds[..., i], difference, rtol=1e-7, atol=1e-7)
    for i in range(2):
        step = h * torch.eye(2)[i]
        difference = (exact.mean_return(s, a + step) - exact.mean_return(s, a - step)) / (2 * h)
        torch.testing.assert_close(da[..., i], difference, rtol=1e-7, atol=1e-7)


@pytest.mark.usefixtures("float64")
def test_closed_form_is_the_mean_of_differentiated_rollouts() -> None:
    problem = LinearQuadratic(noise=[0.5, 0.2]).double()
    gain, gamma, n = torch.tensor([[-0.6, 0.2], [0.1, -0.9]]), 0.8, 20_000
    s0, a0 = torch.tensor([0.7, -0.4]), torch.tensor([0.3, 0.8])
    s, a = (x.expand(n, 2).clone().requires_grad_() for x in (s0, a0))
    state, action, returns = s, a, torch.zeros(n)
    for t in range(60):
        outcome = problem(state, action, torch.randn(n, 2))
        returns = returns + gamma**t * outcome.r
        state, action = outcome.s_next, outcome.s_next @ gain.mT
    samples = torch.cat([returns.detach()[:, None], *torch.autograd.grad(returns.sum(), (s, a))], -1)
    exact = problem.exact(gain, gamma)
    expected = torch.cat([exact.mean_return(s0, a0)[None], *exact.mean_gradient(s0, a0)])
    standard_error = samples.std(0) / math.sqrt(n)
    assert ((samples.mean(0) - expected).abs() < 4 * standard_error).all()
    # the test can see a difference of a percent of the return and of the gradient
    assert standard_error.max() < 0.0025 * expected.abs().max()


def test_type_and_batch_shape_follow_the_state() -> None:
    exact = LinearQuadratic().exact(-torch.eye(2), 0.9)
    s, a = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    ds, da = exact.mean_gradient(s, a)
    assert exact.mean_return(s, a).shape == (3, 4)
    assert ds.shape == da.shape == (3, 4, 2)
    assert ds.dtype == da.dtype == exact.mean_return(s, a).dtype == torch.float32


def test_defaults() -> None:
    problem = LinearQuadratic()
    outcome = problem(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(outcome.s_next, torch.tensor([math.cos(0.3) + 0.4, math.sin(0.3) + 2.0]))
    assert outcome.r.item() == pytest.approx(-(1.0 + 0.3 * 4.0))
    assert outcome.terminated.item() == 0.0
    torch.testing.assert_close(problem.initial_state(torch.ones(2)), torch.full((2,), math.erf(1 / math.sqrt(2))))
    # sizes of what is not given follow from what is
    other = LinearQuadratic(A=[[0.5, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.5]], B=[[1.0], [0.0], [0.0]])
    assert (other.observation_size, other.action_size, other.noise_size) == (3, 1, 3)
    assert other.R.shape == (1, 1)


def test_an_argument_is_copied() -> None:
    given_ = torch.eye(2)
    problem = LinearQuadratic(A=given_)
    given_.zero_()
    assert problem.A.sum() == 2


@pytest.mark.parametrize(
    ("gain", "gamma", "parts"),
    [
        ([[0.0, 0.0]], 0.9, ["gain", "shape [2, 2]", "got [1, 2]"]),
        ([0.0, 0.0], 0.9, ["gain", "got [2]"]),
        ([[math.nan, 0.0], [0.0, 0.0]], 0.9, ["gain", "finite"]),
        (0.0, 0.9, ["gain", "got []"]),
        (torch.zeros(2, 2), 1.0, ["gamma", "[0, 1)", "1.0"]),
        (torch.zeros(2, 2), -0.1, ["gamma", "-0.1"]),
        (torch.zeros(2, 2), math.nan, ["gamma", "nan"]),
        (torch.zeros(2, 2), "0.9", ["gamma", "'0.9'"]),
        ([[0.2, 0.0], [0.0, 0.2]], 0.9, ["unstable", "infinite", "spectral radius 1.13"]),
    ],
)
def test_what_has_no_closed_form_is_refused(gain: Any, gamma: Any, parts: list[str]) -> None:
    problem = LinearQuadratic()
    for method in (problem.check_stable, problem.exact):
        with pytest.raises(UsageError) as raised:
            method(gain, gamma)
        assert "\n" not in str(raised.value)
        for part in parts:
            assert part in str(raised.value)


def test_stability_is_that_of_the_discounted_square() -> None:
    problem = LinearQuadratic(A=[[1.05]])
    # gamma radius^2 = 0.9 * 1.1025 = 0.992: stable, though the loop itself is not
    assert problem.check_stable([[0.0]], 0.9) == pytest.approx(math.sqrt(0.9) * 1.05, rel=1e-6)
    assert problem.exact([[0.0]], 0.9).P.item() == pytest.approx(1 / (1 - 0.9 * 1.05**2), rel=1e-4)
    for gamma in (0.91, 0.95):
        with pytest.raises(UsageError, match="unstable"):
            problem.check_stable([[0.0]], gamma)
    # a rotation: the radius is that of complex eigenvalues
    assert LinearQuadratic().check_stable(torch.zeros(2, 2), 0.81) == pytest.approx(0.9, rel=1e-6)
    # the largest entry may be far from the radius
    assert LinearQuadratic(A=[[0.5, 9.0], [0.0, 0.5]]).check_stable(torch.zeros(2, 2), 0.64) == pytest.approx(0.4)
