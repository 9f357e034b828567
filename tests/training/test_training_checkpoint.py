"""The checkpoint callback with a small module in a real Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dsob_pl.errors import RunFailed, UsageError
from dsob_pl.files import is_whole
from dsob_pl.training import BestAndLast, StopOnNonFiniteLoss, check_fits, checkpoint_config, read_checkpoint
from dsob_pl.training.checkpoint_file import RANDOM_KEY
from dsob_pl.training.checkpoint_io import AtomicCheckpointIO


class Toy(L.LightningModule):
    """Manual optimisation; the weight counts the steps, the evaluation returns are given."""

    def __init__(self, returns: list[float] | None, loss_is_nan_at: int = -1, weight_is_nan_at: int = -1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = nn.Parameter(torch.zeros(()))
        self.returns, self.loss_is_nan_at, self.weight_is_nan_at = returns, loss_is_nan_at, weight_is_nan_at

    def training_step(self, batch: Tensor, index: int) -> None:
        self.optimizers().step()  # the clock: environment steps
        step = self.trainer.global_step
        self.weight.data.fill_(float("nan") if step == self.weight_is_nan_at else step)
        self.log("critic/loss", float("nan") if step == self.loss_is_nan_at else 1.0)

    def validation_step(self, batch: Tensor, index: int) -> None:
        if self.returns is not None:
            self.log("eval/return_mean", self.returns.pop(0))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=0.0)


class Data(L.LightningDataModule):
    observation_size, action_size = 3, 1

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(1000, 1), batch_size=1)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(1, 1))

    def state_dict(self) -> dict[str, Any]:
        return {"replay": torch.arange(5)}


def fit(module: Toy, folder: Path, steps: int = 30, **options: Any) -> BestAndLast:
    callback = BestAndLast(dirpath=str(folder), **options)
    callback.config = "data: {env_id: Toy-v0}\n"
    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=10,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback, StopOnNonFiniteLoss()],
    )
    trainer.fit(module, datamodule=Data())
    return callback


def steps_saved(folder: Path) -> dict[str, float]:
    return {p.stem: float(read_checkpoint(p)["state_dict"]["weight"]) for p in folder.glob("*.ckpt")}


def test_best_follows_the_return_and_last_the_time(tmp_path: Path) -> None:
    callback = fit(Toy([1.0, 3.0, 2.0]), tmp_path, steps=35)
    assert steps_saved(tmp_path) == {"best": 20.0, "previous": 30.0, "last": 35.0}
    assert float(callback.best_model_score) == 3.0
    assert Path(callback.kept).name == "best.ckpt"


def test_the_smallest_can_be_the_best(tmp_path: Path) -> None:
    fit(Toy([1.0, 3.0, 2.0]), tmp_path, mode="min")
    assert steps_saved(tmp_path) == {"best": 10.0, "previous": 20.0, "last": 30.0}


def test_a_return_that_is_not_a_number_is_never_the_best_again(tmp_path: Path) -> None:
    fit(Toy([1.0, float("nan"), 0.5]), tmp_path)
    assert steps_saved(tmp_path) == {"best": 10.0, "previous": 20.0, "last": 30.0}


def test_without_the_metric_there_is_only_a_last(tmp_path: Path) -> None:
    callback = fit(Toy(None), tmp_path)
    assert steps_saved(tmp_path) == {"previous": 20.0, "last": 30.0}
    assert Path(callback.kept).name == "last.ckpt"


def test_contents(tmp_path: Path) -> None:
    fit(Toy([1.0, 2.0, 1.0]), tmp_path)
    best, last = (read_checkpoint(tmp_path / f"{name}.ckpt") for name in ("best", "last"))
    assert last["Data"]["replay"].tolist() == [0, 1, 2, 3, 4]
    assert "Data" not in best
    for content in (best, last):
        assert content["dsob_format"] == 2
        assert checkpoint_config(content, "x") == "data: {env_id: Toy-v0}\n"
        assert content["dsob_sizes"] == {"observation_size": 3, "action_size": 1}


def test_several_of_the_best_can_be_kept(tmp_path: Path) -> None:
    callback = fit(Toy([1.0, 4.0, 2.0, 3.0]), tmp_path, steps=40, best_k=2)
    assert steps_saved(tmp_path) == {"step_20": 20.0, "step_40": 40.0, "best": 20.0, "previous": 30.0, "last": 40.0}
    assert float(callback.best_model_score) == 4.0
    with pytest.raises(UsageError, match="best_k: expected an integer of at least 1, got 0"):
        BestAndLast(best_k=0)


def test_the_replay_can_be_left_out(tmp_path: Path) -> None:
    fit(Toy([1.0, 2.0, 1.0]), tmp_path, replay=False)
    assert "Data" not in read_checkpoint(tmp_path / "last.ckpt")


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="critic/loss became non-finite at environment step 13"):
        fit(Toy([1.0, 2.0, 3.0], loss_is_nan_at=13), tmp_path)
    assert steps_saved(tmp_path) == {"best": 10.0, "last": 10.0}


def test_parameters_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="weight became non-finite by environment step 20"):
        fit(Toy([1.0, 2.0, 3.0], weight_is_nan_at=20), tmp_path)
    assert steps_saved(tmp_path) == {"best": 10.0, "last": 10.0}


def test_a_second_run_may_start_from_the_first(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    first = fit(Toy([5.0, 6.0, 4.0]), tmp_path / "first")
    second = BestAndLast(dirpath=str(tmp_path / "second"))
    second.load_state_dict(first.state_dict())
    assert (second.best_model_path, second.last_model_path) == ("", "")
    assert not [w for w in recwarn if "dirpath" in str(w.message)]


def test_a_logger_that_takes_a_folder_twice_replaces_no_checkpoints(tmp_path: Path) -> None:
    for n in (1, 2):
        callback = BestAndLast()
        logger = CSVLogger(tmp_path, name="", version="run")
        options: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = L.Trainer(max_steps=10 * n, max_epochs=-1, logger=logger, callbacks=[callback], **options)
        trainer.fit(Toy(None), datamodule=Data())
    assert steps_saved(tmp_path / "run" / "checkpoints")["last"] == 10.0
    assert steps_saved(tmp_path / "run" / "checkpoints_2")["last"] == 20.0


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("code from a checkpoint ran",))


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "payload": Payload()}, tmp_path / "payload.ckpt")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "weights.ckpt")
    torch.save({"state_dict": {"w": torch.zeros(100_000)}}, tmp_path / "whole.ckpt")
    (tmp_path / "half.ckpt").write_bytes((tmp_path / "whole.ckpt").read_bytes()[:200_000])
    (tmp_path / "text.ckpt").write_text("model: 3")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    for name, message in {
        "payload.ckpt": "objects other than tensors",
        "weights.ckpt": "not written by Lightning",
        "half.ckpt": "damaged",
        "text.ckpt": "not a checkpoint",
        "empty.ckpt": "not a checkpoint",
        "hole.ckpt": "does not exist; did you mean 'whole.ckpt'",
        ".": "is a folder",
    }.items():
        with pytest.raises(UsageError, match=message):
            read_checkpoint(tmp_path / name)


def test_versions_and_configs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="format 99"):
        checkpoint_config({"dsob_format": 99, "dsob_config": ""}, "x.ckpt")
    with pytest.raises(UsageError, match="carries no config"):
        checkpoint_config({}, "x.ckpt")


def test_the_first_tensor_that_does_not_fit_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    good = model.state_dict()
    check_fits({"state_dict": good}, model, "x.ckpt")
    for state, message in (
        ({**good, "0.weight": torch.zeros(3, 4)}, r"'0.weight' has shape \[3, 4\], the configured model has \[3, 2\]"),
        ({k: v for k, v in good.items() if k != "1.bias"}, "no tensor '1.bias'"),
        ({**good, "2.bias": torch.zeros(1)}, "a tensor '2.bias' that the configured model lacks"),
    ):
        with pytest.raises(UsageError, match=message):
            check_fits({"state_dict": state}, model, "x.ckpt")


def test_the_good_one_of_two_is_kept_while_a_damaged_one_is_replaced(tmp_path: Path) -> None:
    def content(step: float) -> dict[str, object]:
        return {"state_dict": {"x": torch.full((1000,), step)}, RANDOM_KEY: {}}

    def step_of(name: str) -> float | None:
        path = tmp_path / name
        return float(torch.load(path, weights_only=True)["state_dict"]["x"][0]) if is_whole(path) else None

    last = tmp_path / "last.ckpt"
    for step in (1.0, 2.0):
        AtomicCheckpointIO().save_checkpoint(content(step), last)
    last.write_bytes(last.read_bytes()[:900])
    assert (step_of("last.ckpt"), step_of("previous.ckpt")) == (None, 1.0)
    io = AtomicCheckpointIO()
    io.load_checkpoint(tmp_path / "previous.ckpt", weights_only=True)
    io.save_checkpoint(content(3.0), last)
    assert (step_of("last.ckpt"), step_of("previous.ckpt")) == (3.0, 1.0)
    io.save_checkpoint(content(4.0), last)
    assert (step_of("last.ckpt"), step_of("previous.ckpt")) == (4.0, 3.0)
