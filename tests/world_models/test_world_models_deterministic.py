"""Deterministic regression: likelihood by hand and by reference."""

import math

import pytest
import torch
from torch.distributions import Normal

from dsob_pl.errors import UsageError
from dsob_pl.world_models import Deterministic, Transition


def test_loss_and_gradient_by_hand():
    model = Deterministic(1, 1, hidden=(), termination_hidden=()).double()
    with torch.no_grad():
        model.mean[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        model.mean[0].bias.zero_()
        model.termination.mlp[0].weight.zero_()
        model.termination.mlp[0].bias.zero_()
        model.sigma.logit.fill_(math.log(math.log(50) / math.log(4)))  # sigma = 0.5, of [0.01, 2]
    one = torch.ones(1).double()
    # prediction (1, 1), target (2, 1.25): residual (1, 0.25)
    data = Transition(one[:, None], 0.5 * one[:, None], 1.25 * one, 3 * one[:, None], 0 * one)
    loss, statistics = model.loss(data, torch.zeros(1, 0))
    expected = 0.5 * (2.0**2 + 0.5**2) + 2 * math.log(0.5) + math.log(2 * math.pi)
    assert statistics["reconstruction"].item() == pytest.approx(expected, abs=1e-6)
    assert loss.item() == pytest.approx(expected + math.log(2), abs=1e-6)
    loss.backward()
    gradient = torch.tensor([[-4.0, -2.0], [-1.0, -0.5]]).double()  # -residual / sigma^2 times (s, a)
    torch.testing.assert_close(model.mean[0].weight.grad, gradient, atol=1e-5, rtol=0)


def test_log_likelihood_is_the_density_of_the_normalised_target():
    model = Deterministic(2, 1, hidden=(8,)).double()
    s, s_next = torch.randn(2, 20, 2).double()
    data = Transition(s, torch.rand(20, 1).double(), torch.randn(20).double(), s_next, torch.zeros(20).double())
    model.update_statistics(data)
    target = model.target_scale.encode(data.s, data.s_next, data.r)
    law = Normal(model.mean(torch.cat([data.s, data.a], -1)), model.sigma().exp())
    value = model.log_likelihood(data, torch.zeros(3, 20, 0))
    torch.testing.assert_close(value, law.log_prob(target).sum(-1).detach())


def test_prediction_takes_no_noise_and_is_not_spread():
    model = Deterministic(2, 1)
    assert model.noise_size == 0
    s, a = torch.randn(3, 4, 2), torch.rand(3, 4, 1)
    prediction = model(s, a, torch.zeros(3, 4, 0))
    assert prediction.s_next.shape == (3, 4, 2)
    assert prediction.r.shape == prediction.continuation.shape == (3, 4)
    with pytest.raises(NotImplementedError, match="Deterministic"):
        model.infer_noise(None, None)


def test_a_negative_weight_is_refused():
    with pytest.raises(UsageError, match=r"world_model\.termination_weight: expected a number of at least 0, got -1"):
        Deterministic(3, 1, termination_weight=-1.0)
