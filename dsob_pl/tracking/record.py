"""Records what a run is: its resolved config, parameters, seed, environment, git commit and package versions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from dsob_pl.errors import Interrupted, OutOfRoom, RunFailed
from dsob_pl.seeds import compact_seeds
from dsob_pl.tracking.mlflow_logger import MLflowLogger
from dsob_pl.tracking.provenance import command_line, flatten, git_tags, version_tags
from dsob_pl.tracking.store import CHECKPOINTS_TAG
from dsob_pl.training import BestAndLast


def run_names(config: dict[str, Any], overlays: list[str], seeds: Sequence[int] = ()) -> tuple[str, str]:
    """Names of experiment and run: the environment's id, and method-environment-seed, or -seeds-0-9.

    Args:
        config: the resolved config.
        overlays: stems of the config files after the first, which name the method; without any, the model's class does.
        seeds: those of a run of many.
    """
    environment = str(config.get("data", {}).get("env_id", "default"))
    model = str(config.get("model", {}).get("class_path", "model")).rpartition(".")[2]
    seed = f"seeds-{compact_seeds(seeds)}" if seeds else str(config.get("seed_everything", 0))
    return environment, f"{'+'.join(overlays) or model}-{environment}-{seed}"


class RecordRun(SaveConfigCallback):
    """Gives the resolved config and the run's provenance to every logger and checkpoint, when training starts.

    A run that goes on with another config keeps the first; the new one is ``config_from_step_<n>.yaml`` beside it.

    That is later than Lightning's own callback, which writes before checkpoint and data are known to be good: a run
    that fails on its config must leave nothing behind.

    Args:
        *arguments: as of Lightning's ``SaveConfigCallback``; parser and config first.
        seeds: of a run that holds many; the config of each seed's own run has that seed.
        **options: as of Lightning's.
    """

    def __init__(self, *arguments: Any, seeds: Sequence[int] = (), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.seeds = list(seeds)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Writes nothing yet."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.save_config(trainer, pl_module, "fit")

    @rank_zero_only
    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Writes config, parameters and tags to every logger, and puts the config into the checkpoints to come."""
        config = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        # One way of giving seeds, so that the file can be run, validated and tested as it is.
        config.pop("seed_everything" if self.seeds else "seeds", None)
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, BestAndLast):
                callback.config = text
        files = self.config.get("config") or []
        overlays = [Path(str(getattr(file, "relative", file))).stem for file in files[1:]]
        experiment, run = run_names(config, overlays, self.seeds)
        for logger in trainer.loggers:
            if isinstance(logger, MLflowLogger):
                logger.experiment_name = logger.experiment_name or experiment
                logger.run_name = logger.run_name or run
                logger.environment_step = lambda: trainer.global_step
                which = (
                    ("seeds", compact_seeds(self.seeds)) if self.seeds else ("seed", str(config.get("seed_everything")))
                )
                described = {"env": experiment, which[0]: which[1], "command": command_line()}
                own = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, BestAndLast)]
                place = next((callback.asked_for for callback in own if callback.asked_for), None)
                if place is not None:
                    described[CHECKPOINTS_TAG] = str(place)
                logger.tags = {**git_tags(), **version_tags(), **described, **logger.tags}
                for callback in own:
                    callback.run_id = callback.run_id or logger.run_id
                if logger.continued:
                    _log_changed_config(logger, text, trainer.global_step)
                    continue
                logger.log_text(text, "config.yaml")
                logger.log_hyperparams(config)
                continue
            logger.log_hyperparams(dict(flatten(config)))
            folder = getattr(logger, "log_dir", None) or logger.save_dir
            if folder:
                Path(folder).mkdir(parents=True, exist_ok=True)
                (Path(folder) / "config.yaml").write_text(text, encoding="utf-8")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Writes what has been logged: a run that goes on from the checkpoint will not log it again."""
        for logger in trainer.loggers:
            if isinstance(logger, MLflowLogger) and logger.started:
                logger.flush_all()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Tells a run that was stopped from outside from one that failed."""
        killed = isinstance(exception, (KeyboardInterrupt, SIGTERMException, Interrupted))
        for logger in trainer.loggers:
            if isinstance(logger, MLflowLogger):
                logger.final_status = "KILLED" if killed else "FAILED"
                # What broke off for another reason, such as a full disk, would not fail again.
                logger.failed_by_itself = isinstance(exception, RunFailed) and not isinstance(exception, OutOfRoom)


def _log_changed_config(logger: MLflowLogger, text: str, step: int) -> None:
    """Writes the config of a run that goes on at ``step``, where it is not the one that it had last."""

    def began(path: Path) -> int:
        return int(path.stem.rpartition("_")[2]) if "_" in path.stem else 0

    files = [*logger.artifact_dir.glob("config.yaml"), *logger.artifact_dir.glob("config_from_step_[0-9]*.yaml")]
    if files:
        before, now = (yaml.safe_load(x) for x in (max(files, key=began).read_text(encoding="utf-8"), text))
        if {**before, "ckpt_path": None} == {**now, "ckpt_path": None}:
            return
    logger.log_text(text, f"config_from_step_{step}.yaml")
