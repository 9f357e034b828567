"""The notebooks run from top to bottom."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def execute(name, monkeypatch, **environment):
    for key, value in environment.items():
        monkeypatch.setenv(key, str(value))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS.parent))
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    return NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()


@pytest.mark.timeout(280)
def test_quickstart(monkeypatch, tmp_path):
    done = execute("01_quickstart.ipynb", monkeypatch, QUICKSTART_FOLDER=tmp_path, QUICKSTART_STEPS=500)
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
    assert any("FINISHED" in output.get("data", {}).get("text/plain", "") for output in outputs)
    assert (tmp_path / "mlflow.db").is_file()


def test_notebooks_are_stored_without_output():
    for path in NOTEBOOKS.glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), path.name
