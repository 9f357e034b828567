"""From the mean to the agent's risk measure: by hand, alone and among many seeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from tiny import parameters, tiny_agent, tiny_seeds, tiny_trainer

from dsob_pl.agents import SobolevActorCritic
from dsob_pl.data import ReplayDataModule
from dsob_pl.errors import UsageError
from dsob_pl.risk import CVaR, Mean, Quantile, RiskMeasure
from dsob_pl.training import RiskSchedule, SeedRuns


def build(seed: int = 0, **options: object) -> tuple[SobolevActorCritic, ReplayDataModule]:
    return tiny_agent("dsob_pl/Cliff-v0", 8, seed=seed, **{"risk": CVaR(0.25), **options})


def trainer(folder: Path, *callbacks: L.Callback, steps: int = 30) -> L.Trainer:
    return tiny_trainer(folder, steps, callbacks=list(callbacks))


class Seen(L.Callback):
    """Writes down what the agent ascends at every step."""

    def __init__(self) -> None:
        self.risks: list[RiskMeasure] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        self.risks.append(pl_module.risk)  # type: ignore[arg-type]


def test_the_way_by_hand() -> None:
    schedule = RiskSchedule(begin=100, end=300)
    assert [schedule.fraction(step) for step in (0, 100, 150, 200, 300, 10_000)] == [0, 0, 0.25, 0.5, 1, 1]


def test_alpha_falls_from_the_mean_to_the_agents_own_and_stays(tmp_path: Path) -> None:
    agent, data = build()
    own, seen = agent.risk, Seen()
    trainer(tmp_path, RiskSchedule(10, 20), seen).fit(agent, data)
    alphas = [risk.alpha for risk in seen.risks]  # type: ignore[attr-defined]
    expected = [1.0] * 11 + [0.25 ** (i / 10) for i in range(1, 10)] + [0.25] * 10
    assert alphas == pytest.approx(expected)
    assert agent.risk is own
    assert not agent.risk_varies


@pytest.mark.parametrize("many", [False, True])
def test_evaluations_judge_by_the_agents_own_measure_all_the_way(tmp_path: Path, many: bool) -> None:
    """The worst of two episodes, also while the mean is ascended: the best checkpoint is not that of another aim."""
    seen: list[dict[str, float]] = []

    class Judged(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append({key: float(value) for key, value in trainer.callback_metrics.items()})

    def episodes(seed: int = 0) -> tuple[SobolevActorCritic, ReplayDataModule]:
        agent, data = build(seed, risk=CVaR(0.5))
        data.evaluation_episodes = 2
        return agent, data

    options = {"limit_val_batches": 1, "val_check_interval": 12, "num_sanity_val_steps": 0}
    if many:
        module, data = tiny_seeds(episodes)
        runs = SeedRuns({seed: [RiskSchedule(20, 40), Judged()] for seed in (0, 1)}, {0: [], 1: []})
        fit = tiny_trainer(tmp_path, 24, callbacks=[], **options)
        runs.attach(fit)
    else:
        module, data = episodes()
        fit = tiny_trainer(tmp_path, 24, callbacks=[RiskSchedule(20, 40), Judged()], **options)
    fit.fit(module, data)
    assert len(seen) == (4 if many else 2)
    for metrics in seen:
        mean, worst = metrics["eval/discounted_return"], metrics["eval/risk"]
        assert worst < mean  # of two, the lower one; they start in two places


def test_a_run_that_breaks_off_leaves_the_agent_its_measure(tmp_path: Path) -> None:
    class Breaks(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
            if trainer.global_step == 8:
                raise ZeroDivisionError

    agent, data = build()
    own = agent.risk
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, RiskSchedule(10, 20), Breaks()).fit(agent, data)
    assert agent.risk is own
    assert not agent.risk_varies


def test_what_the_policy_ascends_is_what_the_schedule_says(tmp_path: Path) -> None:
    """Until the schedule begins it is the run of the mean, and not any more afterwards."""
    weights = {}
    for steps in (12, 16):
        for name, options, callbacks in (
            ("mean", {"risk": Mean()}, []),
            ("schedule", {}, [RiskSchedule(12, 13)]),
            ("averse", {}, []),
        ):
            agent, data = build(**options)  # type: ignore[arg-type]
            trainer(tmp_path, *callbacks, steps=steps).fit(agent, data)
            weights[name, steps] = parameters(agent.policy)
    torch.testing.assert_close(weights["schedule", 12], weights["mean", 12], rtol=1e-5, atol=1e-6)
    for steps, other in ((12, "averse"), (16, "averse"), (16, "mean")):
        assert (weights["schedule", steps] - weights[other, steps]).abs().max() > 1e-5


def test_a_measure_without_a_level_is_mixed_with_the_mean(tmp_path: Path) -> None:
    agent, data = build(risk=Quantile(0.5))
    seen = Seen()
    trainer(tmp_path, RiskSchedule(0, 20), seen, steps=12).fit(agent, data)
    z = torch.tensor([0.0, 1.0, 8.0])
    assert seen.risks[10](z).item() == pytest.approx(0.5 * 3 + 0.5 * 1)


def test_among_many_seeds_it_is_the_run_alone(tmp_path: Path) -> None:
    agent, data = build(1)
    trainer(tmp_path, RiskSchedule(10, 20)).fit(agent, data)
    many, both_data = tiny_seeds(build)
    callbacks = {seed: [RiskSchedule(10, 20)] for seed in (0, 1)}
    runs = SeedRuns(callbacks, {0: [], 1: []})
    both = trainer(tmp_path)
    runs.attach(both)
    both.fit(many, both_data)
    for alone, among in zip(agent.policy.parameters(), many.agents[1].policy.parameters()):
        torch.testing.assert_close(among, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("begin", "end"), [(-1, 5), (5, 5), (9, 5)])
def test_steps_out_of_order_are_refused(begin: int, end: int) -> None:
    with pytest.raises(UsageError, match="RiskSchedule: expected 0 <= begin < end, got begin"):
        RiskSchedule(begin, end)


def test_a_measure_that_is_the_mean_already_is_refused(tmp_path: Path) -> None:
    agent, data = build(risk=None)
    with pytest.raises(UsageError, match=r"RiskSchedule: model\.risk is the mean already"):
        trainer(tmp_path, RiskSchedule(10, 20)).fit(agent, data)


def test_a_compiled_agent_is_led_as_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile = torch.compile
    traced: list[str] = []

    def ahead_of_time(function: Callable[..., object], **options: object) -> object:
        """Traced, without the minutes of a C++ compiler."""
        fast = compile(function, backend="aot_eager", **options)  # type: ignore[call-overload]

        def call(agent: SobolevActorCritic, part: str, *rest: object, **more: object) -> object:
            traced.append(part)
            return fast(agent, part, *rest, **more)

        return call

    monkeypatch.setattr(torch, "compile", ahead_of_time)
    weights = []
    for fused in (False, True):
        torch.compiler.reset()
        agent, data = build(compile=fused)
        trainer(tmp_path, RiskSchedule(6, 10), steps=14).fit(agent, data)
        weights.append(parameters(agent.policy))
    assert set(traced) == {"world_model", "critic"}
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-4)
