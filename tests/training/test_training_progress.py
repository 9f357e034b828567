"""What progress shows on a terminal and elsewhere."""

from __future__ import annotations

import io
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dsob_pl.training import Progress
from dsob_pl.training.progress import summary


def trainer(step: int, total: int = 1000, **metrics: float) -> Any:
    return SimpleNamespace(
        global_step=step,
        max_steps=total,
        sanity_checking=False,
        state=SimpleNamespace(fn="fit"),
        callback_metrics={name.replace("__", "/"): torch.tensor(value) for name, value in metrics.items()},
    )


RETURNS = {"train__episode_return": 12.34, "eval__return_mean": -1234.5, "eval__return_std": 6.78}


def test_summary() -> None:
    assert summary(trainer(0)) == ""
    assert summary(trainer(0, **RETURNS)) == "train return 12.3  eval return -1,234.5 ± 6.8"
    assert summary(trainer(0, world_model__heldout_log_likelihood=1.5)) == "held-out log-likelihood 1.50"


def test_summary_of_many_seeds() -> None:
    many = trainer(0, seeds__running=9)
    many.lightning_module = SimpleNamespace(failed={})
    assert summary(many) == "9 seeds"
    for name, value in {"episode_return_mean": 1.25, "episode_return_std": 0.5, "return_mean": -1234.5}.items():
        many.callback_metrics[f"seeds/{name}"] = torch.tensor(value)
    many.callback_metrics["seeds/return_std"] = torch.tensor(10.0)
    many.lightning_module.failed[3] = "critic/loss became non-finite"
    assert summary(many) == "9/10 seeds  train return 1.2 ± 0.5  eval return -1,234.5 ± 10.0"


def test_one_line_per_evaluation_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([100.0, 110.0, 130.0])
    monkeypatch.setattr("dsob_pl.training.progress.time.monotonic", lambda: next(clock))
    progress = Progress()
    progress.on_train_start(trainer(0), None)
    progress.on_train_batch_end(trainer(1), None, None, None, 0)
    progress.on_validation_end(trainer(100, **RETURNS), None)
    progress.on_validation_end(trainer(200, total=-1), None)
    progress.on_train_end(trainer(1000), None)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "step 100/1,000  10.0 steps/s  eta 0:01:30  train return 12.3  eval return -1,234.5 ± 6.8",
        "step 200  5.0 steps/s",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress()
    progress.on_train_start(trainer(0), None)
    for step in range(1, 501):
        progress.on_train_batch_end(trainer(step, **RETURNS), None, None, None, step)
    progress.on_validation_end(trainer(500, **RETURNS), None)
    progress.print("a message")
    progress.on_exception(trainer(500, **RETURNS), None, RuntimeError())
    last = re.split(r"[\r\n]", terminal.getvalue().strip())[-1]
    assert "500/1000" in last
    assert "eval return -1,234.5 ± 6.8" in last
    assert "a message" in terminal.getvalue()
    assert terminal.getvalue().endswith("\n")
    assert terminal.getvalue().count("\r") < 20  # refreshed by the clock and not by the step
    assert capsys.readouterr().out == ""


def test_nothing_when_disabled(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    progress.disable()
    progress.on_train_start(trainer(0), None)
    progress.on_validation_end(trainer(100, **RETURNS), None)
    progress.print("a message")
    assert capsys.readouterr().out == ""
