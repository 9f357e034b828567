import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsob_pl.errors import UsageError
from dsob_pl.networks import MLP, DeterministicPolicy, EnsembleMLP, RunningNormalizer, polyak_update, target_copy
from dsob_pl.networks.mlp import ACTIVATIONS, activation_by_name


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(5,), (7, 6), (4, 5, 6)])
def test_written_out_input_gradient_equals_autograd(float64, activation, hidden):
    net = EnsembleMLP(3, 4, hidden, 1, activation)
    x = torch.randn(3, 2, 5, 4, requires_grad=True)
    value, gradient = net.value_and_input_gradient(x)
    torch.testing.assert_close(value, net(x).squeeze(-1))
    (reference,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    torch.testing.assert_close(gradient, reference)
    # A Sobolev loss differentiates the gradient once more, in the parameters.
    for ours, theirs in zip(
        torch.autograd.grad(gradient.square().sum(), net.parameters(), allow_unused=True),
        torch.autograd.grad(reference.square().sum(), net.parameters(), allow_unused=True),
    ):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs)


def test_ensemble_members_are_separate_networks(float64):
    net = EnsembleMLP(2, 3, (4,), 2)
    x = torch.randn(3)
    y = net(x.expand(2, 6, 3))
    for e in range(2):
        h = torch.nn.functional.silu(x @ net.layers[0].weight[e] + net.layers[0].bias[e, 0])
        torch.testing.assert_close(y[e, 0], h @ net.layers[1].weight[e] + net.layers[1].bias[e, 0])
    assert not torch.allclose(y[0], y[1])


def test_unknown_activation_names_the_valid_ones():
    with pytest.raises(ValueError, match="'relu' is not one of silu"):
        activation_by_name("relu")


@pytest.mark.parametrize("make", [lambda hidden: MLP(3, hidden, 1), lambda hidden: EnsembleMLP(2, 3, hidden, 1)])
def test_a_layer_without_units_is_refused(make):
    with pytest.raises(UsageError, match=r"hidden: expected widths of at least 1, got \[8, 0\]"):
        make((8, 0))


def test_policy_stays_in_the_action_box():
    policy = DeterministicPolicy(3, 2, hidden=(8,))
    a = policy(100 * torch.randn(50, 3))
    assert a.shape == (50, 2)
    assert a.abs().max() <= 1


@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.floats(-100, 100), st.floats(0.1, 50))
def test_running_statistics_equal_those_of_all_rows_at_once(chunks, shift, spread):
    generator = torch.Generator().manual_seed(sum(chunks))
    parts = [shift + spread * torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in chunks]
    normalizer = RunningNormalizer(3, minimum_std=1e-6)
    for part in parts:
        normalizer.update(part)
    rows = torch.cat(parts)
    torch.testing.assert_close(normalizer.mean, rows.mean(0))
    torch.testing.assert_close(normalizer.variance, rows.var(0, unbiased=False))


def test_normalizer_begins_as_identity_and_inverts():
    normalizer = RunningNormalizer(2)
    x = torch.randn(5, 2)
    assert torch.equal(normalizer(x), x)
    normalizer.update(3 + 2 * torch.randn(100, 2))
    torch.testing.assert_close(normalizer.inverse(normalizer(x)), x)


def test_a_component_that_never_moves_stays_finite():
    normalizer = RunningNormalizer(2)
    normalizer.update(torch.ones(10, 2))
    assert torch.equal(normalizer(torch.ones(1, 2)), torch.zeros(1, 2))


def test_polyak_update_moves_by_tau_and_targets_take_no_gradient():
    source = MLP(2, (3,), 1)
    target = target_copy(source)
    before = [p.clone() for p in target.parameters()]
    with torch.no_grad():
        for p in source.parameters():
            p.add_(1.0)
    polyak_update(target, source, 0.25)
    for p, start in zip(target.parameters(), before):
        torch.testing.assert_close(p, start + 0.25)
        assert not p.requires_grad


def test_polyak_update_copies_buffers():
    source = RunningNormalizer(2)
    target = target_copy(source)
    source.update(torch.randn(10, 2))
    polyak_update(target, source, 0.5)
    assert torch.equal(target.mean, source.mean)
