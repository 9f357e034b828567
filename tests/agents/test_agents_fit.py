"""The agent under Lightning, on a real environment."""

import csv
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from tensordict import TensorDict

from dsob_pl.agents import SobolevActorCritic
from dsob_pl.bellman import AdaptivePessimism
from dsob_pl.critics import GenerativeCritic
from dsob_pl.data import ReplayDataModule, save_replay
from dsob_pl.errors import RunFailed, UsageError
from dsob_pl.networks import DeterministicPolicy
from dsob_pl.risk import CVaR
from dsob_pl.tracking.glossary import GLOSSARY, unknown_metrics
from dsob_pl.world_models import CVAE


def build(**options):
    L.seed_everything(0, verbose=False)
    data = ReplayDataModule("Pendulum-v1", {"max_episode_steps": 20}, 1000, 8, 2, 10, 2)
    agent = SobolevActorCritic(
        data.observation_size, data.action_size,
        critic=lambda s, a: GenerativeCritic(s, a, hidden=(8,)),
        policy=lambda s, a: DeterministicPolicy(s, a, hidden=(8,)),
        world_model=lambda s, a: CVAE(s, a, hidden=(8,), prior_hidden=(8,), termination_hidden=(8,)),
        samples=4, diagnostic_samples=4, **options,
    )  # fmt: skip
    return agent, data


def trainer(folder, steps=40, log_every=5, validate_every=20):
    return L.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, val_check_interval=validate_every,
        check_val_every_n_epoch=None, num_sanity_val_steps=0, log_every_n_steps=log_every,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        logger=CSVLogger(folder, name="", version="run"),
    )  # fmt: skip


def metrics(folder):
    with open(Path(folder) / "run" / "metrics.csv") as file:
        return list(csv.DictReader(file))


def parameters(agent):
    return torch.cat([p.detach().flatten() for p in agent.parameters()])


@pytest.mark.parametrize("source", ["imagined", "replayed"])
def test_a_fit_counts_environment_steps_and_logs_the_glossary(tmp_path, source):
    pessimism = AdaptivePessimism(every=5, window=10)
    options = {"sobolev": "state_action", "gamma": 0.7, "overestimation": pessimism, "gradient_rms_limit": 0.02}
    options["risk"] = CVaR(0.5)
    agent, data = build(target_source=source, **options)
    run = trainer(tmp_path)
    run.fit(agent, data)
    assert run.global_step == data.steps_collected == 40
    assert agent.updates == 2 * 30  # no updates in the 10 steps of warm-up
    rows = metrics(tmp_path)
    names = {name for row in rows for name, value in row.items() if value} - {"step", "epoch"}
    assert not unknown_metrics(names)
    alone = {"world_model/heldout_log_likelihood", "world_model/open_loop_error"}  # of a world model fitted by itself
    known = {"world_model/jacobian_error", "world_model/energy_distance", *(n for n in GLOSSARY if "truth/" in n)}
    known |= {"eval/normalized_score", *(n for n in GLOSSARY if n.startswith(("seeds/", "eval_clean/")))}
    assert names == set(GLOSSARY) - alone - known - {"bellman/jacobian_penalty", "train/dropped_episodes"}
    assert all(float(value) == float(value) for row in rows for value in row.values() if value)


def test_reporting_more_often_does_not_change_the_run(tmp_path):
    finals = []
    for log_every, validate_every in ((5, 10), (20, 40)):
        agent, data = build(sobolev="state_action")
        trainer(tmp_path, log_every=log_every, validate_every=validate_every).fit(agent, data)
        finals.append(parameters(agent))
    assert torch.equal(*finals)


def test_the_return_scale_is_fixed_when_learning_begins(tmp_path):
    agent, data = build(return_range=10.0, gamma=0.9)
    trainer(tmp_path, steps=11).fit(agent, data)
    scale = float(agent.reward_scale.factor)
    assert float(agent.scales.bounds.high - agent.scales.bounds.low) == pytest.approx(10.0)
    assert scale != 1
    seen = float(agent.reward_scale.low)
    agent.reward_scale.low.sub_(5.0)  # a worse reward comes later: the bounds widen, the units of the critic stay
    trainer(tmp_path / "more", steps=30).fit(agent, data)
    assert float(agent.reward_scale.low) <= seen - 5
    assert float(agent.reward_scale.factor) == scale
    assert float(agent.scales.bounds.high - agent.scales.bounds.low) > 10


def test_a_loss_that_is_not_a_number_stops_the_run_by_name_and_step(tmp_path):
    agent, data = build()
    with torch.no_grad():
        agent.critic.mlp.layers[0].weight.fill_(torch.nan)
    with pytest.raises(RunFailed, match=r"critic/loss.* became non-finite at environment step 11"):
        trainer(tmp_path).fit(agent, data)


def test_values_are_in_units_of_reward():
    agent, _ = build()
    observation = torch.randn(3, 3)
    before = agent.values(observation, 6)
    agent.reward_scale.factor.fill_(0.1)
    assert before.shape == (2, 3, 6)
    torch.testing.assert_close(agent.values(observation, 6), before * 10)


def test_a_checkpoint_carries_scales_and_counters(tmp_path):
    agent, data = build()
    run = trainer(tmp_path, steps=20)
    run.fit(agent, data)
    run.save_checkpoint(tmp_path / "some.ckpt", weights_only=False)
    other, fresh = build()
    more = trainer(tmp_path / "more", steps=20)
    more.fit(other, fresh, ckpt_path=tmp_path / "some.ckpt", weights_only=True)
    assert other.updates == agent.updates == 20
    assert torch.equal(parameters(other), parameters(agent))
    for name in ("scales.reward_scale.factor", "scales.reward_scale.low", "scales.normalizer.mean"):
        assert torch.equal(other.state_dict()[name], agent.state_dict()[name])


def seen(agent, reward):
    nxt = TensorDict({"reward": torch.tensor([[reward]])}, [1])
    agent.scales.take_in(TensorDict({"observation": torch.randn(1, 3), "next": nxt}, [1]), learning=agent.updates > 0)


def test_rewards_that_were_all_the_same_have_set_the_scale_without_a_future_too():
    agent, _ = build(return_range=10.0, gamma=0.0)
    seen(agent, 1.0)
    agent.updates = 7
    seen(agent, 3.0)
    assert float(agent.reward_scale.factor) == 1.0


def test_the_first_reward_that_is_not_zero_sets_the_scale_however_late():
    agent, _ = build(return_range=10.0, gamma=0.9)
    seen(agent, 0.0)
    agent.updates = 7  # learning has begun on zeros
    seen(agent, 0.0)
    assert float(agent.reward_scale.factor) == 1.0
    seen(agent, 50.0)
    assert float(agent.scales.bounds.high - agent.scales.bounds.low) == pytest.approx(10.0)
    scale = float(agent.reward_scale.factor)
    seen(agent, 500.0)
    assert float(agent.reward_scale.factor) == scale


def test_saved_transitions_enter_the_running_scales(tmp_path):
    agent, data = build()
    trainer(tmp_path, steps=30).fit(agent, data)
    save_replay(data.replay, str(tmp_path / "replay.pt"))
    low = float(data.replay[:]["next", "reward"].min())
    again, _ = build()
    more = ReplayDataModule("Pendulum-v1", None, 1000, 8, 2, 1, 2, replay_path=str(tmp_path / "replay.pt"))
    again_trainer = trainer(tmp_path / "again", steps=1)
    again_trainer.fit(again, more)
    assert float(again.normalizer.count) == 31
    assert float(again.reward_scale.low) <= low


def test_no_warm_up_leaves_no_scale_for_the_rewards(tmp_path):
    agent, _ = build()
    with pytest.raises(UsageError, match=r"data\.warmup_steps: expected at least 1"):
        trainer(tmp_path).fit(agent, ReplayDataModule("Pendulum-v1", warmup_steps=0))
