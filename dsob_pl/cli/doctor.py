"""``doctor``: whether what a run needs is there, one line each, and what to do where it is not."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dsob_pl.cli.options import Parser
from dsob_pl.errors import UsageError

_RENDER_SECONDS = 60
_RENDER = """
import os
import gymnasium
from dsob_pl.envs.rendering import check_backend, choose_backend
choose_backend()
check_backend()
env = gymnasium.make("InvertedPendulum-v5", render_mode="rgb_array", width=64, height=64)
env.reset(seed=0)
assert env.render().shape == (64, 64, 3)
print(os.environ.get("MUJOCO_GL", "not set"))
"""
_NEEDED = ("torch", "lightning", "torchrl", "tensordict", "gymnasium", "mujoco", "numpy", "mlflow", "omegaconf")

State = Literal["ok", "warning", "problem"]


class Finding(NamedTuple):
    """What was found of one thing.

    Attributes:
        state: a run works; works but for something; does not work.
        subject: what was looked at.
        text: what was found and, where it is not ok, what to do.
    """

    state: State
    subject: str
    text: str


def parser() -> Parser:
    """The options of ``doctor``."""
    result = Parser(
        prog="python -m dsob_pl doctor",
        description="Looks at versions, devices, rendering, folders, the MLflow database and the room for the replay "
        "of a config; creates nothing. Exit code 0 where a run works, 1 where something is to be done.",
        allow_abbrev=False,
    )
    result.add_argument(
        "--config", metavar="FILE", nargs="+", default=[], action="extend", help="look at the replay of these, merged"
    )
    result.add_argument("--tracking_uri", metavar="URI", help="MLflow's (sqlite:///mlflow.db)")
    return result


def doctor(arguments: list[str]) -> int:
    """Runs the subcommand and returns its exit code.

    Raises:
        UsageError: bad options, or a config that cannot be read.
    """
    options = parser().read(arguments)
    if options is None:
        return 0
    data = _data_section(options.config)
    states = []
    looks: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": versions,
        "devices": devices,
        "rendering": rendering,
        "folders": folders,
        "MLflow": partial(database, options.tracking_uri),
        "config": partial(room, data),
    }
    for subject, look in looks.items():
        for finding in _looked(subject, look):
            states.append(finding.state)
            print(f"{finding.state:8} {finding.subject}: {finding.text}", flush=True)
    return 1 if "problem" in states else 0


def _looked(subject: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings; an error in looking is one."""
    try:
        yield from look()
    except UsageError as error:
        yield Finding("problem", subject, str(error))


def versions() -> Iterator[Finding]:
    """Of Python and the libraries that a run needs, against what this package asks for."""
    from packaging.requirements import Requirement

    python, requirements = _asked_for()
    asked = {}
    for requirement in map(Requirement, requirements):
        if requirement.marker is None:
            asked[requirement.name] = requirement.specifier
    yield _version("Python", platform.python_version(), Requirement(f"python{python}").specifier)
    for name in _NEEDED:
        try:
            yield _version(name, metadata.version(name), asked.get(name))
        except metadata.PackageNotFoundError:
            yield Finding("problem", name, "is not installed; pip install -e . installs it")


def _asked_for() -> tuple[str, list[str]]:
    """Versions of Python, and requirements: of the installed package, else of the source tree."""
    try:
        return metadata.metadata("dsob_pl")["Requires-Python"] or "", metadata.requires("dsob_pl") or []
    except metadata.PackageNotFoundError:
        file = Path(__file__).resolve().parents[2] / "pyproject.toml"
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"] if file.is_file() else {}
        return project.get("requires-python", ""), project.get("dependencies", [])


def _version(name: str, found: str, wanted: Any) -> Finding:
    if wanted is None or wanted.contains(found.partition("+")[0], prereleases=True):
        return Finding("ok", name, found)
    return Finding("problem", name, f"{found}, and {wanted} is needed; pip install -e . installs it")


def devices() -> Iterator[Finding]:
    """Processor and accelerators."""
    torch = importlib.import_module("torch")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("ok", "CPU", f"{cores} cores, torch uses {torch.get_num_threads()} threads (--threads)")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            name = torch.cuda.get_device_name(i)
            yield Finding("ok", f"GPU {i}", f"{name}, {free / 1e9:,.1f} of {total / 1e9:,.1f} GB free")
    elif torch.backends.mps.is_available():
        yield Finding("ok", "GPU", "of Apple, which has no float64; runs are on the CPU")
    else:
        yield Finding("ok", "GPU", "none that torch can use; runs are on the CPU")


def rendering() -> Iterator[Finding]:
    """One frame of MuJoCo, drawn in a process of its own: a driver that is missing may take its process with it."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _RENDER], capture_output=True, text=True, timeout=_RENDER_SECONDS
        )
    except subprocess.TimeoutExpired:
        reason = f"no frame within {_RENDER_SECONDS} s"
    else:
        if done.returncode == 0:
            yield Finding("ok", "rendering", f"a frame of MuJoCo was drawn (MUJOCO_GL {done.stdout.strip()})")
            return
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1][:250] if lines else f"the process ended with {done.returncode}"
    reason = reason.removeprefix("dsob_pl.errors.UsageError: ")
    backend = os.environ.get("MUJOCO_GL", "not set")
    advice = "MUJOCO_GL chooses between egl and osmesa; only --video needs frames"
    yield Finding("warning", "rendering", f"{reason} (MUJOCO_GL {backend}); {advice}")


def folders() -> Iterator[Finding]:
    """That runs can be written here."""
    from dsob_pl.tracking.store import ARTIFACT_LOCATION, check_writable

    for name in (".", ARTIFACT_LOCATION, "runs"):
        try:
            check_writable(Path(name).absolute())
        except UsageError as error:
            yield Finding("problem", f"folder '{name}'", str(error))
        else:
            yield Finding("ok", f"folder '{name}'", "can be written" if Path(name).exists() else "will be made")


def database(tracking_uri: str | None) -> Iterator[Finding]:
    """That MLflow's store is there, and takes what it is given."""
    from dsob_pl.tracking.moved import check_not_moved
    from dsob_pl.tracking.store import (
        ARTIFACT_LOCATION,
        all_runs,
        database_path,
        http_limits,
        mlflow_client,
        reason_of,
        resolve_tracking_uri,
    )

    uri = resolve_tracking_uri(tracking_uri)
    path = database_path(uri)
    if path is None and "://" not in uri:
        raise UsageError(f"tracking_uri: expected a uri such as sqlite:///mlflow.db, got '{uri}'")
    if path is not None and not path.exists():
        yield Finding("ok", "MLflow", f"'{path}' will be made by the first run")
        return
    if path is not None:
        problem = _sqlite_problem(path)
        if problem is not None:
            yield Finding("problem", "MLflow", problem)
            return
        check_not_moved(uri, Path(ARTIFACT_LOCATION).absolute())
    from mlflow.exceptions import MlflowException

    try:
        with http_limits(seconds=10, retries=1):
            client = mlflow_client(uri)
            experiments = [experiment.experiment_id for experiment in client.search_experiments()]
            count = len(all_runs(client, experiments))
    except MlflowException as error:
        yield Finding("problem", "MLflow", f"'{uri}' cannot be read: {reason_of(error)}")
        return
    yield Finding("ok", "MLflow", f"'{path or uri}' has {len(experiments)} experiments and {count} runs")


def _sqlite_problem(path: Path) -> str | None:
    """Why an sqlite database cannot be MLflow's, and what to do; None where it can."""
    from dsob_pl.tracking.store import MLFLOW_TABLES, database_problem, tables_of

    problem = database_problem(path)
    if problem is not None:
        advice = "end what holds it, or move the file away" if "lock" in problem else "move the file away"
        return f"{problem}; {advice}, or give another --tracking_uri"
    tables = tables_of(path)
    if tables and not tables >= MLFLOW_TABLES:
        return f"'{path}' is a database, but not MLflow's; give another --tracking_uri"
    return None


def room(data: dict[str, Any]) -> Iterator[Finding]:
    """Memory and disk for the replay of a config, or only what is free."""
    free = shutil.disk_usage(Path.cwd()).free
    if "env_id" not in data:
        yield Finding("ok", "disk", f"{free / 1e9:,.1f} GB free here; --config says whether the replay of a run fits")
        return
    from dsob_pl.envs import make_env

    env = make_env(str(data["env_id"]), env_kwargs=data.get("env_kwargs"))
    sizes = [int(space.shape[0]) for space in (env.observation_space, env.action_space)]  # type: ignore[index]
    env.close()
    capacity = _count(data.get("capacity", 1_000_000))
    # Two observations, an action and a reward in float32, two flags.
    needed = capacity * (4 * (2 * sizes[0] + sizes[1] + 1) + 2)
    what = f"a replay of {capacity:,} transitions of {data['env_id']} grows to {needed / 1e9:,.2f} GB"
    # Beside the segments of last.ckpt there are those of previous.ckpt that it no longer needs.
    for subject, available, factor in (("memory", _free_memory(), 1.0), ("disk", free, 1.2)):
        if available is None:
            continue
        enough = available >= factor * needed
        advice = "" if enough else "; lower data.capacity, or make room"
        yield Finding("ok" if enough else "problem", subject, f"{what}, {available / 1e9:,.1f} GB are free{advice}")


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"data.capacity: expected an integer of at least 1, got {value!r}")
    return value


def _free_memory() -> int | None:
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    match = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.M)
    return int(match[1]) * 1024 if match else None


def _data_section(files: list[str]) -> dict[str, Any]:
    from dsob_pl.cli.config_files import read_sources

    merged: dict[str, Any] = {}
    for source in read_sources([word for file in files for word in ("--config", file)]) if files else ():
        if "methods" in source.tree:
            raise UsageError(f"{source.label} is a suite; expected the config of a fit, such as those that it names")
        data = source.tree.get("data") or {}
        if not isinstance(data, dict):
            raise UsageError(f"{source.label}: data: expected options and their values, got {data!r}")
        merged |= data
    return merged
