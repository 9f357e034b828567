"""What every critic of the room promises: gradients against autograd, broadcasting, quiet noise, torch.func."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call

from dsob_pl import critics
from dsob_pl.bellman import SobolevOrder, sobolev_samples
from dsob_pl.critics import (
    Critic,
    EmbeddingCritic,
    FiLMCritic,
    GenerativeCritic,
    InjectedCritic,
    QuantileCritic,
    full_rows,
)
from dsob_pl.errors import UsageError
from dsob_pl.networks.mlp import ACTIVATIONS

CRITICS = [
    c
    for c in (getattr(critics, name) for name in critics.__all__)
    if inspect.isclass(c) and issubclass(c, Critic) and c not in (Critic, QuantileCritic)  # the latter by its own test
]
CHEAP = [InjectedCritic, FiLMCritic, EmbeddingCritic]
ALL = pytest.mark.parametrize("kind", CRITICS)
S, A, K, B, N = 3, 2, 4, 5, 7
EXACT = {"rtol": 0, "atol": 1e-12}


def inputs(members=2, batch=B, samples=N, states=S, actions=A, noise_size=K, dtype=None):
    """One row of (s, a) for the samples of a transition: ``[E, B, 1, S], [E, B, 1, A], [E, B, N, K]``."""
    return tuple(
        torch.randn(members, batch, n, size, dtype=dtype)
        for n, size in ((1, states), (1, actions), (samples, noise_size))
    )


def by_autograd(critic, s, a, noise):
    """Value, dZ/ds and dZ/da with a row for every sample, differentiable in the parameters."""
    s, a, noise = full_rows(s, a, noise)
    s, a = s.clone().requires_grad_(), a.clone().requires_grad_()
    value = critic(s, a, noise)
    return value, *torch.autograd.grad(value.sum(), [s, a], create_graph=True)


def assert_same(ours, theirs):
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, **EXACT)


def variants(kind):
    """The class with and without a head, where it has one."""
    return [{}, {"head": None}, {"head": 3}] if "head" in inspect.signature(kind).parameters else [{}]


def test_the_room_exports_all_its_critics():
    assert set(CRITICS) == {GenerativeCritic, *CHEAP}


@ALL
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("samples", [2, 9])  # fewer and more than inputs: sweeps per sample, and the trunk's Jacobian
def test_value_and_gradient_equal_autograd_of_forward(float64, kind, activation, members, samples):
    for options in variants(kind):
        critic = kind(
            S, A, members=members, hidden=(6, 5), noise_size=K, activation=activation, noise_gain=1, **options
        )
        rows = inputs(members, samples=samples)
        value, ds, da = critic.value_and_gradient(*rows)
        assert value.shape == (members, B, samples)
        assert ds.shape == (members, B, samples, S)
        assert da.shape == (members, B, samples, A)
        assert_same((value, ds, da), by_autograd(critic, *rows))
        for x, y in zip(critic.value_and_gradient(*rows, state=False)[::2], (value, da)):
            torch.testing.assert_close(x, y, **EXACT)


@ALL
@pytest.mark.parametrize("samples", [1, 9])
@pytest.mark.parametrize("order", list(SobolevOrder))
def test_parameters_get_the_gradient_of_a_double_backward(float64, kind, samples, order):
    for options in variants(kind):
        critic = kind(S, A, hidden=(6, 5, 4), noise_size=K, **options)
        s, a, noise = torch.randn(B, S), torch.randn(B, A), torch.randn(B, samples, K)
        ours = sobolev_samples(critic, s, a, noise, order)
        value, ds, da = by_autograd(critic, s[None, :, None].expand(2, B, 1, S), a[None, :, None], noise[None])
        parts = {"none": [], "action": [da], "state_action": [ds, da]}[order.value]
        theirs = torch.cat([value.unsqueeze(-1), *parts], -1)
        torch.testing.assert_close(ours, theirs, **EXACT)
        weight = torch.randn_like(ours)
        losses = [((x - 0.3).square() * weight).sum() for x in (ours, theirs)]
        mine, reference = (torch.autograd.grad(loss, list(critic.parameters())) for loss in losses)
        assert_same(mine, reference)


@ALL
def test_broadcast_inputs_equal_full_rows(float64, kind):
    for options in variants(kind):
        critic = kind(S, A, hidden=(6, 5), noise_size=K, **options)
        s, a, noise = inputs()
        for narrow in (
            (s, a, noise),
            (s[:1], a[:1], noise),  # the same transitions for both members
            (s, a, noise[:1, :1]),  # the same noise for all of them
            (s.expand(2, B, N, S), a, noise[:, :, :1]),
        ):
            full = full_rows(*narrow)
            assert_same(critic.value_and_gradient(*narrow), critic.value_and_gradient(*full))
            torch.testing.assert_close(critic(*narrow), critic(*full), **EXACT)
        flat = [x.flatten(1, 2) for x in full_rows(s, a, noise)]
        torch.testing.assert_close(critic(*flat), critic(s, a, noise).flatten(1, 2), **EXACT)


@ALL
def test_members_are_separate_networks(float64, kind):
    critic = kind(S, A, members=3, hidden=(6, 5), noise_size=K)
    rows = inputs(3)
    before = critic.value_and_gradient(*rows)
    with torch.no_grad():
        for p in critic.parameters():
            p[1].add_(0.1)
    after = critic.value_and_gradient(*rows)
    for x, y in zip(before, after):
        assert torch.equal(x[[0, 2]], y[[0, 2]])
        assert not torch.isclose(x[1], y[1]).all()


@ALL
def test_noise_begins_quiet_but_moves_value_and_gradient(float64, kind):
    def spread(x):
        return x.std(2).mean() / x.abs().mean()

    rows = inputs(members=8, samples=64, noise_size=8)
    for options in variants(kind):
        loud, quiet, silent = (
            kind(S, A, members=8, hidden=(32, 32), noise_size=8, noise_gain=gain, **options) for gain in (1.0, 0.1, 0.0)
        )
        for part in (0, 1, 2):
            at = {c: spread(c.value_and_gradient(*rows)[part].detach()) for c in (loud, quiet, silent)}
            assert at[silent] < 1e-12
            assert 1e-3 < at[quiet] < 0.5
            assert at[loud] > 4 * at[quiet]


@ALL
def test_without_noise_all_samples_are_the_same(float64, kind):
    critic = kind(S, A, hidden=(6, 5), noise_size=0)
    rows = inputs(noise_size=0)
    ours = critic.value_and_gradient(*rows)
    assert_same(ours, by_autograd(critic, *rows))
    for x in ours:
        torch.testing.assert_close(x, x[:, :, :1].expand_as(x), **EXACT)
    sum(x.sum() for x in ours).backward()
    assert all(p.grad is not None for p in critic.parameters())


@ALL
@settings(deadline=None, max_examples=25)
@given(
    states=st.integers(1, 4),
    actions=st.integers(1, 3),
    noise_size=st.integers(0, 3),
    members=st.integers(1, 3),
    samples=st.integers(1, 8),
    hidden=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    seed=st.integers(0, 2**31),
)
def test_any_sizes(kind, states, actions, noise_size, members, samples, hidden, seed):
    torch.manual_seed(seed)
    critic = kind(states, actions, members=members, hidden=hidden, noise_size=noise_size, noise_gain=1.0).double()
    rows = inputs(members, 2, samples, states, actions, noise_size, torch.float64)
    assert_same(critic.value_and_gradient(*rows), by_autograd(critic, *rows))


@ALL
@pytest.mark.parametrize("order", list(SobolevOrder))
def test_stacked_parameters_under_torch_func(float64, kind, order):
    """Many seeds in one process: the loss and its gradient with the parameters as arguments, under vmap."""

    class Samples(torch.nn.Module):
        def __init__(self, critic):
            super().__init__()
            self.critic = critic

        def forward(self, s, a, noise):
            return sobolev_samples(self.critic, s, a, noise, order)

    module = Samples(kind(S, A, hidden=(6, 5), noise_size=K))
    s, a, noise = torch.randn(B, S), torch.randn(B, A), torch.randn(B, 9, K)

    def loss(parameters):
        return functional_call(module, parameters, (s, a, noise)).square().sum()

    seeds = [{k: v.detach() * scale for k, v in module.named_parameters()} for scale in (1.0, 1.2)]
    stacked = {k: torch.stack([p[k] for p in seeds]) for k in seeds[0]}
    gradients, values = torch.func.vmap(torch.func.grad_and_value(loss))(stacked)
    for i, parameters in enumerate(seeds):
        leaves = {k: v.clone().requires_grad_() for k, v in parameters.items()}
        value = loss(leaves)
        torch.testing.assert_close(values[i], value.detach())
        for (name, g), e in zip(
            gradients.items(), torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        ):
            torch.testing.assert_close(g[i], torch.zeros_like(g[i]) if e is None else e, msg=name)


@ALL
@pytest.mark.parametrize("options", [{"members": 0}, {"noise_size": -1}, {"hidden": ()}, {"hidden": (64, 0)}])
def test_bad_sizes_are_refused_in_one_line(kind, options):
    with pytest.raises(UsageError, match=r"^critic: expected members >= 1.*$"):
        kind(3, 1, **options)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (InjectedCritic, {"head": 0}),
        (FiLMCritic, {"head": -1}),
        (EmbeddingCritic, {"head": 0}),
        (InjectedCritic, {"hidden": (64,)}),
        (FiLMCritic, {"hidden": (64,)}),
        (EmbeddingCritic, {"frequencies": 0}),
    ],
)
def test_bad_options_of_their_own_are_refused(kind, options):
    with pytest.raises(UsageError, match="critic: expected"):
        kind(3, 1, **options)
