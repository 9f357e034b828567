"""The checkpoints of a run: the best one by evaluation return, and the last one with its replay."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.types import STEP_OUTPUT

from dsob_pl.data.on_disk import FILES_KEY, REPLAY_FOLDER
from dsob_pl.errors import Interrupted, RunFailed, UsageError, nearest
from dsob_pl.files import Hold, hold_folder, link
from dsob_pl.training.checkpoint_file import (
    CONFIG_KEY,
    FORMAT_KEY,
    FORMAT_VERSION,
    OWNER_KEY,
    RANDOM_KEY,
    RUN_KEY,
    SEEDS_KEY,
    SIZES_KEY,
    check_readable,
)
from dsob_pl.training.checkpoint_io import AtomicCheckpointIO
from dsob_pl.training.failure import first_non_finite
from dsob_pl.training.random_state import random_state, set_random_state

log = logging.getLogger(__name__)

BEST = "best"


class BestAndLast(ModelCheckpoint):
    """Saves ``last.ckpt`` after every evaluation and at the end, and ``best.ckpt`` when ``monitor`` improves.

    ``last.ckpt`` holds all that decides how a run goes on; its transitions are in files of the folder ``replay`` beside
    it, to which each checkpoint adds what is new. The one before is kept as ``previous.ckpt``. Every file carries the
    resolved config and a format version and holds only tensors and plain types, so that
    ``torch.load(weights_only=True)`` reads it, and is written in one piece. The cadence is that of the evaluations, in
    environment steps.

    Args:
        monitor: metric that decides which checkpoint is the best; a run that never logs it has only a last one.
        mode: whether a larger (max) or a smaller (min) value is better.
        dirpath: folder of the files; None means the checkpoints folder of the run's artifacts or, where no logger has
            a folder for each run, the first of checkpoints, checkpoints_2, ... that no other run has.
        replay: whether last.ckpt carries the replay buffer, which going on with the run needs; best.ckpt never does.
        best_k: so many of the best are kept, as ``step_<n>.ckpt`` where it is more than one.

    Raises:
        UsageError: ``best_k`` is not an integer of at least 1; when training begins, ``dirpath`` has the checkpoints of
            another run.
    """

    def __init__(
        self,
        monitor: str = "eval/return_mean",
        mode: Literal["max", "min"] = "max",
        dirpath: str | None = None,
        replay: bool = True,
        best_k: int = 1,
    ) -> None:
        if isinstance(best_k, bool) or best_k < 1:
            raise UsageError(f"checkpoint.best_k: expected an integer of at least 1, got {best_k!r}")
        super().__init__(
            dirpath=dirpath,
            filename=BEST if best_k == 1 else "step_{step}",
            monitor=monitor,
            mode=mode,
            save_top_k=best_k,
            save_last=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self.replay = replay
        self.config = ""  # YAML of the resolved config, given by whoever knows it
        self.run_id = ""  # of the MLflow run, likewise
        self._with_replay = replay
        self._own_folder = False  # chosen here
        self._hold: Hold | None = None  # of the folder
        self._monitor_missed = False  # and that has been said
        self._source: Path | None = None  # the checkpoint that is gone on from
        self._saved: dict[str, Any] = {}  # state of this callback in it
        self._goes_on = True  # the run that wrote what is loaded, which one of its best does not hold all of
        self._random: dict[str, Any] | None = None
        self._kept_files: list[dict[str, Any]] = []  # replay of last.ckpt and of the one before

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Has checkpoints written in one piece.

        It chooses no folder yet: that would create the run before its config is known to be good.
        """
        if isinstance(trainer, L.Trainer) and type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            data = trainer.datamodule  # type: ignore[attr-defined]

            def loading(path: Path) -> None:
                self._source = path
                if hasattr(data, "read_replay_from"):
                    data.read_replay_from(path.parent / REPLAY_FOLDER)

            trainer.strategy.checkpoint_io = AtomicCheckpointIO(loading)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes out what can only be put back when training begins."""
        self._random = checkpoint.get(RANDOM_KEY)
        self._goes_on = self._random is not None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Chooses the folder; puts back the generators of random numbers, and the best of the run that goes on."""
        super().on_train_start(trainer, pl_module)
        if self.dirpath is None:
            self.dirpath, self._own_folder = str(self._choose_folder(trainer)), True
        elif isinstance(trainer, L.Trainer) and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            # Those of many seeds lie in folders of the one that is looked at here.
            if self.asked_for is not None:
                self.asked_for.mkdir(parents=True, exist_ok=True)
            self._take_asked_for(self._earlier_folders())
        data = trainer.datamodule  # type: ignore[attr-defined]
        if self.replay and hasattr(data, "write_replay_to"):
            data.write_replay_to(Path(self.dirpath) / REPLAY_FOLDER)
        self._take_back_the_best(bool(trainer.loggers and getattr(trainer.loggers[0], "continued", False)))
        if self._random is not None:
            set_random_state(self._random)
            self._random = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Nothing: evaluations set the cadence."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the best if it is one, and the last."""
        if self._should_skip_saving_checkpoint(trainer):
            return
        candidates = self._monitor_candidates(trainer)
        if self.monitor in candidates:
            self._save_monitor_checkpoint(trainer, candidates)
        elif not self._monitor_missed and not hasattr(pl_module, "seeds"):  # all seeds together have no best
            self._monitor_missed = True
            there = sorted(name for name in trainer.callback_metrics if name.startswith("eval"))
            there = there or sorted(trainer.callback_metrics)  # of a world model alone
            hint = nearest(str(self.monitor), there) or f" (there: {', '.join(there) or 'none'})"
            log.warning("checkpoint.monitor: '%s' was not evaluated, no best checkpoint is kept%s", self.monitor, hint)
        self._save_last_checkpoint(trainer, candidates)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the last."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Saves the last when the run is told to stop, which is noticed between two steps.

        After any other exception the state is in doubt, and the last good checkpoint stays as it is.
        """
        asked = isinstance(exception, Interrupted | SIGTERMException)
        if asked and self.dirpath and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        self._let_go()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Lets others write to the folder."""
        super().teardown(trainer, pl_module, stage)
        self._let_go()

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        name = first_non_finite(trainer.lightning_module)
        if name is not None:
            raise RunFailed(f"{name} became non-finite by environment step {trainer.global_step}")
        last = Path(filepath).stem == self.CHECKPOINT_NAME_LAST
        self._with_replay = self.replay and last
        try:
            super()._save_checkpoint(trainer, filepath)
        finally:
            self._with_replay = self.replay
        if last and self.replay and len(self._kept_files) == 2:
            trainer.datamodule.forget_replay_files(*self._kept_files)  # type: ignore[attr-defined]
        if not last and self.save_top_k > 1:
            self._link_best()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds config, sizes, format version, run and the seeds of many; what a run goes on from where it is wanted."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        for name, state in checkpoint.get("callbacks", {}).items():
            check_readable(state, name)
        checkpoint[FORMAT_KEY] = FORMAT_VERSION
        checkpoint[CONFIG_KEY] = self.config
        sizes = {key: getattr(data, key, None) for key in ("observation_size", "action_size")}
        checkpoint[SIZES_KEY] = {key: int(value) for key, value in sizes.items() if value is not None}
        if hasattr(pl_module, "seeds"):
            checkpoint[SEEDS_KEY] = [int(seed) for seed in pl_module.seeds]  # type: ignore[union-attr]
        if self.run_id:
            checkpoint[OWNER_KEY] = self.run_id
        if not self._with_replay:
            checkpoint.pop(type(data).__qualname__, None)
            return
        checkpoint[RANDOM_KEY], checkpoint[RUN_KEY] = random_state(), self.run_id
        if hasattr(data, "update_replay_files"):
            files = data.update_replay_files()
            checkpoint[type(data).__qualname__][FILES_KEY] = files
            self._kept_files = [*self._kept_files[-1:], files]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps it until it is known whether the same run goes on: another has a best and a last of its own."""
        self._saved = state_dict

    def check_folder(self, *earlier: Path) -> None:
        """Raises UsageError where ``dirpath`` has the checkpoints of another run; creates nothing.

        Args:
            earlier: folders of the run that is gone on with.
        """
        self._take_asked_for(earlier)
        self._let_go()

    def move_with(self, whole: BestAndLast) -> None:
        """Takes the folder of a seed to have moved as that of all seeds has since the checkpoint was written."""
        old, new, own = whole._saved.get("dirpath"), whole._source, self._saved.get("dirpath")
        if not old or new is None or not own:
            return
        before, now = Path(old), new.absolute().parent
        while before != before.parent and before.name == now.name:
            before, now = before.parent, now.parent
        if Path(own).is_relative_to(before):
            self._saved = {**self._saved, "dirpath": str(now / Path(own).relative_to(before))}

    @property
    def asked_for(self) -> Path | None:
        """The folder on this machine that was given for the files, where one was."""
        if not self.dirpath or self._own_folder or "://" in str(self.dirpath):
            return None
        return Path(self.dirpath).absolute()

    @property
    def kept(self) -> str:
        """The file to go back to: the best checkpoint, else the last, else nothing."""
        return self.best_model_path or self.last_model_path

    def _choose_folder(self, trainer: L.Trainer) -> Path:
        """That of the MLflow run or, where runs may share one, the first beside those of other runs; holds it."""
        logger = trainer.loggers[0] if trainer.loggers else None
        if isinstance(own := getattr(logger, "artifact_dir", None), str | Path):
            return Path(own).absolute() / "checkpoints"
        places = (getattr(logger, name, None) for name in ("log_dir", "save_dir"))
        root = Path(next((x for x in places if isinstance(x, str | Path)), trainer.default_root_dir)).absolute()
        for folder in self._earlier_folders():  # although another one of these may be free by now
            if folder.resolve().parent == root.resolve() and self._take(folder):
                return folder
        folder, n = root / "checkpoints", 1
        while not trainer.fast_dev_run and not self._take(folder):  # type: ignore[attr-defined]
            n += 1
            folder = root / f"checkpoints_{n}"
        return folder

    def _take(self, folder: Path) -> bool:
        """Makes and holds ``folder``; False where another run has checkpoints in it, or another process holds it."""
        if _has_checkpoints(folder) and not _among(folder, self._earlier_folders()):
            return False
        folder.mkdir(parents=True, exist_ok=True)
        self._hold = hold_folder(folder)
        return self._hold is not None

    def _take_asked_for(self, earlier: Sequence[Path]) -> None:
        """Holds the folder that was given, where it is there; raises UsageError as ``check_folder``."""
        folder = self.asked_for
        if folder is None:
            return
        if _has_checkpoints(folder) and not _among(folder, earlier):
            raise UsageError(
                f"checkpoint.dirpath: '{self.dirpath}' has the checkpoints of another run, which this one would "
                "replace; give another folder, or go on with that run by --ckpt_path"
            )
        self._hold = hold_folder(folder)
        if self._hold is None:
            raise UsageError(f"checkpoint.dirpath: a run that is still going on writes to '{self.dirpath}'")

    def _earlier_folders(self) -> list[Path]:
        """Those of the run that goes on: where it was, where its checkpoint is now, and where this object has saved."""
        folders = [Path(self._saved["dirpath"])] if self._goes_on and self._saved.get("dirpath") else []
        source = self._source if self._goes_on else None
        return [*folders, *(Path(file).parent for file in (source, self.last_model_path) if file)]

    def _let_go(self) -> None:
        if self._hold is not None:
            self._hold.release()
            self._hold = None

    def _take_back_the_best(self, same_run: bool) -> None:
        """Goes on with best and last of the run whose checkpoint was loaded, if they are in this run's folder.

        The best of the same run in another folder, as with a ``dirpath`` that is new, comes along.
        """
        folder, saved, earlier = Path(self.dirpath or ""), self._saved, self._earlier_folders()
        self._saved = {}
        if not saved or not (same_run or _among(folder, earlier)):
            return
        if not _among(folder, earlier):
            folder.mkdir(parents=True, exist_ok=True)
            for name in {Path(path).name for path in (*saved["best_k_models"], saved["best_model_path"]) if path}:
                best = next((place / name for place in earlier if (place / name).is_file()), None)
                if best is not None:
                    link(best, folder / name)

        def here(path: str) -> str:
            return str(folder / Path(path).name) if path and (folder / Path(path).name).is_file() else ""

        self.best_k_models = {here(path): score for path, score in saved["best_k_models"].items() if here(path)}
        self.best_model_path, self.last_model_path = here(saved["best_model_path"]), here(saved["last_model_path"])
        self.current_score = saved["current_score"]
        if self.best_model_path:
            self.best_model_score = saved["best_model_score"]
            self.kth_best_model_path, self.kth_value = here(saved["kth_best_model_path"]), saved["kth_value"]

    def _link_best(self) -> None:
        """Gives the best of several its usual name as well."""
        best = Path(self.best_model_path)
        if best.is_file():
            link(best, best.with_name(f"{BEST}{best.suffix}"))


def _has_checkpoints(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("last.ckpt", f"{BEST}.ckpt"))


def _among(folder: Path, places: Sequence[Path]) -> bool:
    return folder.resolve() in [place.resolve() for place in places]
