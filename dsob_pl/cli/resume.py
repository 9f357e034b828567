"""Going on with a run: which checkpoint ``--ckpt_path last`` means, whether it is undamaged, and whose run it is."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.plugins.environments import SLURMEnvironment

from dsob_pl.data.on_disk import files_are_whole
from dsob_pl.errors import UsageError, nearest
from dsob_pl.files import is_whole
from dsob_pl.seeds import compact_seeds
from dsob_pl.tracking import MLflowLogger
from dsob_pl.tracking.moved import check_not_moved
from dsob_pl.tracking.record import run_names
from dsob_pl.tracking.store import (
    ARTIFACT_LOCATION,
    PARENT_TAG,
    SUPERSEDED_TAG,
    all_runs,
    checkpoint_folder,
    database_path,
    mlflow_client,
    reading,
    resolve_tracking_uri,
)
from dsob_pl.training.checkpoint_file import CONFIG_KEY, FORMAT_KEY, FORMAT_VERSION, RUN_KEY, SEEDS_KEY, read_checkpoint

LAST = "last"
_LAST_FILE, _SPARE_FILE = "last.ckpt", "previous.ckpt"
_DATA_KEYS = ("ReplayDataModule", "ManySeedsData")


def checkpoint_to_go_on_from(config: dict[str, Any], overlays: list[str], seeds: Sequence[int]) -> str | None:
    """The file that ``ckpt_path`` means, or the one before it where that one is damaged; None where none is asked for.

    Args:
        config: of the subcommand, as plain dictionaries.
        overlays: stems of the config files after the first.
        seeds: those of a run of many.

    Raises:
        UsageError: there is none, or it is damaged and so is the one before.
    """
    asked = config.get("ckpt_path")
    if asked is None:
        return None
    if not str(asked).strip():
        raise UsageError("ckpt_path: expected the path of a checkpoint, last or null, got ''")
    path = _last_of_run(config, overlays, seeds) if asked == LAST else Path(asked)
    return str(_undamaged(path))


def _undamaged(path: Path) -> Path:
    reason = _damage(path)
    if reason is None:
        return path
    spare = path.with_name(_SPARE_FILE)
    if path.name != _LAST_FILE or not spare.is_file() or _damage(spare) is not None:
        raise UsageError(reason)
    print(f"dsob_pl: {reason}; going on from the one before, '{spare}'", file=sys.stderr)
    return spare


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None where nothing is."""
    if not path.is_file():
        try:
            read_checkpoint(path)
        except UsageError as error:
            return str(error)
    if not is_whole(path):
        return f"checkpoint '{path}' is damaged or not a checkpoint"
    content = read_checkpoint(path)
    for key in _DATA_KEYS:
        if not files_are_whole(content.get(key, {}), path):
            return f"the replay files of checkpoint '{path}' are missing or damaged"
    return None


def check_format(content: dict[str, Any], path: str) -> None:
    """Raises UsageError for a checkpoint that does not hold all that a run goes on with."""
    written = content.get(FORMAT_KEY, FORMAT_VERSION)
    if written < FORMAT_VERSION:
        raise UsageError(
            f"checkpoint '{path}' has format {written}, whose runs cannot be gone on with by this version (format "
            f"{FORMAT_VERSION}); evaluate can still load it"
        )
    if written > FORMAT_VERSION:
        raise UsageError(f"checkpoint '{path}' has format {written}, this version of dsob_pl reads {FORMAT_VERSION}")


def check_one_seed(content: dict[str, Any], path: str) -> None:
    """Raises UsageError for a checkpoint that holds many seeds."""
    if SEEDS_KEY in content:
        saved = compact_seeds(content[SEEDS_KEY])
        raise UsageError(
            f"checkpoint '{path}' is of many seeds; go on with it by fit --seeds {saved}, or give one of a single seed"
        )


def check_optimizers_fit(content: dict[str, Any], model: L.LightningModule, path: str) -> None:
    """Raises UsageError where a checkpoint's optimizers have other parameters than the configured ones."""
    built: Any = model.configure_optimizers()
    own = built[0] if isinstance(built, tuple) else built
    saved = content.get("optimizer_states", [])
    sizes = [[len(group["params"]) for group in optimizer.param_groups] for optimizer in own]
    if [[len(group["params"]) for group in state["param_groups"]] for state in saved] != sizes:
        raise UsageError(f"checkpoint '{path}' was written with other optimizers than those configured")


def slurm_folder(arguments: Sequence[str]) -> Path | None:
    """Where Lightning is to save when SLURM has this job requeued, and to look when it begins again.

    A folder of the job and the command line: by itself Lightning goes on from the newest such file of the current
    folder, whichever job has left it there. None without SLURM.
    """
    if not SLURMEnvironment.detect():
        return None
    command = hashlib.sha256("\0".join(arguments).encode()).hexdigest()[:8]
    return Path("runs") / "slurm" / f"{os.environ.get('SLURM_JOB_ID', 'job')}-{command}"


def requeued_checkpoint(trainer: L.Trainer) -> str | None:
    """What Lightning saved when SLURM had the job requeued, and goes on from where no checkpoint is given."""
    if not SLURMEnvironment.detect():
        return None
    return trainer._checkpoint_connector._hpc_resume_path


def join_run(logger: MLflowLogger, content: dict[str, Any], path: str, requeued: bool = False) -> None:
    """Has the logger go on with the run of the checkpoint, if it is in its store and the file in its folder.

    One of a requeued job lies elsewhere, and is of the same run all the same.
    """
    run_id = content.get(RUN_KEY)
    database = database_path(logger.tracking_uri)
    if not run_id or (database is not None and not database.is_file()):
        return
    from mlflow.exceptions import MlflowException

    try:
        run = mlflow_client(logger.tracking_uri).get_run(run_id)
    except MlflowException:
        return
    folder = checkpoint_folder(run, logger.artifact_location)
    if requeued or (folder is not None and Path(path).resolve().parent == folder.resolve()):
        logger.go_on_with(run_id)


def resume_command(command: str, arguments: Sequence[str], checkpoint: str) -> str:
    """The command that goes on from a checkpoint, as one would type it."""
    words, skip = [], False
    for word in arguments:
        if not skip and not word.startswith("--ckpt_path="):
            skip = word == "--ckpt_path"
            words += [] if skip else [word]
        else:
            skip = False
    return " ".join(["python -m dsob_pl", command, *map(shlex.quote, words), f"--ckpt_path={shlex.quote(checkpoint)}"])


# With which settings --------------------------------------------------------------------------------------------------

# The Trainer's options are about how long and how often.
_LEARNED = ("model", "data", "seed_everything")
_FREE = {"model.init_args.compile"}
_TOLD = 3
_HANDED_ON = {"env_kwargs", "evaluation_env_kwargs", "dict_kwargs"}  # their keys are no options of this package


def changed_settings(content: dict[str, Any], config: dict[str, Any]) -> str:
    """What is learned, and from what, otherwise than in the run that wrote a checkpoint; "" where nothing is.

    Args:
        content: of the checkpoint.
        config: of the subcommand, as plain dictionaries.
    """
    try:
        before = yaml.safe_load(content.get(CONFIG_KEY, "")) or {}
    except yaml.YAMLError:
        return ""
    changed = [
        f"{key} {_short(old)} -> {_short(new)}"
        for part in _LEARNED
        if part in before  # a run of many seeds has no seed of its own
        for key, old, new in _differences(before[part], config[part], part)
        if key not in _FREE
    ]
    more = [f"and {len(changed) - _TOLD} more"] if len(changed) > _TOLD else []
    return ", ".join(changed[:_TOLD] + more)


def _differences(before: Any, now: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, old and new value. A key that one side lacks is an option of another version, and none of them.

    Among arguments that are handed on to an environment, or to a part of a reader's own, it is one of them.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        handed_on = not _HANDED_ON.isdisjoint(key.split("."))
        for name in {**before, **now}:
            if handed_on or (name in before and name in now):
                yield from _differences(before.get(name), now.get(name), f"{key}.{name}")
    elif before != now:
        yield key, before, now


def _short(value: Any) -> str:
    return "null" if value is None else str(value)[:60]


# Which run ``last`` means ---------------------------------------------------------------------------------------------


def _last_of_run(config: dict[str, Any], overlays: list[str], seeds: Sequence[int]) -> Path:
    """The last checkpoint of the newest run that this command would have started.

    Without MLflow a run has no name, and it is the newest in the folders of this command with the same environment.
    """
    given = config["trainer"].get("logger")
    loggers = [entry for entry in (given if isinstance(given, list) else [given]) if isinstance(entry, dict)]
    experiment, name = run_names(config, overlays, seeds)
    for entry in loggers:
        arguments = entry.get("init_args") or {}
        if str(entry.get("class_path", "")).endswith(MLflowLogger.__name__):
            return _last_in_mlflow(
                arguments.get("tracking_uri"),
                arguments.get("experiment_name") or experiment,
                arguments.get("run_name") or name,
                Path(arguments.get("artifact_location") or ARTIFACT_LOCATION).absolute(),
            )
    folders = [Path(folder) for folder in [(config.get("checkpoint") or {}).get("dirpath")] if folder]
    start = Path(config["trainer"].get("default_root_dir") or ".")
    if not loggers:
        folders += [*start.glob("checkpoints*"), *start.glob("lightning_logs/version_*/checkpoints*")]
    for entry in loggers:
        arguments = entry.get("init_args") or {}
        root = Path(arguments.get("save_dir") or ".") / (arguments.get("name") or "lightning_logs")
        folders += root.glob("version_*/checkpoints*")
    found = [folder / _LAST_FILE for folder in folders if (folder / _LAST_FILE).is_file()]
    found = [path for path in found if _environment_of(path) in (None, experiment)]
    if not found:
        raise UsageError("ckpt_path: 'last': there is no last.ckpt of an earlier run; give the path of a checkpoint")
    return max(found, key=lambda path: path.stat().st_mtime)


def _environment_of(path: Path) -> str | None:
    """The environment of the run that wrote a checkpoint; None where that cannot be read."""
    try:
        config = yaml.safe_load(read_checkpoint(path).get(CONFIG_KEY, ""))
        return str(config["data"]["env_id"])
    except (UsageError, yaml.YAMLError, TypeError, KeyError):
        return None


def _last_in_mlflow(tracking_uri: str | None, experiment: str, name: str, artifacts: Path) -> Path:
    uri = resolve_tracking_uri(tracking_uri)
    database = database_path(uri)
    if database is not None and not database.is_file():
        raise UsageError(f"ckpt_path: 'last': there is no MLflow database '{database}'; run from the project's folder")
    check_not_moved(uri, artifacts)
    with reading(uri) as client:
        found = client.get_experiment_by_name(experiment)
        runs = [] if found is None else all_runs(client, [found.experiment_id])
    own = [run for run in runs if run.data.tags.get(SUPERSEDED_TAG) != "true" and PARENT_TAG not in run.data.tags]
    for run in sorted((r for r in own if r.info.run_name == name), key=lambda r: -r.info.start_time):
        folder = checkpoint_folder(run, artifacts)
        for file in (_LAST_FILE, _SPARE_FILE):
            if folder is not None and (folder / file).is_file():
                return folder / file
    hint = nearest(name, {run.info.run_name for run in own} - {name})
    raise UsageError(f"ckpt_path: 'last': no run '{name}' of experiment '{experiment}' has a checkpoint{hint}")
