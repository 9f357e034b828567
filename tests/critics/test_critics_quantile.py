"""The implicit quantile network: its formula, its levels, the loss they enter, gradients, and a law it learns."""

import math

import pytest
import torch
from torch.distributions import Normal
from torch.func import functional_call

from dsob_pl.agents import SobolevActorCritic, losses
from dsob_pl.bellman import SobolevOrder, sobolev_samples
from dsob_pl.critics import GenerativeCritic, QuantileCritic, full_rows
from dsob_pl.divergences import MMD, QuantileHuber, ValueAnchored
from dsob_pl.errors import UsageError
from dsob_pl.world_models import Transition

S, A, B, N = 3, 2, 5, 7


def at_the_median():
    """One unit each and tanh; two frequencies, so that at tau = 1/2 the cosines are 1 and 0."""
    critic = QuantileCritic(1, 1, members=1, hidden=(1, 1), activation="tanh", frequencies=2)
    values = {
        "trunk._layers.0.weight": [0.5, -0.8],
        "trunk._layers.0.bias": [0.1],
        "head._layers.0.weight": [1.3],
        "head._layers.0.bias": [-0.2],
        "head._layers.1.weight": [0.9],
        "head._layers.1.bias": [0.05],
        "embedding.weight": [0.6, 0.4],
        "embedding.bias": [0.1],
    }
    with torch.no_grad():
        for name, parameter in critic.named_parameters():
            parameter.copy_(torch.tensor(values.pop(name)).reshape(parameter.shape))
    assert not values
    return critic


def test_value_and_gradient_by_hand(float64):
    critic, s, a = at_the_median(), 0.7, -0.4
    rows = (torch.full((1, 1, 1, 1), x) for x in (s, a, Normal(0, 1).icdf(torch.tensor(0.25)).item()))
    phi = 0.6 + 0.4 * math.cos(math.pi / 4) + 0.1
    psi = math.tanh(0.5 * s - 0.8 * a + 0.1)
    h = math.tanh(1.3 * psi * phi - 0.2)
    slope = 0.9 * (1 - h**2) * 1.3 * phi * (1 - psi**2)
    value, ds, da = critic.value_and_gradient(*rows)
    assert value.item() == pytest.approx(0.9 * h + 0.05, abs=1e-12)
    assert ds.item() == pytest.approx(0.5 * slope, abs=1e-12)
    assert da.item() == pytest.approx(-0.8 * slope, abs=1e-12)


def test_levels_are_uniform():
    noise = torch.tensor([[0.0], [1.959964], [-0.674490]])
    torch.testing.assert_close(QuantileCritic(S, A).levels(noise), torch.tensor([0.5, 0.975, 0.25]), atol=1e-6, rtol=0)
    assert GenerativeCritic(S, A).levels(noise) is None


def test_loss_and_gradient_by_hand(float64):
    # at tau = 1/2: phi = 0.6 + 0.1, and all of the loss's gradient in the output bias: that of the Huber function
    critic = at_the_median()
    one = torch.ones(1, 1)
    batch = Transition(0.7 * one, -0.4 * one, one[0], one, one[0])
    z = critic(*(x.view(1, 1, 1, 1) for x in (batch.s, batch.a, 0 * one))).item()
    noise = Normal(0, 1).icdf(torch.tensor([0.5, 0.9])).view(1, 2, 1)
    high = critic(batch.s.expand(1, 1, 2, 1), batch.a.expand(1, 1, 2, 1), noise.unsqueeze(0))[0, 0, 1].item()
    target = torch.tensor([[[z + 0.3], [high - 3.0]]])
    loss, _ = losses.critic_loss(critic, QuantileHuber(), batch, noise, target, SobolevOrder.NONE, 1.0)

    def weighted(tau, error):  # |tau - 1{error < 0}| huber(error), and minus its derivative in the error
        weight = tau if error >= 0 else 1 - tau
        inside = abs(error) <= 1
        return weight * (error**2 / 2 if inside else abs(error) - 0.5), -weight * max(-1.0, min(1.0, error))

    pairs = [weighted(tau, y - x) for tau, x in ((0.5, z), (0.9, high)) for y in (z + 0.3, high - 3.0)]
    assert loss.item() == pytest.approx(sum(p[0] for p in pairs) / 4, abs=1e-12)
    loss.backward()
    assert critic.head.layers[-1].bias.grad.item() == pytest.approx(sum(p[1] for p in pairs) / 4, abs=1e-12)


@pytest.mark.parametrize("hidden", [(6, 5), (7, 6, 5)])
@pytest.mark.parametrize("samples", [2, 9])
def test_gradients_equal_autograd_and_single_rows_equal_shared_ones(float64, hidden, samples):
    critic = QuantileCritic(S, A, members=3, hidden=hidden)
    s, a, noise = (torch.randn(3, B, n, size) for n, size in ((1, S), (1, A), (samples, 1)))
    rows = [x.clone().requires_grad_() for x in full_rows(s, a, noise)]
    value = critic(*rows)
    expected = torch.autograd.grad(value.sum(), rows[:2])
    got, ds, da = critic.value_and_gradient(s, a, noise)
    for x, y in zip((got, ds, da), (value, *expected)):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)
    for order in SobolevOrder:
        sample = sobolev_samples(critic, s[0, :, 0], a[0, :, 0], noise[0], order)
        assert sample.shape == (3, B, samples, {"none": 1, "action": 1 + A, "state_action": 1 + S + A}[order.value])
        assert all(g is not None for g in torch.autograd.grad(sample.square().sum(), list(critic.parameters())))


def test_stacked_critics_under_vmap_have_each_ones_loss_and_gradient(float64):
    critics = [QuantileCritic(S, A, hidden=(6, 5)) for _ in range(3)]
    batch = Transition(torch.randn(B, S), torch.randn(B, A), torch.randn(B), torch.randn(B, S), torch.zeros(B))
    noise, target = torch.randn(B, N, 1), torch.randn(B, 4, 1)

    class Loss(torch.nn.Module):
        def __init__(self, critic):
            super().__init__()
            self.critic = critic

        def forward(self):
            return losses.critic_loss(self.critic, QuantileHuber(), batch, noise, target, SobolevOrder.NONE, 1.0)[0]

    shells = [Loss(critic) for critic in critics]
    parameters, _ = torch.func.stack_module_state(shells)
    gradients, values = torch.func.vmap(torch.func.grad_and_value(lambda p: functional_call(shells[0], p, ())))(
        parameters
    )
    for i, shell in enumerate(shells):
        value = shell()
        value.backward()
        torch.testing.assert_close(values[i], value.detach())
        for name, parameter in shell.named_parameters():
            torch.testing.assert_close(gradients[name][i], parameter.grad)


def test_it_learns_the_quantiles_of_a_skewed_law():
    torch.manual_seed(0)
    critic = QuantileCritic(1, 1, members=1, hidden=(32, 32), frequencies=16)
    optimizer = torch.optim.Adam(critic.parameters(), 3e-3)
    one = torch.zeros(64, 1)
    batch = Transition(one, one, one[:, 0], one, one[:, 0])
    for _ in range(600):
        target = torch.empty(64, 8, 1).exponential_()
        loss, _ = losses.critic_loss(
            critic, QuantileHuber(0.05), batch, torch.randn(64, 8, 1), target, SobolevOrder.NONE, 1.0
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tau = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    zeros = torch.zeros(1, 1, 5, 1)
    learned = critic(zeros, zeros, Normal(0, 1).icdf(tau).view(1, 1, 5, 1)).flatten()
    torch.testing.assert_close(learned, -torch.log1p(-tau), atol=0.15, rtol=0)


def test_the_loss_of_quantiles_needs_levels():
    """Also inside of another divergence: without them samples in random order would be taken for ordered quantiles."""
    anchored = ValueAnchored(MMD(), QuantileHuber())
    for divergence in (QuantileHuber(), anchored):
        with pytest.raises(UsageError, match="QuantileHuber needs a critic of quantiles; use QuantileCritic"):
            SobolevActorCritic(S, A, divergence=divergence, sobolev="none")
    tau, x, y = torch.rand(B, N), torch.randn(B, N, 1), torch.randn(B, 4, 1)
    expected = MMD()(x, y) + QuantileHuber()(x, y, tau)
    torch.testing.assert_close(anchored.at_levels(tau)(x, y), expected)
    SobolevActorCritic(S, A, critic=QuantileCritic, divergence=QuantileHuber(), sobolev="none", world_model=None)


@pytest.mark.parametrize("options", [{"hidden": (8,)}, {"members": 0}, {"frequencies": 0}])
def test_bad_sizes_are_refused(options):
    with pytest.raises(UsageError, match="critic: expected"):
        QuantileCritic(S, A, **options)
