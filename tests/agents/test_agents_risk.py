"""The policy ascends a risk measure: the loss by hand, the mean as it was, and what cannot be had."""

from __future__ import annotations

import pytest
import torch

from dsob_pl.agents import SobolevActorCritic, losses
from dsob_pl.agents.objectives import draw_noise, objective
from dsob_pl.critics import Critic, QuantileCritic
from dsob_pl.divergences import MMD, QuantileHuber
from dsob_pl.errors import UsageError
from dsob_pl.risk import CVaR, Entropic, Mean, MeanStd, Quantile, RiskMeasure, Wang
from dsob_pl.world_models import Transition


class SpreadCritic(Critic):
    """``Z_e = e + a + a xi`` for members e = 0, 1: mean and standard deviation of the return grow with the action."""

    ensemble_size, noise_size = 2, 1

    def forward(self, s, a, noise):
        member = torch.arange(2.0).reshape(2, *[1] * (noise.ndim - 2))
        return member + (a + a * noise + 0 * s).squeeze(-1)


def test_policy_loss_by_hand(float64):
    # pi(s) = k, k = 0.5; xi = 1, -2, 4, 0 and 3, 0, -1, 1. The worst half is xi = -2, 0 and -1, 0: means -1 and -1/2.
    # value over transitions and members: mean of e + k - k and e + k - k/2, so 1/2 + k/4; dloss/dk = -1/4
    k = torch.tensor(0.5, requires_grad=True)
    noise = torch.tensor([[1.0, -2, 4, 0], [3, 0, -1, 1]]).unsqueeze(-1)
    loss = losses.policy_loss(lambda s: k * torch.ones_like(s), SpreadCritic(), torch.ones(2, 1), noise, CVaR(0.5))
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(-(0.5 + 0.5 / 4)))
    torch.testing.assert_close(k.grad, torch.tensor(-0.25))


def transition(rows=6):
    draw = torch.randn
    return Transition(draw(rows, 3), draw(rows, 2).tanh(), draw(rows), draw(rows, 3), torch.zeros(rows))


def agent(risk=None, **options):
    torch.manual_seed(0)
    return SobolevActorCritic(3, 2, risk=risk, **options)


def policy_gradient(agent, batch, noise):
    loss, metrics = objective(agent, "policy", batch, noise.of("policy"))
    gradients = torch.autograd.grad(loss, list(agent.policy.parameters()))
    assert torch.equal(metrics["policy/loss"], loss.detach())
    return torch.cat([loss.detach().reshape(1), *(g.flatten() for g in gradients)])


def test_the_mean_is_bit_by_bit_what_it_was():
    plain, batch = agent(), transition()
    noise = draw_noise(plain, 6, policy=True)
    ours = policy_gradient(plain, batch, noise)
    assert torch.equal(policy_gradient(agent(Mean()), batch, noise), ours)

    s, a = (x.unsqueeze(1).expand(2, 6, 10, -1) for x in (batch.s, plain.policy(batch.s)))
    before = -plain.critic(s, a, noise.policy.expand(2, 6, 10, -1)).mean()  # the loss without risk measures
    gradients = torch.autograd.grad(before, list(plain.policy.parameters()))
    assert torch.equal(torch.cat([before.detach().reshape(1), *(g.flatten() for g in gradients)]), ours)


@pytest.mark.parametrize(
    "risk", [CVaR(0.3), Wang(), Entropic(0.5), MeanStd(), Quantile(0.5)], ids=lambda m: type(m).__name__
)
def test_each_sample_counts_by_its_weight(risk, float64):
    one, batch = agent(risk, policy_samples=7), transition()
    noise = draw_noise(one, 6, policy=True)
    assert noise.policy.shape == (6, 7, 8)
    assert noise.critic.shape == (6, 10, 8)
    a = one.policy(batch.s)
    rows = a.detach().unsqueeze(1).expand(2, 6, 7, -1).clone().requires_grad_()
    z = one.critic(batch.s.unsqueeze(1).expand(2, 6, 7, -1), rows, noise.policy.expand(2, 6, 7, -1))
    (own,) = torch.autograd.grad(z.sum(), rows)  # dZ_i/da
    direction = (risk.weights(z).detach().unsqueeze(-1) * own).sum(2).mean(0) / 6  # [B, A]
    gradients = torch.autograd.grad(a, list(one.policy.parameters()), -direction)
    expected = torch.cat([-risk(z.detach()).mean().reshape(1), *(g.flatten() for g in gradients)])
    torch.testing.assert_close(policy_gradient(one, batch, noise), expected)


def test_a_run_without_an_option_draws_as_many_samples_as_before():
    assert agent().policy_samples == agent().samples == 10
    assert agent(CVaR(), samples=6).policy_samples == 6
    assert draw_noise(agent(policy_samples=3), 4, policy=True).policy.shape == (4, 3, 8)


def test_averse_neutral_and_seeking_policies_differ():
    """One state, action a, return -a^2/2 + a xi' with xi' standard normal (truncated at 3): CVaR prefers a = 0."""

    class Gusts(Critic):
        ensemble_size, noise_size = 1, 1

        def forward(self, s, a, noise):
            return (0.3 * a - a.square() / 2 + 0.5 * a.abs() * noise.clamp(-3, 3) + 0 * s).squeeze(-1)

    ends = []
    for risk in (CVaR(0.25), Mean(), CVaR(0.25, "upper")):
        torch.manual_seed(0)
        bias = torch.tensor(0.4, requires_grad=True)
        optimizer = torch.optim.Adam([bias], lr=0.02)
        for _ in range(200):
            optimizer.zero_grad()
            noise = torch.randn(16, 32, 1)
            losses.policy_loss(lambda s, k=bias: k.expand_as(s), Gusts(), torch.zeros(16, 1), noise, risk).backward()
            optimizer.step()
        ends.append(bias.item())
    # 0.3 a - a^2/2 -+ 0.5 |a| 1.271: the optimum is at 0 (a kink), 0.3 and 0.94
    assert ends == [pytest.approx(x, abs=0.06) for x in (0.0, 0.3, 0.94)]


def test_implicit_quantiles_are_samples_like_others():
    options = {"critic": QuantileCritic, "divergence": QuantileHuber(), "world_model": None, "sobolev": "none"}
    one, batch = agent(CVaR(0.25), policy_samples=8, target_source="replayed", **options), transition()
    noise = draw_noise(one, 6, policy=True)
    assert policy_gradient(one, batch, noise)[1:].abs().max() > 0
    a = one.policy(batch.s)
    z = one.critic(*(x.unsqueeze(1).expand(2, 6, 8, -1) for x in (batch.s, a)), noise.policy.expand(2, 6, 8, -1))
    lowest = z.sort(-1).values[..., :2].mean()
    torch.testing.assert_close(policy_gradient(one, batch, noise)[0], -lowest.detach())


def test_what_cannot_be_had_is_refused_in_one_line():
    def deterministic(s, a):
        from dsob_pl.critics import GenerativeCritic

        return GenerativeCritic(s, a, noise_size=0)

    with pytest.raises(
        UsageError, match=r"^model\.risk: CVaR needs samples .*\(noise_size 0\) .*use dsob_pl\.risk\.Mean"
    ):
        agent(CVaR(), critic=deterministic)
    assert isinstance(agent(Mean(), critic=deterministic).risk, Mean)
    for options in ({"policy_samples": 1}, {"samples": 1, "divergence": MMD()}):
        with pytest.raises(UsageError, match=r"^model\.policy_samples: Wang needs at least 2 .*got 1$"):
            agent(Wang(), **options)
    with pytest.raises(UsageError, match=r"^model\.policy_samples: expected at least 1, got 0"):
        agent(policy_samples=0)

    class Whole(RiskMeasure):
        def weights(self, returns):
            return returns

        def __call__(self, returns):
            return returns.mean()

    with pytest.raises(
        UsageError, match=r"^model\.risk: expected returns \[1, 10\] -> value \[1\], got \[\] from Whole"
    ):
        agent(Whole())


def test_episodes_are_judged_by_the_measure_in_units_of_reward():
    returns = torch.tensor([3.0, 1.0, 4.0, 2.0])
    averse = agent(CVaR(0.5))
    averse.reward_scale.factor.fill_(10.0)
    assert averse.risk_of(returns).item() == pytest.approx(1.5)
    averse.risk = Mean()  # on its way, by a schedule: judged by what it leads to
    assert averse.risk_of(returns).item() == pytest.approx(1.5)
    # The parameter of Entropic is per unit of scaled return: -log(E exp(-10 G)) / 10.
    entropic = agent(Entropic(1.0))
    entropic.reward_scale.factor.fill_(10.0)
    expected = -torch.exp(-10 * returns.double()).mean().log() / 10
    assert entropic.risk_of(returns).item() == pytest.approx(expected.item(), rel=1e-5)
