"""Runs in MLflow become tidy tables: what counts, what is named, what is left out."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from suites import COMMIT, STEPS, Suite, command_of

from dsob_pl.analysis import read_csv, read_suite, to_csv
from dsob_pl.errors import UsageError

SCORE, RETURN, CLEAN = "eval/normalized_score", "eval/return_mean", "eval_clean/return_mean"
PARAMS = {
    "model.target_source": "imagined",
    "model.world_model": "dsob_pl.world_models.CVAE",
    "model.overestimation": "dsob_pl.bellman.Truncation",
    "model.overestimation.drop": 0.1,
    "model.samples": 10,
    "model.target_samples": None,
    "model.sobolev": "state_action",
    "model.divergence": "dsob_pl.divergences.MMD",
    "data.updates_per_step": 5,
    "data.warmup_steps": 100,
}
GRID = ["summit/td3/none", "summit/mage/none", "summit/mmd/none", "summit/mmd/observation", "jack/mmd/none"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A folder with a database for all suites: making one takes seconds."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def suite(store):
    """Of the grid: td3 with a diverged seed, mage without seed 2, mmd with seeds run twice, jack not at all."""
    suite = Suite(store)
    suite.grid(GRID)
    diverged = {SCORE: [0.3, 0.6], "bellman/gamma_kappa": [1.0, 9.5], "critic/loss": [1.0, 2.0, 3.0]}
    suite.cell("summit/td3/none", {0: {SCORE: [0, 0.2, 0.4]}, 1: diverged, 2: {SCORE: [0, 0.1, 0.2]}}, {1: "FAILED"})
    suite.cell("summit/mage/none", {s: {SCORE: [0, 0.5, 0.7]} for s in (0, 1)} | {2: {SCORE: [0.9]}}, {2: "RUNNING"})
    suite.cell("summit/mmd/none", {0: {SCORE: [8, 8]}}, {0: "RUNNING"})
    suite.cell("summit/mmd/none", {s: {SCORE: [0.1, 0.3, 0.8 + s / 100]} for s in range(3)}, params=PARAMS)
    noisy = {SCORE: [0.1, 0.2, 0.3], RETURN: [1, 2, 3.123456789], CLEAN: [2, 3, 4]}
    suite.cell("summit/mmd/observation", dict.fromkeys(range(3), noisy), params=PARAMS)
    # Given up later than those that count: named by the tag of the cell's run, or of the seeds' own.
    for marked in (slice(0, 1), slice(1, None)):
        for run in suite.cell("summit/mmd/none", {s: {SCORE: [9, 9, 9]} for s in range(3)})[marked]:
            suite.client.set_tag(run, "superseded", "true")
    suite.cell("extra/mmd/none", {0: {SCORE: [np.nan, 0.5, np.nan]}})
    return suite


@pytest.fixture(scope="module")
def results(suite):
    return read_suite("tiny", suite.uri)


def of(table, cell):
    task, method, noise = cell.split("/")
    return table[(table["task"] == task) & (table["method"] == method) & (table["noise"] == noise)]


def test_curves_have_one_row_for_each_evaluation(results):
    rows = of(results.curves, "summit/mmd/observation")
    assert list(rows["environment_step"]) == [*STEPS] * 3
    assert list(rows["seed"]) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert list(rows[CLEAN])[:3] == [2, 3, 4]
    assert set(results.curves["suite"]) == {"tiny"}


def test_finals_say_how_each_run_ended(results):
    row = of(results.finals, "summit/td3/none").set_index("seed").loc[1]
    assert (row["status"], row[SCORE], row["environment_step"], row["steps"]) == ("FAILED", 0.6, 200, 300)
    assert row["gamma_kappa"] == 9.5
    assert (row["commit"], row["dirty"], row["command"]) == (COMMIT, "false", command_of("summit/td3/none"))
    mmd = of(results.finals, "summit/mmd/observation").iloc[0]
    assert mmd["updates"] == 5 * (300 - 100)
    assert 0 <= mmd["wall_clock_seconds"] < 60


def test_superseded_and_repeated_runs_do_not_count(results):
    rows = of(results.finals, "summit/mmd/none")
    assert list(rows["seed"]) == [0, 1, 2]
    assert list(rows[SCORE]) == pytest.approx([0.8, 0.81, 0.82])
    assert set(rows["status"]) == {"FINISHED"}


def test_a_diverged_seed_keeps_its_last_score_in_curve_and_area(results):
    table = results.aligned(SCORE, "summit", "none", "td3")
    assert list(table.index) == [*STEPS]
    assert list(table["td3", 1]) == [0.3, 0.6, 0.6]
    areas = of(results.finals, "summit/td3/none").set_index("seed")["area_under_curve"]
    assert areas[1] == pytest.approx(0.5)
    assert areas[0] == pytest.approx(0.2)
    assert list(results.final_scores("summit", "none", "td3")) == [0.4, 0.6, 0.2]


def test_a_run_that_goes_on_is_in_no_statistic_but_named(results):
    assert list(results.final_scores("summit", "none", "mage")) == [0.7, 0.7]
    assert of(results.cells, "summit/mage/none")["missing_seeds"].item() == "2"


def test_a_score_that_is_not_finite_gives_way_to_the_last_one_that_is(results):
    assert list(results.final_scores("extra", "none", "mmd")) == [0.5]


def test_cells_are_the_grid_and_what_else_was_run(results):
    cells = results.cells.set_index("cell")
    assert list(cells.index) == [*GRID, "extra/mmd/none"]
    assert cells["state"].to_dict() == {
        "summit/td3/none": "complete",
        "summit/mage/none": "incomplete",
        "summit/mmd/none": "complete",
        "summit/mmd/observation": "complete",
        "jack/mmd/none": "missing",
        "extra/mmd/none": "complete",
    }
    assert list(cells["in_grid"]) == [True] * 5 + [False]
    assert cells.loc["jack/mmd/none", "command"] == command_of("jack/mmd/none")
    assert cells.loc["jack/mmd/none", "missing_seeds"] == "0-2"
    assert cells.loc["summit/td3/none", "failed_seeds"] == "1"
    assert "torch 2.13.0" in cells.loc["summit/td3/none", "versions"]
    setting = cells.loc["summit/mmd/none", ["targets", "draws", "pessimism", "gradients", "divergence"]]
    assert list(setting) == ["imagined by CVAE", "10", "Truncation 0.1", "state-action", "MMD"]


def test_the_score_can_be_another_metric(suite, results):
    other = read_suite("tiny", suite.uri, score=RETURN)
    assert list(other.final_scores("summit", "observation", "mmd")) == [3.12346] * 3
    assert of(other.finals, "summit/mmd/observation")["area_under_curve"].iloc[0] == pytest.approx(2.041153)
    assert set(other.cells["score"]) == {RETURN}
    with pytest.raises(
        UsageError, match="score: no run has the metric 'eval/retrun_mean'; did you mean 'eval/return_mean'"
    ):
        results.scored_by("eval/retrun_mean")


def test_tables_survive_their_files(results, tmp_path):
    paths = to_csv(results, tmp_path)
    assert [path.name for path in paths] == ["curves.csv", "finals.csv", "cells.csv"]
    assert "3.12346," in paths[0].read_text()
    back = read_csv(tmp_path)
    assert (back.suite, back.score) == ("tiny", SCORE)
    for own, other in ((results.finals, back.finals), (results.curves, back.curves), (results.cells, back.cells)):
        pd.testing.assert_frame_equal(own, other, rtol=1e-5, check_dtype=False)


def test_tables_of_before_risk_was_told_are_read(results, tmp_path):
    to_csv(replace(results, cells=results.cells.drop(columns="risk")), tmp_path)
    assert (read_csv(tmp_path).cells["risk"] == "").all()


def rewrite(file, change):
    file.write_text("".join(f"{row}\n" for row in change(file.read_text().splitlines())))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "finals.csv").unlink(), "there is no file '{folder}/finals.csv'"),
        (lambda folder: (folder / "curves.csv").write_text("a,b\n1,2\n"), "curves.csv' has no column"),
        (lambda folder: (folder / "cells.csv").write_text(""), "cells.csv' is not a table"),
        (lambda folder: rewrite(folder / "finals.csv", lambda rows: rows[:1]), "has no runs"),
        (
            lambda folder: rewrite(folder / "finals.csv", lambda rows: [*rows, rows[-1]]),
            "finals.csv' has two rows of summit/td3/none/2",
        ),
        (
            lambda folder: rewrite(folder / "curves.csv", lambda rows: [*rows, rows[-1]]),
            "curves.csv' has two rows of summit/td3/none/2/300",
        ),
        (
            lambda folder: rewrite(folder / "finals.csv", lambda rows: [rows[0].replace(SCORE, "x"), *rows[1:]]),
            f"finals.csv' has no column '{SCORE}', which cells.csv names",
        ),
        (
            lambda folder: rewrite(folder / "cells.csv", lambda rows: [row for row in rows if ",mage," not in row]),
            "cells.csv' has no row of summit/mage/none, which finals.csv has",
        ),
    ],
)
def test_files_that_are_not_tables_are_refused(results, tmp_path, spoil, said):
    to_csv(results, tmp_path)
    spoil(tmp_path)
    with pytest.raises(UsageError, match=said.format(folder=tmp_path)):
        read_csv(tmp_path)


def test_a_suite_whose_grid_is_not_recorded_is_its_runs(store):
    suite = Suite(store, "without_grid", score=None)
    suite.cell("pendulum/td3/none", {4: {RETURN: [-900, -300, -150]}})
    results = read_suite("without_grid", suite.uri)
    assert results.score == RETURN
    assert list(results.cells["seeds"]) == ["4"]
    assert not results.cells["in_grid"].any()


def test_there_must_be_a_suite_with_runs(suite, store):
    with pytest.raises(UsageError, match="there is no suite 'tny'; did you mean 'tiny'"):
        read_suite("tny", suite.uri)
    empty = Suite(store, "empty")
    empty.grid(GRID)
    with pytest.raises(UsageError, match="suite 'empty' has no runs of seeds yet"):
        read_suite("empty", empty.uri)
    empty.cell("jack/mmd/none", {0: {"critic/loss": [1.0]}})
    with pytest.raises(UsageError, match="suite 'empty' has no evaluation yet"):
        read_suite("empty", empty.uri)


@pytest.mark.parametrize("content", [None, b"", b"not a database at all, but long enough to be one" * 40])
def test_a_store_that_is_not_mlflows_is_left_alone(tmp_path, content):
    path = tmp_path / "other.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match="no MLflow database" if content is None else "is not a database of MLflow"):
        read_suite("tiny", f"sqlite:///{path}")
    assert [p.name for p in tmp_path.iterdir()] == ([] if content is None else ["other.db"])
    assert content is None or path.read_bytes() == content


def test_many_histories_are_read_quickly(store):
    suite = Suite(store, "many")
    steps = range(100, 2100, 100)
    metrics = {name: np.linspace(0, 1, 20) for name in (SCORE, RETURN, CLEAN, "eval/value", "critic/loss")}
    suite.cell("summit/mmd/none", dict.fromkeys(range(20), metrics), steps=steps)
    start = time.perf_counter()
    results = read_suite("many", suite.uri)
    assert time.perf_counter() - start < 3  # a tenth of 200 runs in 30 seconds
    assert len(results.curves) == 400


def test_a_run_that_broke_off_for_another_reason_has_not_diverged(store):
    """A full disk ends all seeds of a process, and so does a bug: they are to be gone on with, not to be counted."""
    suite = Suite(store, "broken_off")
    points = {s: {SCORE: [0.1, 0.2]} for s in (0, 1)}
    both = dict.fromkeys((0, 1), "FAILED")
    for method, parent, tag in (("td3", "FAILED", None), ("mage", "FAILED", "true"), ("mmd", "KILLED", None)):
        above, *_ = suite.cell(f"summit/{method}/none", points, both)
        suite.client.set_terminated(above, parent)
        if tag:
            suite.client.set_tag(above, "failed", tag)
    results = read_suite("broken_off", suite.uri)
    status = {method: set(of(results.finals, f"summit/{method}/none")["status"]) for method in ("td3", "mage", "mmd")}
    assert status == {"td3": {"KILLED"}, "mage": {"FAILED"}, "mmd": {"FAILED"}}
    states = results.cells.set_index("method")
    assert dict(states["state"]) == {"td3": "missing", "mage": "complete", "mmd": "complete"}
    assert dict(states["failed_seeds"]) == {"td3": "", "mage": "0-1", "mmd": "0-1"}
    assert set(results.ended["method"]) == {"mage", "mmd"}


def test_the_time_of_a_run_is_without_its_pauses(store):
    suite = Suite(store, "paused")
    _, run = suite.cell("summit/td3/none", {0: {SCORE: [0.1]}})
    start = suite.client.get_run(run).info.start_time
    suite.client.set_terminated(run, "FINISHED", start + 36_060_000)
    suite.client.set_tag(run, "paused_seconds", "36000")
    assert list(read_suite("paused", suite.uri).finals["wall_clock_seconds"]) == [60]
