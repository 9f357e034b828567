"""Pessimism in the targets that ends: step by step, against two runs put together, and among many seeds."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from tiny import parameters, tiny_agent, tiny_seeds, tiny_trainer

from dsob_pl.agents import SobolevActorCritic
from dsob_pl.bellman import LowerMean, NoCorrection
from dsob_pl.data import ReplayDataModule
from dsob_pl.errors import UsageError
from dsob_pl.training import CorrectionSchedule, SeedRuns


def build(seed: int = 0, **options: object) -> tuple[SobolevActorCritic, ReplayDataModule]:
    return tiny_agent("dsob_pl/Rotation-v0", 8, seed=seed, **{"overestimation": LowerMean(), **options})


def fit(folder: Path, agent: SobolevActorCritic, data: ReplayDataModule, steps: int, *callbacks: L.Callback):
    trainer = tiny_trainer(folder, steps, callbacks=list(callbacks))
    trainer.fit(agent, data)
    return trainer


class Seen(L.Callback):
    """Writes down the correction of every step."""

    def __init__(self, breaks: int | None = None) -> None:
        self.corrections: list[type] = []
        self.breaks = breaks

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        self.corrections.append(type(pl_module.overestimation))
        if trainer.global_step == self.breaks:
            raise ZeroDivisionError


def test_it_ends_at_its_step_and_the_agent_keeps_its_own(tmp_path: Path) -> None:
    agent, data = build()
    own, seen = agent.overestimation, Seen()
    fit(tmp_path, agent, data, 20, CorrectionSchedule(12), seen)
    assert seen.corrections == [LowerMean] * 12 + [NoCorrection] * 8
    assert agent.overestimation is own
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, agent, build()[1], 20, CorrectionSchedule(12), Seen(breaks=15))
    assert agent.overestimation is own


def test_until_its_end_it_is_the_run_with_the_correction_and_not_any_more_afterwards(tmp_path: Path) -> None:
    weights = {}
    for steps in (12, 16):
        for name, options, callbacks in (
            ("lower", {}, []),
            ("schedule", {}, [CorrectionSchedule(12)]),
            ("none", {"overestimation": NoCorrection()}, []),
        ):
            agent, data = build(**options)
            fit(tmp_path, agent, data, steps, *callbacks)
            weights[name, steps] = parameters(agent.critic)
    torch.testing.assert_close(weights["schedule", 12], weights["lower", 12], rtol=1e-6, atol=1e-7)
    for steps, other in ((12, "none"), (16, "lower"), (16, "none")):
        assert (weights["schedule", steps] - weights[other, steps]).abs().max() > 1e-4


def test_among_many_seeds_it_is_the_run_alone(tmp_path: Path) -> None:
    alone, data = build(1)
    fit(tmp_path, alone, data, 20, CorrectionSchedule(12))
    many, both_data = tiny_seeds(build)
    runs = SeedRuns({seed: [CorrectionSchedule(12)] for seed in (0, 1)}, {0: [], 1: []})
    trainer = tiny_trainer(tmp_path, 20)
    runs.attach(trainer)
    trainer.fit(many, both_data)
    torch.testing.assert_close(parameters(many.agents[1].critic), parameters(alone.critic), rtol=1e-3, atol=1e-4)
    always, data = build(1)
    fit(tmp_path, always, data, 20)
    assert (parameters(always.critic) - parameters(alone.critic)).abs().max() > 1e-3


def test_what_it_cannot_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"CorrectionSchedule\.end: expected an environment step of at least 1, got 0"):
        CorrectionSchedule(0)
    agent, data = build(overestimation=NoCorrection())
    with pytest.raises(UsageError, match=r"model\.overestimation corrects nothing"):
        fit(tmp_path, agent, data, 5, CorrectionSchedule(3))
