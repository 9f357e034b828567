"""Calibration in evaluation episodes: values by hand, laws whose calibration is known, real environments."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsob_pl.agents.calibration import (
    Calibration,
    calibrate,
    calibration_metrics,
    continuous_ranked_probability_score,
    coverage,
    probability_integral_transform,
)
from dsob_pl.agents.calibration_figure import calibration_figure
from dsob_pl.envs import (
    Episodes,
    VisitRecorder,
    Visits,
    join_environments,
    make_env,
    run_episodes,
    run_seed_episodes,
)

D = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


# The scores -----------------------------------------------------------------------------------------------------------


def test_places_by_hand() -> None:
    samples = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=D).expand(5, -1)
    realised = torch.tensor([0.0, 1.5, 3.0, 4.5, 2.0], dtype=D)
    # below all; above one; above two and equal to one, which counts half; above all; above one and equal to one
    expected = torch.tensor([0.5, 1.5, 3.0, 4.5, 2.0], dtype=D) / 5
    torch.testing.assert_close(probability_integral_transform(samples, realised), expected)


def test_coverage_by_hand() -> None:
    places = torch.tensor([0.05, 0.2, 0.3, 0.5, 0.74, 0.76, 0.9, 0.99], dtype=D)
    assert float(coverage(places, 0.5)) == 3 / 8
    assert float(coverage(places, 0.8)) == 6 / 8
    assert float(coverage(places, 1.0)) == 1.0


def test_crps_by_hand() -> None:
    samples = torch.tensor([[0.0, 1.0, 3.0]], dtype=D)
    # |x - 2|: 2, 1, 1, mean 4/3; pairs |0-1|, |0-3|, |1-3| have mean 2
    score = continuous_ranked_probability_score(samples, torch.tensor([2.0], dtype=D))
    torch.testing.assert_close(score, torch.tensor([4 / 3 - 1.0], dtype=D))
    torch.testing.assert_close(
        continuous_ranked_probability_score(samples[:, :1], torch.tensor([2.0], dtype=D)), torch.tensor([2.0], dtype=D)
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=9), st.floats(-50, 50))
def test_crps_is_the_mean_over_pairs(samples: list[float], y: float) -> None:
    n = len(samples)
    pairs = sum(abs(a - b) for a in samples for b in samples) / (n * (n - 1))
    expected = sum(abs(x - y) for x in samples) / n - pairs / 2
    row = torch.tensor([samples], dtype=D)
    score = float(continuous_ranked_probability_score(row, torch.tensor([y], dtype=D)))
    assert score == pytest.approx(expected, abs=1e-9)


def test_crps_of_a_normal_law_is_the_closed_form() -> None:
    y = torch.linspace(-2, 2, 5, dtype=D)
    samples = normal(1, 200_000).expand(5, -1)
    standard = torch.distributions.Normal(torch.zeros((), dtype=D), torch.ones((), dtype=D))
    density = standard.log_prob(y).exp()
    exact = y * (2 * standard.cdf(y) - 1) + 2 * density - 1 / math.sqrt(math.pi)  # Gneiting and Raftery, 2007, eq. 5
    torch.testing.assert_close(continuous_ranked_probability_score(samples, y), exact, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("scale", "shift", "low", "high", "pit"),
    [(1.0, 0.0, 0.78, 0.82, 0.5), (0.5, 0.0, 0.44, 0.52, 0.5), (2.0, 0.0, 0.97, 1.0, 0.5), (1.0, 1.0, 0.5, 0.7, 0.24)],
)
def test_laws_that_are_right_too_narrow_too_wide_and_too_high(
    scale: float, shift: float, low: float, high: float, pit: float
) -> None:
    """P(|Z| < 1.28 scale) is .8, .478, .990; of the shifted law Phi(.28) - Phi(-2.28) = .60, mean place Phi(-.71)."""
    own = Calibration(normal(4000), shift + scale * normal(4000, 128, seed=1), torch.ones(4000), torch.zeros(4000))
    metrics = calibration_metrics(own)
    assert low < float(metrics["eval/coverage_80"]) < high
    assert float(metrics["eval/pit_mean"]) == pytest.approx(pit, abs=0.02)
    assert float(metrics["eval/coverage_50"]) < float(metrics["eval/coverage_80"]) < float(metrics["eval/coverage_95"])


# The states -----------------------------------------------------------------------------------------------------------


def episodes(visits: Visits, terminated: list[bool]) -> Episodes:
    n = len(terminated)
    lengths = torch.tensor([visits.remaining[visits.episode == i].max() for i in range(n)]).float()
    none = torch.zeros(n)
    return Episodes(none, lengths, none, visits.last_observations, torch.tensor(terminated), visits)


def recorded(lengths: list[int], gamma: float) -> Visits:
    """Observation t of episode i is (i, t), its reward 1."""
    recorder = VisitRecorder(len(lengths))
    for i, length in enumerate(lengths):
        for t in range(length):
            recorder.leave(i, np.array([i, t], np.float32))
            recorder.earn(i, 1.0)
    return recorder.visits(range(len(lengths)), gamma, np.array([[i, n] for i, n in enumerate(lengths)], np.float32))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=3), st.sampled_from([0.0, 0.5, 0.99, 1.0]))
def test_returns_to_go_are_sums_of_later_rewards(lengths: list[int], gamma: float) -> None:
    visits = recorded(lengths, gamma)
    owner, time = visits.observations.T.long()
    assert torch.equal(owner, visits.episode)
    assert torch.equal(visits.remaining, torch.tensor(lengths)[owner] - time)
    exact = torch.tensor([sum(gamma**k for k in range(n)) for n in visits.remaining.tolist()])
    torch.testing.assert_close(visits.returns_to_go, exact.float())
    stride = 2 ** max(0, math.ceil(math.log2(max(lengths) / 64)))  # of all, so that the longest has at most 64
    for i, length in enumerate(lengths):
        assert time[owner == i].tolist() == list(range(0, length, stride))


def test_the_rest_of_an_episode_that_was_cut_off_is_drawn_and_of_one_that_ended_is_nothing() -> None:
    gamma = 0.5
    visits = recorded([6, 6], gamma)

    def values(observations: Tensor, count: int) -> Tensor:
        return observations.sum(-1)[None, :, None].expand(2, -1, count)  # a law of one point: i + t

    judged = calibrate(values, episodes(visits, [True, False]), gamma)
    assert judged is not None
    # Those with .5 ** remaining <= .2, three and more steps before the end of the second; of the first as many.
    assert judged.episode.tolist() == [0] * 4 + [1] * 4
    assert judged.remaining.tolist() == [6, 5, 4, 3] * 2
    seen = [2 * (1 - gamma**n) for n in judged.remaining.tolist()]
    rest = [0.0] * 4 + [gamma**n * 7 for n in (6, 5, 4, 3)]  # i + t at its last observation is 7
    torch.testing.assert_close(judged.realised, torch.tensor([a + b for a, b in zip(seen, rest)]))
    assert judged.predicted.shape == (8, 128)
    assert judged.predicted[:, 0].tolist() == [0, 1, 2, 3, 1, 2, 3, 4]
    whole = calibrate(values, episodes(visits, [True, True]), gamma)
    assert whole is not None
    assert whole.remaining.tolist() == [6, 5, 4, 3, 2, 1] * 2
    assert calibrate(values, episodes(recorded([2], gamma), [False]), gamma) is None


@pytest.mark.parametrize("count", [4, 10])
def test_what_completes_a_cut_episode_is_of_all_critics(count: int) -> None:
    """Two critics, 3 above and 3 below a truth of 0: a rest that is a draw of their common law is 0 on average."""
    gamma = 0.99
    visits = recorded([200] * count, gamma)._replace(returns_to_go=torch.zeros(count * 50))

    def values(observations: Tensor, samples: int) -> Tensor:
        return torch.tensor([3.0, -3.0])[:, None, None].expand(-1, len(observations), samples)

    judged = calibrate(values, episodes(visits, [False] * count), gamma)
    assert judged is not None
    rest = judged.realised / gamma**judged.remaining
    assert set(rest.round().tolist()) == {-3, 3}
    assert abs(float(rest.mean())) < 3 * 3 / math.sqrt(len(rest))  # three standard errors


def test_many_states_are_thinned_evenly() -> None:
    visits = recorded([64] * 10, 0.5)
    judged = calibrate(lambda o, count: o[None, :, :1].expand(1, -1, count), episodes(visits, [True] * 10), 0.5)
    assert judged is not None
    assert len(judged.realised) == 256
    assert judged.episode.bincount().tolist() == pytest.approx([25.6] * 10, abs=1)


@pytest.mark.parametrize(
    ("hazard", "limit", "gamma"), [(0.005, 1000, 0.99), (0.02, 10_000, 0.9), (0.05, 30, 0.9), (0.02, 30, 0.9)]
)
def test_episodes_that_may_end_at_any_time_are_judged_fairly(hazard: float, limit: int, gamma: float) -> None:
    """A reward of 1 until an end that comes with the same probability at every step: the law is that of every state."""
    numbers = np.random.default_rng(0)
    ends = numbers.geometric(hazard, 1500)
    visits = recorded(np.minimum(ends, limit).tolist(), gamma)

    def values(observations: Tensor, count: int) -> Tensor:
        further = numbers.geometric(hazard, (1, len(observations), count))
        return torch.from_numpy((1 - gamma**further) / (1 - gamma)).float()

    judged = calibrate(values, episodes(visits, (ends <= limit).tolist()), gamma)
    assert judged is not None
    metrics = calibration_metrics(judged)
    assert float(metrics["eval/pit_mean"]) == pytest.approx(0.5, abs=0.055)  # three standard errors of 256 places
    assert float(metrics["eval/coverage_80"]) == pytest.approx(0.8, abs=0.1)


class Coin(gymnasium.Env):
    """Ten steps, each of which pays a standard normal reward; its return is normal with variance 10 at the start."""

    observation_space = gymnasium.spaces.Box(0, 10, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.left = 10
        return np.array([10], np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.left -= 1
        return np.array([self.left], np.float32), float(self.np_random.normal()), self.left == 0, False, {}


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_a_critic_that_knows_the_law_is_calibrated_on_real_episodes(factor: float) -> None:
    n = 40
    played = run_episodes([Coin() for _ in range(n)], lambda o: torch.zeros(len(o), 1), range(n), 1.0)
    generator = torch.Generator().manual_seed(0)

    def values(observations: Tensor, count: int) -> Tensor:
        noise = torch.randn(2, len(observations), count, generator=generator)
        return factor * observations[None, :, :1].sqrt() * noise

    judged = calibrate(values, played, 1.0)
    assert judged is not None
    within = float(calibration_metrics(judged)["eval/coverage_80"])
    assert abs(within - 0.8) < 0.08 if factor == 1 else within < 0.6


def test_many_policies_see_the_same_visits_as_one() -> None:
    seeds = [3, 4]

    def act(observations: Tensor) -> Tensor:
        return (observations[..., :1] * 2).clamp(-1, 1)

    def envs(n: int) -> list[gymnasium.Env]:
        return [make_env("InvertedPendulum-v5") for _ in range(n)]

    alone = run_episodes(envs(2), act, seeds, 0.9).visits
    together, _ = run_seed_episodes(join_environments(envs(4)), act, seeds, 0.9)
    assert len(alone.returns_to_go) > 4
    for own in together:
        for one, other in zip(alone, own.visits):
            torch.testing.assert_close(one, other)


def test_the_figure_says_what_it_shows() -> None:
    own = Calibration(normal(50).float(), normal(50, 128, seed=2).float(), torch.ones(50), torch.arange(50) % 5)
    figure = calibration_figure(own)
    assert "50 realised returns of 5 evaluation episodes" in figure.get_suptitle()
    within = float(calibration_metrics(own)["eval/coverage_80"])
    assert f"80%: {within:.0%}" in figure.axes[1].get_title()
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert sum(heights) / 10 == pytest.approx(1.0)
