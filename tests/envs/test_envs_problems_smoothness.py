"""Rotation, whose gamma*kappa is set by hand, and the reward chain, whose spreads are known."""

from __future__ import annotations

import math

import pytest
import torch

from dsob_pl.envs import RewardChain, Rotation
from dsob_pl.errors import UsageError


def test_a_rotation_by_hand() -> None:
    problem = Rotation(rho=0.5, phi=math.pi / 2, action_gain=2.0, noise=0.1).double()
    s, a, eps = (torch.tensor(x).double() for x in ([1.0, 2.0], [0.25, 0.0], [1.0, -1.0]))
    outcome = problem(s, a, eps)
    # a quarter turn takes (1, 2) to (-2, 1)
    expected = torch.tensor([-1.0 + 0.5 + 0.1, 0.5 - 0.1]).double()
    torch.testing.assert_close(outcome.s_next, expected, rtol=0, atol=1e-6)
    assert outcome.r.item() == pytest.approx(math.exp(-((1.4**2) + 0.1**2) / 2), abs=1e-6)
    assert outcome.terminated.item() == 0


@pytest.mark.parametrize(("rho", "gain"), [(0.9, 0.5), (1.15, 0.5), (0.0, 1.0)])
def test_gamma_kappa_of_a_constant_policy(rho: float, gain: float) -> None:
    problem = Rotation(rho=rho, action_gain=gain).double()
    size = torch.randn(2).double(), torch.randn(2).double()
    eps = torch.randn(2).double()
    ds, da = torch.func.jacrev(lambda s, a: problem(s, a, eps).s_next, argnums=(0, 1))(*size)
    # [ds'/ds ds'/da]^T [I 0]: the second block of columns is that of the policy's Jacobian
    k = torch.cat([torch.cat([ds.mT, torch.zeros(2, 2).double()], 1), torch.cat([da.mT, torch.zeros(2, 2)], 1)])
    assert torch.linalg.matrix_norm(k, 2).item() == pytest.approx(math.sqrt(rho**2 + gain**2), rel=1e-6)
    assert torch.linalg.matrix_norm(ds, 2).item() == pytest.approx(rho, abs=1e-6)


def test_the_reward_is_bounded_and_has_a_slope_at_the_origin() -> None:
    problem = Rotation(rho=3.0).double()
    s, a, eps = (100 * torch.randn(1000, 2).double() for _ in range(3))
    r = problem(s, a, eps).r
    assert (r >= 0).all()
    assert (r <= 1).all()
    s = torch.zeros(2).double().requires_grad_()
    (slope,) = torch.autograd.grad(Rotation().double()(s, torch.zeros(2), torch.zeros(2)).r, s)
    assert slope.norm() > 0.3


def test_inference_without_noise_is_zero() -> None:
    problem = Rotation(noise=0.0)
    s, a = torch.randn(4, 2), torch.randn(4, 2)
    outcome = problem(s, a, torch.randn(4, 2))
    assert torch.equal(problem.infer_noise(s, a, outcome.r, outcome.s_next), torch.zeros(4, 2))


def test_a_step_of_the_chain_by_hand() -> None:
    problem = RewardChain(action_size=2, reward_std=3.0, gradient_std=0.5)
    a = torch.tensor([1.0, -2.0], requires_grad=True)
    outcome = problem(torch.tensor([7.0]), a, torch.tensor([0.25, -1.0, 4.0, 6.0]))
    assert outcome.s_next.tolist() == [0.25]
    assert outcome.r.item() == pytest.approx(-3.0 + 0.5 * (4.0 - 12.0))
    (slope,) = torch.autograd.grad(outcome.r, a)
    assert slope.tolist() == [2.0, 3.0]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("gamma", [0.0, 0.9])
def test_spreads_of_the_chain_are_those_of_simulated_returns(gamma: float) -> None:
    problem = RewardChain(action_size=2, reward_std=0.7, gradient_std=1.5)
    n, a0 = 20_000, torch.tensor([0.4, -0.9])
    a = a0.expand(n, 2).clone().requires_grad_()
    state, action, returns = problem.initial_state(torch.randn(n, 1)), a, torch.zeros(n)
    for t in range(90):
        outcome = problem(state, action, torch.randn(n, 4))
        returns = returns + gamma**t * outcome.r
        state, action = outcome.s_next, torch.zeros(n, 2)
    (gradient,) = torch.autograd.grad(returns.sum(), a)
    of_return, of_gradient = problem.exact_std(a0, gamma)
    error = 4 / math.sqrt(2 * n)  # of the standard deviation of n normal numbers, relative
    assert returns.std().item() == pytest.approx(of_return.item(), rel=error)
    torch.testing.assert_close(gradient.std(0), of_gradient, rtol=error, atol=0)
    assert abs(returns.mean()) < 4 * of_return / math.sqrt(n)
    # return and gradient: covariance gradient_std^2 a
    moved = ((returns - returns.mean()).unsqueeze(-1) * gradient).mean(0)
    torch.testing.assert_close(moved, 1.5**2 * a0, rtol=0, atol=0.1)


def test_exact_std_by_hand_and_its_discount() -> None:
    of_return, of_gradient = RewardChain().exact_std(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), 0.6)
    torch.testing.assert_close(of_return, torch.tensor([1.25, math.sqrt(25 + 1.5625)]))
    torch.testing.assert_close(of_gradient, torch.ones(2, 2))
    for gamma in (1.0, -0.1, math.nan):
        with pytest.raises(UsageError, match="gamma"):
            RewardChain().exact_std(torch.zeros(2), gamma)
