"""The models trained on a small stochastic system whose law is known: two modes in one component."""

import pytest
import torch

from dsob_pl.world_models import CVAE, Deterministic, Transition
from dsob_pl.world_models.metrics import heldout_log_likelihood, sample_targets, spread_ratio

DYNAMICS = torch.tensor([[0.9, 0.2], [-0.2, 0.9]])
CONTROL = torch.tensor([[0.0], [0.5]])
JUMP, NOISE = 0.5, 0.1


def system(n):
    """s' = As + Ba + noise, the first component jumping up or down at random; r = a - 0.3 |s'|^2."""
    s, a = torch.randn(n, 2), torch.rand(n, 1) * 2 - 1
    s_next = s @ DYNAMICS.T + a @ CONTROL.T + NOISE * torch.randn(n, 2)
    s_next[:, 0] += JUMP * torch.randn(n).sign()
    return Transition(s, a, a[:, 0] - 0.3 * s_next.square().sum(-1), s_next, (s_next[:, 0] > 2).float())


def fit(model, updates=1500, batch=128):
    data = system(20_000)
    model.update_statistics(data)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        rows = torch.randint(len(data.r), (batch,))
        loss, statistics = model.loss(Transition(*(x[rows] for x in data)), torch.randn(batch, model.loss_noise_size))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return statistics


@pytest.fixture(scope="module")
def trained():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = CVAE(2, 1, latent_size=4, hidden=(48, 48), prior_hidden=(16,), termination_hidden=(32,))
    return model, fit(model)


def test_samples_are_spread_like_the_real_transitions(trained):
    model, _ = trained
    data = system(2000)
    assert spread_ratio(model, data, torch.randn(64, 2000, model.noise_size)).item() == pytest.approx(1, abs=0.1)
    s, a = torch.randn(100, 2), torch.rand(100, 1) * 2 - 1
    samples = sample_targets(model, s, a, torch.randn(500, 100, model.noise_size))
    std = samples.std(0).mean(0)
    expected = torch.tensor([(JUMP**2 + NOISE**2) ** 0.5, NOISE])
    torch.testing.assert_close(std[:2], expected, rtol=0.1, atol=0)


def test_both_modes_are_sampled_and_the_posterior_has_not_collapsed(trained):
    model, statistics = trained
    assert statistics["kl"] > 0.6  # one bit, which mode it was, is 0.69 nats
    s, a = torch.randn(100, 2), torch.rand(100, 1) * 2 - 1
    samples = sample_targets(model, s, a, torch.randn(500, 100, model.noise_size))
    centre = (s @ DYNAMICS.T + a @ CONTROL.T - s)[:, 0]
    offset = samples[..., 0] - centre
    between = (offset.abs() < 0.15).float().mean()
    up = (offset > 0).float().mean(0)
    assert between < 0.12  # under one Gaussian of the same variance it would be 0.23
    assert up.mean().item() == pytest.approx(0.5, abs=0.05)
    assert up.min() > 0.3


def test_the_mean_jacobian_is_the_systems(trained):
    model, _ = trained
    s, a, eps = torch.randn(2000, 2), torch.rand(2000, 1) * 2 - 1, torch.randn(2000, model.noise_size)

    def step(s, a, eps):
        prediction = model(s, a, eps)
        return prediction.s_next, prediction.r

    (ds_ds, ds_da), (dr_ds, dr_da) = torch.func.vmap(torch.func.jacrev(step, argnums=(0, 1)))(s, a, eps)
    torch.testing.assert_close(ds_ds.mean(0), DYNAMICS, atol=0.06, rtol=0)
    torch.testing.assert_close(ds_da.mean(0), CONTROL, atol=0.06, rtol=0)
    s_next = step(s, a, eps)[0].detach()
    torch.testing.assert_close(dr_da.mean(0), (1 - 0.6 * s_next @ CONTROL).mean(0), atol=0.06, rtol=0)
    torch.testing.assert_close(dr_ds, -0.6 * s_next @ DYNAMICS, atol=0.6, rtol=0)


def test_termination_is_learned(trained):
    model, _ = trained
    data = system(2000)
    predicted = model.termination(data.s, data.a, data.s_next) > 0
    assert ((predicted == data.terminated.bool()).float().mean()) > 0.98


def test_the_deterministic_model_learns_the_mean_and_scores_a_lower_likelihood(trained):
    model = Deterministic(2, 1, hidden=(48, 48), termination_hidden=(32,))
    fit(model, updates=600)
    data = system(1000)
    prediction = model(data.s, data.a, torch.zeros(1000, 0))
    mean = data.s @ DYNAMICS.T + data.a @ CONTROL.T
    assert (prediction.s_next - mean).square().mean().sqrt() < 0.06
    stochastic = heldout_log_likelihood(trained[0], data, torch.randn(64, 1000, 4))
    assert stochastic > heldout_log_likelihood(model, data, torch.zeros(1, 1000, 0)) + 0.2
