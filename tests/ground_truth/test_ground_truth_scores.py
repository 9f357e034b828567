"""Scores of a learned law: a hand-computed example, zero on average for equal laws, Gaussian closed forms."""

import math
from itertools import combinations

import pytest
import torch
from geomloss import SamplesLoss
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dsob_pl.ground_truth import scores
from dsob_pl.ground_truth.scores import (
    _mean,
    _squared_error,
    conditional_means,
    energy_distance,
    relative_error,
    tail_means,
    units,
)

ACTION = slice(1, 2)


def gaussian(rows, count, slope=0.0, spread=1.0, generator=None):
    """``[G, dG/da]`` with G ~ N(0, spread^2) and E[dG/da | G] = slope G, residual standard deviation spread."""
    g, e = spread * torch.randn(2, rows, count, generator=generator, dtype=torch.float64)
    return torch.stack([g, slope * g + e], -1)


def both(row):
    return torch.tensor(row, dtype=torch.float64)


# Components G, dG/ds, dG/da. Means (variances) of the truth: G 1, 2 (2, 2); dG/da 2, 1 (2, 2). Units sqrt 2, 1, sqrt 2.
TRUE = both([[[0, 1, 1], [2, 1, 3]], [[1, 1, 0], [3, 1, 2]]])
# Likewise, learned: G 4, 4 (2, 0); dG/da 5, -1 (2, 0).
LEARNED = both([[[3, 2, 4], [5, 2, 6]], [[4, 2, -1], [4, 2, -1]]])


def test_hand_computed_scores():
    # Joint [G, dG/da], divided by sqrt 2. Row 0: E|x-y| = (3 + 1 + 5 + 3) / 4 = 3, E|x-x'| = E|y-y'| = 2. Row 1: all
    # |x-y| = sqrt 5, |x-x'| = 0, |y-y'| = 2. With dG/ds, of unit 1 (the truth's size), each |x-y|^2 is larger by 1.
    row_0 = 2 * (2 * math.sqrt(10) + math.sqrt(2) + math.sqrt(26)) / 4 - 4
    expected = {
        "return_error": math.sqrt((9 - 1 - 1 + 4 - 0 - 1) / 2 / 2),
        "return_spread": math.sqrt(2 / 4),
        "gradient_error": math.sqrt((9 - 1 - 1 + 4 - 0 - 1) / (4 + 1 - 1 - 1)),
        "gradient_cosine": (1 - 1) / 2,
        "gradient_spread": math.sqrt(2 / 4),
        "conditional_gradient_error": math.sqrt(10 / 3),  # every fold is one sample, which fills all ten deciles
        **{f"cvar_{level}_gradient_error": math.sqrt(10 / 3) for level in (10, 25)},  # and all of the tail, too
        **{f"cvar_{level}_gradient_cosine": 0.0 for level in (10, 25)},
        "energy_distance": (2 * 3 - 2 - 2 + 2 * math.sqrt(5) - 2) / 2,
        "state_gradient_error": 1.0,
        "state_gradient_cosine": 1.0,
        "state_gradient_spread": 1.0,  # neither has any
        "state_conditional_gradient_error": 1.0,
        "state_energy_distance": (row_0 + 2 * math.sqrt(6) - 2) / 2,
    }
    result = scores(LEARNED, TRUE, 1, state=True)
    assert {k: v.item() for k, v in result.items()} == pytest.approx(expected)
    action_only = scores(LEARNED, TRUE, 1)
    assert action_only == {k: v for k, v in result.items() if not k.startswith("state_")}


@pytest.mark.parametrize(("learned", "true"), [(2, 7), (9, 4), (1, 5)])
def test_squared_errors_of_means_are_zero_on_average_for_equal_laws(learned, true):
    rows = 20_000
    y = gaussian(rows, true, 0.5)
    x = gaussian(rows, learned, 0.5) if learned > 1 else torch.zeros(rows, 1, 2, dtype=torch.float64)
    errors = _squared_error(*_mean(x), *_mean(y))
    assert (errors.mean(0).abs() < 4 * errors.std(0) / math.sqrt(rows)).all()
    removed = (_mean(x)[1] + _mean(y)[1]).mean(0)
    assert (errors.std(0) / math.sqrt(rows) < 0.1 * removed).all()  # it would be noticed


@pytest.mark.parametrize(("learned", "true"), [(3, 8), (20, 20)])
def test_energy_distance_is_zero_on_average_for_equal_laws(learned, true):
    rows = 2000
    x, y, unit = gaussian(rows, learned, 0.5), gaussian(rows, true, 0.5), torch.ones(2, dtype=torch.float64)
    each = torch.stack([energy_distance(x[i : i + 1], y[i : i + 1], unit) for i in range(rows)])
    assert abs(each.mean()) < 4 * each.std() / math.sqrt(rows)
    torch.testing.assert_close(energy_distance(x, y, unit), each.mean())


@pytest.mark.parametrize(("learned", "true"), [(60, 60), (100, 250)])
@pytest.mark.parametrize("slope", [0.0, 1.0, 3.0])
def test_conditional_errors_are_zero_on_average_for_equal_laws(learned, true, slope):
    rows = 2000
    x = conditional_means(gaussian(rows, learned, slope), ACTION)
    y = conditional_means(gaussian(rows, true, slope), ACTION)
    errors = _squared_error(*x, *y).mean((1, 2))
    # Deciles of a fold of a few samples are biased, and differently so where the folds differ in size.
    biased = 0.0 if learned == true else 0.001 * slope**2
    assert abs(errors.mean()) < 4 * errors.std() / math.sqrt(rows) + biased
    assert errors.std() / math.sqrt(rows) < 0.02 * (x[1] + y[1]).mean()


def test_equal_laws_score_well():
    result = scores(gaussian(16, 800, 0.7) + 1, gaussian(16, 1500, 0.7) + 1, 0)
    zero = {"return_error", "gradient_error", "conditional_gradient_error", "energy_distance"}
    for name, value in result.items():
        if name.startswith("cvar"):  # the tail's mean is -0.2 here, hard to tell from 0
            continue
        target, tolerance = (0.0, 0.06) if name in zero else (1.0, 0.03)
        assert abs(value.item() - target) < tolerance, name


def test_equal_tails_score_well():
    result = scores(gaussian(16, 800, 0.7) + 3, gaussian(16, 1500, 0.7) + 3, 0)
    for level in (10, 25):
        assert result[f"cvar_{level}_gradient_error"] < 0.03
        assert result[f"cvar_{level}_gradient_cosine"] > 0.99


def test_spread_ratios_of_gaussians():
    result = scores(gaussian(8, 4000, spread=0.5), gaussian(8, 4000, spread=2.0), 0)
    assert result["return_spread"].item() == pytest.approx(0.25, rel=0.02)
    assert result["gradient_spread"].item() == pytest.approx(0.25, rel=0.02)


def test_energy_distance_of_gaussians():
    # E|x - y| of x ~ N(0, a^2), y ~ N(0, b^2) is sqrt(2 (a^2 + b^2) / pi).
    x, y = gaussian(64, 512, spread=0.5)[..., :1], gaussian(64, 512)[..., :1]
    exact = math.sqrt(2 / math.pi) * (2 * math.sqrt(1.25) - math.sqrt(0.5) - math.sqrt(2))
    assert energy_distance(x, y, torch.ones(1).double()).item() == pytest.approx(exact, abs=4e-3)


def own(x):
    return sum((p - q).norm() for p, q in combinations(x, 2)) / math.comb(len(x), 2)


def test_energy_distance_against_scipy_and_geomloss():
    # Both keep the diagonal, that is, take (n - 1)/n of the mean distance of different samples.
    x, y = torch.randn(30, 1).double(), 1.5 * torch.randn(20, 1).double() + 0.3
    ours = energy_distance(x[None], y[None], torch.ones(1).double())
    biased = ours + own(x) / 30 + own(y) / 20
    assert biased.item() == pytest.approx(stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2)
    x, y = torch.randn(30, 3).double(), torch.randn(20, 3).double()
    ours = energy_distance(2 * x[None], 2 * y[None], torch.full((3,), 2.0).double())
    biased = ours + own(x) / 30 + own(y) / 20
    assert biased.item() == pytest.approx(2 * SamplesLoss("energy")(x, y).item(), rel=1e-4)


def test_a_deterministic_critic_is_its_one_sample():
    # The right mean and nothing else: 2 E|Y| - E|Y - Y'| for Y ~ N(0, I) in two dimensions, where E|Y| = sqrt(pi / 2).
    true = gaussian(64, 2000)
    shift = torch.tensor([5.0, 0.5])
    result = scores(shift.expand(64, 1, 2).double(), true + shift, 0)
    assert result["energy_distance"].item() == pytest.approx((2 - math.sqrt(2)) * math.sqrt(math.pi / 2), abs=0.02)
    assert result["return_spread"] == result["gradient_spread"] == 0
    assert result["return_error"] < 0.02
    assert result["gradient_error"] < 0.03
    # Copies of it are the same law.
    copies = scores(shift.expand(64, 30, 2).double(), true + shift, 0)
    for name, value in result.items():
        torch.testing.assert_close(copies[name], value)


@pytest.mark.parametrize(("slope", "error"), [(-0.8, 2.0), (0.0, 1.0), (1.2, 0.5), (0.8, 0.0)])
def test_conditional_gradient_error_of_a_linear_gaussian_law(slope, error):
    # E[dG/da | G] is 0.8 G in the truth and slope * G in the learned law; the mean gradients are equal.
    result = scores(gaussian(32, 2000, slope), gaussian(32, 2000, 0.8), 0)
    assert result["conditional_gradient_error"].item() == pytest.approx(error, abs=0.06)


def test_conditional_means_of_a_linear_gaussian_law():
    mean, variance = conditional_means(gaussian(800, 1000, 0.8), ACTION)
    edges = stats.norm.ppf(torch.linspace(0, 1, 11).numpy())
    exact = torch.from_numpy(-8 * (stats.norm.pdf(edges[1:]) - stats.norm.pdf(edges[:-1])))
    torch.testing.assert_close(mean.mean(0)[:, 0], exact, atol=0.02, rtol=0.0)
    # Rows are repetitions.
    torch.testing.assert_close(variance.mean(0), mean.var(0), rtol=0.3, atol=0.0)


@pytest.mark.parametrize("alpha", [0.1, 0.25])
def test_the_gradient_of_cvar_of_a_linear_gaussian_law(alpha):
    mean, variance = tail_means(gaussian(800, 1000, 0.8), ACTION, alpha)
    exact = -0.8 * stats.norm.pdf(stats.norm.ppf(alpha)) / alpha  # slope E[G | G below its quantile]
    assert mean.mean().item() == pytest.approx(exact, abs=0.02)
    torch.testing.assert_close(variance.mean(0), mean.var(0), rtol=0.3, atol=0.0)


def test_gradients_that_are_paired_with_other_returns_have_a_wrong_tail_and_the_right_mean():
    true, learned = gaussian(64, 2000, 0.8), gaussian(64, 2000, 0.8)
    true[..., 1] += 0.5
    learned[..., 1] += 0.5
    shuffled = torch.stack([learned[..., 0], learned[:, torch.randperm(2000), 1]], -1)
    paired, wrong = scores(learned, true, 0), scores(shuffled, true, 0)
    # The truth is 0.5 - 0.8 * 1.755 = -0.90 at 0.1 and 0.5 - 0.8 * 1.271 = -0.52 at 0.25; of the other both are 0.5.
    for level, error in ((10, 1.55), (25, 1.97)):
        assert paired[f"cvar_{level}_gradient_error"] < 0.1
        assert paired[f"cvar_{level}_gradient_cosine"] > 0.99  # of numbers: the signs
        assert wrong[f"cvar_{level}_gradient_error"].item() == pytest.approx(error, abs=0.1)
        assert wrong[f"cvar_{level}_gradient_cosine"] < -0.99
    assert wrong["gradient_error"] == paired["gradient_error"] < 0.1


def test_samples_on_the_border_belong_to_both_deciles():
    # Five folds of the same four samples, each of which fills 2.5 of the ten deciles.
    samples = both([[[3, 30], [1, 10], [4, 40], [2, 20]]]).repeat_interleave(5, 1)
    mean, variance = conditional_means(samples, ACTION)
    assert mean[0, :, 0].tolist() == pytest.approx([10, 10, 15, 20, 20, 30, 30, 35, 40, 40])
    assert not variance.any()


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    reward=st.floats(1e-3, 1e3),
    length=st.floats(1e-2, 1e2),
    torque=st.floats(1e-2, 1e2),
    count=st.sampled_from([1, 2, 13]),
)
def test_units_and_order_do_not_matter(seed, reward, length, torque, count):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(3, n, 4, generator=generator).double() + 1 for n in (count, 17))
    scale = reward / torch.tensor([1.0, length, torque, torque]).double()
    plain = scores(x, y, 1, state=True)
    scaled = scores(x.flip(0) * scale, y.flip(0) * scale, 1, state=True)
    for name, value in plain.items():
        torch.testing.assert_close(scaled[name], value, rtol=1e-6, atol=1e-6)
    shifted = scores(x + both([10, 0, 0, 0]), y + both([10, 0, 0, 0]), 1, state=True)
    for name, value in plain.items():
        torch.testing.assert_close(shifted[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 12])
@pytest.mark.parametrize("offset", [0.0, 1 / 3])
def test_a_truth_without_spread_gives_finite_scores(dtype, count, offset):
    for rows in (torch.zeros(3), torch.tensor([0.0, 1.0, 2.0])):
        true = (rows + offset).to(dtype)[:, None, None].expand(3, 50, 3).contiguous()
        right = scores(true[:, :count], true, 1, state=True)
        wrong = scores(true[:, :count] + torch.randn(3, count, 3).to(dtype), true, 1, state=True)
        for name, value in wrong.items():
            assert value.isfinite(), name
            target = 1.0 if "spread" in name or "cosine" in name else 0.0
            # float32 rounds the sum of squares of a mean of 50 equal numbers.
            assert right[name].item() == pytest.approx(target, abs=1e-3), name
        if count > 1:
            assert wrong["return_spread"] > 1.2


def test_units_fall_back_from_rows_to_size():
    t = torch.arange(4.0).double()[:, None].expand(4, 1000)
    noise = torch.randn(4, 1000).double()
    unit = units(torch.stack([t + 0.1 * noise, t, 0 * t + 7, 0 * t, t + 1e-5 * noise], -1))
    across = math.sqrt(1.25)
    assert unit.tolist() == pytest.approx([0.1, across, 7, 1, across], rel=0.05)


def test_a_true_mean_lost_in_noise_does_not_divide_by_it():
    one = torch.ones(1).double()
    assert relative_error(5 * one, 0 * one, 0 * one, 4 * one).item() == pytest.approx(math.sqrt((25 - 4) / 4))
    assert relative_error(5 * one, 0 * one, 0 * one, 0 * one) == 5


def test_energy_distance_looks_at_the_whole_of_an_ordered_sample():
    x = torch.randn(2, 3000, 1).double()
    unit = torch.ones(1).double()
    assert energy_distance(x.sort(1).values, x, unit) < 0.01
    assert energy_distance(x.sort(1).values[:, :512], x, unit) > 0.5


def test_shapes_that_do_not_fit_are_refused():
    x = torch.randn(3, 5, 4)
    for learned, true in ((x[:2], x), (x[..., :3], x), (x, x[:, :1]), (x[0], x)):
        with pytest.raises(ValueError, match="scores: expected learned"):
            scores(learned, true, 1)
    with pytest.raises(ValueError, match="leaves no action"):
        scores(x, x, 3)
