"""Progress of a run: a bar with an ETA on a terminal, one line per evaluation anywhere else."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities.types import STEP_OUTPUT
from tqdm import tqdm

REFRESH_SECONDS = 0.5


class Progress(ProgressBar):
    """Environment steps done and to do, steps per second, ETA, last training and evaluation return.

    On a terminal this is a bar on stderr; elsewhere every evaluation prints one line on stdout.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: tqdm | None = None
        self._next_refresh = 0.0
        self._mark = (0.0, 0)

    def enable(self) -> None:
        """Shows progress."""
        self._enabled = True

    def disable(self) -> None:
        """Shows nothing, as on all processes but the first."""
        self._enabled = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Opens the bar."""
        self._mark = (time.monotonic(), trainer.global_step)
        if self._enabled and sys.stderr.isatty():
            total = trainer.max_steps if trainer.max_steps > 0 else None
            self._bar = tqdm(total=total, initial=trainer.global_step, unit="step", dynamic_ncols=True, smoothing=0.05)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar, twice a second at most: reading the metrics waits for the device."""
        if self._bar is None or time.monotonic() < self._next_refresh:
            return
        self._next_refresh = time.monotonic() + REFRESH_SECONDS
        self._bar.set_postfix_str(summary(trainer), refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints the line of an evaluation where there is no bar."""
        if not self._enabled or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self._bar is None:
            print(self._line(trainer), flush=True)

    def _line(self, trainer: L.Trainer) -> str:
        now, step, total = time.monotonic(), trainer.global_step, trainer.max_steps
        then, last_step = self._mark
        self._mark = (now, step)
        rate = (step - last_step) / max(now - then, 1e-9)
        parts = [f"step {step:,}" + (f"/{total:,}" if total > 0 else ""), f"{rate:,.1f} steps/s"]
        if total > 0 and rate > 0:
            parts.append(f"eta {timedelta(seconds=round((total - step) / rate))}")
        return "  ".join([*parts, summary(trainer)]).rstrip()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Closes the bar."""
        self._close(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Closes the bar, so that the error starts on a line of its own."""
        self._close(trainer)

    def _close(self, trainer: L.Trainer) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(summary(trainer), refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)
            self._bar.close()
            self._bar = None

    def print(self, *args: Any, **kwargs: Any) -> None:
        """``print`` that does not tear the bar."""
        if self._bar is not None:
            tqdm.write(kwargs.get("sep", " ").join(map(str, args)), file=sys.stderr)
        elif self._enabled:
            print(*args, **kwargs)


def summary(trainer: L.Trainer) -> str:
    """The last training return, and the last evaluation as mean ± standard deviation, of what has been logged.

    Of many seeds: how many are running, and mean ± standard deviation of both returns over them.
    """
    metrics = trainer.callback_metrics
    if "seeds/running" in metrics:
        return _seeds_summary(trainer)
    parts = []
    if "train/episode_return" in metrics:
        parts.append(f"train return {float(metrics['train/episode_return']):,.1f}")
    if "eval/return_mean" in metrics:
        spread = float(metrics.get("eval/return_std", 0.0))
        parts.append(f"eval return {float(metrics['eval/return_mean']):,.1f} ± {spread:,.1f}")
    elif "world_model/heldout_log_likelihood" in metrics:
        parts.append(f"held-out log-likelihood {float(metrics['world_model/heldout_log_likelihood']):,.2f}")
    return "  ".join(parts)


def _seeds_summary(trainer: L.Trainer) -> str:
    metrics = trainer.callback_metrics
    running = int(metrics["seeds/running"])
    failed = len(trainer.lightning_module.failed)  # type: ignore[arg-type]
    parts = [f"{running}/{running + failed} seeds" if failed else f"{running} seeds"]
    for title, name in (("train return", "seeds/episode_return"), ("eval return", "seeds/return")):
        if f"{name}_mean" in metrics:
            mean, spread = (float(metrics[f"{name}_{kind}"]) for kind in ("mean", "std"))
            parts.append(f"{title} {mean:,.1f} ± {spread:,.1f}")
    return "  ".join(parts)
