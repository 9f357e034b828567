"""Trained agents back from a run or a checkpoint, built from the config that the checkpoint carries."""

from __future__ import annotations

import copy
import inspect
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium
import lightning as L

from dsob_pl.cli.config_files import parse
from dsob_pl.cli.foreign import denied, importing_only, parts_named
from dsob_pl.envs import in_units_of
from dsob_pl.errors import UsageError, nearest
from dsob_pl.seeds import compact_seeds
from dsob_pl.tracking.journal import UPLOADS
from dsob_pl.tracking.store import (
    ARTIFACT_LOCATION,
    PARENT_TAG,
    all_runs,
    checkpoint_folder,
    database_path,
    reading,
    resolve_tracking_uri,
)
from dsob_pl.training.checkpoint_file import (
    OWNER_KEY,
    SEEDS_KEY,
    SIZES_KEY,
    check_fits,
    checkpoint_config,
    read_checkpoint,
)

Which = Literal["best", "last"]
_ARTIFACTS = Path(ARTIFACT_LOCATION)


class LoadedAgent(NamedTuple):
    """An agent in evaluation mode, the config of its run, its observation and action sizes, and its checkpoint."""

    agent: Any
    config: dict[str, Any]
    sizes: dict[str, int]
    path: Path


def load_agent(source: str | Path, which: Which = "best", tracking_uri: str | None = None, device: str = "cpu") -> Any:
    """The agent of a run, ready to act: ``agent.act(observation [..., S]) -> action [..., A]``.

    ``agent.value_distribution(observation, action, n)`` is what it predicts of the return and its gradients.

    Args:
        source: id of a run, the beginning of one, or the path of a checkpoint.
        which: best or last checkpoint of the run.
        tracking_uri: where the run is recorded; None means MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.
        device: where the agent is put.

    Raises:
        UsageError: there is no such run or checkpoint, it does not fit the code at hand, or it holds many seeds.
    """
    return load(source, which, tracking_uri, device).agent


def load(
    source: str | Path, which: Which = "best", tracking_uri: str | None = None, device: str = "cpu"
) -> LoadedAgent:
    """``load_agent``, with the config of the run and the checkpoint's path."""
    path = Path(source)
    if path.suffix != ".ckpt" and not path.is_file():
        path = run_checkpoint(str(source), which, tracking_uri)
    return load_checkpoint(path, tracking_uri, device)


def load_source(options: Namespace, device: str = "cpu") -> LoadedAgent:
    """``load`` of what the options of ``add_source`` name: a run, or a file, which is never taken for one."""
    if options.run is not None:
        path = run_checkpoint(options.run, options.which, options.tracking_uri)
    elif options.ckpt:
        path = Path(options.ckpt)
    else:
        raise UsageError("ckpt: expected the path of a checkpoint, got ''")
    return load_checkpoint(path, options.tracking_uri, device)


def load_checkpoint(path: Path, tracking_uri: str | None = None, device: str = "cpu") -> LoadedAgent:
    """``load`` of a file."""
    content = read_checkpoint(path)
    _refuse_many(content, path, tracking_uri)
    config = _config(content, path)
    sizes = content.get(SIZES_KEY, {})
    parts = parts_named({section: config[section] for section in ("model", "data")}, path)
    with importing_only(parts):
        agent = build_model(config["model"], sizes)
    check_fits(content, agent, path)
    agent.load_state_dict(content["state_dict"])
    return LoadedAgent(agent.to(device).eval(), config, sizes, path)


def _config(content: dict[str, Any], path: Path) -> dict[str, Any]:
    config = parse(checkpoint_config(content, path), f"config in checkpoint '{path}'")
    model = config.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("class_path"), str):
        raise UsageError(f"checkpoint '{path}' carries a config without a model")
    if not isinstance(config.get("data"), dict) or not isinstance(config["data"].get("env_id"), str):
        raise UsageError(f"checkpoint '{path}' carries a config without data.env_id")
    return config


def run_checkpoint(run: str, which: Which = "best", tracking_uri: str | None = None) -> Path:
    """The checkpoint of a run, by the run's id or the beginning of it.

    Raises:
        UsageError: there is no such run, more than one, it has no such checkpoint, or holds many seeds.
    """
    folder = _checkpoints_on_disk(run) if tracking_uri is None else None
    folder = folder or _checkpoints_in_store(run, resolve_tracking_uri(tracking_uri))
    path = folder / f"{which}.ckpt"
    if not path.is_file():
        there = sorted(path.parent.glob("*.ckpt"))
        for other in there:  # all seeds together have no best
            _refuse_many(read_checkpoint(other), other, tracking_uri)
        names = ", ".join(p.name for p in there)
        raise UsageError(f"run '{run}' has no checkpoint '{path.name}'; it has {names or 'none'}")
    owner = read_checkpoint(path).get(OWNER_KEY, run)
    if not owner.startswith(run):
        raise UsageError(f"'{path}' is of run '{owner}', which began later with the same checkpoint.dirpath")
    return path


def _refuse_many(content: dict[str, Any], path: Path, tracking_uri: str | None) -> None:
    """Raises UsageError for a checkpoint of many seeds; names the run of each where the store is at hand."""
    if SEEDS_KEY not in content:
        return
    seeds = compact_seeds(content[SEEDS_KEY])
    runs = _runs_under(path, resolve_tracking_uri(tracking_uri))
    known = f" ({', '.join(f'seed {seed}: {run[:8]}' for seed, run in runs)})" if runs else ""
    raise UsageError(f"checkpoint '{path}' holds the seeds {seeds} together; load the run of one of them{known}")


def _runs_under(path: Path, tracking_uri: str) -> list[tuple[int, str]]:
    """Seeds and ids of the runs under the one whose artifacts ``path`` belongs to; none without its store."""
    above = path.absolute().parents
    if len(above) < 3:
        return []
    run = above[1] if above[2].name == UPLOADS else above[2]  # RUN_ID/artifacts/checkpoints where MLflow keeps them
    runs = []
    with suppress(UsageError), reading(tracking_uri) as client:
        experiments = [e.experiment_id for e in client.search_experiments()]
        runs = all_runs(client, experiments, f"tags.`{PARENT_TAG}` = '{run.name}'")
    return sorted((int(r.data.tags["seed"]), r.info.run_id) for r in runs if r.data.tags.get("seed", "").isdigit())


def _checkpoints_on_disk(run: str) -> Path | None:
    """Those under ./mlruns: found without MLflow, which takes seconds, and where the folder has been moved."""
    if not run.isalnum():
        return None
    # The latter of those whose artifacts a server keeps. "uploads" may be the name of an experiment, too.
    uploads = [path for path in _ARTIFACTS.glob(f"{UPLOADS}/{run}*") if not (path / "artifacts").is_dir()]
    found = [*_ARTIFACTS.glob(f"*/{run}*/artifacts"), *uploads]
    folder = found[0] / "checkpoints" if len(found) == 1 else None
    return folder if folder is not None and any(folder.glob("*.ckpt")) else None


def _checkpoints_in_store(run: str, tracking_uri: str) -> Path:
    if not run:
        raise UsageError("run: expected the id of a run, or the beginning of one, got ''")
    database = database_path(tracking_uri)
    if database is not None and not database.is_file():
        raise UsageError(f"there is no run '{run}': no MLflow database '{database}'; run from the project's folder")
    with reading(tracking_uri) as client:
        experiments = [e.experiment_id for e in client.search_experiments()]
        runs = {r.info.run_id: r for r in all_runs(client, experiments)}
    matches = [name for name in runs if name.startswith(run)]
    if len(matches) != 1:
        reason = "is the beginning of several" if matches else f"is not in '{tracking_uri}'{nearest(run, runs)}"
        raise UsageError(f"run '{run}' {reason}")
    folder = checkpoint_folder(runs[matches[0]], _ARTIFACTS)
    if folder is None:
        place = runs[matches[0]].info.artifact_uri
        raise UsageError(f"run '{run}' has its artifacts at '{place}'; download its checkpoint, use --ckpt")
    return folder


def build_model(config: dict[str, Any], sizes: dict[str, int]) -> L.LightningModule:
    """The LightningModule of a config's ``model`` section, with the sizes that the data module would give it.

    Raises:
        UsageError: the config does not fit the class.
    """
    return model_factory(config, sizes)()


def model_factory(config: dict[str, Any], sizes: dict[str, int]) -> Callable[[], L.LightningModule]:
    """Builds the same as ``build_model`` as often as it is called; to read the config takes longer than to build.

    Raises:
        UsageError: the config does not fit the class.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    from dsob_pl.cli.diagnose import causes
    from dsob_pl.cli.parts import find_part

    part = find_part(config["class_path"], "model.class_path")
    accepted = inspect.signature(part).parameters
    arguments = {**(config.get("init_args") or {}), **{k: v for k, v in sizes.items() if k in accepted}}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(L.LightningModule, "model", fail_untyped=False)
    refused = f"the checkpoint's config does not fit this version of '{config['class_path']}'"
    try:
        parsed = parser.parse_object({"model": {**config, "init_args": arguments}})
    except (ArgumentError, TypeError, ValueError, ImportError) as error:
        if (path := denied(error)) is not None:
            raise UsageError(f"the checkpoint's config names '{path}', which is not called") from error
        raise UsageError(f"{refused}: {' '.join(str(error).split())[:300]}") from error

    def build() -> L.LightningModule:
        try:
            return parser.instantiate(parsed).model
        except (TypeError, ValueError) as error:
            reason = next((link for link in causes(error) if isinstance(link, UsageError)), error)
            raise UsageError(f"{refused}: {' '.join(str(reason).split())[:300]}") from error

    return build


def evaluation_env_kwargs(data: dict[str, Any]) -> dict[str, Any] | None:
    """Arguments of the environment in which a run was judged, from its config's ``data``."""
    from dsob_pl.data.datamodule import evaluation_kwargs

    return evaluation_kwargs(data.get("env_kwargs"), data.get("evaluation_env_kwargs"))


def build_noise(config: dict[str, Any], own_env: bool = True) -> list[Callable[[gymnasium.Env], gymnasium.Env]]:
    """The wrappers of a config's ``data.noise`` as its evaluations have them, none where it has none.

    Args:
        config: of a run.
        own_env: they are for the environment of the run, not for another.

    Raises:
        UsageError: a class that is not there any more, or that takes other arguments.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    from dsob_pl.cli.parts import check_part

    given = copy.deepcopy((config.get("data") or {}).get("noise") or [])  # the parser writes into what it is given
    check_part(given, "data.noise", {})
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--noise", type=list[Callable[[gymnasium.Env], gymnasium.Env]])
    try:
        with importing_only(parts_named({"data": {"noise": given}}, "config")):
            noise = parser.instantiate(parser.parse_object({"noise": given})).noise
    except UsageError:
        raise
    except (ArgumentError, TypeError, ValueError, ImportError) as error:
        raise UsageError(
            f"the checkpoint's data.noise cannot be built: {' '.join(str(error).split())[:300]}"
        ) from error
    data = config.get("data") or {}
    return in_units_of(noise, data.get("env_kwargs")) if own_env and data.get("evaluation_env_kwargs") else noise
