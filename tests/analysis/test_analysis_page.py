"""Comparison, figures and page, from tables made up here."""

from __future__ import annotations

import re
from collections import defaultdict
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.text import Text
from suites import LEVELS, tables

from dsob_pl.analysis.comparison import compare
from dsob_pl.analysis.figures import all_figures
from dsob_pl.analysis.html import svg
from dsob_pl.analysis.methods import in_order, is_ours, styles
from dsob_pl.analysis.page import page
from dsob_pl.analysis.panels import name_ends, new_figure, spread
from dsob_pl.analysis.settings import in_words, setting
from dsob_pl.analysis.statistics import Estimate, interquartile_mean
from dsob_pl.analysis.text import interval
from dsob_pl.errors import UsageError

SCORE, RETURN = "eval/normalized_score", "eval/return_mean"
NAUGHTY = "<script>alert('$1$')</script>"


def row_of(table, **where):
    for name, value in where.items():
        table = table[table[name] == value]
    (index,) = table.index
    return table.loc[index]


def rendered(results, drawn=True):
    comparison = compare(results)
    pictures = {name: svg(figure, name) for name, figure in all_figures(comparison)} if drawn else defaultdict(str)
    return page(comparison, pictures)


class Strict(HTMLParser):
    """Every tag is closed; collects text, addresses and identifiers."""

    VOID = ("meta", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts, self.addresses = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for key, value in attributes if key in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for key, value in attributes if key in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_numbers_of_a_comparison():
    comparison = compare(tables())
    row = row_of(comparison.noises, method="msmmd_sobolev")
    scores = [np.array([0.9, 0.92, 0.94, 0.96])] * 2
    assert row["IQM"] == pytest.approx(interquartile_mean(scores))
    assert (row["tasks"], row["seeds"], row["improvement"], row["rank"]) == (2, 8, 1.0, 1.0)
    assert list(comparison.noises["method"]) == ["td3", "mage", "mmd", "msmmd_sobolev"]
    assert list(comparison.noises["against"]) == ["behind", "", "not separated", "ahead"]
    own = row_of(comparison.tasks, task="jack", method="td3")
    assert own["area"] == pytest.approx(0.23 * 2 / 3)
    assert own["setting"] == "imagined by CVAE, 10 draws; Truncation 0.1"


def test_a_method_without_a_task_has_no_aggregate():
    comparison = compare(tables(without=[("jack", "mmd")]))
    row = row_of(comparison.noises, method="mmd")
    assert row["lacking"] == "jack"
    assert np.isnan([row["IQM"], row["rank"], row["improvement"]]).all()
    assert row["against"] == ""
    # The others are ranked among themselves.
    assert row_of(comparison.noises, method="td3")["rank"] == 3


def test_returns_of_several_tasks_are_brought_to_one_scale_and_said_to_be():
    comparison = compare(tables(score=RETURN, scales={"summit": -1000.0}))
    assert "another scale on every task" in comparison.scaled
    # On summit with its negative scale the order is reversed.
    assert row_of(comparison.noises, method="td3")["mean"] == pytest.approx(0.5, abs=0.05)
    assert row_of(comparison.noises, method="msmmd_sobolev")["rank"] == 2.5
    assert row_of(comparison.tasks, task="jack", method="td3")["score"] == pytest.approx(0.23)
    assert compare(tables()).scaled == ""


def test_the_method_to_compare_with_must_be_there():
    with pytest.raises(UsageError, match=r"against: there is no method 'maeg' in 'made'; did you mean 'mage'\?"):
        compare(tables(), "maeg")
    comparison = compare(tables({"td3": 0.1, "iqn": 0.3}), None)
    assert comparison.noises["improvement"].isna().all()
    assert "improvement" not in dict(all_figures(comparison))


def test_a_suite_in_which_nothing_has_ended_has_no_comparison():
    results = tables()
    results.finals["status"] = "RUNNING"
    with pytest.raises(UsageError, match="no run of suite 'made' has ended"):
        compare(results)


@pytest.mark.parametrize(
    ("source", "model", "more", "words"),
    [
        ("replayed", "None", {"target_samples": "1"}, "real transitions, 1 draw; Truncation 0.1"),
        ("replayed", "x.CVAE", {}, "real transitions, noise of CVAE inferred; Truncation 0.1"),
        (
            "imagined",
            "x.Flow",
            {"overestimation": "x.LowerMean", "samples": "4"},
            "imagined by Flow, 4 draws; LowerMean",
        ),
        (
            "imagined",
            "x.CVAE",
            {"samples": "4", "risk": "x.CVaR", "risk.alpha": "0.1", "risk.tail": "lower"},
            "imagined by CVAE, 4 draws; Truncation 0.1; ascends CVaR 0.1 lower",
        ),
        (
            "imagined",
            "x.CVAE",
            {
                "samples": "4",
                "overestimation": "x.AdaptivePessimism",
                "overestimation.rate": "0.1",
                "overestimation.every": "50",
                "overestimation.limit": "1.0",
            },
            "imagined by CVAE, 4 draws; AdaptivePessimism every=50 limit=1.0 rate=0.1",
        ),
    ],
)
def test_the_data_setting_in_words(source, model, more, words):
    params = {"target_source": source, "world_model": model, **more}
    assert in_words(setting({f"model.{name}": value for name, value in params.items()})) == words
    assert in_words(setting({"model.class_path": "x.Y"})) == ""


def test_a_page_is_whole_by_itself_and_names_what_is_missing():
    text = rendered(tables(without=[("jack", "mmd")]))
    parsed = Strict(text)
    assert [a for a in parsed.addresses if not a.startswith("#")] == []
    assert "@import" not in text
    assert parsed.tags.count("svg") == 3 + 2 + 2
    said = " ".join(parsed.texts)
    for phrase in (
        "jack/mmd/none (0-3)",
        "c" * 40,
        "torch 2.13.0",
        "python -m dsob_pl fit --config conf/summit.yaml --config conf/method/msmmd_sobolev.yaml",
        "ahead: msmmd_sobolev",
        "Without aggregate, since tasks are lacking: mmd: jack",
        "imagined by CVAE, 10 draws; Truncation 0.1",
        "No run has failed",
    ):
        assert phrase in said, phrase


def test_every_name_is_escaped():
    results = tables({"mage": 0.3, f"mmd{NAUGHTY}": 0.5}, tasks=(NAUGHTY,), noises=(f"none{NAUGHTY}",))
    results.finals["command"] = results.cells["command"] = f"fit {NAUGHTY}"
    parsed = Strict(rendered(results))
    assert parsed.tags.count("script") == 1  # the page's own
    assert "alert('$1$')" in " ".join(parsed.texts)


def test_diverged_runs_are_named_with_how_far_they_came():
    results = tables()
    place = results.finals.index[(results.finals["method"] == "mage") & (results.finals["seed"] == 2)]
    results.finals.loc[place, ["status", "steps", "gamma_kappa"]] = ["FAILED", 215, 17.25]
    said = " ".join(Strict(rendered(results, drawn=False)).texts)
    assert "32 seeds, 32 ended, 2 diverged" in said
    assert re.search(r"jack\s+mage\s+none\s+2\s+215\s+17\.25", said)


def test_a_single_seed_is_drawn_without_interval():
    comparison = compare(tables(seeds=1))
    assert comparison.noises["IQM_low"].isna().all()
    assert list(comparison.noises["against"]) == [""] * 4
    for name, figure in all_figures(comparison):
        assert "currentColor" in svg(figure, name)


def test_figures_draw_baselines_left_and_ours_right():
    comparison = compare(tables())
    left, right = next(f for name, f in all_figures(comparison) if name == "curves_jack,none").axes
    assert (left.get_title(loc="left"), right.get_title(loc="left")) == ("baselines", "ours")
    assert [line.get_label() for line in left.lines] == ["td3", "mage"]
    # What is compared against is in both, in its one colour.
    assert [line.get_label() for line in right.lines] == ["mage", "mmd", "msmmd_sobolev"]
    assert left.lines[1].get_color() == right.lines[0].get_color() == styles(LEVELS)["mage"].color
    ticks = [tick.get_text() for tick in dict(all_figures(comparison))["ranks"].axes[0].get_xticklabels()]
    assert ticks == ["td3", "mage", "mmd", "msmmd_sobolev"]


def test_no_two_methods_look_the_same():
    names = ["td3", "mage", "mine", "msmmd_sobolev", "msmmd_mine", *(f"other{i}" for i in range(20))]
    assert len(set(styles(names).values())) == len(names)
    assert is_ours("msmmd_mine")
    assert not is_ours("mine")
    assert in_order(names)[-2:] == ["msmmd_sobolev", "msmmd_mine"]


def test_labels_are_pushed_apart_and_stay_near():
    places = spread([0.1, 0.5, 0.5, 0.51, 0.9], 0.1)
    assert places[0] == 0.1
    assert places[-1] == 0.9
    assert np.diff(places).min() >= 0.1 - 1e-9
    assert places[2] == pytest.approx((0.5 + 0.5 + 0.51) / 3)


def test_every_curve_has_a_picture_of_its_own():
    comparison = compare(tables(tasks=("a", "a_b"), noises=("b_c", "c")))
    names = [name for name, _ in all_figures(comparison)]
    assert len(names) == len(set(names))
    assert len([name for name in names if name.startswith("curves_")]) == 4


def test_runs_that_finished_without_the_score_are_named():
    results = tables(noises=("none", "observation"))
    for table in (results.curves, results.finals):
        table.loc[table["noise"] == "none", SCORE] = np.nan
    text = rendered(results, drawn=False)
    assert f"Finished without {SCORE}, in no statistic: jack/td3/none, jack/mage/none" in text
    assert "Finished without" not in rendered(tables(), drawn=False)


def test_no_line_to_a_name_crosses_another_name():
    """Eight that end in one point: what joins them to it stays left of all names."""
    figure, grid = new_figure(1, 1, (4, 2))
    names = [f"mmd_sobolev_{i}" for i in range(8)]
    name_ends(grid[0][0], dict.fromkeys(names, (1.0, 0.5)), styles(names))
    figure.draw_without_rendering()
    labels = grid[0][0].texts
    left = min(Text.get_window_extent(label).x0 for label in labels)  # without the line, which an annotation's own has
    assert len(labels) == 8
    for label in labels:
        line = label.arrow_patch
        assert line.get_transform().transform_path(line.get_path()).vertices[:, 0].max() <= left


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((0.7421, 0.7239, 0.76), "0.742 [0.724, 0.760]"),
        ((-812.4, -1204.0, -99.5), "-812 [-1,204, -100]"),
        ((0.5, np.nan, np.nan), "0.500"),
        ((np.nan, np.nan, np.nan), "-"),
        ((0.000123, 0.0000456, 0.0005), "0.000123 [0.000046, 0.000500]"),
        ((0.0, 0.0, 0.0), "0.000 [0.000, 0.000]"),
    ],
)
def test_intervals_are_written_with_the_decimals_that_count(numbers, text):
    assert interval(Estimate(*map(np.asarray, numbers))) == text


def test_a_method_whose_seeds_all_diverged_is_counted_and_lacks_the_task():
    results = tables()
    lost = (results.finals["method"] == "mage") & (results.finals["task"] == "jack")
    results.finals.loc[lost, "status"] = "FAILED"
    results.finals.loc[lost, results.score] = np.nan
    results.curves.loc[(results.curves["method"] == "mage") & (results.curves["task"] == "jack"), results.score] = (
        np.nan
    )
    results = results.scored_by(results.score)
    comparison = compare(results)
    rows = comparison.tasks.set_index(["task", "method"])
    assert dict(rows.loc[("jack", "mage"), ["seeds", "failed"]]) == {"seeds": 0, "failed": 4}
    assert np.isnan(rows.loc[("jack", "mage"), "score"])
    assert rows.loc[("summit", "mage"), "failed"] == 0
    whole = comparison.noises.set_index("method")
    assert dict(whole.loc["mage", ["tasks", "seeds", "failed", "lacking"]]) == {
        "tasks": 1, "seeds": 4, "failed": 4, "lacking": "jack",
    }  # fmt: skip
    assert whole["lacking"].drop("mage").eq("").all()
    assert whole["IQM"].drop("mage").notna().all()
    assert all("<svg" in svg(figure, name) for name, figure in all_figures(comparison))
    said = " ".join(Strict(rendered(results, drawn=False)).texts)
    assert "4 diverged" in said
