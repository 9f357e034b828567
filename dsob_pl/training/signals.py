"""Stopping on a signal: the step is finished, a checkpoint is saved, and the run can be gone on with."""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

import lightning as L

from dsob_pl.errors import Interrupted

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopOnSignal(L.Callback):
    """Ends the run between two steps after Ctrl-C, SIGTERM or SIGHUP; a second Ctrl-C ends it at once.

    SIGHUP comes where the terminal is closed; where it is ignored, as nohup has it, it stays so.

    A signal on which Lightning has SLURM requeue the job (SIGUSR1 unless configured otherwise) is kept until the step
    is over as well: what Lightning saves then is whole.

    Raises:
        Interrupted: in the place where the next step would begin, with the number of the signal.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._requeue: dict[int, Any] = {}  # Lightning's own handlers
        self._received: list[int] = []
        self._trainer: L.Trainer | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes over the signals; from now on the data module asks here before each step."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if threading.current_thread() is not threading.main_thread() or not hasattr(data, "between_steps"):
            return
        self._trainer = trainer
        data.between_steps = self._stop_if_asked
        self._received = []
        for number in _STOPPING:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # as nohup has it
            self._before[number] = signal.signal(number, self._handle)
        ours = trainer._signal_connector._slurm_sigusr_handler_fn
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            handler = signal.getsignal(number)
            if ours in getattr(handler, "signal_handlers", ()):
                self._requeue[number] = handler
                self._before[number] = signal.signal(number, self._handle)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gives the signals back."""
        self._give_back()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Gives back the signals that Lightning does not."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if hasattr(data, "between_steps"):
            data.between_steps = lambda: None

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Gives the signals back."""
        self._give_back()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and signal.SIGINT in self._received:
            raise KeyboardInterrupt
        if not self._received:
            again = "; Ctrl-C once more stops at once" if number == signal.SIGINT else ""
            with suppress(OSError):  # a terminal that is gone, which SIGHUP tells of
                print(f"\ndsob_pl: finishing the step and saving a checkpoint{again}", file=sys.stderr, flush=True)
        self._received.append(number)

    def _stop_if_asked(self) -> None:
        for number in [number for number in self._received if number in self._requeue]:
            self._have_requeued(number)
        if self._received:
            raise Interrupted(self._received[0])

    def _have_requeued(self, number: int) -> None:
        """Saves Lightning's checkpoint, and has the job requeued."""
        assert self._trainer is not None
        loop = self._trainer.fit_loop.epoch_loop
        # A run that goes on from a step after which it evaluated counts that step: Lightning expects the checkpoint to
        # be of the evaluation, which comes before the count.
        evaluated = int(loop._should_check_val_fx(self._trainer.fit_loop._data_fetcher))  # type: ignore[arg-type]
        loop._batches_that_stepped -= evaluated
        try:
            self._requeue[number](number, None)
        finally:
            loop._batches_that_stepped += evaluated

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
