"""True samples of return and gradients against closed forms, finite differences and hand-computed rollouts."""

import math

import pytest
import torch
from torch import nn

from dsob_pl.envs.problems.base import Outcome, Problem
from dsob_pl.errors import UsageError
from dsob_pl.ground_truth import horizon_of, rollout, true_returns
from dsob_pl.networks import DeterministicPolicy

GAMMA = 0.8


class Scalar(Problem):
    """``s' = A s + B a + W eps``, ``r = -(Q s^2 + C a^2)``."""

    observation_size = action_size = noise_size = 1
    A, B, Q, C, W = 0.9, 0.5, 1.0, 0.3, 0.2

    def forward(self, s, a, eps):
        r = -(self.Q * s**2 + self.C * a**2).squeeze(-1)
        return Outcome(self.A * s + self.B * a + self.W * eps, r, torch.zeros_like(r))


class Curved(Problem):
    """Two states, two actions, noise inside a nonlinearity: its gradients differ from sample to sample."""

    observation_size, action_size, noise_size = 2, 2, 3

    def forward(self, s, a, eps):
        s_next = 0.8 * (s + 0.5 * a * eps[..., :2]).tanh() + 0.3 * s.flip(-1) * eps[..., 2:] + 0.1 * a
        return Outcome(s_next, (s_next * a).sum(-1) - s.square().sum(-1), torch.zeros_like(s[..., 0]))


class Countdown(Problem):
    """State ``(x, k)``: k falls by one each step and the end comes when it reaches 0; ``r = x + a``, ``x' = 2 x``."""

    observation_size, action_size, noise_size = 2, 1, 1

    def forward(self, s, a, eps):
        s_next = torch.stack([2 * s[..., 0], s[..., 1] - 1], -1)
        # Beyond the end the equation is not defined.
        s_next = torch.where(s[..., 1:] > 0, s_next, torch.nan)
        return Outcome(s_next, s[..., 0] + a[..., 0], (s_next[..., 1] <= 0).to(s.dtype))


class Chain(Problem):
    """Rewards that depend on neither state nor action."""

    observation_size = action_size = noise_size = 1

    def forward(self, s, a, eps):
        return Outcome(s, eps[..., 0], torch.zeros_like(eps[..., 0]))


def gain(k):
    return lambda s: k * s


def column(*values):
    return torch.tensor(values, dtype=torch.float64).unsqueeze(-1)


def closed_form(s, a, k, gamma=GAMMA, p=Scalar):
    """Mean of [G, dG/ds, dG/da]. With f = A + B k the policy's value is V(s) = -(P s^2 + D),

    P = (Q + C k^2) / (1 - gamma f^2), D = gamma P W^2 / (1 - gamma), and
    Q(s, a) = -(Q s^2 + C a^2) + gamma E V(s') with E s'^2 = m^2 + W^2, m = A s + B a.
    """
    f, m = p.A + p.B * k, p.A * s + p.B * a
    big = (p.Q + p.C * k**2) / (1 - gamma * f**2)
    d = gamma * big * p.W**2 / (1 - gamma)
    mean = -(p.Q * s**2 + p.C * a**2) - gamma * (big * (m**2 + p.W**2) + d)
    ds = -2 * p.Q * s - 2 * gamma * big * m * p.A
    da = -2 * p.C * a - 2 * gamma * big * m * p.B
    return torch.cat([mean, ds, da], -1)


@pytest.mark.parametrize("k", [-0.4, -1.2, 0.0])
def test_mean_return_and_gradients_of_a_linear_quadratic_problem(k):
    s, a = column(1.0, -0.5, 0.2), column(0.3, 0.8, -1.0)
    samples = true_returns(Scalar(), gain(k), s, a, GAMMA, 8000, torch.Generator().manual_seed(0), tolerance=1e-7)
    assert samples.shape == (3, 8000, 3)
    assert samples.dtype == torch.float64
    assert not samples.requires_grad
    error = (samples.mean(1) - closed_form(s, a, k)).abs()
    assert (error < 4.5 * samples.std(1) / math.sqrt(8000) + 1e-6).all()
    assert (samples.std(1) / math.sqrt(8000) < 0.02).all()


def test_without_noise_the_closed_form_is_met_exactly():
    class Silent(Scalar):
        W = 0.0

    s, a = column(1.0), column(0.3)
    samples = true_returns(Silent(), gain(-0.4), s, a, GAMMA, 2, horizon=200)
    torch.testing.assert_close(samples, closed_form(s, a, -0.4, p=Silent).expand(1, 2, 3))


def test_each_sample_is_differentiated_at_its_own_noise(float64):
    problem, policy = Curved(), DeterministicPolicy(2, 2, (8,))
    s, a = torch.randn(3, 2), torch.randn(3, 2)

    def returns(s, a):
        return true_returns(problem, policy, s, a, 0.7, 20, torch.Generator().manual_seed(5), horizon=12)

    samples, h = returns(s, a), 1e-5
    assert (samples[..., 1:].std(1) > 0.05).all()  # the gradients are random, or this would show little
    for i in range(2):
        step = torch.zeros(2)
        step[i] = h
        by_s = (returns(s + step, a) - returns(s - step, a))[..., 0] / (2 * h)
        by_a = (returns(s, a + step) - returns(s, a - step))[..., 0] / (2 * h)
        torch.testing.assert_close(samples[..., 1 + i], by_s, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(samples[..., 3 + i], by_a, rtol=1e-6, atol=1e-8)


def test_nothing_is_earned_after_the_end():
    # x_0 = 3, x_t = 3 * 2^t, pi(s) = -x/3: the first step earns 3 + a, each later one 2 x_t / 3 = 2^(t+1), times
    # gamma^t = 2^-t that is 2, of derivative 2/3 in x_0. So k steps earn 3 + a + 2 (k - 1). dG/dk = 0, dG/da = 1.
    # The third row goes on while the others have ended.
    s = torch.tensor([[3.0, 2.0], [3.0, 1.0], [3.0, 4.0]], dtype=torch.float64)
    a = column(0.5, 0.25, 0.0)
    samples = true_returns(Countdown(), lambda s: -s[:, :1] / 3, s, a, 0.5, 2, horizon=9)
    hand = [[5.5, 1 + 2 / 3, 0.0, 1.0], [3.25, 1.0, 0.0, 1.0], [9.0, 3.0, 0.0, 1.0]]
    hand = torch.tensor(hand, dtype=torch.float64)
    torch.testing.assert_close(samples, hand.unsqueeze(1).expand(3, 2, 4))


def test_horizon_is_the_number_of_rewards():
    # x doubles and gamma is 1/2: every step earns x_0 (with pi = 0), the first one a as well.
    s, a = torch.tensor([[1.5, 100.0]], dtype=torch.float64), column(0.25)
    samples = true_returns(Countdown(), lambda s: 0 * s[:, :1], s, a, 0.5, 1, horizon=6)
    torch.testing.assert_close(samples[0, 0], torch.tensor([6 * 1.5 + 0.25, 6.0, 0.0, 1.0], dtype=torch.float64))
    default = true_returns(Countdown(), lambda s: 0 * s[:, :1], s, a, 0.5, 1, tolerance=1e-3)
    torch.testing.assert_close(default[0, 0, 1].item(), 10.0)  # 2^-10 < 1e-3 < 2^-9


@pytest.mark.parametrize(
    ("gamma", "tolerance", "steps"), [(0.0, 1e-4, 1), (0.5, 0.25, 2), (0.1, 1e-3, 3), (0.9, 1e-4, 88)]
)
def test_horizon_of_a_discount(gamma, tolerance, steps):
    assert horizon_of(gamma, tolerance) == steps
    assert gamma**steps <= tolerance * (1 + 1e-12)


def test_a_discount_of_zero_leaves_the_first_reward():
    s, a = column(2.0), column(0.5)
    hand = torch.tensor([-4.075, -4.0, -0.3], dtype=torch.float64)
    torch.testing.assert_close(true_returns(Scalar(), gain(-0.4), s, a, 0.0, 1)[0, 0], hand)


def test_rewards_that_depend_on_nothing_have_zero_gradients():
    samples = true_returns(Chain(), gain(0.0), column(0.0), column(0.0), 0.5, 4000)
    assert not samples[..., 1:].any()
    # The variance of sum gamma^t eps_t is 1 / (1 - gamma^2).
    torch.testing.assert_close(samples[..., 0].var().item(), 4 / 3, rtol=0.1, atol=0.0)


def test_the_policy_is_left_alone_and_no_gradient_mode_matters():
    policy = DeterministicPolicy(1, 1, (8,))
    before = [p.clone() for p in policy.parameters()]
    arguments = (Scalar(), policy, torch.ones(2, 1), torch.zeros(2, 1), 0.8, 5)
    expected = true_returns(*arguments, torch.Generator().manual_seed(1))
    assert all(p.grad is None and torch.equal(p, q) for p, q in zip(policy.parameters(), before))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            s, a = torch.ones(2, 1), torch.zeros(2, 1)
            samples = true_returns(Scalar(), policy, s, a, 0.8, 5, torch.Generator().manual_seed(1))
        assert torch.equal(samples, expected)


def test_rows_are_cut_into_chunks_of_bounded_memory(monkeypatch):
    sizes = []

    class Watched(Scalar):
        def forward(self, s, a, eps):
            sizes.append(len(s))
            return super().forward(s, a, eps)

    s, a = column(1.0, -0.5, 0.2), column(0.3, 0.8, -1.0)
    monkeypatch.setattr(rollout, "_CHUNK_BYTES", 200_000)
    samples = true_returns(Watched(), gain(-0.4), s, a, GAMMA, 4000, horizon=40)
    # A step of one rollout keeps some tens of bytes, so a chunk holds some tens of rollouts of 40 steps.
    assert 10 < max(sizes) < 200
    error = (samples.mean(1) - closed_form(s, a, -0.4)).abs()
    assert (error < 4.5 * samples.std(1) / math.sqrt(4000) + 1e-3).all()  # each rollout is in its own row


def test_what_a_step_keeps_grows_with_the_policy():
    s, a = torch.ones(1, 2), torch.ones(1, 2)
    narrow, wide = (rollout._saved_bytes(Curved(), DeterministicPolicy(2, 2, (n,)), s, a) for n in (8, 800))
    # At least the input and the output of the hidden layer's activation, in float32.
    assert 2 * 4 * 792 <= wide - narrow <= 4 * 4 * 792


def test_runs_in_float32_on_a_module_policy():
    policy = nn.Linear(2, 2)
    samples = true_returns(Curved(), policy, torch.ones(2, 2), torch.ones(2, 2), 0.5, 3)
    assert samples.dtype == torch.float32
    assert samples.shape == (2, 3, 5)


@pytest.mark.parametrize("gamma", [1.0, -0.1, 1.5, math.nan])
def test_discounts_outside_the_unit_interval_are_refused(gamma):
    with pytest.raises(UsageError, match=r"gamma: expected a number in \[0, 1\)"):
        true_returns(Scalar(), gain(0.0), column(0.0), column(0.0), gamma, 2)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("samples", {"samples": 0}),
        ("horizon", {"samples": 1, "horizon": 0}),
        ("tolerance", {"samples": 1, "tolerance": 0.0}),
    ],
)
def test_other_options_out_of_range_are_refused(name, options):
    with pytest.raises(UsageError, match=f"{name}: expected"):
        true_returns(Scalar(), gain(0.0), column(0.0), column(0.0), 0.5, **options)
