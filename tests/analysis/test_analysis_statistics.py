"""Statistics against rliable's formulas written out anew, hand-computed cases, and properties."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from dsob_pl.analysis.statistics import (
    AGGREGATES,
    Estimate,
    estimate,
    interquartile_mean,
    mean_ranks,
    performance_profile,
    probability_above,
    probability_of_improvement,
    separated,
)

# Runs by tasks, as rliable has them.
X = np.array([[0.1, 0.9, 0.5], [0.2, 1.3, 0.4], [0.7, 1.1, 0.4], [0.3, 0.2, 0.6], [0.4, 1.0, 0.1]])
Y = np.array([[0.2, 0.8, 0.5], [0.1, 0.7, 0.5], [0.3, 1.1, 0.3], [0.9, 0.1, 0.2]])


def tasks_of(matrix):
    return list(matrix.T)


def plain_iqm(values):
    ordered = sorted(values)
    cut = len(ordered) // 4
    middle = ordered[cut : len(ordered) - cut]
    return sum(middle) / len(middle)


def test_aggregates_are_rliables_on_fixed_data():
    by_hand = {
        "IQM": plain_iqm(X.ravel()),  # fifteen runs without three at either end
        "mean": X.mean(axis=0).mean(),
        "median": np.median(X.mean(axis=0)),
        "optimality gap": 1.0 - np.minimum(X, 1.0).mean(),
    }
    assert by_hand["median"] == 0.4
    assert by_hand["IQM"] == pytest.approx((0.2 + 0.3 + 3 * 0.4 + 0.5 + 0.6 + 0.7 + 0.9) / 9)
    for name, value in by_hand.items():
        assert AGGREGATES[name](tasks_of(X)) == pytest.approx(value), name


def test_probability_of_improvement_is_mann_and_whitneys_u():
    expected = [mannwhitneyu(X[:, t], Y[:, t], alternative="greater")[0] / (len(X) * len(Y)) for t in range(3)]
    assert probability_above(tasks_of(X), tasks_of(Y)) == pytest.approx(np.mean(expected))
    # One task by hand: 1 beats 0 and ties with 1, 3 beats both.
    assert probability_above([np.array([1.0, 3.0])], [np.array([0.0, 1.0])]) == pytest.approx((1 + 0.5 + 1 + 1) / 4)


def test_profiles_are_the_part_of_runs_above_a_threshold():
    thresholds = np.array([0.0, 0.1, 0.4, 0.95, 2.0])
    profile = performance_profile(tasks_of(X), thresholds)
    np.testing.assert_allclose(profile.value, [np.mean(threshold < X) for threshold in thresholds])
    assert profile.value[0] == 1
    assert profile.value[-1] == profile.high[-1] == 0
    assert ((profile.low <= profile.value) & (profile.value <= profile.high)).all()


def test_ranks_by_hand():
    scores = {"a": [3.0, 1.0], "b": [1.0, 1.0], "c": [2.0, 0.0]}
    ranks = mean_ranks({name: [np.full(4, level) for level in levels] for name, levels in scores.items()})
    assert {name: (r.value, r.low, r.high) for name, r in ranks.items()} == {
        "a": (1.25, 1.25, 1.25),  # first, and first to second
        "b": (2.25, 2.25, 2.25),  # third, and first to second
        "c": (2.5, 2.5, 2.5),
    }
    assert mean_ranks({}) == {}
    assert mean_ranks({"alone": [np.array([1.0, 2.0, 4.0])]})["alone"].high == 1.0  # of one task with few seeds


def test_the_interval_is_that_of_a_plain_stratified_bootstrap():
    generator = np.random.RandomState(0)
    values = []
    for _ in range(6000):  # rliable's way: an index for each run and task, drawn within its task
        drawn = X[generator.choice(len(X), X.shape), np.arange(X.shape[1])]
        values.append(plain_iqm(drawn.ravel()))
    low, high = np.percentile(values, [2.5, 97.5])
    own = estimate(interquartile_mean, tasks_of(X), resamples=6000)
    assert own.value == pytest.approx(plain_iqm(X.ravel()))
    assert own.low == pytest.approx(low, abs=0.012)
    assert own.high == pytest.approx(high, abs=0.012)


def test_the_interval_of_two_seeds_is_that_of_all_resamples():
    seeds = np.array([0.0, 1.0, 5.0])
    every = [np.mean(draw) for draw in itertools.product(seeds, repeat=3)]
    own = estimate(interquartile_mean, [seeds], resamples=20_000, confidence=0.8)
    assert (own.low, own.high) == pytest.approx(tuple(np.quantile(every, [0.1, 0.9])))


def test_one_number_of_few_seeds_is_looked_at_in_all_resamples():
    seeds = np.array([0.3, -1.0, 7.0, 2.0])
    every = np.sort([plain_iqm(draw) for draw in itertools.product(seeds, repeat=4)])  # 256, each as likely
    for confidence in (0.5, 0.8, 0.95):
        tail = (1 - confidence) / 2
        # The least number at or below which that part of them lies.
        low, high = (every[int(np.ceil(256 * part - 1e-9)) - 1] for part in (tail, 1 - tail))
        own = estimate(interquartile_mean, [seeds], confidence=confidence)
        assert (own.value, own.low, own.high) == pytest.approx((plain_iqm(seeds), low, high))


def test_of_ten_seeds_as_well_and_more_are_drawn():
    seeds = np.random.default_rng(5).normal(size=10) ** 3
    drawn = seeds[np.random.default_rng(6).integers(10, size=(200_000, 10))]
    low, high = np.quantile(np.sort(drawn, -1)[:, 2:8].mean(-1), [0.025, 0.975])
    own = estimate(interquartile_mean, [seeds])
    assert (own.low, own.high) == pytest.approx((low, high), abs=0.01 * (high - low))
    again = estimate(interquartile_mean, [seeds[::-1]], seed=9, resamples=1)
    np.testing.assert_allclose(again, own, rtol=1e-12)  # no chance in it
    eleven = np.append(seeds, 0.0)
    assert estimate(interquartile_mean, [eleven]) != estimate(interquartile_mean, [eleven], seed=9)


def test_seeds_are_drawn_within_their_task():
    own = estimate(interquartile_mean, [np.zeros(3), np.ones(5), np.full(2, 7.0)])
    assert own.low == own.value == own.high


def test_groups_are_drawn_independently():
    own = probability_of_improvement([np.array([0.0, 1.0])], [np.array([0.0, 1.0])])
    assert (own.value, own.low, own.high) == (0.5, 0.0, 1.0)  # drawn together it would be 0.5 throughout


def test_a_curve_draws_seeds_and_not_single_points():
    curve = np.array([[0.0, 1.0, 2.0], [10.0, 11.0, 12.0]])  # two evaluations of three seeds
    own = estimate(interquartile_mean, [curve])
    np.testing.assert_allclose(own.high - own.value, (own.high - own.value)[0])
    np.testing.assert_allclose(own.value, [1.0, 11.0])


def test_one_seed_has_no_interval_and_is_never_separated():
    single = estimate(interquartile_mean, [np.array([0.5]), np.array([0.1, 0.2])])
    assert np.isnan(single.low)
    assert np.isnan(single.high)
    assert not separated(single, Estimate(*map(np.asarray, (9.0, 8.0, 10.0))))


@pytest.mark.parametrize(
    ("low", "high", "apart"), [(2.0, 3.0, True), (0.9, 3.0, False), (-3, -0.1, True), (-1, 0, False)]
)
def test_separated_means_that_intervals_do_not_overlap(low, high, apart):
    one, other = Estimate(*map(np.asarray, (0.5, 0.0, 1.0))), Estimate(*map(np.asarray, ((low + high) / 2, low, high)))
    assert separated(one, other) == separated(other, one) == apart


def test_the_same_seed_gives_the_same_interval_in_blocks_or_not(monkeypatch):
    whole = estimate(interquartile_mean, tasks_of(X), seed=3)
    assert whole == estimate(interquartile_mean, tasks_of(X), seed=3)
    assert whole != estimate(interquartile_mean, tasks_of(X), seed=4)
    monkeypatch.setattr("dsob_pl.analysis.statistics._BLOCK", 15 * 700)
    in_blocks = estimate(interquartile_mean, tasks_of(X), seed=3)
    assert in_blocks.low == pytest.approx(whole.low, abs=0.03)


@pytest.mark.parametrize("tasks", [1, 5])
def test_intervals_cover_the_truth_about_as_often_as_they_say(tasks):
    generator = np.random.default_rng(1)
    trials, seeds, hits = 300, 20, 0
    for trial in range(trials):
        own = estimate(interquartile_mean, list(generator.normal(size=(tasks, seeds))), resamples=400, seed=trial)
        hits += bool(own.low <= 0 <= own.high)
    assert 0.89 <= hits / trials <= 0.98


numbers = st.floats(-100, 100).map(lambda value: round(value, 3))
some_tasks = st.lists(st.lists(numbers, min_size=2, max_size=8).map(np.array), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(some_tasks, st.floats(0.1, 10), st.floats(-50, 50), st.randoms(use_true_random=False))
def test_iqm_ignores_order_and_follows_shift_and_scale(scores, scale, shift, random):
    value = interquartile_mean(scores)
    shuffled = [np.array(random.sample(list(task), len(task))) for task in scores]
    assert interquartile_mean(shuffled) == pytest.approx(value, abs=1e-9)
    assert interquartile_mean([scale * task + shift for task in scores]) == pytest.approx(
        scale * value + shift, abs=1e-6
    )
    assert value == pytest.approx(plain_iqm(np.concatenate(scores)), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(some_tasks, st.randoms(use_true_random=False))
def test_the_probabilities_of_either_being_better_make_one(scores, random):
    others = [np.array([random.choice([*task, 0.0]) for _ in range(3)]) for task in scores]
    assert probability_above(scores, others) + probability_above(others, scores) == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(some_tasks)
def test_an_interval_contains_its_estimate(scores):
    own = estimate(interquartile_mean, scores, resamples=500)
    assert own.low - 1e-9 <= own.value <= own.high + 1e-9
