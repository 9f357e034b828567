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

from resume_study import checkpoint, compare, killed, start  # noqa: E402

__all__ = ["ROOT", "check_same", "checkpoint", "finish", "killed", "start", "statuses", "until"]


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    return out


def statuses(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "mlflow.db") as database:
        return [status for (status,) in database.execute("select status from runs order by start_time")]


def check_same(folder: Path, straight: Path) -> None:
    assert compare(folder, straight) == []
    assert torch.load(checkpoint(folder), weights_only=True)["global_step"] == 160
    assert statuses(folder) == statuses(straight)


def until(condition: Callable[[], Any], seconds: float = 100) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
