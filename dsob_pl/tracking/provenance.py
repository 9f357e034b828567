"""Where a run comes from: git commit, package versions, the command, and its config as flat parameters."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGE_FOLDER = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "lightning", "torchrl", "tensordict", "gymnasium", "mujoco", "numpy", "mlflow")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(("git", "-C", folder, *arguments), capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def git_tags(folder: Path = PACKAGE_FOLDER) -> dict[str, str]:
    """Commit of the source tree that the package in ``folder`` belongs to and whether it has changes; else empty."""
    # An installed copy may lie inside somebody else's repository, whose commit would be a false statement.
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return {}
    commit, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--untracked-files=no")
    if commit is None:
        return {}
    return {"mlflow.source.git.commit": commit, "git.dirty": str(bool(changes)).lower()}


def version_tags() -> dict[str, str]:
    """Versions of Python, this package and the libraries that decide its numbers."""
    from dsob_pl import __version__

    tags = {"version.python": platform.python_version(), "version.dsob_pl": __version__}
    for package in PACKAGES:
        try:
            tags[f"version.{package}"] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return tags


def command_line() -> str:
    """The command that started this process, as one would type it."""
    program = sys.argv[0]
    if Path(program).name == "__main__.py":
        program = "python -m dsob_pl"
    return " ".join([program, *map(shlex.quote, sys.argv[1:])])


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a nested config as ``(dotted key, value)``.

    A part ``critic: {class_path: P, init_args: {k: v}}`` becomes ``critic = P`` and ``critic.k = v``.
    """
    for key, value in config.items():
        if key in ("init_args", "dict_kwargs") and isinstance(value, Mapping):
            yield from flatten(value, prefix)
        elif key == "class_path" and prefix:
            yield prefix, value
        elif isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
        else:
            yield (f"{prefix}.{key}" if prefix else str(key)), value
