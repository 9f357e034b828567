"""The data module under a real Trainer: no prefetching, environment steps as the unit of every count."""

from __future__ import annotations

import warnings
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from dsob_pl.data import ReplayDataModule, Step


class Counter(L.LightningModule):
    """Its policy plays the number of updates so far, so that a stored action tells which parameters it came from."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.updates = nn.Parameter(torch.zeros(1))
        self.clock = nn.Parameter(torch.zeros(1))
        self.log_of_steps: list[tuple[int, int, float]] = []
        self.evaluated_at: list[int] = []

    def explore(self, observation: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return self.updates.data / 1000.0

    def act(self, observation: Tensor) -> Tensor:
        return torch.zeros(len(observation), 1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.clock], lr=0.0)

    def on_fit_start(self) -> None:
        self.trainer.datamodule.attach(self.explore)

    def training_step(self, step: Step, batch_index: int) -> None:
        assert isinstance(step, Step)
        assert step.new is not None
        self.log_of_steps.append((self.trainer.global_step, step.environment_step, step.new["action"].item()))
        self.updates.data += 1.0
        self.clock.grad = torch.zeros(1)
        self.optimizers().step()

    def validation_step(self, seeds: Tensor, batch_index: int) -> None:
        self.evaluated_at.append(self.trainer.global_step)
        assert seeds.tolist() == [10_000, 10_001]
        episodes = self.trainer.datamodule.evaluate(self.act, 0.9)
        self.log("eval/return_mean", episodes.returns.mean(), batch_size=1)


def fit(folder: Path, steps: int, ckpt_path: Path | None = None) -> tuple[Counter, L.Trainer, ReplayDataModule]:
    module = Counter()
    data = ReplayDataModule(
        "Pendulum-v1", capacity=100, batch_size=2, updates_per_step=2, warmup_steps=3, evaluation_episodes=2
    )
    trainer = L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=8,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(prefetch|__len__|batch_size|num_workers).*")
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return module, trainer, data


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_actions_come_from_the_parameters_after_the_last_update_and_steps_are_environment_steps(tmp_path: Path) -> None:
    module, trainer, data = fit(tmp_path, 20)
    assert trainer.global_step == 20 == data.steps_collected
    assert [entry[:2] for entry in module.log_of_steps] == [(t, t + 1) for t in range(20)]
    # after three random steps, step t acts with the parameters of t - 1 updates
    played = [entry[2] * 1000.0 for entry in module.log_of_steps[3:]]
    assert played == pytest.approx(list(range(3, 20)), abs=1e-3)
    assert module.evaluated_at == [8, 16]
    assert "eval/return_mean" in trainer.callback_metrics

    trainer.save_checkpoint(tmp_path / "state.ckpt")
    assert len(torch.load(tmp_path / "state.ckpt", weights_only=True)["ReplayDataModule"]["replay"]["action"]) == 20
    module, trainer, data = fit(tmp_path, 30, tmp_path / "state.ckpt")
    assert trainer.global_step == 30 == data.steps_collected
    assert [entry[:2] for entry in module.log_of_steps] == [(t, t + 1) for t in range(20, 30)]
    assert len(data.replay) == 30
    assert module.evaluated_at == [24]
