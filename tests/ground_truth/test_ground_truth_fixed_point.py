"""The exact answer is a fixed point of the backup, to rounding, and what a bug does to it is seen by the same test."""

from __future__ import annotations

import math

import pytest
import torch

from dsob_pl.bellman import NoCorrection, SobolevOrder, sobolev_target
from dsob_pl.critics import Critic
from dsob_pl.envs import LinearQuadratic, PointMass, Problem
from dsob_pl.ground_truth import true_returns
from dsob_pl.networks import LinearPolicy
from dsob_pl.world_models import KnownDynamics

STATE_ACTION = SobolevOrder.STATE_ACTION
GAMMA = 0.9
# With a gain of -0.4 the cosine of the action gradient stays near 1 without the policy's Jacobian.
GAIN = -1.0
ANGLE = 0.5
ROTATION = [[math.cos(ANGLE), -math.sin(ANGLE)], [math.sin(ANGLE), math.cos(ANGLE)]]

pytestmark = pytest.mark.usefixtures("float64")


class ExactMean(Critic):
    """``E[G | s, a]`` in closed form, without noise."""

    ensemble_size, noise_size = 1, 0

    def __init__(self, problem, gain):
        super().__init__()
        self.exact = problem.exact(gain * torch.eye(2), GAMMA)

    def forward(self, s, a, noise):
        return self.exact.mean_return(s, a)


def antithetic(size):
    """Points ``[2 size, size]`` in pairs of opposite sign, whose mean is 0 and whose second moment the identity."""
    points = math.sqrt(size) * torch.eye(size)
    return torch.cat([points, -points])


@pytest.fixture
def world():
    """Model, policy, exact critic, 200 rows of s and a, and for each of them noise that averages quadratics exactly."""
    problem = LinearQuadratic(A=ROTATION)
    model = KnownDynamics(2, 2, problem)
    policy = LinearPolicy(2, 2, gain=GAIN)
    s, a = torch.randn(200, 2), torch.rand(200, 2) * 2 - 1
    return model.double(), policy, ExactMean(problem.double(), GAIN), s, a, antithetic(2).expand(200, 4, 2)


def backed_up(model, policy, critic, s, a, eps):
    """Mean over the noise of one backup of the exact answer: ``[R, 1+S+A]``."""
    noise = torch.zeros(*eps.shape[:2], 0)
    return sobolev_target(model, policy, critic, s, a, eps, noise, GAMMA, STATE_ACTION, NoCorrection()).mean(1)


def errors(found, critic, s, a):
    """Relative RMS errors of mean return, state gradient and action gradient."""
    exact = [critic.exact.mean_return(s, a).unsqueeze(-1), *critic.exact.mean_gradient(s, a)]
    parts = found.split([1, 2, 2], -1)
    return [((x - y).square().sum() / y.square().sum()).sqrt().item() for x, y in zip(parts, exact)]


def test_the_exact_answer_is_a_fixed_point(world):
    model, policy, critic, s, a, eps = world
    assert max(errors(backed_up(model, policy, critic, s, a, eps), critic, s, a)) < 1e-12


def test_without_the_policys_jacobian_it_is_not(world):
    model, policy, critic, s, a, eps = world
    found = backed_up(model, lambda x: policy(x).detach(), critic, s, a, eps)
    value, of_state, of_action = errors(found, critic, s, a)
    print(f"policy detached: {value:.1e} {of_state:.3f} {of_action:.3f}")
    assert value < 1e-12  # no number but the gradient's would show it
    assert of_state > 0.3
    assert of_action > 0.3


def test_with_the_models_path_cut_off_it_is_not(world):
    model, policy, critic, s, a, eps = world

    def step(s, a, eps):
        prediction = model(s, a, eps)
        return prediction._replace(s_next=prediction.s_next.detach())

    value, of_state, of_action = errors(backed_up(step, policy, critic, s, a, eps), critic, s, a)
    print(f"model path detached: {value:.1e} {of_state:.3f} {of_action:.3f}")
    assert value < 1e-12
    assert of_state > 0.3
    assert of_action > 0.3


def test_the_units_of_the_networks_do_not_move_the_fixed_point(world):
    """The same in normalised states and scaled rewards, with the chain rule through both."""
    model, policy, critic, s, a, eps = world
    model.normalizer.update(torch.randn(500, 2) * torch.tensor([3.0, 0.5]) + 1)
    model.reward_scale.factor.fill_(0.2)
    units = model.normalizer

    class InUnits(Critic):
        ensemble_size, noise_size = 1, 0

        def forward(self, s, a, noise):
            return model.reward_scale(critic(units.inverse(s), a, noise))

    found = backed_up(model, lambda s: policy(units.inverse(s)), InUnits(), units(s), a, eps) / 0.2
    found[:, 1:3] /= units.scale
    assert max(errors(found, critic, s, a)) < 1e-6  # scale and factor are kept in float32


def test_rollouts_agree_with_the_closed_form():
    problem, policy = LinearQuadratic(A=ROTATION).double(), LinearPolicy(2, 2, gain=GAIN)
    s, a, samples = torch.randn(4, 2), torch.rand(4, 2) * 2 - 1, 4000
    true = true_returns(problem, policy, s, a, GAMMA, samples, tolerance=1e-6)
    exact = problem.exact(GAIN * torch.eye(2), GAMMA)
    mean = torch.cat([exact.mean_return(s, a).unsqueeze(-1), *exact.mean_gradient(s, a)], -1)
    standard_error = true.std(1) / math.sqrt(samples)
    z = (true.mean(1) - mean) / standard_error
    assert z.abs().max() < 4.5
    assert 0.5 < z.std() < 1.6
    # Precise enough that a missing term would be seen: to two percent of the means.
    assert (standard_error < 0.02 * mean.abs().amax(0)).all()


class Constant(Critic):
    """The value 7 everywhere."""

    ensemble_size, noise_size = 1, 0

    def forward(self, s, a, noise):
        return 7 + 0 * (s.sum(-1) + a.sum(-1))


def test_nothing_is_bootstrapped_where_an_episode_ends():
    problem = PointMass(draw="end", end_probability=0.3).double()
    model, policy = KnownDynamics(2, 2, problem).double(), LinearPolicy(2, 2, gain=-0.5, squash=True)
    s, a, eps = torch.randn(50, 2), torch.rand(50, 2) * 2 - 1, torch.randn(50, 20, 4)
    target = sobolev_target(
        model, policy, Constant(), s, a, eps, torch.zeros(50, 20, 0), GAMMA, STATE_ACTION, NoCorrection()
    )
    rows = [x.unsqueeze(1).expand(50, 20, 2).clone().requires_grad_() for x in (s, a)]
    outcome = problem(*rows, eps)
    own = torch.cat(torch.autograd.grad(outcome.r.sum(), rows), -1)
    ended = outcome.terminated.bool()
    assert 0.2 < ended.double().mean() < 0.4
    assert torch.equal(target[ended][:, 0], outcome.r[ended])
    assert torch.equal(target[~ended][:, 0], torch.full_like(target[~ended][:, 0], 7 * GAMMA))
    torch.testing.assert_close(target[..., 1:], own)
    assert target[ended][:, 1:].abs().min() > 0


class Waits(Critic):
    """``q r / (1 - gamma (1 - q))``, the value of a mass that never moves: paid r where it ends, at every step by q."""

    ensemble_size, noise_size = 1, 0

    def __init__(self, problem: Problem):
        super().__init__()
        self.problem = problem

    def reward(self, s):
        return self.problem.heights * (-(s - self.problem.centres).square().sum(-1) / (2 * 0.8**2)).exp()

    def forward(self, s, a, noise):
        q = self.problem.end_probability
        return q * self.reward(s) / (1 - GAMMA * (1 - q)) + 0 * a.sum(-1)


def test_the_fixed_point_of_a_problem_that_ends():
    problem = PointMass(locations=1, draw="end", end_probability=0.25, step_size=0.0, noise=0.0).double()
    model, policy, critic = KnownDynamics(2, 2, problem).double(), LinearPolicy(2, 2), Waits(problem)
    s, a = torch.randn(30, 2, requires_grad=True), torch.zeros(30, 2)
    # One of four equally likely draws ends the episode.
    eps = torch.zeros(30, 4, 4)
    eps[..., 3] = torch.special.ndtri((torch.arange(4) + 0.5) / 4)
    expected = critic(s, a, None)
    of_state = torch.autograd.grad(expected.sum(), s)[0]
    found = backed_up(model, policy, critic, s.detach(), a, eps)
    torch.testing.assert_close(found[:, 0], expected.detach())
    torch.testing.assert_close(found[:, 1:3], of_state)
    assert not found[:, 3:].any()
    # Rollouts know it too: it is the mean of what they find.
    true = true_returns(problem, policy, s.detach()[:3], a[:3], GAMMA, 4000)[..., :3]
    exact = torch.cat([expected.detach().unsqueeze(-1), of_state], -1)[:3]
    assert ((true.mean(1) - exact).abs() < 4.5 * true.std(1) / math.sqrt(4000)).all()
