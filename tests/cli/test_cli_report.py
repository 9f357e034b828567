"""``report``: a page, figures and tables from a suite in MLflow, also from a real fit of many seeds."""

from __future__ import annotations

import json
import time

import pytest
from suites import Suite

from dsob_pl.analysis import read_csv, read_suite
from dsob_pl.cli import doctor, main, report, sweep
from dsob_pl.cli.report import parser

SCORE = "eval/normalized_score"


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    suite = Suite(tmp_path_factory.mktemp("suite"))
    cells = [f"{task}/{method}/none" for task in ("summit", "jack") for method in ("td3", "mage", "mmd")]
    suite.grid(cells)
    for place, cell in enumerate(cells[:-1]):
        suite.cell(cell, {seed: {SCORE: [0.1, 0.2, 0.15 * place + 0.01 * seed]} for seed in range(3)})
    Suite(suite.folder, "empty")
    return suite


@pytest.fixture
def options(suite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DSOB_PL_TRACEBACK", raising=False)
    return ["report", "--suite", "tiny", "--out", "out", "--tracking_uri", suite.uri]


def test_report_writes_page_tables_and_figures(options, tmp_path, capfd):
    assert main(options) == 0
    said = capfd.readouterr().out
    assert "page: out/report.html" in said
    assert "missing: jack/mmd/none" in said
    assert "not on jack" in said
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "cells.csv",
        "curves.csv",
        "figures",
        "finals.csv",
        "report.html",
    ]
    pictures = {p.name for p in (tmp_path / "out" / "figures").glob("*.png")}
    assert pictures >= {"aggregates_none.png", "profiles_none.png", "finals_none.png", "ranks.png", "improvement.png"}
    assert pictures >= {"curves_summit,none.png", "curves_jack,none.png"}
    # The same page from its tables, without MLflow, over what is there.
    first = (tmp_path / "out" / "report.html").read_text()
    assert main(["report", "--from_csv", "out", "--out", "out"]) == 0
    assert (tmp_path / "out" / "report.html").read_text() == first
    assert main(["report", "--from_csv", "out", "out", "--out", "twice"]) == 0
    assert (tmp_path / "twice" / "report.html").read_text() == first
    for option in ("--from_csv", "--only", "--config"):  # each may be given several times, as --config of fit
        of = {"--from_csv": report.parser, "--only": sweep.parser, "--config": doctor.parser}[option]()
        actions = [action for action in of._actions if option in action.option_strings]
        assert [type(action).__name__ for action in actions] == ["_ExtendAction"]
    assert main(["report", "--from_csv", "nowhere", "--from_csv", "out", "--out", "twice"]) == 2
    assert "nowhere" in capfd.readouterr().err
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("mlflow")] == []


# options that replace or join the good ones, fragments of the line
CASES = {
    "suite": (["--suite=tny"], ["there is no suite 'tny'", "did you mean 'tiny'"]),
    "suite without runs": (["--suite=empty"], ["suite 'empty' has no runs"]),
    "store": (["--tracking_uri=sqlite:///no.db"], ["there is no MLflow database", "no.db"]),
    "store without a scheme": (["--tracking_uri=no.db"], ["tracking_uri", "sqlite:///mlflow.db", "'no.db'"]),
    "against": (["--against=maeg"], ["against: there is no method 'maeg'", "did you mean 'mage'"]),
    "score": (["--score=eval/normalised_score"], ["no run has the metric", f"did you mean '{SCORE}'"]),
    "out under a file": (["--out=file/out"], ["out: 'file' is a file"]),
    "out not writable": (["--out=/proc/out"], ["out: cannot write to the folder '/proc'"]),
    "option": (["--sute=tiny"], ["unknown option '--sute=tiny'", "'--suite'"]),
    "no such tables": (["--from_csv=nowhere"], ["there is no file 'nowhere/curves.csv'"]),
    "no value": (["--out"], ["report:", "--out"]),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_gets_one_line_and_creates_nothing(name, options, tmp_path, capfd):
    more, fragments = CASES[name]
    (tmp_path / "file").write_text("")
    assert main([*options, *more]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    assert all(fragment in err for fragment in fragments), err
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_neither_suite_nor_tables(capfd):
    assert main(["report", "--out", "x"]) == 2
    assert "expected --suite NAME or --from_csv DIR" in capfd.readouterr().err
    assert main(["report", "--suite", "x"]) == 2
    assert "--out" in capfd.readouterr().err


def test_help_is_there_at_once(capfd):
    start = time.perf_counter()
    assert main(["report", "--help"]) == 0
    assert time.perf_counter() - start < 0.5
    said = capfd.readouterr().out
    assert all(name in said for action in parser()._actions for name in action.option_strings)


def test_what_a_real_fit_of_many_seeds_records_is_read(suite, project, monkeypatch, capfd):
    suite = Suite(suite.folder, "real", score=None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", suite.uri)
    cell = "inverted_pendulum/mmd/none"
    suite.grid([cell], seeds="0-1")
    tags = {"suite": "real", "cell": cell, "mlflow.parentRunId": suite.run.info.run_id}
    tags |= dict(zip(("task", "method", "noise"), cell.split("/")))
    logger = ["--trainer.logger=dsob_pl.tracking.MLflowLogger", "--trainer.logger.experiment_name=real"]
    logger += [f"--trainer.logger.tags={json.dumps(tags)}"]
    sizes = ["--trainer.max_steps=14", "--trainer.val_check_interval=7", "--data.warmup_steps=6"]
    sizes += ["--trainer.log_every_n_steps=7", "--data.env_kwargs.max_episode_steps=5", "--data.evaluation_episodes=1"]
    assert main(["fit", "--config", "base.yaml", *sizes, *logger, "--seeds", "0-1"]) == 0
    results = read_suite("real")
    assert results.score == "eval/return_mean"
    assert list(results.finals["seed"]) == [0, 1]
    assert set(results.finals["status"]) == {"FINISHED"}
    assert list(results.curves["environment_step"]) == [7, 14, 7, 14]
    final = results.finals.iloc[0]
    assert final["updates"] == 14 - 6
    assert (final["environment_step"], final["steps"]) == (14, 14)
    assert final["gamma_kappa"] > 0
    assert len(final["commit"]) == 40
    own = results.cells.iloc[0]
    assert own["state"] == "complete"
    assert (own["targets"], own["draws"], own["gradients"]) == ("imagined by CVAE", "2", "action")
    assert own["pessimism"] == "Truncation 0.1"
    assert "mlflow" in own["versions"]
    assert main(["report", "--suite", "real", "--out", "out"]) == 0
    assert read_csv("out").suite == "real"
    assert "eval/return_mean, IQM over tasks and seeds" in capfd.readouterr().out
