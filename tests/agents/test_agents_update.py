"""Which network takes which place in an update, in what order and how often.

A new agent's target networks equal the others, which hides a mistake of one for another: here each has weights of its
own.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from dsob_pl.agents import SobolevActorCritic
from dsob_pl.agents.objectives import PARTS, draw_noise, objective, penalty, target_samples, update
from dsob_pl.agents.recent_returns import judge_recent
from dsob_pl.bellman import AdaptivePessimism, LowerMean, bound_target
from dsob_pl.critics import Critic, GenerativeCritic
from dsob_pl.divergences import MMD, Huber
from dsob_pl.networks import DeterministicPolicy
from dsob_pl.world_models import CVAE

NETWORKS = ("critic", "policy", "target_critic", "target_policy", "world_model")


def build(**options: object) -> SobolevActorCritic:
    """A critic of laws on a cVAE; no two of its networks have weights in common."""
    own = {
        "critic": partial(GenerativeCritic, hidden=(8,), noise_size=4),
        "policy": partial(DeterministicPolicy, hidden=(8,)),
        "world_model": partial(CVAE, latent_size=2, hidden=(8,), prior_hidden=(8,), termination_hidden=(8,)),
    }
    agent = SobolevActorCritic(3, 2, **{"samples": 4, "diagnostic_samples": 4, "divergence": MMD(), **own, **options})
    draw = torch.Generator().manual_seed(1)
    for name in NETWORKS:
        network = getattr(agent, name)
        for parameter in network.parameters() if network is not None else ():
            # The two critics, too, would else begin with biases of 0 in common.
            parameter.data.copy_(0.5 * torch.randn(parameter.shape, generator=draw))
    agent.reward_scale.low.fill_(-1), agent.reward_scale.high.fill_(1)
    return agent


def td3(**options: object) -> SobolevActorCritic:
    """A critic of the mean, without a model."""
    mean = {"critic": partial(GenerativeCritic, hidden=(8,), noise_size=0), "world_model": None, "sobolev": "none"}
    own = {"samples": 1, "target_source": "replayed", "divergence": Huber(), "overestimation": LowerMean()}
    return build(**{**mean, **own, "gradient_bound": None, **options})


def replayed(rows: int = 6, truncated: bool = False) -> TensorDict:
    flags = torch.zeros(rows, 1, dtype=torch.bool)
    following = {
        "observation": torch.randn(rows, 3), "reward": torch.randn(rows, 1),
        "terminated": flags, "truncated": flags | truncated,
    }  # fmt: skip
    action = torch.rand(rows, 2) * 2 - 1
    return TensorDict({"observation": torch.randn(rows, 3), "action": action, "next": following}, [rows])


def both(critic: Critic, s: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """Values ``[2, B]`` of a pair of critics of the mean."""
    return critic(s.expand(2, -1, -1), a.expand(2, -1, -1), torch.zeros(2, len(s), 0))


# Which network -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("truncated", [False, True])
def test_the_target_is_that_of_the_target_networks_and_goes_on_where_time_ran_out(float64, truncated) -> None:
    agent = td3()
    batch = agent.transitions(replayed(truncated=truncated))
    target, _ = target_samples(agent, batch, *draw_noise(agent, 6, policy=False)[2:4], torch.zeros(0))
    values = both(agent.target_critic, batch.s_next, agent.target_policy(batch.s_next))
    torch.testing.assert_close(target.squeeze(), batch.r + agent.gamma * values.min(0).values)


def test_the_critic_that_learns_is_the_online_one(float64) -> None:
    agent = td3()
    batch, noise = agent.transitions(replayed()), draw_noise(agent, 6, policy=False)
    target, _ = target_samples(agent, batch, noise.step, noise.target, noise.smoothing)
    expected = nn.functional.huber_loss(both(agent.critic, batch.s, batch.a), target.squeeze().expand(2, -1))
    loss, _ = objective(agent, "critic", batch, noise.of("critic"))
    torch.testing.assert_close(loss, 2 * expected)  # a sum over critics, each a mean over transitions


def test_the_policy_ascends_the_online_critic(float64) -> None:
    agent = td3()
    batch, noise = agent.transitions(replayed()), draw_noise(agent, 6, policy=True)
    loss, _ = objective(agent, "policy", batch, noise.of("policy"))
    torch.testing.assert_close(loss, -both(agent.critic, batch.s, agent.policy(batch.s)).mean())


def test_reported_values_are_of_the_online_networks(float64) -> None:
    agent = td3()
    agent.reward_scale.factor.fill_(0.25)
    observation = torch.randn(5, 3)
    expected = both(agent.critic, observation, agent.policy(observation)) / 0.25
    torch.testing.assert_close(agent.values(observation, 1).squeeze(-1), expected)


def test_the_world_models_penalty_is_of_the_target_policy_and_the_policys_of_its_own(float64) -> None:
    agent = build(jacobian_penalty=10.0, jacobian_bound=0.01)
    batch, noise = agent.transitions(replayed()), draw_noise(agent, 6, policy=True)
    for part, policy in (("world_model", agent.target_policy), ("policy", agent.policy)):
        loss, _ = objective(agent, part, batch, noise.of(part))
        agent.jacobian_penalty = 0.0
        without, _ = objective(agent, part, batch, noise.of(part))
        agent.jacobian_penalty = 10.0
        excess = penalty(agent, batch, policy, noise.of(part)[1])
        assert excess > 1e-3
        torch.testing.assert_close(loss - without, 10.0 * excess)


class Sum(Critic):
    """``Z = s_1 + 10 a_1``, whatever the noise."""

    ensemble_size, noise_size = 2, 4

    def forward(self, s, a, noise):
        return s[..., 0] + 10 * a[..., 0] + 0 * noise.sum(-1)


def test_a_recent_return_that_was_cut_is_completed_after_its_last_step(float64) -> None:
    agent = build(gamma=0.5, overestimation=AdaptivePessimism())
    agent.critic = Sum()
    rows = replayed(12)
    rows["observation"][1:] = rows["next", "observation"][:-1]
    rows["next", "truncated"][3::4] = True
    s, a, r = rows["observation"], rows["action"], rows["next", "reward"].squeeze(-1)
    after = rows["next", "observation"]
    rest = after[:, 0] + 10 * agent.policy(after)[:, 0]
    realised = torch.empty(12)
    for i in reversed(range(12)):
        realised[i] = r[i] + 0.5 * (rest[i] if i % 4 == 3 else realised[i + 1])
    judged = judge_recent(agent, rows, torch.Generator().manual_seed(0))
    count = len(judged.errors)
    torch.testing.assert_close(judged.errors, (realised - s[:, 0] - 10 * a[:, 0])[:count])
    assert count > 4


# In what units --------------------------------------------------------------------------------------------------------


def test_actions_are_of_normalised_observations(float64) -> None:
    agent = td3()
    agent.normalizer.update(torch.randn(500, 3) * torch.tensor([1.0, 5.0, 0.3]) + torch.tensor([2.0, -3.0, 0.0]))
    observation = torch.randn(5, 3)
    scaled = (observation - agent.normalizer.mean) / agent.normalizer.variance.sqrt()
    torch.testing.assert_close(agent.act(observation), agent.policy(scaled), rtol=1e-4, atol=1e-5)
    assert (agent.act(observation) - agent.policy(observation)).abs().max() > 0.1


def test_the_world_model_learns_the_scale_of_what_it_predicts_from_every_batch(float64) -> None:
    agent, alone = build(), build()
    batch = replayed(50)
    batch["next", "observation"] *= 7
    transition = agent.transitions(batch)
    alone.world_model.update_statistics(transition)
    for own, expected in zip(agent.world_model.buffers(), alone.world_model.buffers(), strict=True):
        torch.testing.assert_close(own, expected)
    assert any((x != y).any() for x, y in zip(agent.world_model.buffers(), build().world_model.buffers()))


def test_the_reported_target_is_in_units_of_reward(float64) -> None:
    agent = build(gradient_bound=None)
    agent.reward_scale.factor.fill_(0.25)
    batch, noise = agent.transitions(replayed()), draw_noise(agent, 6, policy=False)
    target, _ = target_samples(agent, batch, noise.step, noise.target, noise.smoothing)
    _, metrics = objective(agent, "critic", batch, noise.of("critic"))
    torch.testing.assert_close(metrics["critic/target"], target[..., 0].mean() / 0.25)


@pytest.mark.parametrize("unit", ["sample", "law"])
def test_targets_are_bounded_in_the_unit_that_was_asked_for(float64, unit) -> None:
    agent = build(gamma=0.5, gradient_bound=0.5, bound_unit=unit)
    batch, noise = agent.transitions(replayed(40)), draw_noise(agent, 40, policy=False)
    batch = batch._replace(r=2 * batch.r)  # some leave what is possible
    found, _ = target_samples(agent, batch, noise.step, noise.target, noise.smoothing)
    agent.gradient_bound = None
    raw, _ = target_samples(agent, batch, noise.step, noise.target, noise.smoothing)
    sample, law = (bound_target(raw, agent.scales.bounds, 0.5, u)[0] for u in ("sample", "law"))
    expected, other = (sample, law) if unit == "sample" else (law, sample)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, other)


# In what order, and how often -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("due", "rests", "expected"),
    [
        (True, False, ["world_model", "critic", "policy", "follow"]),
        (True, True, ["world_model", "critic", "follow"]),
        (False, False, ["world_model", "critic"]),
    ],
)
def test_the_order_of_an_update(due, rests, expected) -> None:
    done: list[str] = []

    def evaluate(part):
        done.append(f"evaluate {part}")
        return torch.zeros(()), {}

    def descend(part, loss):
        done.append(part)
        return loss

    options = {"policy_due": due, "policy_rests": rests, "report": False}
    update(build(), evaluate, descend, descend, lambda: done.append("follow"), **options)
    # A part is evaluated when all before it have moved.
    assert done == [step for part in expected for step in ([f"evaluate {part}"] if part in PARTS else []) + [part]]


def test_policy_and_target_networks_move_at_every_third_update_where_the_delay_is_three() -> None:
    agent = td3(policy_delay=3)
    real, _ = agent.configure_optimizers()
    agent.optimizers = lambda use_pl_optimizer=True: real  # type: ignore[method-assign]
    names = ("critic", "policy", "target_critic", "target_policy")
    moved = []
    for _ in range(6):
        before = {name: [p.clone() for p in getattr(agent, name).parameters()] for name in names}
        agent._update(agent.transitions(replayed()), report=False)
        now = {name: list(getattr(agent, name).parameters()) for name in names}
        moved.append({n for n in names if any((p != q).any() for p, q in zip(now[n], before[n]))})
    assert moved == [{"critic"}, {"critic"}, set(names)] * 2
