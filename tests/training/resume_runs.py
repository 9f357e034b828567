"""Real processes of ``fit`` for the tests of stopping and going on."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "notebooks"))

from processes import Process  # noqa: E402
from resume_study import SLOW_WRITES, checkpoint, compare, environment, killed, write_config  # noqa: E402
from resume_study import start as start_python  # noqa: E402

__all__ = [
    "ROOT",
    "check_same",
    "checkpoint",
    "finish",
    "killed",
    "start",
    "start_python",
    "statuses",
    "until",
]


def write_slowly() -> None:
    """In this process, so that a kill hits the writing, too."""
    exec(SLOW_WRITES, {})


def start(
    folder: Path,
    *options: str,
    slow: bool = False,
    steps: int = 160,
    interval: int = 20,
    before: Callable[[], None] | None = None,
    **more: str,
) -> Process:
    """The same as ``start_python`` without the seconds in which a process loads its libraries; see ``Process``."""
    write_config(folder, steps, interval)
    words = ["fit", "--config", "base.yaml", *options]
    return Process(words, folder, environment() | more, before=write_slowly if slow else before)


def finish(process: Process | subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    return out


def statuses(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "mlflow.db") as database:
        return [status for (status,) in database.execute("select status from runs order by start_time")]


def check_same(folder: Path, straight: Path) -> None:
    found = compare(folder, straight)
    assert not found, found
    assert torch.load(checkpoint(folder), weights_only=True)["global_step"] == 160
    assert statuses(folder) == statuses(straight)


def until(condition: Callable[[], Any], seconds: float = 100) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
