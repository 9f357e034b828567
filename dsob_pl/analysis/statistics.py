"""Statistics of few seeds on several tasks: interquartile means, stratified bootstrap, profiles, improvement, ranks.

The estimators of *Deep reinforcement learning at the edge of the statistical precipice* (Agarwal et al. 2021). Scores
of one method are one array per task, ``[..., n]`` with the n seeds of that task last; tasks may have different n.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, trim_mean

Array = NDArray[np.float64]
Scores = Sequence[Array]

RESAMPLES = 2000
MOST_EXACT = 10  # seeds, of which there are 92,378 resamples that differ
_BLOCK = 4_000_000  # numbers held at once while resampling


class Estimate(NamedTuple):
    """A value with its 95 % interval; the interval is NaN where a task has fewer than two seeds."""

    value: Array
    low: Array
    high: Array


# Aggregates over tasks and seeds ------------------------------------------------------------------------------------


def _pooled(scores: Scores) -> Array:
    return np.concatenate([np.asarray(task, float) for task in scores], -1)


def _task_means(scores: Scores) -> Array:
    return np.stack([np.mean(task, -1) for task in scores], -1)


def interquartile_mean(scores: Scores) -> Array:
    """Mean of the middle half of all seeds of all tasks: ``[..., n] each -> [...]``.

    A quarter of the seeds, rounded down, is left out at either end.
    """
    return np.asarray(trim_mean(_pooled(scores), 0.25, axis=-1))


def mean(scores: Scores) -> Array:
    """Mean over tasks of the mean over seeds: ``[..., n] each -> [...]``."""
    return _task_means(scores).mean(-1)


def median(scores: Scores) -> Array:
    """Median over tasks of the mean over seeds: ``[..., n] each -> [...]``."""
    return np.asarray(np.median(_task_means(scores), -1))


def optimality_gap(scores: Scores, target: float = 1.0) -> Array:
    """How far seeds stay below ``target``, scores above it counting as it: ``[..., n] each -> [...]``."""
    return np.asarray(target - np.minimum(_pooled(scores), target).mean(-1))


AGGREGATES: dict[str, Callable[[Scores], Array]] = {
    "IQM": interquartile_mean,
    "median": median,
    "mean": mean,
    "optimality gap": optimality_gap,
}

# Intervals ----------------------------------------------------------------------------------------------------------


def estimate(
    statistic: Callable[..., Array],
    *groups: Scores,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """A statistic with its percentile interval from a stratified bootstrap: seeds are drawn anew within each task.

    For one number of up to ``MOST_EXACT`` seeds of one task it is taken over all resamples that there are, each as
    likely as it is to be drawn, so that no chance decides whether two intervals overlap.

    Args:
        statistic: of one ``Scores`` per group; reduces the last axis, ``[..., n] -> [...]``. What stands before the
            seeds, such as the steps of a curve, is drawn together.
        *groups: scores of each method; drawn independently of each other.
        resamples: number of resamples where they are drawn.
        confidence: of the interval.
        seed: of the generator, likewise.
    """
    groups = tuple([np.asarray(task, float) for task in group] for group in groups)
    value = np.asarray(statistic(*groups), float)
    tasks = [task for group in groups for task in group]
    if not tasks or min(task.shape[-1] for task in tasks) < 2:
        return Estimate(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
    tail = (1 - confidence) / 2
    if len(tasks) == 1 and not value.ndim and len(tasks[0]) <= MOST_EXACT:
        every, likely = _all_resamples(len(tasks[0]))
        low, high = _quantiles(np.asarray(statistic([tasks[0][every]]), float), likely, (tail, 1 - tail))
        return Estimate(value, low, high)
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // max(1, sum(task.size for task in tasks)))
    parts = []
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        drawn = [[_draw(task, count, generator) for task in group] for group in groups]
        parts.append(np.asarray(statistic(*drawn), float))
    low, high = np.quantile(np.concatenate(parts, -1), (tail, 1 - tail), axis=-1)
    return Estimate(value, low, high)


def _draw(task: Array, count: int, generator: np.random.Generator) -> Array:
    """``[..., n] -> [..., count, n]``."""
    size = task.shape[-1]
    return task[..., generator.integers(size, size=(count, size))]


@lru_cache(maxsize=MOST_EXACT)
def _all_resamples(size: int) -> tuple[NDArray[np.int64], Array]:
    """All resamples of so many seeds but for their order ``[R, size]``, and how likely each of them is ``[R]``."""
    every = np.array(list(itertools.combinations_with_replacement(range(size), size)))
    orders = np.full(len(every), math.factorial(size), float)
    factorials = np.array([math.factorial(count) for count in range(size + 1)], float)
    for seed in range(size):
        orders /= factorials[(every == seed).sum(1)]
    return every, orders / float(size) ** size


def _quantiles(values: Array, likely: Array, levels: Sequence[float]) -> list[Array]:
    """The least of ``values [R]`` at or below which they are, together, as likely as each of ``levels``."""
    order = np.argsort(values)
    below = np.cumsum(likely[order])
    places = np.searchsorted(below, np.asarray(levels) - 1e-12)
    return [np.asarray(values[order[place]]) for place in np.minimum(places, len(values) - 1)]


def separated(one: Estimate, other: Estimate) -> bool:
    """Whether two intervals do not overlap; False where either is not known."""
    return bool(one.low > other.high or other.low > one.high)


# Comparisons of methods ---------------------------------------------------------------------------------------------


def performance_profile(scores: Scores, thresholds: Array, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Part of all seeds of all tasks whose score is above each of ``thresholds [K]``: ``[K]``, with pointwise bands."""
    above = [(np.asarray(task)[None, :] > np.asarray(thresholds)[:, None]).astype(float) for task in scores]
    return estimate(lambda passed: _pooled(passed).mean(-1), above, resamples=resamples, seed=seed)


def probability_above(x: Scores, y: Scores) -> Array:
    """P(X > Y) of a seed of x and one of y on the same task, mean over tasks; ties count half.

    ``[..., n] and [..., m] each -> [...]``. On each task that is Mann and Whitney's U over n m.
    """
    return np.mean([_above(one, other) for one, other in zip(x, y, strict=True)], axis=0)


def _above(x: Array, y: Array) -> Array:
    x, y = np.asarray(x)[..., :, None], np.asarray(y)[..., None, :]
    return ((x > y) + 0.5 * (x == y)).mean((-1, -2))


def probability_of_improvement(x: Scores, y: Scores, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """``probability_above`` with its interval."""
    return estimate(probability_above, x, y, resamples=resamples, seed=seed)


def mean_ranks(methods: Mapping[str, Scores], resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Estimate]:
    """Mean over tasks of each method's rank by interquartile mean, 1 being best; equal ones share their mean rank."""
    names = list(methods)
    if not names:
        return {}

    def ranks(*groups: Scores) -> Array:
        tasks = range(len(groups[0]))
        per_task = [np.stack([interquartile_mean([group[t]]) for group in groups]) for t in tasks]
        # The last axis is that of resamples, or there is none.
        return np.mean([rankdata(-scores, axis=0) for scores in per_task], axis=0)

    result = estimate(ranks, *methods.values(), resamples=resamples, seed=seed)
    return {name: Estimate(*(part[i] for part in result)) for i, name in enumerate(names)}
