"""Target policy smoothing by hand, what it leaves alone, and the gradients that targets of scalar critics give."""

from functools import partial

import pytest
import torch

from dsob_pl.agents import SobolevActorCritic
from dsob_pl.agents.objectives import draw_noise, objective
from dsob_pl.bellman import LowerMean, NoCorrection, SobolevOrder, smoothed_policy, sobolev_target
from dsob_pl.critics import Critic, GenerativeCritic
from dsob_pl.divergences import Huber, SobolevHuber
from dsob_pl.errors import UsageError
from dsob_pl.networks import DeterministicPolicy
from dsob_pl.world_models import Deterministic, Prediction, Transition


class Product(Critic):
    """``Z = a (s + 1)``."""

    ensemble_size, noise_size = 1, 0

    def forward(self, s, a, noise):
        return (a * (s + 1)).squeeze(-1)


def agent(**options):
    critic = partial(GenerativeCritic, hidden=(8, 8), noise_size=0)
    scalar = {"samples": 1, "critic": critic, "policy": partial(DeterministicPolicy, hidden=(8,))}
    model_free = {"world_model": None, "sobolev": "none", "target_source": "replayed", "divergence": Huber()}
    return SobolevActorCritic(3, 2, **(scalar | model_free | {"overestimation": LowerMean()} | options))


def transition(rows=6):
    return Transition(
        torch.randn(rows, 3), torch.rand(rows, 2) * 2 - 1, torch.randn(rows), torch.randn(rows, 3), torch.zeros(rows)
    )


def test_smoothing_by_hand(float64):
    # pi(s') = s', standard deviation 0.2: noise 1 gives +0.2; 4 gives +0.8, clipped to 0.5; 0.7 + 0.5 is clipped to 1
    policy = smoothed_policy(lambda s: s, torch.tensor([[1.0], [4.0], [-4.0]]), 0.2)
    torch.testing.assert_close(policy(torch.full((3, 1), 0.3)), torch.tensor([[0.5], [0.8], [-0.2]]))
    torch.testing.assert_close(policy(torch.full((3, 1), 0.7)), torch.tensor([[0.9], [1.0], [0.2]]))


def test_target_and_its_gradient_by_hand(float64):
    # s' = s + a = 0.3, pi(s') = s', noise +0.2 -> a' = 0.5: y = 1 + 0.9 * 0.5 * 1.3; dy/da = 0.9 (1.3 + 0.5)
    # noise clipped to +0.5 at s' = 0.7 -> a' = 1, held by the bound: y = 1 + 0.9 * 1.7, dy/da = 0.9 * 1 (dZ/ds' alone)
    def step(s, a, eps):
        return Prediction(s + a, torch.ones(s.shape[:-1]), torch.ones(s.shape[:-1]))

    s, a = torch.tensor([[0.2], [0.6]]), torch.tensor([[0.1], [0.1]])
    noise = torch.tensor([[[1.0]], [[4.0]]])
    target = sobolev_target(
        step, smoothed_policy(lambda s: s, noise, 0.2), Product(), s, a, torch.zeros(2, 1, 0), torch.zeros(2, 1, 0),
        0.9, SobolevOrder.ACTION, NoCorrection(),
    )  # fmt: skip
    expected = torch.tensor([[[1 + 0.9 * 0.5 * 1.3, 0.9 * 1.8]], [[1 + 0.9 * 1.7, 0.9]]])
    torch.testing.assert_close(target, expected)


def test_the_agents_target_is_that_of_td3(float64):
    one, batch = agent(target_policy_noise=0.2, gradient_bound=None), transition()
    noise = draw_noise(one, 6, policy=True)
    shift = (0.2 * noise.smoothing[:, 0]).clamp(-0.5, 0.5)
    a = (one.target_policy(batch.s_next) + shift).clamp(-1, 1)
    z = one.target_critic(batch.s_next.expand(2, -1, -1), a.expand(2, -1, -1), torch.zeros(2, 6, 0))
    expected = batch.r + one.gamma * z.min(0).values
    q = one.critic(batch.s.expand(2, -1, -1), batch.a.expand(2, -1, -1), torch.zeros(2, 6, 0))
    loss, _ = objective(one, "critic", batch, noise.of("critic"))
    torch.testing.assert_close(loss, sum(torch.nn.functional.huber_loss(member, expected) for member in q))


@pytest.mark.parametrize("policy", [True, False])
def test_other_noise_is_drawn_as_without_it(policy):
    drawn = []
    for std in (0.0, 0.2):
        one = agent(target_policy_noise=std)
        torch.manual_seed(3)
        drawn.append(draw_noise(one, 6, policy))
    assert drawn[0].smoothing.numel() == 0
    assert drawn[1].smoothing.shape == (6, 1, 2)
    for name in drawn[0]._fields[:-1]:
        assert torch.equal(getattr(drawn[0], name), getattr(drawn[1], name)), name


@pytest.mark.parametrize("kind", ["td3", "mage"])
def test_gradients_reach_the_part_being_trained_alone(kind):
    mage = {
        "world_model": partial(Deterministic, hidden=(8,), termination_hidden=(8,)), "sobolev": "action",
        "target_source": "imagined", "divergence": SobolevHuber(gradient_weight=5.0),
    }  # fmt: skip
    one = agent(target_policy_noise=0.2, **(mage if kind == "mage" else {}))
    noise = draw_noise(one, 6, policy=True)
    loss, _ = objective(one, "critic", transition(), noise.of("critic"))
    loss.backward()
    assert all(p.grad is not None for p in one.critic.parameters())
    others = [one.policy, one.target_policy, one.target_critic, *([one.world_model] if kind == "mage" else [])]
    assert all(p.grad is None for module in others for p in module.parameters())


def test_a_negative_noise_is_refused():
    with pytest.raises(UsageError, match=r"model\.target_policy_noise"):
        agent(target_policy_noise=-0.1)
