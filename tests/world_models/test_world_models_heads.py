"""The termination head, the learned sigma and the scale of the targets, and how the models use them."""

import math

import pytest
import torch
from torch.distributions import Normal

from dsob_pl.world_models import CVAE, Deterministic, Transition
from dsob_pl.world_models.heads import LearnedSigma, TargetScale, TerminationHead

S, A = 2, 1


def head(weight, bias, **options):
    """Logit = weight . (s, a, s') + bias."""
    end = TerminationHead(S, A, hidden=(), **options).double()
    with torch.no_grad():
        end.mlp[0].weight.copy_(torch.tensor([weight]))
        end.mlp[0].bias.fill_(bias)
    return end


def inputs(n=5):
    s, s_next = torch.randn(2, n, S, dtype=torch.float64)
    return s, torch.rand(n, A, dtype=torch.float64) * 2 - 1, s_next


def test_continuation_is_one_minus_the_probability():
    s, a, s_next = inputs()
    continuation = head([0.0, 0.0, 0.0, 2.0, 0.0], -1.0).continuation(s, a, s_next)
    expected = 1 - 1 / (1 + torch.exp(-(2 * s_next[:, 0] - 1)))
    torch.testing.assert_close(continuation, expected)


def test_cross_entropy_and_its_gradient_by_hand():
    end = head([0.0, 0.0, 0.0, 1.0, 0.0], 0.0)
    s, a, s_next = (
        torch.zeros(2, 2).double(),
        torch.zeros(2, 1).double(),
        torch.tensor([[0.0, 9.0], [math.log(3), 9.0]]),
    )
    loss = end.loss(s, a, s_next.double(), torch.tensor([1.0, 0.0]).double())  # p = 1/2 and 3/4
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2, abs=1e-6)
    loss.backward()
    assert end.mlp[0].bias.grad.item() == pytest.approx((-0.5 + 0.75) / 2, abs=1e-6)


@pytest.mark.parametrize("differentiate", [True, False])
@pytest.mark.parametrize("kind", [CVAE, Deterministic])
def test_the_models_continuation_depends_on_the_action_through_the_predicted_state(kind, differentiate):
    model = kind(S, A, differentiate_termination=differentiate).double()
    with torch.no_grad():
        for parameter in model.termination.parameters():
            parameter.mul_(3)
        model.termination.mlp[0].weight[:, : S + A] = 0  # only s' matters
    s, a, _ = inputs()
    a.requires_grad_()
    prediction = model(s, a, torch.randn(5, model.noise_size, dtype=torch.float64))
    assert ((prediction.continuation > 0) & (prediction.continuation < 1)).all()
    expected = (-model.termination(s, a, prediction.s_next)).sigmoid()
    torch.testing.assert_close(prediction.continuation, expected)
    if differentiate:
        assert (torch.autograd.grad(prediction.continuation.sum(), a)[0] != 0).all()
    else:
        assert not prediction.continuation.requires_grad


def test_sampled_continuation_is_a_constant_zero_or_one_with_the_right_frequency():
    model = CVAE(S, A, hidden=(8,), termination_hidden=(), sample_termination=True).double()
    with torch.no_grad():
        model.termination.mlp[0].weight.zero_()
        model.termination.mlp[0].bias.fill_(math.log(0.3 / 0.7))
    n = 20_000
    s, a, eps = torch.randn(n, S).double(), torch.rand(n, A).double().requires_grad_(), torch.randn(n, model.noise_size)
    prediction = model(s, a, eps.double())
    assert not prediction.continuation.requires_grad
    assert set(prediction.continuation.unique().tolist()) == {0.0, 1.0}
    assert prediction.continuation.mean().item() == pytest.approx(0.7, abs=0.01)
    again = model(s, a, torch.cat([torch.randn(n, model.noise_size - 1), eps[:, -1:]], -1).double())
    assert torch.equal(prediction.continuation, again.continuation)  # drawn by the last component alone


@pytest.mark.parametrize("kind", [CVAE, Deterministic])
def test_the_head_learns_from_real_next_states(kind):
    model = kind(S, A).double()
    s, a, s_next = inputs()
    data = Transition(s, a, torch.zeros(5).double(), s_next, torch.tensor([1.0, 0, 0, 1, 0]).double())
    _, statistics = model.loss(data, torch.randn(5, model.loss_noise_size, dtype=torch.float64))
    torch.testing.assert_close(
        statistics["termination_loss"], model.termination.loss(s, a, s_next, data.terminated).detach()
    )


def test_log_prob_of_the_learned_sigma():
    sigma = LearnedSigma(3, initial=0.5).double()
    torch.testing.assert_close(sigma().exp(), torch.full((3,), 0.5).double(), atol=1e-6, rtol=0)
    sigma.logit.data.copy_(torch.tensor([-1.0, 0.0, 2.0]))
    residual = torch.randn(4, 3).double()
    expected = Normal(torch.zeros(3).double(), sigma().exp()).log_prob(residual).sum(-1)
    torch.testing.assert_close(sigma.log_prob(residual), expected)


@pytest.mark.parametrize(("logit", "bound"), [(-60.0, 0.01), (60.0, 2.0)])
def test_sigma_stays_within_its_bounds(logit, bound):
    sigma = LearnedSigma(2)
    sigma.logit.data.fill_(logit)
    torch.testing.assert_close(sigma().exp(), torch.full((2,), bound))


def test_decode_inverts_encode():
    scale = TargetScale(S).double()
    s, _, s_next = inputs(50)
    r = torch.randn(50).double() * 7 + 3
    scale.update_from(s, s_next, r)
    decoded = scale.decode(s, scale.encode(s, s_next, r))
    torch.testing.assert_close(decoded, (s_next, r))
