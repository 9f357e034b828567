"""Learning rates that are led to zero at the end of a run: by hand, from a checkpoint, and among many seeds."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from tiny import parameters, tiny_agent, tiny_seeds, tiny_trainer

from dsob_pl.agents import ManySeeds, SobolevActorCritic
from dsob_pl.agents.objectives import PARTS
from dsob_pl.agents.optimizers import Annealing
from dsob_pl.data import ManySeedsData, ReplayDataModule
from dsob_pl.errors import RunFailed, UsageError
from dsob_pl.risk import Mean

# The rates of steps 0 to 9 of ten, annealed after 0.6 of them, over those at the start.
FACTORS = [1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
RATES = {"world_model": 4e-3, "critic": 3e-3, "policy": 2e-3}


def adam(rate: float):
    return lambda parameters: torch.optim.Adam(parameters, lr=rate)


def build(seed: int = 0, **options: object) -> tuple[SobolevActorCritic, ReplayDataModule]:
    rates = {f"{part}_optimizer": adam(rate) for part, rate in RATES.items()}
    options = {"anneal_after": 0.6, **rates, **options}
    return tiny_agent("dsob_pl/Rotation-v0", 5, updates=2, warmup=2, seed=seed, **options)


class Seen(L.Callback):
    """Writes down the learning rates of every step."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        optimizers = pl_module.optimizers(use_pl_optimizer=False)[:3]
        self.rates.append([optimizer.param_groups[0]["lr"] for optimizer in optimizers])


class Stop(L.Callback):
    """Ends a run after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        trainer.should_stop = trainer.global_step >= self.steps


def fit(
    folder: Path, module: L.LightningModule, data: object, steps: int, ckpt_path: Path | None = None, stop: int = 10**9
):
    """The trainer, and the rates of every step of world model, critic and policy over those at the start."""
    seen = Seen()
    trainer = tiny_trainer(folder, steps, callbacks=[seen, Stop(stop)])
    trainer.fit(module, data, ckpt_path=ckpt_path, **({} if ckpt_path is None else {"weights_only": True}))
    return trainer, [[rate / first for rate, first in zip(rates, RATES.values())] for rates in seen.rates]


def test_the_factor_by_hand() -> None:
    assert [Annealing(0.6, 0.0).factor(step, 10) for step in range(10)] == pytest.approx(FACTORS)
    assert [Annealing(0.0, 0.0).factor(step, 4) for step in range(4)] == [1, 0.75, 0.5, 0.25]
    assert [Annealing(0.0, 0.2).factor(step, 4) for step in range(4)] == pytest.approx([1, 0.8, 0.6, 0.4])
    assert {Annealing(None, 0.0).factor(step, 4) for step in range(4)} == {1.0}
    frozen = Annealing(0.2, 0.5, 0.6)  # the policy's from step 2 to step 6 of ten, the others' to half at the end
    policy = [frozen.factor(step, 10, "policy") for step in range(10)]
    assert policy == pytest.approx([1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0, 0], abs=1e-12)
    others = [1, 1, *(1 - k / 16 for k in range(8))]
    for part in ("world_model", "critic"):
        assert [frozen.factor(step, 10, part) for step in range(10)] == pytest.approx(others)
        assert Annealing(0.2, 0.5).factor(7, 10, "policy") == Annealing(0.2, 0.5).factor(7, 10, part)


def test_all_rates_fall_to_the_end_of_the_run(tmp_path: Path) -> None:
    agent, data = build()
    _, factors = fit(tmp_path, agent, data, 10)
    assert factors == [pytest.approx([factor] * 3) for factor in FACTORS]


def frozen(seed: int = 0) -> tuple[SobolevActorCritic, ReplayDataModule]:
    return build(seed, anneal_after=0.2, freeze_policy_at=0.6)


@pytest.mark.parametrize("many", [False, True])
def test_a_frozen_policy_stays_while_its_critics_learn_on(many: bool, tmp_path: Path) -> None:
    class Kept(L.Callback):
        """Policy and critics of the last agent after every step."""

        def __init__(self) -> None:
            self.policy: list[torch.Tensor] = []
            self.critic: list[torch.Tensor] = []
            self.seen: list[float] = []
            self.steps: list[int] = []
            self.measured: list[list[float]] = []

        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
            agent = pl_module.agents[-1] if isinstance(pl_module, ManySeeds) else pl_module
            self.policy.append(parameters(agent.policy))
            self.critic.append(parameters(agent.critic))
            self.seen.append(float(agent.normalizer.count))
            state = list(trainer.optimizers[PARTS.index("policy")].state.values())
            self.steps.append(int(state[0]["step"]) if state else 0)
            latest: dict[str, torch.Tensor] = pl_module._latest  # type: ignore[assignment]
            self.measured.append(
                [float(latest[f"policy/{name}"].max()) for name in ("loss", "grad_norm")] if latest else []
            )

    kept = Kept()
    module, data = tiny_seeds(frozen) if many else frozen()
    tiny_trainer(tmp_path, 10, callbacks=[kept]).fit(module, data)
    moves = [not torch.equal(*pair) for pair in zip(kept.policy[1:], kept.policy[2:])]
    assert moves == [True] * 4 + [False] * 4  # steps 2 to 5 (from 0), and 6 to 9
    assert all(not torch.equal(*pair) for pair in zip(kept.critic[1:], kept.critic[2:]))
    assert kept.seen == [1, 2, 3, 4, 5, 6, 6, 6, 6, 6]  # nor does what it takes an observation for
    # No update is spent on it; a report, every fourth step, still measures what its critics expect of it.
    each = kept.steps[2] - kept.steps[1]
    assert each >= 1
    assert [b - a for a, b in zip(kept.steps[1:], kept.steps[2:])] == [each] * 4 + [0] * 4
    new = [all(x != y for x, y in zip(*pair)) for pair in zip(kept.measured[4:], kept.measured[5:])]
    assert new == [True, False, True, False, False]
    # And it acts as it is: without exploration, of which before there was some.
    agent, replay = (module.agents[-1], data.part_replay(1)) if many else (module, data.replay[:])
    difference = (replay["action"] - agent.act(replay["observation"])).abs().amax(-1)
    assert difference[6:].max() < 1e-6
    assert (difference[2:6] > 1e-3).all()


class Steep(Mean):
    """The mean; once it is broken its value is right and its derivative is not finite."""

    broken = False

    def __call__(self, returns: torch.Tensor) -> torch.Tensor:
        mean = super().__call__(returns)
        return mean + (0 * returns).abs().sqrt().sum(-1) if self.broken else mean


@pytest.mark.parametrize("many", [False, True])
def test_a_gradient_of_a_policy_at_rest_that_is_not_finite_ends_the_run_in_a_line(many: bool, tmp_path: Path) -> None:
    class Break(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
            if trainer.global_step == 7:  # at rest since step 6; the report is that of step 8
                for agent in pl_module.agents if isinstance(pl_module, ManySeeds) else [pl_module]:
                    agent.risk.broken = True
                if isinstance(pl_module, ManySeeds):
                    pl_module.stack.get_parameter("policy").grad = None  # as in a run that goes on from here

    def build_one(seed: int = 0) -> tuple[SobolevActorCritic, ReplayDataModule]:
        return build(seed, anneal_after=0.2, freeze_policy_at=0.6, risk=Steep())

    module, data = tiny_seeds(build_one) if many else build_one()
    with pytest.raises(RunFailed, match=r"policy/grad_norm.* became non-finite at environment step 8"):
        tiny_trainer(tmp_path, 10, callbacks=[Break()]).fit(module, data)


@pytest.mark.parametrize("many", [False, True])
def test_a_policy_that_does_not_learn_keeps_what_it_takes_an_observation_for(many: bool, tmp_path: Path) -> None:
    """From its first update on, before which the warm-up decides: evaluated is one policy, not many."""

    class Counts(L.Callback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
            agent = pl_module.agents[-1] if isinstance(pl_module, ManySeeds) else pl_module
            self.seen.append(float(agent.normalizer.count))

    def build_one(seed: int = 0) -> tuple[SobolevActorCritic, ReplayDataModule]:
        return build(seed, anneal_after=None, policy_optimizer=None)

    counts = Counts()
    module, data = tiny_seeds(build_one) if many else build_one()
    tiny_trainer(tmp_path, 8, callbacks=[counts]).fit(module, data)
    assert counts.seen == [1, 2, 3, 3, 3, 3, 3, 3]


def test_outside_of_a_run_it_explores() -> None:
    agent, _ = frozen()
    observation = torch.zeros(agent.normalizer.mean.shape[0])
    assert not torch.equal(agent.explore(observation), agent.act(observation))


def test_among_many_seeds_a_frozen_one_is_the_run_alone(tmp_path: Path) -> None:
    alone, data = frozen(1)
    fit(tmp_path, alone, data, 30)
    many, both_data = tiny_seeds(frozen)
    fit(tmp_path, many, both_data, 30)
    torch.testing.assert_close(parameters(many.agents[1]), parameters(alone), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(both_data.part_replay(1)["action"], data.replay[:]["action"], rtol=1e-3, atol=1e-4)


def test_from_a_checkpoint_on_they_are_those_of_the_run_that_was_not_cut_off(tmp_path: Path) -> None:
    first, cut = build()
    trainer, _ = fit(tmp_path, first, cut, 10, stop=8)
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    saved = torch.load(tmp_path / "some.ckpt", weights_only=True)["optimizer_states"][1]["param_groups"][0]["lr"]
    assert saved == pytest.approx(0.75 * RATES["critic"])
    more, rest = build()
    _, factors = fit(tmp_path, more, rest, 10, tmp_path / "some.ckpt")
    assert factors == [pytest.approx([factor] * 3) for factor in FACTORS[8:]]


def test_a_run_that_goes_on_without_it_has_its_rates_back(tmp_path: Path) -> None:
    first, cut = build()
    trainer, _ = fit(tmp_path, first, cut, 10)
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    more, rest = build(anneal_after=None)
    _, factors = fit(tmp_path, more, rest, 14, tmp_path / "some.ckpt")
    assert factors == [pytest.approx([1.0] * 3)] * 4


def test_among_many_seeds_it_is_the_run_alone(tmp_path: Path) -> None:
    alone, data = build(1)
    fit(tmp_path, alone, data, 30)
    many, both_data = tiny_seeds(build)
    _, factors = fit(tmp_path, many, both_data, 30)
    assert factors[-1] == pytest.approx([1 / 12] * 3)
    torch.testing.assert_close(parameters(many.agents[1]), parameters(alone), rtol=1e-3, atol=1e-4)
    kept, data = build(1, anneal_after=None)
    fit(tmp_path, kept, data, 30)
    assert (parameters(kept) - parameters(alone)).abs().max() > 1e-3


def test_what_it_cannot_do_is_refused(tmp_path: Path) -> None:
    def decay(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LinearLR:
        return torch.optim.lr_scheduler.LinearLR(optimizer)

    for name in ("critic_scheduler", "world_model_scheduler"):
        with pytest.raises(UsageError, match=r"model\.anneal_after: expected null beside a scheduler"):
            build(**{name: decay})
    for options, line in (
        ({"anneal_after": None}, r"freeze_policy_at: needs model\.anneal_after"),
        (
            {"freeze_policy_at": 0.6},
            r"freeze_policy_at: expected a fraction above model\.anneal_after 0\.6 .*, got 0\.6",
        ),
        ({"freeze_policy_at": 1.1}, r"freeze_policy_at: expected a fraction .* up to 1, or null, got 1\.1"),
    ):
        with pytest.raises(UsageError, match=r"model\." + line):
            build(**{"freeze_policy_at": 0.8, **options})
    one, data = build()
    many, both = ManySeeds([build()[0]], [0], [torch.get_rng_state()]), ManySeedsData([build()[1]])
    for module, source in ((one, data), (many, both)):
        with pytest.raises(UsageError, match=r"model\.anneal_after: needs the end of the run, trainer\.max_steps"):
            fit(tmp_path, module, source, -1)
