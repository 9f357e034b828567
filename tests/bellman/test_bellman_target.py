"""The Sobolev target against numbers worked out by hand, finite differences and the explicit affine operator."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dsob_pl.bellman import (
    LowerMean,
    NoCorrection,
    ReturnBounds,
    SobolevOrder,
    Truncation,
    affine_backup,
    backup,
    bound_target,
    gamma_kappa,
    pooled,
    sobolev_samples,
    sobolev_target,
    truncate,
)
from dsob_pl.critics import Critic, GenerativeCritic
from dsob_pl.errors import UsageError
from dsob_pl.networks import DeterministicPolicy
from dsob_pl.world_models import CVAE, Prediction

STATE_ACTION, ACTION, NONE = SobolevOrder.STATE_ACTION, SobolevOrder.ACTION, SobolevOrder.NONE


def in_turn(samples):
    return samples.transpose(0, 1).flatten(1, 2)


class HandCritic(Critic):
    """``Z = 2 s' + 3 a'^2 + xi s'``, one state, one action, one member."""

    ensemble_size, noise_size = 1, 1

    def forward(self, s, a, noise):
        return (2 * s + 3 * a**2 + noise * s).squeeze(-1)


def hand_step(s, a, eps):
    """``s' = 0.5 s + a + eps``, ``r = s a``, continuation 0.8."""
    return Prediction(0.5 * s + a + eps, (s * a).squeeze(-1), torch.full_like(s, 0.8).squeeze(-1))


def hand_policy(s):
    """``pi(s) = -0.4 s``."""
    return -0.4 * s


def one(x):
    return torch.tensor([[x]])


@pytest.mark.parametrize("nested", [False, True])
def test_hand_computed_target(float64, nested):
    # s=1, a=2, eps=0.5: s'=3, a'=-1.2, r=2; xi=0.1: Z = 6 + 4.32 + 0.3 = 10.62; gamma c = 0.9 * 0.8 = 0.72
    # dZ/ds' = 2 + 0.1 = 2.1, dZ/da' = 6 a' = -7.2; along the policy: 2.1 + (-0.4)(-7.2) = 4.98
    # G = 2 + 0.72 * 10.62 = 9.6464; dG/ds = a + 0.72 * 0.5 * 4.98 = 3.7928; dG/da = s + 0.72 * 4.98 = 4.5856
    target = sobolev_target(
        hand_step, hand_policy, HandCritic(), one(1.0), one(2.0), one(0.5)[None], one(0.1)[None], 0.9,
        STATE_ACTION, NoCorrection(), nested,
    )  # fmt: skip
    torch.testing.assert_close(target, torch.tensor([[[9.6464, 3.7928, 4.5856]]]))
    assert not target.requires_grad


@pytest.fixture
def parts(float64):
    torch.manual_seed(1)
    model = CVAE(3, 2, latent_size=4, hidden=(16, 16), prior_hidden=(8,), termination_hidden=(8,))
    policy = DeterministicPolicy(3, 2, hidden=(16,))
    critic = GenerativeCritic(3, 2, members=2, hidden=(16, 16), noise_size=4, noise_gain=1.0)
    s, a = torch.randn(6, 3), torch.rand(6, 2) * 2 - 1
    eps, noise = torch.randn(6, 5, model.noise_size), torch.randn(6, 5, 4)
    return model, policy, critic, s, a, eps, noise


@pytest.mark.parametrize("nested", [False, True])
def test_target_equals_finite_differences(parts, nested):
    model, policy, critic, s, a, eps, noise = parts
    target = sobolev_target(model, policy, critic, s, a, eps, noise, 0.97, STATE_ACTION, in_turn, nested)
    target = target.unflatten(1, (2, 5)).transpose(0, 1)  # [E, B, M, D]
    step = 1e-5
    sa = torch.cat([s, a], -1).unsqueeze(1).expand(2, 6, 5, 5)
    eps, noise = eps.expand(2, *eps.shape), noise.expand(2, *noise.shape)

    def value(sa):
        return backup(model, policy, critic, sa[..., :3], sa[..., 3:], eps, noise, 0.97)

    torch.testing.assert_close(target[..., 0], value(sa))
    for k in range(5):
        shift = torch.zeros(5)
        shift[k] = step
        slope = (value(sa + shift) - value(sa - shift)) / (2 * step)
        error = (target[..., 1 + k] - slope).norm() / slope.norm()
        assert error < 1e-6


def test_target_equals_the_explicit_affine_operator(parts):
    model, policy, critic, s, a, eps, noise = parts
    target = sobolev_target(model, policy, critic, s, a, eps, noise, 0.97, STATE_ACTION, in_turn)
    target = target.unflatten(1, (2, 5)).permute(1, 0, 2, 3)
    rows = [x.unsqueeze(1).expand(-1, 5, -1).flatten(0, 1) for x in (s, a)]

    def next_samples(member):
        def of(s_next, a_next):
            samples = sobolev_samples(critic, s_next, a_next, noise.flatten(0, 1).unsqueeze(1), STATE_ACTION)
            return samples[member, :, 0]

        return of

    for member in range(2):
        explicit = affine_backup(model, policy, next_samples(member), *rows, eps.flatten(0, 1), 0.97)
        assert (explicit.unflatten(0, (6, 5)) - target[member]).abs().max() < 1e-10


@pytest.mark.parametrize("nested", [False, True])
def test_a_critic_without_written_out_gradient_has_the_same_target(parts, nested):
    model, policy, critic, s, a, eps, noise = parts
    for order in (NONE, ACTION, STATE_ACTION):
        written, automatic = (
            sobolev_target(model, policy, z, s, a, eps, noise, 0.97, order, NoCorrection(), nested)
            for z in (critic, Stripped(critic))
        )
        torch.testing.assert_close(written, automatic)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("order", [ACTION, STATE_ACTION])
def test_what_a_model_does_not_depend_on_has_no_gradient(parts, order, nested):
    """A bandit, whose reward is of the action and whose next state of neither; and one that pays by chance alone."""
    _, policy, critic, s, a, eps, noise = parts

    def bandit(s, a, eps):
        return Prediction(eps[..., :3], a.sum(-1), torch.ones_like(a[..., 0]))

    def lottery(s, a, eps):
        return Prediction(eps[..., :3], eps[..., 0], torch.ones_like(eps[..., 0]))

    for model, slope in ((bandit, 1.0), (lottery, 0.0)):
        target = sobolev_target(model, policy, critic, s, a, eps, noise, 0.97, order, NoCorrection(), nested)
        expected = torch.zeros_like(target[..., 1:])
        expected[..., -2:] = slope
        torch.testing.assert_close(target[..., 1:], expected)


def test_action_only_target_is_the_action_part(parts):
    model, policy, critic, s, a, eps, noise = parts
    arguments = (model, policy, critic, s, a, eps, noise, 0.97)
    full = sobolev_target(*arguments, STATE_ACTION, NoCorrection())
    torch.testing.assert_close(
        sobolev_target(*arguments, ACTION, NoCorrection()), torch.cat([full[..., :1], full[..., 4:]], -1)
    )
    torch.testing.assert_close(sobolev_target(*arguments, NONE, NoCorrection()), full[..., :1])


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("order", [NONE, ACTION, STATE_ACTION])
def test_the_members_share_one_imagined_step(parts, order, nested):
    model, policy, critic, s, a, eps, noise = parts
    rows = []

    def step(s, a, eps):
        rows.append(s.shape[:-1].numel())
        return model(s, a, eps)

    sobolev_target(step, policy, critic, s, a, eps, noise, 0.97, order, NoCorrection(), nested)
    assert rows == [6 * 5]


def test_policy_jacobian_is_part_of_the_target(parts):
    """With the policy's output cut off from s' the target's gradient is another one."""
    model, policy, critic, s, a, eps, noise = parts
    full = sobolev_target(model, policy, critic, s, a, eps, noise, 0.97, STATE_ACTION, NoCorrection())
    cut = sobolev_target(
        model, lambda x: policy(x).detach(), critic, s, a, eps, noise, 0.97, STATE_ACTION, NoCorrection()
    )
    torch.testing.assert_close(full[..., 0], cut[..., 0])
    assert (full[..., 1:] - cut[..., 1:]).abs().mean() > 1e-3


def test_sobolev_samples_of_a_critic_without_written_out_gradient(float64):
    critic = GenerativeCritic(3, 2, members=2, hidden=(8,), noise_size=4)
    s, a, noise = torch.randn(6, 3), torch.randn(6, 2), torch.randn(6, 5, 4)
    for order, size in ((STATE_ACTION, 6), (ACTION, 3), (NONE, 1)):
        written = sobolev_samples(critic, s, a, noise, order)
        assert written.shape == (2, 6, 5, size)
        generic = Stripped(critic)
        automatic = sobolev_samples(generic, s, a, noise, order)
        torch.testing.assert_close(written, automatic)
        ours = torch.autograd.grad(written.square().sum(), critic.parameters())
        theirs = torch.autograd.grad(automatic.square().sum(), critic.parameters())
        for x, y in zip(ours, theirs):
            torch.testing.assert_close(x, y)


class Stripped(Critic):
    """A critic as a user writes it: forward only."""

    def __init__(self, critic):
        super().__init__()
        self.inner, self.ensemble_size, self.noise_size = critic, critic.ensemble_size, critic.noise_size

    def forward(self, s, a, noise):
        return self.inner(s, a, noise)


def test_truncation_carries_the_gradient_along(float64):
    samples = torch.tensor([[3.0, 30.0], [1.0, 10.0], [4.0, 40.0], [2.0, 20.0]])[None]
    assert truncate(samples, 0.25).tolist() == [[[1, 10], [2, 20], [3, 30]]]
    assert torch.equal(truncate(samples, 0.2), samples)  # less than one sample: nothing is dropped
    both = Truncation(0.5)(samples.view(1, 1, 4, 2).expand(2, 1, 4, 2))
    assert both.tolist() == [[[1, 10], [1, 10], [2, 20], [2, 20]]]


def test_pooled_samples_of_a_draw_stand_at_positions_of_one_kind(float64):
    """Samples 10 e + i of critics e and draws i: with five draws, one has to stand in both halves."""
    samples = torch.tensor([[0.0, 1, 2, 3], [10, 11, 12, 13]]).view(2, 1, 4, 1)
    assert NoCorrection()(samples).flatten().tolist() == [0, 1, 2, 3, 10, 11, 12, 13]
    samples = torch.tensor([[0.0, 1, 2, 3, 4], [10, 11, 12, 13, 14]]).view(2, 1, 5, 1)
    assert NoCorrection()(samples).flatten().tolist() == [0, 1, 2, 3, 4, 11, 10, 13, 12, 14]
    # In order of the return they are of draws 1 1 3 3 0 0 2 2; the last two are dropped.
    by_draw = torch.tensor([3.0, 1, 4, 2])
    samples = torch.stack([by_draw, by_draw + 0.5]).view(2, 1, 4, 1)
    assert Truncation(0.25)(samples).flatten().tolist() == [3, 1, 3.5, 1.5, 2, 2.5]


@given(
    arrays(np.float64, (2, 7, 5), elements=st.floats(-3, 3)),
    st.sampled_from([0.0, 0.1, 0.2, 0.3]),
    st.sampled_from([2, 3, 4, 5]),
)
def test_pooling_keeps_the_lowest_samples_whatever_their_order(returns, drop, draws):
    number = torch.arange(2 * 7 * draws, dtype=torch.float64).view(2, 7, draws)
    samples = torch.stack([torch.from_numpy(returns[..., :draws].copy()), number], -1)
    kept = pooled(samples, drop)
    count = 2 * draws - math.floor(drop * 2 * draws + 1e-9)
    assert kept.shape == (7, count, 2)
    together = samples.transpose(0, 1).flatten(1, 2)
    torch.testing.assert_close(kept[..., 0].sort(-1).values, together[..., 0].sort(-1).values[:, :count])
    by_number = {tuple(row.tolist()) for row in together.flatten(0, 1)}
    assert {tuple(row.tolist()) for row in kept.flatten(0, 1)} <= by_number  # rows stay whole
    odd = kept[..., 1] % draws % 2
    for row in odd.tolist():
        fewer = min(row.count(0.0), row.count(1.0))
        assert row[: 2 * fewer] == [0.0, 1.0] * fewer


def test_lower_mean_takes_whole_sets_per_transition(float64):
    returns = torch.tensor([[[1.0, 9.0], [0.0, 0.0]], [[4.0, 3.0], [5.0, -4.0]]])  # means 5, 0 and 3.5, 0.5
    samples = torch.stack([returns, 10 * returns], -1)
    assert LowerMean()(samples).tolist() == [[[4, 40], [3, 30]], [[0, 0], [0, 0]]]
    assert LowerMean(0.5)(samples).tolist() == [[[3, 30]], [[0, 0]]]
    assert NoCorrection()(samples)[0, :, 0].tolist() == [1, 9, 4, 3]


@pytest.mark.parametrize("drop", [-0.1, 1.0, float("nan")])
def test_a_drop_outside_its_range_is_refused(drop):
    for correction in (Truncation, LowerMean):
        with pytest.raises(UsageError, match=r"overestimation\.drop: expected a fraction"):
            correction(drop)


def test_return_bounds_hold_for_any_horizon():
    bounds = ReturnBounds.from_rewards(torch.tensor(-2.0), torch.tensor(1.0), 0.9)
    assert bounds.low == pytest.approx(-20)
    assert bounds.high == pytest.approx(10)
    # A reward that is always positive can end after one step: the least return is one reward, not ten.
    assert ReturnBounds.from_rewards(torch.tensor(1.0), torch.tensor(1.0), 0.9).low == 1


def test_bounded_targets_keep_the_direction_of_the_gradient(float64):
    bounds = ReturnBounds(torch.tensor(-1.0), torch.tensor(9.0))
    samples = torch.tensor([[20.0, 3.0, 4.0], [5.0, 0.3, 0.4], [-7.0, 0.0, 0.0]])
    limited, changed = bound_target(samples, bounds, 0.1)
    torch.testing.assert_close(limited, torch.tensor([[9.0, 0.6, 0.8], [5.0, 0.3, 0.4], [-1.0, 0.0, 0.0]]))
    assert changed == pytest.approx(2 / 3)


def test_bounded_laws_keep_their_mean_and_the_direction_of_the_gradient(float64):
    bounds = ReturnBounds(torch.tensor(-1.0), torch.tensor(9.0))
    # Mean 8, deviations -6, 2, 4: drawn together by 1/4, until the largest is 9 and not 12.
    above = torch.tensor([[2.0, 3.0, 4.0], [10.0, 0.3, 0.4], [12.0, 0.0, 0.0]])
    # Mean -3, brought to -1, where no room is left below.
    below = torch.tensor([[-7.0, 3.0, 4.0], [-1.0, 0.3, 0.4], [-1.0, 0.0, 0.0]])
    limited, changed = bound_target(torch.stack([above, below]), bounds, 0.1, "law")
    gradients = [[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]
    expected = [[[value, *g] for value, g in zip(values, gradients)] for values in ((6.5, 8.5, 9.0), (-1.0,) * 3)]
    torch.testing.assert_close(limited, torch.tensor(expected))
    assert changed == pytest.approx(2 / 3)  # the two at -1 stay
    inside = torch.tensor([[5.0, 0.3, 0.4], [-0.9, 3.0, 4.0]])
    limited, changed = bound_target(inside, bounds, 0.1, "law")
    assert torch.equal(limited[:, 0], inside[:, 0])
    assert changed == 0.5  # the second gradient
    single, _ = bound_target(torch.tensor([[20.0, 0.0]]), bounds, 0.1, "law")  # a deterministic critic's
    assert single.tolist() == [[9.0, 0.0]]


@given(
    arrays(np.float64, (4, 6), elements=st.floats(-30, 30)),
    st.floats(-10, 10),
    st.floats(1e-3, 20),
)
def test_bounded_laws_stay_within_bounds_keep_a_possible_mean_and_their_order(values, low, width):
    returns = torch.from_numpy(values)
    bounds = ReturnBounds(torch.tensor(low).double(), torch.tensor(low + width).double())
    limited = bound_target(returns.unsqueeze(-1), bounds, 1.0, "law")[0].squeeze(-1)
    assert (limited >= bounds.low).all()
    assert (limited <= bounds.high).all()
    torch.testing.assert_close(limited.mean(-1), returns.mean(-1).clamp(*bounds), atol=1e-9, rtol=0)
    assert (limited.gather(-1, returns.argsort(-1)).diff(dim=-1) >= -1e-12).all()
    assert (limited.std(-1) <= returns.std(-1) + 1e-12).all()


def test_gamma_kappa_of_a_known_linear_system(float64):
    # s' = 1.5 s + 0.5 a, pi(s) = -0.4 s: K = [1.5; 0.5] [1, -0.4], a rank one matrix of norm |(1.5, 0.5)| |(1, 0.4)|
    def step(s, a, eps):
        return Prediction(1.5 * s + 0.5 * a, s.sum(-1), torch.ones_like(s.sum(-1)))

    rows = torch.randn(4, 1)
    factors = gamma_kappa(step, hand_policy, rows, rows, torch.zeros(4, 0), 0.9)
    torch.testing.assert_close(factors, torch.full((4,), 0.9 * (2.5 * 1.16) ** 0.5))

    def shrinking(s, a, eps):
        return Prediction(0.1 * s, s.sum(-1), torch.ones_like(s.sum(-1)))

    # The value's own factor is gamma: a smaller K does not make the operator contract faster.
    assert gamma_kappa(shrinking, hand_policy, rows, rows, torch.zeros(4, 0), 0.5).tolist() == [0.5] * 4
