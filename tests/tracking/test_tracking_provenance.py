from __future__ import annotations

import subprocess
from pathlib import Path

from dsob_pl.tracking.provenance import flatten, git_tags, version_tags
from dsob_pl.tracking.record import run_names


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_git_tags_of_a_clean_a_changed_and_an_untracked_tree(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert git_tags(package) == {}  # no repository
    git(tmp_path, "init")
    (tmp_path / "other").write_text("")
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "-m", "m")
    assert git_tags(package) == {}  # somebody else's repository
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "m")
    head = git(tmp_path, "rev-parse", "HEAD").strip()
    assert git_tags(package) == {"mlflow.source.git.commit": head, "git.dirty": "false"}
    (package / "__init__.py").write_text("x = 1")
    assert git_tags(package)["git.dirty"] == "true"


def test_versions() -> None:
    tags = version_tags()
    assert {"version.python", "version.dsob_pl", "version.torch", "version.lightning"} <= set(tags)


def test_flatten_names_parts_by_their_class() -> None:
    config = {
        "model": {"class_path": "a.B", "init_args": {"critic": {"class_path": "c.D", "init_args": {"hidden": [3]}}}},
        "data": {"env_id": "E", "env_kwargs": {}},
    }
    assert dict(flatten(config)) == {
        "model": "a.B",
        "model.critic": "c.D",
        "model.critic.hidden": [3],
        "data.env_id": "E",
        "data.env_kwargs": {},
    }


def test_run_names() -> None:
    config = {"model": {"class_path": "a.Agent"}, "data": {"env_id": "E-v0"}, "seed_everything": 3}
    assert run_names(config, []) == ("E-v0", "Agent-E-v0-3")
    assert run_names(config, ["mmd", "noise"]) == ("E-v0", "mmd+noise-E-v0-3")
    assert run_names(config, ["mmd"], [9, 0, 1, 2]) == ("E-v0", "mmd-E-v0-seeds-0-2,9")
