"""Numbers that go wrong: what is named, what is kept for whoever looks into it, and what is warned of before."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from tiny import parameters, tiny_agent, tiny_trainer

from dsob_pl.agents import ManySeeds, SobolevActorCritic
from dsob_pl.agents.numbers import Numbers, range_excess
from dsob_pl.bellman import ReturnBounds
from dsob_pl.data import ManySeedsData
from dsob_pl.errors import RunFailed
from dsob_pl.training import SeedRuns
from dsob_pl.world_models import CVAE


def build(seed=0, **options):
    return tiny_agent("Pendulum-v1", 20, seed=seed, **options)


def trainer(folder, steps=12, **options):
    return tiny_trainer(folder, steps, **{"logger": CSVLogger(folder, name="", version="run"), **options})


def diagnostics(error, folder):
    """The file that the message names, and the message without it."""
    reason, _, path = str(error.value).partition("; diagnostic batch: ")
    assert Path(path) == folder / "run" / "diagnostics" / f"step_{reason.rpartition(' ')[2]}.pt"
    return reason, torch.load(path, weights_only=True)


def spoil(parameter, update):
    """Makes one entry of that gradient NaN in the given update, counted from 1."""
    count = 0

    def hook(gradient):
        nonlocal count
        count += 1
        return gradient.clone().index_fill_(0, torch.tensor(0), torch.nan) if count == update else gradient

    parameter.register_hook(hook)


def test_a_gradient_that_is_not_finite_names_the_parameter_the_step_and_the_batch(tmp_path):
    agent, data = build()
    name = "mlp._layers.0.bias"
    spoil(dict(agent.critic.named_parameters())[name], 5)  # the second of three updates in the seventh step
    with pytest.raises(RunFailed) as error:
        trainer(tmp_path).fit(agent, data)
    reason, content = diagnostics(error, tmp_path)
    assert reason == f"critic/grad_norm of {name} became non-finite at environment step 7"
    assert content["reason"] == reason
    assert content["environment_step"] == 7
    assert content["gradients"] == [name]
    assert "critic.mlp._layers.0.bias" in content["parameters"]  # the optimizer had its step
    history = content["metrics"]
    assert [x == x for x in history["critic/grad_norm"]] == [True, False, False]
    assert [x == x for x in history["critic/loss"]] == [True, True, False]
    assert len(history["world_model/loss"]) == 3
    batch = content["batch"]
    assert batch["observation"].shape == (3, 8, 3)
    assert batch["action"].shape == (3, 8, 1)
    assert set(batch["next"]) >= {"observation", "reward", "terminated"}
    assert all(x.isfinite().all() for x in (batch["observation"], batch["next"]["reward"]))


def test_a_target_that_is_not_finite_is_named_before_the_loss_that_follows_from_it(tmp_path):
    agent, data = build()
    with torch.no_grad():
        next(agent.target_critic.parameters()).fill_(torch.nan)
    with pytest.raises(RunFailed) as error:
        trainer(tmp_path).fit(agent, data)
    reason, content = diagnostics(error, tmp_path)
    assert reason == "critic/target became non-finite at environment step 6"
    assert [n for n in content["parameters"] if n.startswith("target_critic")]


def test_a_gradient_target_alone_is_named(tmp_path, monkeypatch):
    agent, data = build()

    def spoilt(samples, *_):
        return samples.index_fill(-1, torch.tensor(1), torch.nan), samples.new_zeros(())

    monkeypatch.setattr("dsob_pl.agents.objectives.bound_target", spoilt)
    with pytest.raises(RunFailed, match=r"^critic/target_gradient_norm became non-finite at environment step 6"):
        trainer(tmp_path).fit(agent, data)


def test_a_world_model_by_itself_keeps_its_batch(tmp_path):
    _, data = build()
    model = CVAE(3, 1, hidden=(8,))
    spoil(model.sigma.logit, 4)
    with pytest.raises(RunFailed) as error:
        trainer(tmp_path).fit(model, data)
    reason, content = diagnostics(error, tmp_path)
    assert reason == "world_model/grad_norm became non-finite at environment step 7"
    assert content["batch"]["observation"].shape == (3, 8, 3)


def test_where_the_batch_cannot_be_saved_the_reason_stays(tmp_path):
    agent, data = build()
    with torch.no_grad():
        next(agent.target_critic.parameters()).fill_(torch.nan)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "diagnostics").write_text("a file where the folder is to be")
    message = (
        r"^critic/target became non-finite at environment step 6; no diagnostic batch could be saved \(.*File exists"
    )
    with pytest.raises(RunFailed, match=message):
        trainer(tmp_path).fit(agent, data)


def test_a_development_run_leaves_no_batch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    agent, data = build()
    data.collector.warmup_steps = 1
    with torch.no_grad():
        next(agent.target_critic.parameters()).fill_(torch.nan)
    with pytest.raises(RunFailed, match=r"^critic/target became non-finite at environment step 2$"):
        trainer(tmp_path, fast_dev_run=3).fit(agent, data)
    assert not list(tmp_path.rglob("*.pt"))


def test_each_of_many_seeds_keeps_its_own_batch_and_the_others_go_on(tmp_path):
    seeds = [0, 1, 2]
    built = [build(seed) for seed in seeds]
    with torch.no_grad():
        next(built[1][0].target_critic.parameters()).fill_(torch.nan)
    many = ManySeeds([agent for agent, _ in built], seeds, [torch.get_rng_state()] * 3)
    loggers = {seed: [CSVLogger(tmp_path / str(seed), name="", version="run")] for seed in seeds}
    runs = SeedRuns({seed: [] for seed in seeds}, loggers)
    joint = trainer(tmp_path, 8, logger=False)
    runs.attach(joint)
    joint.fit(many, ManySeedsData([data for _, data in built]))
    assert many.seeds == [0, 2]
    reason, _, path = many.failed[1].partition("; diagnostic batch: ")
    assert reason == "critic/target became non-finite at environment step 6"
    assert Path(path) == tmp_path / "1" / "run" / "diagnostics" / "step_6.pt"
    assert torch.load(path, weights_only=True)["batch"]["observation"].shape == (3, 8, 3)
    assert len(list(tmp_path.rglob("*.pt"))) == 1


DIVERGENT = {
    "gradient_bound": None,
    "tau": 1.0,
    "sobolev": "none",
    "critic_optimizer": lambda p: torch.optim.SGD(p, lr=3.0),
    "max_gradient_norm": 1e9,
    "policy_delay": 1,
}


@pytest.mark.parametrize("bounded", [False, True])
def test_divergence_is_warned_of_once_and_before_anything_is_non_finite(tmp_path, caplog, bounded):
    agent, data = build(**DIVERGENT | ({"gradient_bound": 0.2} if bounded else {}))
    with caplog.at_level(logging.WARNING, logger="dsob_pl"), pytest.raises(RunFailed) as error:
        trainer(tmp_path, 3000).fit(agent, data)
    said = [r.getMessage() for r in caplog.records if r.name.startswith("dsob_pl")]
    assert len(said) == 1
    kind = "predicted" if bounded else "target"
    found = re.fullmatch(
        rf"a {kind} mean return of (\S+) at environment step (\d+) lies (\S+) widths outside of the range "
        r"from (\S+) to (\S+) that rewards and model.gamma allow: training diverges(; bellman/gamma_kappa was \S+)?",
        said[0],
    )
    value, step, excess, low, high = (float(x.replace(",", "")) for x in found.groups()[:5])
    assert -17 * 100 < low < high <= 0  # Pendulum's rewards, 1 / (1 - gamma) of them
    assert excess > 1.5
    farther = value - high if value > high else low - value
    assert farther == pytest.approx(excess * (high - low), rel=0.02)
    assert step <= int(re.search(r"step (\d+)", str(error.value))[1])


def test_no_warning_without_a_margin_nor_where_training_is_sound(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="dsob_pl"):
        agent, data = build(**DIVERGENT, divergence_margin=None)
        with pytest.raises(RunFailed):
            trainer(tmp_path / "none", 3000).fit(agent, data)
        agent, data = build()
        trainer(tmp_path / "sound", 60).fit(agent, data)
    assert not [r for r in caplog.records if r.name.startswith("dsob_pl")]


def test_looking_does_not_change_the_numbers(tmp_path, caplog, monkeypatch):
    finals = []
    for margin in (None, 1e-9):
        agent, data = build(divergence_margin=margin)
        trainer(tmp_path / str(margin)).fit(agent, data)
        finals.append(parameters(agent))
    assert "widths outside" in caplog.text  # the small margin was passed
    agent, data = build()
    monkeypatch.setattr(Numbers, "take", lambda self, metrics: None)
    monkeypatch.setattr(SobolevActorCritic, "_check_numbers", lambda self, batch: None)
    trainer(tmp_path / "blind").fit(agent, data)
    finals.append(parameters(agent))
    assert torch.equal(finals[0], finals[1])
    assert torch.equal(finals[0], finals[2])


def test_a_step_is_read_back_once(monkeypatch):
    reads = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append(self.shape) or tolist(self))
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: pytest.fail("waits for the device"))
    numbers = Numbers()
    for _ in range(3):
        numbers.take({"critic/loss": torch.tensor(1.0), "critic/grad_norm": torch.tensor(2.0)})
    (reading,) = numbers.read()
    assert reads == [(1, 6)]
    assert reading.history == {"critic/loss": [1.0] * 3, "critic/grad_norm": [2.0] * 3}
    assert numbers.read() == []


def test_the_excess_is_signed_and_in_widths():
    bounds = ReturnBounds(torch.tensor(-2.0), torch.tensor(2.0))
    for values, excess in (([0.0, 2.0], 0.0), ([10.0, -3.0], 2.0), ([-10.0, 3.0], -2.0), ([torch.inf], torch.inf)):
        assert float(range_excess(torch.tensor(values), bounds)) == excess
    assert range_excess(torch.tensor([torch.nan]), bounds).isnan()
    silent = ReturnBounds(torch.tensor(0.0), torch.tensor(0.0))
    assert float(range_excess(torch.tensor([3.0]), silent)) == 0.0
