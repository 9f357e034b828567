"""The policy whose outputs are limited before the tangent: by hand, and for any weights."""

from __future__ import annotations

import math

import pytest
import torch

from dsob_pl.errors import UsageError
from dsob_pl.networks import DeterministicPolicy


def policy(limit, size=2, scale=1.0):
    torch.manual_seed(0)
    made = DeterministicPolicy(3, size, hidden=(8,), output_limit=limit).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter *= scale
    return made


def given(made, x):
    """Makes the network give ``x [A]`` everywhere."""
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
        made.mlp[-1].bias.copy_(torch.tensor(x, dtype=torch.float64))
    return made(torch.zeros(3, dtype=torch.float64))


def test_by_hand():
    # x = (6, 8) has the mean square 50; with limit 5 it is divided by sqrt(1 + 50 / 25) = sqrt(3)
    expected = [math.tanh(6 / math.sqrt(3)), math.tanh(8 / math.sqrt(3))]
    assert given(policy(5.0), [6.0, 8.0]).tolist() == pytest.approx(expected, rel=1e-12)


def test_the_gradient_by_hand():
    # One component: a = tanh(u), u = x / sqrt(1 + x^2), da/dx = (1 - a^2) (1 + x^2)^(-3/2). At x = 10 that is 4e-4,
    # where the tangent alone has 8e-9.
    made = policy(1.0, size=1)
    given(made, [10.0])
    (gradient,) = torch.autograd.grad(made(torch.zeros(3, dtype=torch.float64)).sum(), made.mlp[-1].bias)
    a = math.tanh(10 / math.sqrt(101))
    assert gradient.item() == pytest.approx((1 - a**2) * 101**-1.5, rel=1e-9)
    assert 4e-4 < gradient.item() < 5e-4


@pytest.mark.parametrize("limit", [0.5, 2.0, 3.0])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_the_root_mean_square_stays_below_the_limit(limit, scale):
    s = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = policy(limit, 4, scale)(s).atanh()
    assert x.square().mean(-1).sqrt().max() <= limit * (1 + 1e-9)


def test_small_outputs_are_left_alone_and_without_a_limit_all_are():
    s = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    free = policy(None)
    assert torch.equal(free(s), free.mlp(s).tanh())
    torch.testing.assert_close(policy(1e6)(s), free(s), rtol=1e-9, atol=1e-9)


def test_it_is_smooth_for_the_sobolev_target():
    s = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    made = policy(1.0, scale=5.0)
    assert torch.autograd.gradcheck(made, s)
    assert torch.autograd.gradgradcheck(made, s)


@pytest.mark.parametrize("limit", [0.0, -1.0, math.inf, math.nan])
def test_a_limit_that_cannot_be_is_refused(limit):
    with pytest.raises(UsageError, match=r"model\.policy: output_limit: expected a finite number above 0 or null"):
        policy(limit)
