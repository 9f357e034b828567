"""Options of a fit that keep the operator a contraction or the policy fixed, and the critic's learning rate."""

from __future__ import annotations

import csv
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from dsob_pl.agents import SobolevActorCritic, objectives, sobolev_actor_critic
from dsob_pl.agents.objectives import UpdateNoise, draw_noise
from dsob_pl.bellman import NoCorrection, operator_norms
from dsob_pl.critics import GenerativeCritic
from dsob_pl.data import ReplayDataModule
from dsob_pl.divergences import MMD, Multiquadric
from dsob_pl.envs import Rotation
from dsob_pl.networks import DeterministicPolicy, LinearPolicy
from dsob_pl.world_models import CVAE, KnownDynamics, Transition

WARMUP = 50


def adam(parameters):
    return torch.optim.Adam(parameters, lr=3e-3)


def linear_decay(optimizer):
    return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=10)


def build(model=CVAE, policy=DeterministicPolicy, updates=1, **options):
    """Agent and data on an expanding rotation: gamma*kappa of the true dynamics is 1.13."""
    L.seed_everything(0, verbose=False)
    environment = {"rho": 1.15, "max_episode_steps": 5}
    data = ReplayDataModule("dsob_pl/Rotation-v0", environment, 1000, 32, updates, WARMUP, 1)
    sizes = {"latent_size": 2, "hidden": (16,), "prior_hidden": (8,), "termination_hidden": (8,)}
    agent = SobolevActorCritic(
        2, 2,
        critic=lambda s, a: GenerativeCritic(s, a, members=1, hidden=(8,), noise_size=2),
        policy=lambda s, a: policy(s, a, hidden=(8,)) if policy is DeterministicPolicy else policy(s, a),
        world_model=lambda s, a: model(s, a, **(sizes if model is CVAE else {})),
        divergence=MMD(Multiquadric(10.0)), overestimation=NoCorrection(), gamma=0.9, samples=4,
        normalize_observations=False, return_range=None, gradient_bound=None,
        **{"critic_optimizer": adam, "policy_optimizer": adam, "world_model_optimizer": adam} | options,
    )  # fmt: skip
    return agent, data


def fit(folder, agent, data, learning_steps, ckpt_path=None):
    """The trainer after WARMUP and ``learning_steps`` environment steps, and its logged rows."""
    trainer = L.Trainer(
        accelerator="cpu", max_steps=WARMUP + learning_steps, max_epochs=-1, limit_val_batches=0, log_every_n_steps=5,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        logger=CSVLogger(folder, name="", version="run"),
    )  # fmt: skip
    trainer.fit(agent, data, ckpt_path=ckpt_path, **({} if ckpt_path is None else {"weights_only": True}))
    with open(Path(folder) / "run" / "metrics.csv") as file:
        return trainer, list(csv.DictReader(file))


def column(rows, name):
    return [float(row[name]) for row in rows if row.get(name)]


def state(module):
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


def some_transitions(count=32):
    s, a, s_next = (torch.randn(count, 2) for _ in range(3))
    return Transition(s, a, torch.randn(count), s_next, torch.zeros(count))


# Jacobian penalty -----------------------------------------------------------------------------------------------------


def test_the_penalty_lowers_gamma_kappa_below_one(tmp_path):
    largest = {}
    for weight in (0.0, 100.0):
        options = {"jacobian_penalty": weight, "jacobian_bound": 1.0, "diagnostic_samples": 16}
        agent, data = build(policy=LinearPolicy, policy_optimizer=None, updates=10, **options)
        _, rows = fit(tmp_path / str(weight), agent, data, 15)
        largest[weight] = max(column(rows, "bellman/gamma_kappa"))
        penalties = column(rows, "bellman/jacobian_penalty")
        assert len(penalties) == (3 if weight else 0)
        assert all(value >= 0 for value in penalties)
    assert largest[0.0] > 1.1  # the model has learned that the dynamics expand
    assert largest[100.0] < 1


def test_the_penalty_moves_world_model_and_policy_and_nothing_else(monkeypatch):
    """One update with and without it, from the same start and with the same noise."""
    ends = []
    for weight in (0.0, 50.0):
        agent, _ = build(policy_delay=1, tau=0.0, jacobian_penalty=weight, jacobian_bound=0.1)
        agent.world_model.update_statistics(some_transitions())
        optimizers = agent.configure_optimizers()[0]
        agent.optimizers = lambda use_pl_optimizer=True, optimizers=optimizers: optimizers
        gradients = []
        # Learning rates of 0: all losses are taken at the same parameters, and gradients say what would have moved.
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.0
        drawn = draw_noise(agent, 32, policy=True)
        # A generator each: the penalty's noise must not move that of what follows.
        each = [torch.Generator().manual_seed(k) for k in range(len(drawn))]
        fixed = UpdateNoise(*(torch.randn(x.shape, generator=g) for x, g in zip(drawn, each)))
        monkeypatch.setattr(sobolev_actor_critic, "draw_noise", lambda *_, fixed=fixed: fixed)
        torch.manual_seed(3)
        agent._update(some_transitions(), report=False)
        for module in (agent.world_model, agent.critic, agent.policy):
            own = [p.grad if p.grad is not None else torch.zeros_like(p) for p in module.parameters()]
            gradients.append(torch.cat([g.flatten() for g in own]))
        for module in (agent.target_critic, agent.target_policy):
            assert all(p.grad is None for p in module.parameters())
        ends.append(gradients)
    plain, penalised = ends
    model, critic, policy = ((x - y).abs().max().item() for x, y in zip(plain, penalised))
    assert model > 1e-3
    assert policy > 1e-3
    assert critic == 0


@pytest.mark.parametrize(("bound", "expected"), [(None, 1 / 0.9), (0.7, 0.7)])
def test_the_bound_is_by_default_where_the_operator_stops_contracting(bound, expected):
    agent, _ = build(
        policy=LinearPolicy, policy_optimizer=None, model=KnownDynamics, jacobian_penalty=1.0, jacobian_bound=bound
    )
    agent.world_model._take(Rotation(rho=1.15))
    transition = some_transitions()
    norm = (1.15**2 + 0.25) ** 0.5  # at every state, since the policy is 0
    norms = operator_norms(agent.world_model, agent.policy, transition.s, transition.a, torch.zeros(32, 2))
    torch.testing.assert_close(norms, torch.full((32,), norm))
    eps = torch.zeros(32, 2)
    assert objectives.penalty(agent, transition, agent.policy, eps).item() == pytest.approx(
        (norm - expected) ** 2, rel=1e-4
    )
    agent.world_model._take(Rotation(rho=0.6))  # of norm 0.78
    assert (objectives.penalty(agent, transition, agent.policy, eps).item() == 0) == (bound is None)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_weight_of_zero_costs_nothing(monkeypatch, weight):
    calls = []
    original = objectives.jacobian_penalty

    def counted(*arguments):
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(objectives, "jacobian_penalty", counted)
    agent, _ = build(policy_delay=2, jacobian_penalty=weight)
    optimizers = agent.configure_optimizers()[0]
    agent.optimizers = lambda use_pl_optimizer=True: optimizers
    for _ in range(4):
        metrics = agent._update(some_transitions(), report=False)
    assert len(calls) == (6 if weight else 0)  # four updates of the model, two of the policy
    assert ("bellman/jacobian_penalty" in metrics) == bool(weight)


# Learning rate of the critic ------------------------------------------------------------------------------------------


def rate(agent):
    return agent.optimizers(use_pl_optimizer=False)[1].param_groups[0]["lr"]


@pytest.mark.parametrize("updates", [1, 3])
def test_the_critics_rate_decays_with_environment_steps_since_learning_began(tmp_path, updates):
    agent, data = build(updates=updates, critic_scheduler=linear_decay)
    seen = []
    step = agent.training_step
    agent.training_step = lambda *arguments: (step(*arguments), seen.append(rate(agent)))[0]
    fit(tmp_path, agent, data, 4)
    assert seen == pytest.approx([3e-3] * WARMUP + [3e-3 * x for x in (0.9, 0.8, 0.7, 0.6)])
    others = agent.optimizers(use_pl_optimizer=False)
    assert others[0].param_groups[0]["lr"] == others[2].param_groups[0]["lr"] == 3e-3
    assert agent.updates == 4 * updates


def test_the_critics_rate_goes_on_from_a_checkpoint(tmp_path):
    agent, data = build(critic_scheduler=linear_decay)
    trainer, _ = fit(tmp_path / "first", agent, data, 4)
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    assert torch.load(tmp_path / "some.ckpt", weights_only=True)["lr_schedulers"][0]["last_epoch"] == 4

    more, fresh = build(critic_scheduler=linear_decay)
    fit(tmp_path / "more", more, fresh, 6, ckpt_path=tmp_path / "some.ckpt")
    assert more.updates == 6
    assert rate(more) == pytest.approx(3e-3 * 0.4)


@pytest.mark.parametrize("critics", [None, linear_decay])
def test_the_world_models_rate_decays_and_goes_on_from_a_checkpoint(critics, tmp_path):
    def rates(agent):
        return [optimizer.param_groups[0]["lr"] for optimizer in agent.optimizers(use_pl_optimizer=False)]

    agent, data = build(updates=3, critic_scheduler=critics, world_model_scheduler=linear_decay)
    trainer, _ = fit(tmp_path / "first", agent, data, 4)
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    assert rates(agent)[:3] == pytest.approx([3e-3 * 0.6, 3e-3 * (1.0 if critics is None else 0.6), 3e-3])

    more, fresh = build(updates=3, critic_scheduler=critics, world_model_scheduler=linear_decay)
    fit(tmp_path / "more", more, fresh, 6, ckpt_path=tmp_path / "some.ckpt")
    assert rates(more)[:3] == pytest.approx([3e-3 * 0.4, 3e-3 * (1.0 if critics is None else 0.4), 3e-3])


def test_a_model_that_does_not_learn_needs_no_scheduler(tmp_path):
    agent, data = build(model=KnownDynamics, world_model_scheduler=linear_decay)
    fit(tmp_path, agent, data, 2)
    assert agent.lr_schedulers() is None


def test_without_a_scheduler_the_rate_stays(tmp_path):
    agent, data = build()
    fit(tmp_path, agent, data, 3)
    assert rate(agent) == 3e-3


# Policy evaluation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [None, adam])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_policy_without_an_optimizer_stays_bit_for_bit(tmp_path, optimizer, penalty):
    options = {"policy_optimizer": optimizer, "policy_delay": 1, "tau": 0.5, "jacobian_penalty": penalty}
    agent, data = build(**options, jacobian_bound=0.1)
    before = [state(m) for m in (agent.policy, agent.target_policy, agent.critic, agent.target_critic)]
    _, rows = fit(tmp_path, agent, data, 6)
    after = [state(m) for m in (agent.policy, agent.target_policy, agent.critic, agent.target_critic)]
    same = [torch.equal(x, y) for x, y in zip(before, after)]
    assert same == ([True, True, False, False] if optimizer is None else [False] * 4)
    assert bool(column(rows, "policy/loss")) == (optimizer is not None)
