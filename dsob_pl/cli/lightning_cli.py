"""``fit``, ``validate`` and ``test``: LightningCLI with this project's parts, defaults and error messages."""

from __future__ import annotations

import copy
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException

from dsob_pl.cli.config_files import Source
from dsob_pl.cli.diagnose import causes, check_numbers, check_top_level, explain, known_keys
from dsob_pl.cli.parts import find_part
from dsob_pl.cli.resume import (
    LAST,
    changed_settings,
    check_format,
    check_one_seed,
    check_optimizers_fit,
    checkpoint_to_go_on_from,
    join_run,
    requeued_checkpoint,
    slurm_folder,
)
from dsob_pl.cli.seeds import (
    SeedParts,
    build_each,
    check_one_way,
    config_of_seed,
    join,
    seed_callbacks,
    seeds_to_go_on_with,
    shared_callbacks,
)
from dsob_pl.data import ReplayDataModule
from dsob_pl.errors import UsageError
from dsob_pl.seeds import parse_seeds
from dsob_pl.tracking import MLflowLogger, RecordRun, seed_loggers
from dsob_pl.tracking.store import check_writable
from dsob_pl.training import (
    BestAndLast,
    CalibrationReport,
    Progress,
    SeedRuns,
    StopOnNonFiniteLoss,
    StopOnSignal,
    check_fits,
    read_checkpoint,
)
from dsob_pl.training.checkpoint_file import RANDOM_KEY

DEFAULT_MODEL = "dsob_pl.agents.SobolevActorCritic"
TRAINER_DEFAULTS: dict[str, Any] = {
    "accelerator": "auto",
    "devices": 1,
    "max_epochs": -1,
    "val_check_interval": 1000,
    "check_val_every_n_epoch": None,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 100,
    "enable_model_summary": False,
    "enable_autolog_hparams": False,  # RecordRun logs the whole config instead
    "logger": {"class_path": "dsob_pl.tracking.MLflowLogger"},
}

_PARSER = {"parser_mode": "omegaconf", "allow_abbrev": False}


class ParseError(Exception):
    """What jsonargparse has to say, before it is put into one line."""


class Parser(LightningArgumentParser):
    """Raises instead of printing the usage and leaving the process."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises ParseError."""
        raise ParseError(message) from ex

    def dump(self, cfg: Namespace, *arguments: Any, **options: Any) -> str:
        """The config as text, the trainer's with Lightning's own constants in it."""
        if "trainer" in cfg:
            cfg = cfg.clone()
            cfg.trainer = _dumpable(cfg.trainer)
        return str(super().dump(cfg, *arguments, **options))


class CLI(LightningCLI):
    """One subcommand of the command line: parsed and built by the constructor, run by ``start``.

    Args:
        command: fit, validate or test.
        arguments: what follows it on the command line.
        sources: the same as nested dictionaries, to explain errors with.

    Raises:
        UsageError: bad input; nothing has been created.
    """

    def __init__(self, command: str, arguments: list[str], sources: list[Source]) -> None:
        self.command = command
        self.arguments = arguments
        self.sources = sources
        self.seeds: list[int] = []
        self.parts: dict[int, SeedParts] = {}  # of each of several seeds
        self._asked_for_last = False
        self.runs: SeedRuns | None = None
        super().__init__(
            L.LightningModule,
            ReplayDataModule,
            save_config_callback=RecordRun,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={**_PARSER, command: _PARSER},
            subclass_mode_model=True,
            args=[command, *arguments],
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    # Parser -----------------------------------------------------------------------------------------------------------

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the one that is run: each parser costs a quarter of a second to build."""
        data = {"fit": {"train_dataloaders", "val_dataloaders"}}.get(self.command, {"dataloaders"})
        return {self.command: {"model", "datamodule", "weights_only", *data}}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the seed and the number of threads."""
        parser.add_argument("--seed_everything", type=int, default=0, help="Seed of everything random.")
        if self.command == "fit":
            several = "Several seeds at once in place of seed_everything, such as 0-9 or 0,3,7."
            parser.add_argument("--seeds", type=Any, default=None, help=several)
        parser.add_argument(
            "--threads", type=int | None, default=None, help="CPU threads of torch; null leaves torch's choice."
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the checkpoint options and the links between data, model and seed."""
        parser.add_lightning_class_args(BestAndLast, "checkpoint")
        parser.set_defaults({"model": {"class_path": DEFAULT_MODEL}})
        for size in ("observation_size", "action_size"):
            parser.link_arguments(f"data.{size}", f"model.init_args.{size}", apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, and refuses numbers that no option can mean."""
        own = self._parser(self.command)
        check_top_level(self.sources, {action.dest.partition(".")[0] for action in own._actions})
        try:
            self.config = parser.parse_args(args)
        except (ParseError, OmegaConfBaseException) as error:
            known = known_keys(own.get_defaults().keys()) | {"print_config"}
            parts = {"model": find_part(DEFAULT_MODEL, "model"), "trainer.logger": MLflowLogger}
            raise UsageError(explain(error, self.sources, self.command, known, parts)) from error
        check_numbers(self.config[self.command].as_dict())
        seeds = self.config[self.command].get("seeds")
        if seeds is not None:
            check_one_way(self.sources)
            self.seeds = parse_seeds(seeds)
            if len(self.seeds) == 1:  # an ordinary run
                self.config = config_of_seed(self.config, self.command, self.seeds[0])

    def _parse_ckpt_path(self) -> None:
        # Lightning's own would let hyperparameters in the checkpoint override the config.
        pass

    # Parts ------------------------------------------------------------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        """Sets the threads, and finds the checkpoint to go on from."""
        if self.command == "fit":
            own = self.config.fit
            self._asked_for_last = own.ckpt_path == LAST
            overlays = [Path(str(getattr(file, "relative", file))).stem for file in (own.config or [])[1:]]
            found = checkpoint_to_go_on_from(own.as_dict(), overlays, self.seeds if len(self.seeds) > 1 else ())
            own.ckpt_path = found
        if self.config[self.command].threads is not None:
            torch.set_num_threads(self.config[self.command].threads)

    def instantiate_classes(self) -> None:
        """Builds data, model and trainer; what their constructors refuse is the user's to correct."""
        try:
            if len(self.seeds) > 1:
                self._instantiate_many()
            else:
                super().instantiate_classes()
        except (ValueError, TypeError, RuntimeError, ImportError) as error:
            # jsonargparse wraps what a constructor raises into the list of all types it would have taken.
            links = list(causes(error))
            for link in links:
                if isinstance(link, UsageError):
                    raise link from error
            raise UsageError(
                f"the config could not be built: {shortened(links[-1])} (DSOB_PL_TRACEBACK=1 shows where)"
            ) from error

    def _instantiate_many(self) -> None:
        """Builds the parts of every seed's run, and joins them in one model, one source of data and one trainer."""
        self.seeds = seeds_to_go_on_with(self.seeds, self.config[self.command].ckpt_path)
        self.parts = build_each(self.seeds, self.config, self.command, self.parser.instantiate)
        self.model, self.datamodule = join(self.parts)
        first = self.parts[self.seeds[0]]
        # The trainer's own callbacks are those that all seeds share, and a checkpoint of all of them.
        own = Namespace({**vars(first.built.trainer), "callbacks": shared_callbacks(first)})
        checkpoint = copy.deepcopy(first.built.checkpoint)
        # Lightning takes the arguments of its own subcommand from here; without ckpt_path a run would begin anew.
        joint = Namespace({"trainer": own, "checkpoint": checkpoint, "ckpt_path": first.config.ckpt_path})
        self.config_init = Namespace({self.command: joint})
        self.trainer = self.instantiate_trainer()
        loggers = {seed: seed_loggers(self.trainer.loggers, seed) for seed in self.seeds}
        parser = self._parser(self.command)
        callbacks = {seed: seed_callbacks(part, parser) for seed, part in self.parts.items()}
        self.runs = SeedRuns(callbacks, loggers)
        self.runs.attach(self.trainer)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Builds the trainer."""
        try:
            return super().instantiate_trainer(**kwargs)
        except UsageError:
            raise
        except (MisconfigurationException, ValueError) as error:
            raise UsageError(f"trainer: {shortened(error)}") from error

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> L.Trainer:
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        if config.get("enable_checkpointing") is False or any(isinstance(c, Checkpoint) for c in given):
            callbacks = [c for c in callbacks if not isinstance(c, Checkpoint)]
        if config.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in given):
            callbacks = [*callbacks, Progress()]
        if self.parts:
            self.save_config_kwargs = {**self.save_config_kwargs, "seeds": self.seeds}
        else:
            callbacks = [*callbacks, CalibrationReport()]
        if self.command != "fit":  # looking at a checkpoint is not a run
            logger = config.get("logger")
            loggers = logger if isinstance(logger, list) else [logger]
            if any(isinstance(one, MLflowLogger) for one in loggers):
                config["logger"] = [one for one in loggers if not isinstance(one, MLflowLogger)] or False
        if config.get("accelerator") == "auto" and not torch.cuda.is_available() and torch.backends.mps.is_available():
            config["accelerator"] = "cpu"  # Apple's has no float64
        if self.command == "fit":
            callbacks = [*callbacks, StopOnSignal()]
            if config.get("default_root_dir") is None:
                config["default_root_dir"] = slurm_folder(self.arguments)
        trainer = super()._instantiate_trainer(config, [*callbacks, StopOnNonFiniteLoss()])
        devices = trainer.num_devices * trainer.num_nodes
        if devices != 1:
            raise UsageError(f"trainer.devices: expected one device, got {devices}; --seeds trains many seeds on one")
        if trainer.precision in ("16-true", "bf16-true"):
            raise UsageError(f"trainer.precision: expected parameters of 32 or 64 bits, got '{trainer.precision}'")
        if trainer.precision == "64-true" and self.parts:
            raise UsageError("trainer.precision: expected 32 bits for many seeds, got '64-true'")
        if trainer.strategy.root_device.type == "mps":
            raise UsageError("trainer.accelerator: expected cpu or cuda, got mps, which has no float64")
        return trainer

    # Running ----------------------------------------------------------------------------------------------------------

    def _run_subcommand(self, subcommand: str) -> None:
        # Called by Lightning's constructor; ``start`` runs it, when there is an object to ask about what happened.
        pass

    def start(self) -> None:
        """Checks what a run would stumble over, then runs it."""
        path = self.config.fit.ckpt_path if self.command == "fit" else None
        requeued = requeued_checkpoint(self.trainer) if self.command == "fit" and path is None else None
        if requeued is not None:
            print(f"going on from step {int(read_checkpoint(requeued)['global_step']):,} of '{relative(requeued)}'")
        if self.command == "fit" and requeued is None:
            # One of the best begins a new run, and its folder is that of another.
            own = [Path(path).parent] if path and RANDOM_KEY in read_checkpoint(path) else []
            for callback in self.trainer.checkpoint_callbacks:
                if isinstance(callback, BestAndLast):
                    callback.check_folder(*own)
        try:
            for logger in self.trainer.loggers:
                if isinstance(logger, MLflowLogger):
                    source = path or requeued
                    if source is not None and not logger.goes_on:
                        join_run(logger, read_checkpoint(source), source, requeued=path is None)
                    logger.check()
            self._run()
        except BaseException:
            for logger in self.trainer.loggers:
                if isinstance(logger, MLflowLogger) and not logger.started:
                    logger.let_go()
            raise

    def _run(self) -> None:
        if self.command == "fit":
            folders: list[Any] = [logger.save_dir for logger in self.trainer.loggers]
            folders += [getattr(callback, "dirpath", None) for callback in self.trainer.checkpoint_callbacks]
            for folder in [given for given in folders if given] or [self.trainer.default_root_dir]:
                if "://" not in str(folder):
                    check_writable(Path(folder))
        super()._run_subcommand(self.command)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        arguments = super()._prepare_subcommand_kwargs(subcommand)
        path = arguments.get("ckpt_path")
        if path is not None:
            content = read_checkpoint(path)
            if not self.parts:
                check_one_seed(content, path)
            if self.command == "fit":
                check_format(content, path)
            check_fits(content, self.model, path)
            if self.command == "fit":
                check_optimizers_fit(content, self.model, path)
                config = yaml.safe_load(self._parser("fit").dump(self.config.fit, skip_unset=False))
                changed = changed_settings(content, config)
                if changed and self._asked_for_last:
                    run = f"the newest run of that name began with other settings ({changed})"
                    raise UsageError(f"ckpt_path: 'last': {run}; to go on with it all the same: '{relative(path)}'")
                if changed:
                    print(f"with other settings than its run began with: {changed}", flush=True)
                print(f"going on from step {int(content['global_step']):,} of '{relative(path)}'", flush=True)
                if type(self.datamodule).__qualname__ not in content:
                    print("it holds no replay: the run begins with a new warm-up (last.ckpt holds all)", flush=True)
                elif RANDOM_KEY not in content:  # Lightning's own ModelCheckpoint wrote it
                    without = "it holds the replay, but not the states of the random generators"
                    print(f"{without}: the run draws other numbers than it would have drawn", flush=True)
        return arguments | {"weights_only": True}

    @property
    def checkpoint(self) -> BestAndLast | None:
        """The run's own checkpoint callback, where it has not been replaced or switched off."""
        return next((c for c in self.trainer.checkpoint_callbacks if isinstance(c, BestAndLast)), None)

    def after_fit(self) -> None:
        """Says where the run is and what to do with it."""
        if self.runs is not None:
            print(self.runs.summary())
            for logger in self.trainer.loggers:
                if isinstance(logger, MLflowLogger) and logger.started:
                    print(f"run {logger.run_id} holds all seeds; see it: mlflow ui")
            return
        parts = [f"finished at step {self.trainer.global_step:,}"]
        if self.checkpoint is not None and self.checkpoint.best_model_score is not None:
            parts.append(f"best {self.checkpoint.monitor} {float(self.checkpoint.best_model_score):,.1f}")
        if self.checkpoint is not None and self.checkpoint.kept:
            parts.append(f"checkpoint {relative(self.checkpoint.kept)}")
        print("; ".join(parts))
        for logger in self.trainer.loggers:
            if isinstance(logger, MLflowLogger) and logger.started:
                known = hasattr(self.model, "act") and self.checkpoint is not None and self.checkpoint.best_model_path
                hint = f"; evaluate it: python -m dsob_pl evaluate --run {logger.run_id}" if known else ""
                print(f"run {logger.run_id}; see it: mlflow ui{hint}")


def _dumpable(value: Any) -> Any:
    """Has constants that are text, such as the default of Lightning's Timer, stand as that: no other can be dumped."""
    if isinstance(value, Namespace):
        for name, item in vars(value).items():
            setattr(value, name, _dumpable(item))
    elif isinstance(value, dict):
        value.update({name: _dumpable(item) for name, item in value.items()})
    elif isinstance(value, list):
        value[:] = [_dumpable(item) for item in value]
    return str(value.value) if isinstance(value, Enum) and isinstance(value, str) else value


def relative(path: str) -> str:
    """``path`` from the current folder, where it lies below it."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path


def shortened(error: BaseException) -> str:
    """The text of an error of Lightning or torch, in one line of bearable length."""
    text = " ".join(str(error).split()).replace("`", "'") or type(error).__name__
    if "The following accelerator" in text:  # Lightning names a class of its own that nobody has configured
        text = f"accelerator: this machine has only {text.rpartition(':')[2].strip(' [].')}"
    return text if len(text) <= 300 else text[:297] + "..."
