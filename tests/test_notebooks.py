"""The notebooks run from top to bottom."""

import importlib
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import yaml
from nbclient import NotebookClient
from suites import tables

from dsob_pl.analysis import to_csv
from dsob_pl.cli import main
from dsob_pl.envs import make_env, run_episodes

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def execute(name, monkeypatch, **environment):
    for key, value in environment.items():
        monkeypatch.setenv(key, str(value))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS.parent))
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    return NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()


def outputs_of(done):
    return [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]


def pictures_of(done):
    return [output for output in outputs_of(done) if "image/png" in output.get("data", {})]


def printed_by(done):
    return "".join(output.text for output in outputs_of(done) if output.get("name") == "stdout")


def row_of(text, label, end=None):
    """The numbers after ``label`` in its line of a printed table."""
    (line,) = [line for line in text.splitlines() if label in line and (end is None or end in line)]
    return [float(number) for number in re.findall(r"-?\d+\.\d+", line.partition(label)[2])]


def test_every_cell_of_the_calibration_study_is_a_config(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(NOTEBOOKS))
    study = importlib.import_module("calibration_study")
    file, pessimism = tmp_path / "cell.yaml", {}
    for cell, overlay in study.CELLS.items():
        file.write_text(yaml.safe_dump(overlay or {"threads": 1}))
        files = [f"--config={NOTEBOOKS.parent / 'conf' / 'pendulum.yaml'}", f"--config={file}"]
        assert main(["fit", *files, "--print_config"]) == 0, cell
        printed = yaml.safe_load(capsys.readouterr().out)
        pessimism[cell] = printed["model"]["init_args"]["overestimation"]["class_path"].rpartition(".")[2]
    assert pessimism["default"] == pessimism["adapting from the start"] == "AdaptivePessimism"
    assert pessimism["no pessimism"] == "NoCorrection"


@pytest.mark.parametrize("task", ["InvertedPendulum-v5", "Pendulum-v1"])
def test_the_slope_study_measures_the_returns_of_whole_episodes(monkeypatch, task):
    monkeypatch.syspath_prepend(str(NOTEBOOKS))
    study = importlib.import_module("slope_study")

    def act(observations):
        return np.tanh(observations[:, :1] - observations[:, -1:]).astype(np.float32)

    envs = [make_env(task) for _ in range(3)]
    simulator = study.Simulator(envs)
    for i, env in enumerate(envs):
        env.reset(seed=i)
    states = np.stack([simulator.state(i) for i in range(3)])
    first = np.stack([simulator.place(i, state) for i, state in enumerate(states)])
    found = simulator.returns(states, act(first), act, 0.98)
    episodes = run_episodes(envs, lambda s: torch.from_numpy(act(s.numpy())), range(3), 0.98)
    assert np.allclose(found, episodes.discounted_returns.numpy(), rtol=1e-5)  # no rollout is longer than HORIZON
    assert len(set(found)) > 1
    # Each chunk of rollouts begins anew, and only the first action is given.
    twice = simulator.returns(np.tile(states, (2, 1)), np.concatenate([act(first), -act(first)]), act, 0.98)
    assert np.array_equal(twice[:3], found)
    assert not np.array_equal(twice[3:], found)


def test_the_slope_study_compares_directions_and_sizes(monkeypatch):
    monkeypatch.syspath_prepend(str(NOTEBOOKS))
    compared = importlib.import_module("slope_study").compared
    true = np.array([[3.0, 0.0], [0.0, 4.0]])
    assert compared("state", -2 * true, true) == pytest.approx({"state_cosine": -1.0, "state_size": 2.0})
    assert compared("action", np.array([[4.0, 0.0], [0.0, -3.0]]), true)["action_cosine"] == pytest.approx(0.0)


@pytest.mark.timeout(280)
def test_quickstart(monkeypatch, tmp_path):
    done = execute("01_quickstart.ipynb", monkeypatch, QUICKSTART_FOLDER=tmp_path, QUICKSTART_STEPS=500)
    assert len(pictures_of(done)) == 2
    assert any("FINISHED" in output.get("data", {}).get("text/plain", "") for output in outputs_of(done))
    assert (tmp_path / "mlflow.db").is_file()


@pytest.mark.timeout(280)
def test_ground_truth(monkeypatch, tmp_path):
    sizes = {"GROUND_TRUTH_STEPS": 8, "GROUND_TRUTH_LOCATIONS": "1 5"}
    done = execute("02_ground_truth.ipynb", monkeypatch, GROUND_TRUTH_FOLDER=tmp_path, **sizes)
    text = printed_by(done)
    for n in (1, 5):
        assert row_of(text, f"N = {n}   MMD Sobolev ")[1] > 0
        # energy distance, gradient spread, conditional gradient error, return spread: a point has no spread
        assert row_of(text, f"N = {n}   deterministic Sobolev ")[1] == 0
    assert len(pictures_of(done)) == 1
    assert (tmp_path / "ground_truth.png").is_file()


@pytest.mark.timeout(280)
def test_compare(monkeypatch, tmp_path):
    to_csv(tables(noises=("none", "observation"), without=[("jack", "mmd")]), tmp_path / "made")
    done = execute("03_compare.ipynb", monkeypatch, COMPARE_FOLDER=tmp_path)
    text = printed_by(done)
    assert "missing: jack/mmd/none, seeds 0-3" in text
    assert row_of(text, "msmmd_sobolev ", "IQM")[0] == 0.93
    assert row_of(text, "P(msmmd_sobolev > mage)")[0] == 1.0
    assert "separated: True" in text
    assert len(pictures_of(done)) == 2 * 2 + 2 + 2 + 2


@pytest.mark.timeout(280)
def test_contraction(monkeypatch, tmp_path):
    sizes = {"CONTRACTION_STEPS": 2, "CONTRACTION_RATES": "0.9 1.15"}
    done = execute("04_contraction.ipynb", monkeypatch, CONTRACTION_FOLDER=tmp_path, **sizes)
    text = printed_by(done)
    # gamma rho, and gamma kappa = gamma sqrt(rho^2 + 1/4)
    assert row_of(text, "0.9  ", "MMD without")[:2] == [0.81, 0.927]
    assert row_of(text, "1.15  ", "MMD without")[:2] == [1.035, 1.129]
    assert row_of(text, "penalty 100 ")[0] < row_of(text, "penalty 10 ")[0]
    assert len(pictures_of(done)) == 4
    assert (tmp_path / "contraction.png").is_file()


@pytest.mark.timeout(280)
def test_estimators(monkeypatch, tmp_path):
    done = execute("05_estimators.ipynb", monkeypatch, ESTIMATORS_FOLDER=tmp_path, ESTIMATORS_STEPS=40)
    text = printed_by(done)
    one_step, bootstrapped = (row_of(text, "  biased, closed form", end) for end in ("0.952", "0.415"))
    assert one_step[3] == 0.825
    assert bootstrapped[3] == 0.537
    learned = [row_of(line, "learned") for line in text.splitlines() if "biased, learned" in line]
    assert learned[0][3] == pytest.approx(0.825, abs=0.03)
    assert learned[1][3] == pytest.approx(1.0, abs=0.03)
    assert row_of(text, "per transition           7")[0] > 0.5
    assert abs(row_of(text, "cross-fitted             7")[0]) < 0.02
    assert len(pictures_of(done)) == 1
    assert (tmp_path / "estimators.png").is_file()


def test_notebooks_are_stored_without_output():
    for path in NOTEBOOKS.glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), path.name


@pytest.mark.timeout(280)
def test_risk(monkeypatch, tmp_path):
    sizes = {"RISK_STEPS": 1020, "RISK_EPISODES": 2000, "RISK_RESOLUTION": 4, "RISK_BUDGETS": 60}
    done = execute("06_risk.ipynb", monkeypatch, RISK_FOLDER=tmp_path, **sizes)
    text = printed_by(done)
    (mean, tail, *_), (careful, careful_tail, *_) = (
        row_of(text, name) for name in ("best mean", "best CVaR of the episode")
    )
    assert mean > careful
    assert careful_tail > tail + 1
    assert len(text.splitlines()) == 5
    assert len(pictures_of(done)) == 1
    assert (tmp_path / "risk.png").is_file()
