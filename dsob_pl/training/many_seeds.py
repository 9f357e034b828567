"""Makes each of many seeds that are trained at once a run of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.types import STEP_OUTPUT

from dsob_pl.errors import OutOfRoom, RunFailed
from dsob_pl.training.checkpoint import BestAndLast
from dsob_pl.training.seed_trainer import SeedTrainer

log = logging.getLogger(__name__)

# Those hooks of a callback in which nothing else is to be done than to call the callbacks of every seed.
_FORWARDED = (
    "on_fit_start",
    "on_sanity_check_start",
    "on_sanity_check_end",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_train_epoch_end",
    "on_train_end",
    "on_fit_end",
    *(
        f"on_{stage}_{moment}"
        for stage in ("validation", "test")
        for moment in ("start", "epoch_start", "batch_start", "batch_end", "epoch_end", "end")
        if (stage, moment) != ("validation", "end")
    ),
)


class SeedRuns(L.Callback):
    """Gives every seed the callbacks, loggers and checkpoints of a run of its own; see ``SeedTrainer``.

    A hook of the Trainer becomes a hook of the callbacks of every seed still running, with that seed's Trainer and
    agent; batches and outputs are handed on as they are, those of all seeds. What the module reports for a seed is
    logged when Lightning would log it. A seed that fails, in the module or by a ``RunFailed`` of one of its callbacks,
    ends as FAILED and takes no further part; the others go on.

    Args:
        callbacks: by seed, objects of its own; its checkpoints never carry the replay.
        loggers: by seed, objects of its own.

    Attributes:
        failed: why seeds have failed, in one line.
    """

    def __init__(self, callbacks: Mapping[int, Sequence[Callback]], loggers: Mapping[int, Sequence[Logger]]) -> None:
        # As Lightning orders them: a checkpoint is saved when all others have had their say.
        self.callbacks = {seed: sorted(own, key=lambda c: isinstance(c, Checkpoint)) for seed, own in callbacks.items()}
        self.loggers = {seed: list(own) for seed, own in loggers.items()}
        self.failed: dict[int, str] = {}
        self._trainers: dict[int, SeedTrainer] = {}  # of the seeds still running
        self._ended: dict[int, dict[str, Any]] = {}  # states of the callbacks of seeds that an exception has ended
        self._latest: dict[int, dict[str, float]] = {}  # what training has reported
        self._module: Any = None
        for seed, own in self.callbacks.items():
            for callback in own:
                if isinstance(callback, BestAndLast):
                    callback.replay = False
                if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
                    callback.dirpath = str(Path(callback.dirpath) / f"seed_{seed}")

    def attach(self, trainer: L.Trainer) -> None:
        """Takes its place among the Trainer's callbacks.

        That is after the one that records the parent run, which names it, and before those that save checkpoints of
        all seeds: a seed with parameters that are not finite is to be gone by then.
        """
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        place = next((i for i, c in enumerate(callbacks) if isinstance(c, Checkpoint)), len(callbacks))
        callbacks.insert(place, self)

    def summary(self) -> str:
        """How many steps were taken, and how each seed ended: its best score, or why it failed, and its run."""
        lines = [f"finished at step {self._module.trainer.global_step:,}"]
        for seed in {**self.callbacks, **self.failed}:
            parts = [f"failed: {self.failed[seed]}"] if seed in self.failed else []
            for callback in self.callbacks.get(seed, ()):
                if isinstance(callback, BestAndLast) and callback.best_model_score is not None:
                    parts.append(f"best {callback.monitor} {float(callback.best_model_score):,.1f}")
            runs = [x for x in self.loggers.get(seed, ()) if getattr(x, "started", True)]
            parts += [f"run {logger.version}" for logger in runs if logger.version]
            lines.append(f"seed {seed}: {'; '.join(parts) or 'finished'}")
        return "\n".join(lines)

    # What the module calls --------------------------------------------------------------------------------------------

    def report(self, seed: int, metrics: dict[str, float]) -> None:
        """Takes what the run of ``seed`` alone would log now."""
        own = self._trainers.get(seed)
        if own is None or own.sanity_checking:
            return
        own.record(metrics)
        if own.training:
            self._latest[seed].update(metrics)  # Lightning logs the latest of everything at its cadence
        else:
            _log(own, metrics)

    def give_up(self, seed: int, reason: str) -> None:
        """Ends the run of ``seed`` as FAILED."""
        own = self._trainers.pop(seed, None)
        if own is not None:
            self.failed[seed] = reason
            log.warning("seed %d failed: %s", seed, reason)
            _end(own, RunFailed(reason))

    # What Lightning calls ---------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begins the runs."""
        self._module = pl_module
        seeds = list(self._module.seeds)
        self._trainers = {seed: SeedTrainer(trainer, seed, self.callbacks[seed], self.loggers[seed]) for seed in seeds}
        self._ended = {}
        self._latest = {seed: {} for seed in seeds}
        for own in self._trainers.values():
            own.lightning_module.trainer = own
        self._module.report, self._module.give_up = self.report, self.give_up
        self._forward("setup", stage)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Calls the callbacks, whose checkpoints have moved where those of all seeds have."""
        whole = next((c for c in trainer.checkpoint_callbacks if isinstance(c, BestAndLast)), None)
        for own in self._trainers.values():
            for callback in own.callbacks:
                if whole is not None and isinstance(callback, BestAndLast):
                    callback.move_with(whole)
        self._forward("on_train_start")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Calls the callbacks, then logs at the cadence."""
        self._forward("on_train_batch_end", outputs, batch, batch_idx)
        if trainer._logger_connector.should_update_logs or trainer.fast_dev_run:  # type: ignore[attr-defined]
            for seed, own in self._trainers.items():
                _log(own, self._latest[seed])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Calls the callbacks, then logs what the scores that they found have in common."""
        self._forward("on_validation_end")
        found = [own.callback_metrics.get("eval/normalized_score") for own in self._trainers.values()]
        scores = torch.tensor([float(score) for score in found if score is not None])
        if not len(scores) or trainer.sanity_checking:
            return
        shared = {"mean": float(scores.mean()), "std": float(scores.std(correction=0))}
        for logger in trainer.loggers:
            logger.log_metrics({f"seeds/normalized_score_{k}": v for k, v in shared.items()}, step=trainer.global_step)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Ends the runs as FAILED or KILLED; the checkpoint of all of them is written after that."""
        for own in self._trainers.values():
            _end(own, exception)
        self._ended = self.state_dict()["seeds"]
        self._trainers = {}

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Ends the runs as FINISHED."""
        self._forward("teardown", stage)
        for own in self._trainers.values():
            for logger in own.loggers:
                logger.finalize("success")
        self._trainers = {}

    def state_dict(self) -> dict[str, Any]:
        """The state of every callback, and what was reported last, by seed."""
        states = {
            seed: {c.state_key: state for c in own.callbacks if (state := c.state_dict())}
            for seed, own in self._trainers.items()
        }
        states = states or self._ended
        latest = {seed: dict(own) for seed, own in self._latest.items()}
        return {"seeds": states, "latest": latest, "failed": dict(self.failed)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Gives it back to the callbacks of those seeds that there are; those that had failed have failed."""
        self.failed = {**state_dict.get("failed", {}), **self.failed}
        self._latest |= {seed: dict(own) for seed, own in state_dict["latest"].items() if seed in self._latest}
        for seed, states in state_dict["seeds"].items():
            for callback in self.callbacks.get(seed, ()):
                if callback.state_key in states:
                    callback.load_state_dict(deepcopy(states[callback.state_key]))

    def _forward(self, hook: str, *arguments: Any) -> None:
        failures = {}
        for seed, own in self._trainers.items():
            try:
                _call(own, hook, *arguments)
            except OutOfRoom:  # of the machine that all of them share
                raise
            except RunFailed as error:
                failures[seed] = str(error)
        drop = getattr(self._module, "drop", self.give_up)
        for seed, reason in failures.items():
            drop(seed, reason)
        if self._trainers and all(own.should_stop for own in self._trainers.values()):
            next(iter(self._trainers.values()))._trainer.should_stop = True


def _forwarded(hook: str) -> Callable[..., None]:
    def method(self: SeedRuns, trainer: L.Trainer, pl_module: L.LightningModule, *arguments: Any) -> None:
        self._forward(hook, *arguments)

    method.__name__, method.__doc__ = hook, "Calls the callbacks."
    return method


for _hook in _FORWARDED:
    setattr(SeedRuns, _hook, _forwarded(_hook))


def _call(own: SeedTrainer, hook: str, *arguments: Any) -> None:
    agent = own.lightning_module
    for callback in own.callbacks:
        getattr(callback, hook)(own, agent, *arguments)


def _log(own: SeedTrainer, metrics: dict[str, float]) -> None:
    if not metrics:
        return
    for logger in own.loggers:
        logger.log_metrics({"epoch": own.current_epoch, **metrics}, step=own.global_step)
        logger.save()


def _end(own: SeedTrainer, exception: BaseException) -> None:
    try:
        _call(own, "on_exception", exception)
    except RunFailed as error:  # such as a last checkpoint that cannot be saved: no reason to forget the other seeds
        _call(own, "on_exception", error)
    for logger in own.loggers:
        logger.finalize("failed")
