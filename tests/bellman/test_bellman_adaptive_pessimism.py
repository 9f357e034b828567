"""Pessimism that adapts: the moved samples by hand and against LowerMean, and which way the weight goes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsob_pl.bellman import AdaptivePessimism, LowerMean, NoCorrection, bounded_drift, net_over_total, towards_lowest
from dsob_pl.errors import UsageError


def test_samples_move_towards_the_lowest_mean_by_hand(float64):
    # [E=2, B=2, M=2, D=2]; mean returns 5, 0 and 3.5, 0.5; mean gradients 50, 0 and 7, 1.
    first = torch.tensor([[[1.0, 10.0], [9.0, 90.0]], [[0.0, 0.0], [0.0, 0.0]]])
    second = torch.tensor([[[4.0, 8.0], [3.0, 6.0]], [[5.0, 10.0], [-4.0, -8.0]]])
    moved = towards_lowest(torch.stack([first, second]), 0.5)
    # Of the first transition the second critic is the lower: the first one's samples move by half of (1.5, 43).
    assert moved[0].tolist() == [[0.25, -11.5], [8.25, 68.5], [4.0, 8.0], [3.0, 6.0]]
    assert moved[1].tolist() == [[0.0, 0.0], [0.0, 0.0], [4.75, 9.5], [-4.25, -8.5]]


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10_000), members=st.integers(2, 4), count=st.integers(1, 5), weight=st.floats(-2, 1),
)  # fmt: skip
def test_between_no_correction_and_the_lower_mean_and_of_the_same_shape(seed, members, count, weight):
    draw = torch.randn(members, 3, count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    moved = towards_lowest(draw, weight)
    none, lower = NoCorrection()(draw), LowerMean()(draw)
    torch.testing.assert_close(moved.mean(1), (1 - weight) * none.mean(1) + weight * lower.mean(1))
    place = NoCorrection()(torch.arange(members * count).view(members, 1, count, 1)).flatten().argsort()
    each, before = moved[:, place].view(3, members, count, 4), draw.transpose(0, 1)
    torch.testing.assert_close(each - each.mean(2, keepdim=True), before - before.mean(2, keepdim=True))
    assert torch.equal(towards_lowest(draw, 0.0), none)
    lowered = (none - moved)[..., 0]
    assert ((lowered if weight >= 0 else -lowered) >= -1e-12).all()


def test_the_moved_gradient_is_the_gradient_of_the_moved_return(float64):
    noise = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))

    def returns(a):  # [2, 4, 5], two critics that disagree by more the farther a goes
        return torch.stack([(a * noise[0] + a**2), (a * noise[1] + torch.sin(3 * a) + 1)])

    a = torch.linspace(-1, 1, 4).unsqueeze(1).expand(4, 5).clone().requires_grad_()
    (gradient,) = (torch.autograd.functional.jacobian(lambda x: returns(x).sum((1, 2)), a),)
    samples = torch.stack([returns(a).detach(), gradient], -1)
    moved = towards_lowest(samples, 0.7)

    # All samples of a transition share its action, so the derivative of a moved return is along all of them.
    def moved_returns(x):
        z = returns(x.unsqueeze(1).expand(4, 5))
        return towards_lowest(z.unsqueeze(-1), 0.7).squeeze(-1)

    action = a[:, 0].detach()
    own = torch.autograd.functional.jacobian(moved_returns, action)  # [4, 10, 4]
    torch.testing.assert_close(moved[..., 1], own.diagonal(dim1=0, dim2=2).T)


def test_what_falls_everywhere_is_bounded_by_hand(float64):
    # Two critics, two transitions, one sample, [return, gradient]. Values 3 and 11, so their standard deviation is 4.
    samples = torch.tensor([[[[5.0, 1.0]], [[12.0, 4.0]]], [[[1.0, 2.0]], [[10.0, 3.0]]]])
    assert towards_lowest(samples, 1.0).tolist() == [[[1.0, 2.0], [1.0, 2.0]], [[10.0, 3.0], [10.0, 3.0]]]
    # They fall by 4, 0 and 2, 0: 1.5 on average, which is 0.5 more than a quarter of 4.
    moved = towards_lowest(samples, 1.0, drift=0.25)
    assert moved.tolist() == [[[1.5, 2.0], [1.5, 2.0]], [[10.5, 3.0], [10.5, 3.0]]]
    # On average nothing falls, and the state on which the critics agree more is the better for it.
    assert towards_lowest(samples, 1.0, drift=0.0)[..., 0].tolist() == [[2.5, 2.5], [11.5, 11.5]]
    # Enough for what falls; and what rises is not bounded.
    assert torch.equal(towards_lowest(samples, 1.0, drift=0.375), towards_lowest(samples, 1.0))
    assert torch.equal(towards_lowest(samples, -1.0, drift=0.0), towards_lowest(samples, -1.0))


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10_000), members=st.integers(1, 4), weight=st.floats(-2, 2), drift=st.floats(0, 1),
    unit=st.floats(1e-2, 1e2), level=st.floats(-100, 100),
)  # fmt: skip
def test_the_bound_holds_has_no_unit_and_no_zero_and_leaves_gradients_alone(seed, members, weight, drift, unit, level):
    draw = torch.randn(members, 6, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    before, free, moved = NoCorrection()(draw), towards_lowest(draw, weight), towards_lowest(draw, weight, drift)
    spread = draw[..., 0].mean((0, 2)).std(correction=0)
    fall = (before - moved)[..., 0].mean()
    torch.testing.assert_close(fall, min((before - free)[..., 0].mean(), drift * spread))
    assert torch.equal(moved[..., 1:], free[..., 1:])
    # Every sample is given back the same.
    given = (moved - free)[..., 0]
    torch.testing.assert_close(given, given.mean().expand_as(given), rtol=0, atol=1e-10)
    assert given.mean() >= -1e-12
    other = draw.clone()
    other[..., 0] = other[..., 0] * unit + level
    rescaled = towards_lowest(other, weight, drift)
    torch.testing.assert_close(rescaled[..., 0], moved[..., 0] * unit + level, rtol=1e-9, atol=1e-9 * (1 + abs(level)))


def test_seeds_are_bounded_one_by_one_and_the_agent_s_correction_is_the_function(float64):
    draw = torch.randn(3, 2, 8, 5, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 0.1]).view(
        3, 1, 1, 1, 1
    )
    pessimism = AdaptivePessimism(drift=0.02)
    together = torch.vmap(pessimism)(draw)
    for own, seed in zip(together, draw):
        torch.testing.assert_close(own, towards_lowest(seed, 1.0, 0.02))
        torch.testing.assert_close(own, pessimism(seed))
    assert torch.equal(bounded_drift(draw[0], draw[0], 1e9), draw[0])


def test_the_weight_goes_against_the_bias_and_stays_within_its_limits(float64):
    pessimism = AdaptivePessimism(initial=0.5, rate=0.2)
    none = torch.zeros(1)  # of the errors, by which this one does not go
    pessimism.adapt(torch.tensor([0.0, 0.5]), none)  # realised below predicted
    assert pessimism.weight == pytest.approx(0.6)
    pessimism.adapt(torch.tensor([0.5, 0.5, 0.4, 0.6]), none)
    assert pessimism.weight == pytest.approx(0.6)
    for _ in range(10):
        pessimism.adapt(torch.ones(3), torch.zeros(3))
    assert pessimism.weight == 0
    for _ in range(10):
        pessimism.adapt(torch.zeros(3), torch.zeros(3))
    assert pessimism.weight == 1
    assert pessimism.state_dict() == {"weight": torch.tensor(1.0), "begun": torch.tensor(-1)}
    samples = torch.randn(2, 3, 4, 2)
    assert torch.equal(pessimism(samples), towards_lowest(samples, 1.0))


def test_below_0_the_weight_is_optimism_as_far_as_the_floor_allows(float64):
    pessimism = AdaptivePessimism(initial=0.0, rate=0.2, floor=-0.5)
    pessimism.adapt(torch.ones(3), torch.zeros(3))
    assert pessimism.weight == pytest.approx(-0.2)
    for _ in range(10):
        pessimism.adapt(torch.ones(3), torch.zeros(3))
    assert pessimism.weight == -0.5
    # Mean returns 5 and 3: the higher one's samples go up by half of 2, the gradients with them; the lower ones stay.
    samples = torch.tensor([[[[4.0, 1.0], [6.0, 3.0]]], [[[3.0, 0.0], [3.0, 1.0]]]])
    assert pessimism(samples).tolist() == [[[5.0, 1.75], [7.0, 3.75], [3.0, 0.0], [3.0, 1.0]]]


def test_by_error_it_is_the_mean_where_most_is_at_stake(float64):
    # Nine states 0.1 too low, one 2.1 too high: by rank the weight shrinks, by error it grows, by (2.1 - 0.9) / 3.
    places, errors = torch.tensor([1.0] * 9 + [0.0]), torch.tensor([0.1] * 9 + [-2.1])
    by_rank, by_error = (AdaptivePessimism(initial=0.5, rate=0.2, evidence=e) for e in ("rank", "error"))
    by_rank.adapt(places, errors)
    by_error.adapt(places, errors)
    assert by_rank.weight == pytest.approx(0.5 - 0.2 * 0.8)
    assert by_error.weight == pytest.approx(0.5 + 0.2 * 0.4)
    by_error.adapt(places, torch.zeros(10))  # nothing is wrong, so nothing changes
    assert by_error.weight == pytest.approx(0.58)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=20), st.floats(1e-3, 1e3))
def test_the_balance_of_errors_has_no_unit_and_is_within_one(errors, unit):
    own = torch.tensor(errors, dtype=torch.float64)
    balance = net_over_total(own)
    assert -1 - 1e-12 <= balance <= 1 + 1e-12
    torch.testing.assert_close(net_over_total(own * unit), balance)
    torch.testing.assert_close(net_over_total(-own), -balance)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"limit": 0.0}, r"limit: expected a positive number, got 0"),
        ({"initial": 1.5}, r"initial: expected a number from floor 0 to limit 1, got 1\.5"),
        ({"floor": 0.5}, r"floor: expected a number of at most 0, got 0\.5"),
        ({"rate": float("nan")}, r"rate: expected a number of at least 0, got nan"),
        ({"after": 1.0}, r"after: expected a fraction in \[0, 1\), got 1"),
        ({"evidence": "ranks"}, r"evidence: expected rank or error, got 'ranks'; did you mean 'rank'\?"),
        ({"drift": -0.1}, r"drift: expected a number of at least 0, or null, got -0\.1"),
        ({"drift": float("nan")}, r"drift: expected a number of at least 0, or null, got nan"),
        ({"every": 0}, r"every: expected at least 1 environment step, got 0"),
        ({"window": 0}, r"window: expected at least 1 environment step, got 0"),
    ],
)
def test_options_out_of_range_give_one_line(options, line):
    with pytest.raises(UsageError, match=r"AdaptivePessimism\." + line):
        AdaptivePessimism(**options)
