"""The fixed linear policy: its map, its checkpoint, and every gain that does not fit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser

from dsob_pl.errors import UsageError
from dsob_pl.networks import LinearPolicy, polyak_update, target_copy


def test_action_and_jacobian_by_hand() -> None:
    policy = LinearPolicy(3, 2, gain=[[1.0, 0.0, -2.0], [0.5, 3.0, 0.0]])
    s = torch.tensor([1.0, 2.0, 3.0])
    assert policy(s).tolist() == [-5.0, 6.5]
    assert torch.equal(torch.func.jacrev(policy)(s), policy.gain)
    assert policy(s.expand(4, 5, 3)).shape == (4, 5, 2)


def test_squashed() -> None:
    policy = LinearPolicy(1, 1, gain=[[2.0]], squash=True)
    s = torch.tensor([0.3])
    assert policy(s).item() == pytest.approx(math.tanh(0.6))
    assert torch.func.jacrev(policy)(s).item() == pytest.approx(2 * (1 - math.tanh(0.6) ** 2))
    assert policy(torch.tensor([1e6])).item() <= 1


def test_a_number_is_a_multiple_of_the_identity_and_zero_fits_any_size() -> None:
    assert torch.equal(LinearPolicy(2, 2, gain=-0.5).gain, -0.5 * torch.eye(2))
    assert torch.equal(LinearPolicy(3, 1).gain, torch.zeros(1, 3))
    # the derivative in s is zero, not absent
    s = torch.randn(4, 3, requires_grad=True)
    assert torch.equal(torch.autograd.grad(LinearPolicy(3, 1)(s).sum(), s)[0], torch.zeros(4, 3))


def test_nothing_to_train_but_kept_in_the_checkpoint() -> None:
    policy = LinearPolicy(2, 2, gain=-1.0)
    assert not list(policy.parameters())
    other = LinearPolicy(2, 2)
    other.load_state_dict(policy.state_dict())
    assert torch.equal(other.gain, policy.gain)
    polyak_update(target_copy(policy), policy, 0.1)


@pytest.mark.parametrize(
    ("gain", "part"),
    [
        ([[1.0, 0.0]], "expected shape [1, 3] (actions, observations), got [1, 2]"),
        ([[1.0], [0.0], [0.0]], "got [3, 1]"),
        ([1.0, 0.0, 0.0], "got [3]"),
        ([[1.0, 0.0, 0.0], [1.0]], "got [[1.0, 0.0, 0.0], [1.0]]"),
        ("identity", "'identity'"),
        (None, "None"),
        (-1.0, "as many actions as observations; got -1.0"),
        ([[1.0, math.nan, 0.0]], "finite"),
    ],
)
def test_gains_that_do_not_fit(gain: Any, part: str) -> None:
    with pytest.raises(UsageError) as raised:
        LinearPolicy(3, 1, gain=gain)
    message = str(raised.value)
    assert message.startswith("model.policy: LinearPolicy.gain: ")
    assert "\n" not in message
    assert part in message


@pytest.mark.parametrize("gain", [math.inf, math.nan])
def test_a_number_has_to_be_finite(gain: float) -> None:
    with pytest.raises(UsageError, match=r"model\.policy: LinearPolicy\.gain: "):
        LinearPolicy(2, 2, gain=gain)


@pytest.mark.parametrize("text", ["-1", "-1.0", "[[-1, 0], [0, -1]]"])
def test_gain_from_a_config_file(text: str) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(LinearPolicy, "policy")
    arguments = ["--policy.observation_size=2", "--policy.action_size=2", f"--policy.gain={text}"]
    policy = parser.instantiate_classes(parser.parse_args(arguments)).policy
    assert torch.equal(policy.gain, -torch.eye(2))
