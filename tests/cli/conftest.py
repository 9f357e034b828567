from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_project import BASE, Finished, command, environment


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    (folder / "base.yaml").write_text(BASE)
    processes = [
        subprocess.Popen(
            command("fit", "--config", "base.yaml", f"--seed_everything={seed}"),
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in (0, 1)
    ]
    outputs = []
    for process in processes:
        out, err = process.communicate(timeout=200)
        outputs.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return Finished(folder, outputs)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, with a small base.yaml."""
    (tmp_path / "base.yaml").write_text(BASE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("DSOB_PL_TRACEBACK", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture
def untouched(project: Path) -> Callable[[], bool]:
    """Whether no run has left a trace in the project."""
    return lambda: not any((project / name).exists() for name in ("mlflow.db", "mlruns", "mlflow.db.lock"))
