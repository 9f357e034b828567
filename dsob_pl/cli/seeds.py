"""``fit --seeds 0-9``: several seeds of one config in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import lightning as L
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import (
    Callback,
    Checkpoint,
    DeviceStatsMonitor,
    ModelSummary,
    ProgressBar,
    ThroughputMonitor,
    Timer,
)
from torch import Tensor

from dsob_pl.agents import ManySeeds, SobolevActorCritic
from dsob_pl.cli.config_files import COMMAND_LINE, Source
from dsob_pl.data import ManySeedsData
from dsob_pl.errors import UsageError
from dsob_pl.seeds import compact_seeds, parse_seeds
from dsob_pl.tracking import RecordRun
from dsob_pl.training import CalibrationReport, read_checkpoint
from dsob_pl.training.checkpoint_file import CONFIG_KEY, SEEDS_KEY

_SHARED = (ProgressBar, ModelSummary, Timer, DeviceStatsMonitor, ThroughputMonitor)


def check_one_way(sources: list[Source]) -> None:
    """Raises UsageError where seed_everything is given beside seeds, or after them.

    A seed_everything in an earlier config file is a default that ``--seeds`` replaces, like any other value.
    """
    for i, source in enumerate(sources):
        if "seeds" not in source.tree or source.tree["seeds"] is None:
            continue
        for later in sources[i:]:
            if "seed_everything" in later.tree:
                where = "" if later.label == COMMAND_LINE else f"{later.label}: "
                raise UsageError(f"{where}seed_everything: cannot be given together with seeds; leave out one of them")


def config_of_seed(config: Namespace, command: str, seed: int) -> Namespace:
    """A copy of the parsed config as it would be with ``--seed_everything seed`` in place of ``--seeds``."""
    own = config.clone()
    own[command].seed_everything = seed
    own[command].seeds = None
    own[command].data.seed = seed  # linked when the command line was parsed
    return own


class SeedParts(NamedTuple):
    """What a run of one seed alone would be made of.

    Attributes:
        config: its config.
        built: what the parser made of it: model, data, checkpoint, callbacks and loggers.
        generator: state of torch's generator after that, where training would go on drawing.
    """

    config: Namespace
    built: Namespace
    generator: Tensor


def build_each(
    seeds: list[int], config: Namespace, command: str, build: Callable[[Namespace], Namespace]
) -> dict[int, SeedParts]:
    """Builds the parts of every seed as a run of it alone would: seeded first, then data, then model."""
    parts = {}
    for seed in seeds:
        own = config_of_seed(config, command, seed)
        L.seed_everything(seed, workers=True, verbose=False)
        built = build(own)
        parts[seed] = SeedParts(own[command], built[command], torch.get_rng_state())
    return parts


def join(parts: dict[int, SeedParts]) -> tuple[ManySeeds, ManySeedsData]:
    """All seeds as one model and one source of data.

    Raises:
        UsageError: the model is not an agent; its parts cannot be stacked.
    """
    each = list(parts.values())
    model = each[0].built.model
    if not isinstance(model, SobolevActorCritic):
        raise UsageError(f"seeds: many seeds train a SobolevActorCritic; {type(model).__name__} takes one at a time")
    many = ManySeeds([part.built.model for part in each], list(parts), [part.generator for part in each])
    return many, ManySeedsData([part.built.data for part in each])


def shared_callbacks(part: SeedParts) -> list[Callback]:
    """The configured callbacks that look at the process and not at a run."""
    return [callback for callback in _callbacks(part) if isinstance(callback, _SHARED)]


def seed_callbacks(part: SeedParts, parser: Any) -> list[Callback]:
    """What a run of one seed alone would call: the configured callbacks, its checkpoints, and its record."""
    own = [callback for callback in _callbacks(part) if not isinstance(callback, _SHARED)]
    if part.config.trainer.enable_checkpointing is not False and not any(isinstance(c, Checkpoint) for c in own):
        own.append(part.built.checkpoint)
    if part.config.trainer.fast_dev_run:
        return own
    return [*own, CalibrationReport(), RecordRun(parser, part.config, save_to_log_dir=False)]


def seeds_to_go_on_with(seeds: list[int], ckpt_path: str | None) -> list[int]:
    """``seeds``, or those of them that were still running in the checkpoint to go on from.

    Raises:
        UsageError: the checkpoint is that of one seed, or of others, or its run began without some of them.
    """
    if ckpt_path is None:
        return seeds
    content = read_checkpoint(ckpt_path)
    saved = content.get(SEEDS_KEY)
    if saved is None:
        raise UsageError(f"checkpoint '{ckpt_path}' is that of one seed; go on with it without seeds")
    if not set(saved) <= set(seeds):
        raise UsageError(f"checkpoint '{ckpt_path}' holds the seeds {compact_seeds(saved)}, not {compact_seeds(seeds)}")
    began = parse_seeds((yaml.safe_load(content.get(CONFIG_KEY, "")) or {}).get("seeds") or list(saved))
    new = set(seeds) - set(began)
    if new:
        raise UsageError(
            f"checkpoint '{ckpt_path}' is of the seeds {compact_seeds(began)}; the run of {compact_seeds(list(new))} "
            "has to begin by itself"
        )
    return list(saved)


def _callbacks(part: SeedParts) -> list[Callback]:
    given = part.built.trainer.callbacks or []
    return given if isinstance(given, list) else [given]
