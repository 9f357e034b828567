"""Tables of several reports as one suite."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
from suites import COMMIT, SCORE, Suite

from dsob_pl.analysis import merge, read_csv, read_csvs, read_suite, to_csv
from dsob_pl.analysis.comparison import compare
from dsob_pl.errors import UsageError

CELLS = ["summit/td3/none", "summit/mage/none", "summit/mmd/none"]


def tables(folder, done, level, name="tiny", cells=CELLS, seeds=range(3)):
    """The folder of a report on the suite, of which some cells were run, with final scores about ``level``."""
    suite = Suite(folder, name)
    suite.grid(cells)
    for cell in done:
        suite.cell(cell, {seed: {SCORE: [0.0, 0.0, level + 0.01 * seed]} for seed in seeds})
    to_csv(read_suite(name, suite.uri), folder / "tables")
    return folder / "tables"


@pytest.fixture
def make(tmp_path):
    def folder(key, *arguments, **options):
        (tmp_path / key).mkdir()
        return tables(tmp_path / key, *arguments, **options)

    return folder


def states(results):
    return dict(zip(results.cells["cell"], results.cells["state"]))


def finals(results, cell):
    own = results.finals[(results.finals[["task", "method", "noise"]].agg("/".join, axis=1) == cell)]
    return sorted(own[SCORE])


def test_cells_of_two_reports_are_one_suite(make):
    first, second = make("a", CELLS[:1], 0.1), make("b", CELLS[1:2], 0.5)
    both = read_csvs([first, second])
    assert states(both) == {CELLS[0]: "complete", CELLS[1]: "complete", CELLS[2]: "missing"}
    assert finals(both, CELLS[0]) == [0.1, 0.11, 0.12]
    assert finals(both, CELLS[1]) == [0.5, 0.51, 0.52]
    assert len(both.curves) == 2 * 3 * 3
    assert list(both.cells["cell"]) == CELLS
    # What comes out can be compared, and written and read as that of one report.
    assert list(compare(both, "mage").tasks["method"])[:2] == ["td3", "mage"]
    to_csv(both, first.parent / "both")
    again = read_csv(first.parent / "both")
    for name in ("curves", "finals", "cells"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(both, name), check_dtype=False)


def test_a_cell_is_that_of_one_report_the_more_complete_or_else_the_later(make):
    whole, newer = make("a", CELLS[:2], 0.1), make("b", CELLS[:1], 0.7)
    partial = make("c", CELLS[:2], 0.9, seeds=range(2))
    assert finals(read_csvs([whole, newer]), CELLS[0]) == [0.7, 0.71, 0.72]
    assert finals(read_csvs([newer, whole]), CELLS[0]) == [0.1, 0.11, 0.12]
    for order in ([whole, partial], [partial, whole]):
        found = read_csvs(order)
        assert finals(found, CELLS[0]) == [0.1, 0.11, 0.12]
        assert states(found)[CELLS[0]] == "complete"
        assert len(found.curves) == 2 * 3 * 3
    assert states(read_csvs([make("d", [CELLS[2]], 0.3), partial]))[CELLS[0]] == "incomplete"


def test_a_cell_that_only_one_grid_has_is_kept_and_older_columns_are_filled(make):
    more = [*CELLS, "jack/mmd/none"]
    first, second = make("a", CELLS[:1], 0.1), make("b", more[-1:], 0.2, cells=more)
    found = read_csvs([first, second])
    assert list(states(found)) == more
    assert states(found)[more[-1]] == "complete"
    parts = [read_csv(first), read_csv(second)]
    older = replace(parts[0], cells=parts[0].cells.drop(columns="versions"))
    assert merge([older, parts[1]]).cells["versions"].iloc[0] == ""


def test_one_report_is_itself(make):
    folder = make("a", CELLS[:1], 0.1)
    results = read_csv(folder)
    assert merge([results]) is results
    assert set(read_csvs([folder]).finals["commit"]) == {COMMIT}


def test_reports_of_two_suites_are_refused(make):
    first, second = make("a", CELLS[:1], 0.1), make("b", CELLS[:1], 0.1, name="other")
    with pytest.raises(UsageError, match=r"from_csv: '.*b/tables' holds the suite 'other' and '.*' the suite 'tiny'"):
        read_csvs([first, second])
