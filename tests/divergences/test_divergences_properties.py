"""Properties of every divergence, over shapes and samples (float64 unless said otherwise)."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dsob_pl.divergences as room
from dsob_pl.divergences import (
    MMD,
    RBF,
    Divergence,
    EnergyDistance,
    Huber,
    MaxSlicedMMD,
    MaxSlicedWasserstein,
    Multiquadric,
    QuantileHuber,
    SlicedWasserstein,
    SobolevHuber,
    SquaredError,
    ValueAnchored,
)

KERNELS = {"energy": EnergyDistance(), "mq": Multiquadric(2.0), "mq100": Multiquadric(100.0), "rbf": RBF([0.5, 1.0])}
MMDS: dict[str, Divergence] = {
    f"mmd-{name}-{estimator}": MMD(kernel, estimator)
    for (name, kernel), estimator in itertools.product(KERNELS.items(), ("unbiased", "biased"))
}
SLICED: dict[str, Divergence] = {
    f"sliced-{direction}-{name}-{estimator}": MaxSlicedMMD(KERNELS[name], estimator, direction)
    for direction, (name, estimator) in itertools.product(
        ("batch", "transition", "cross_fitted"), (("energy", "unbiased"), ("mq", "biased"))
    )
}
REGRESSION: dict[str, Divergence] = {
    "huber": Huber(0.7),
    "sobolev_huber": SobolevHuber(0.7, 0.5),
    "componentwise": SobolevHuber(0.7, 0.5, "componentwise"),
    "squared": SquaredError(1.0, 0.3),
}
ANCHORED: dict[str, Divergence] = {
    "anchored-mmd": ValueAnchored(MMD(Multiquadric(2.0)), weight=0.5),
    "anchored-huber": ValueAnchored(MaxSlicedMMD(EnergyDistance(), direction="transition"), Huber(), weight=2.0),
}
QUANTILE: dict[str, Divergence] = {"quantile": QuantileHuber(0.7)}
TRANSPORT: dict[str, Divergence] = {
    **{f"wasserstein-{p}": SlicedWasserstein(p, directions=16) for p in (1, 2)},
    **{f"max-wasserstein-{direction}": MaxSlicedWasserstein(2, direction) for direction in ("batch", "transition")},
}
ALL = MMDS | SLICED | REGRESSION | ANCHORED | QUANTILE | TRANSPORT
# those that know lengths of whole vectors alone
ROTATED: dict[str, Divergence] = MMDS | SLICED | {"huber": Huber(0.7), "equal_weights": SquaredError()}

examples = settings(max_examples=6, deadline=None, derandomize=True)


def over(*families: dict[str, Divergence], leave_out: str | None = None) -> pytest.MarkDecorator:
    """Runs the test for every divergence of the families, by name, without those whose name contains ``leave_out``."""
    names = [name for family in families for name in family if leave_out is None or leave_out not in name]
    return pytest.mark.parametrize("name", names)


@st.composite
def sample_sets(draw: st.DrawFn, batch: tuple[int, ...] | None = None, generic: bool = False) -> tuple[Tensor, Tensor]:
    """``x [..., N, D]`` and ``y [..., M, D]`` of different laws; now and then with coinciding samples.

    Args:
        draw: of hypothesis.
        batch: batch shape; by default one of several.
        generic: no coinciding and no single samples, at which the slope of the energy distance may jump, or its best
            slice not be unique, and rounding decides.
    """
    if batch is None:
        batch = draw(st.sampled_from([(), (3,), (2, 3)]))
    n, m = (draw(st.sampled_from([4, 5, 7] if generic else [1, 4, 5, 7])) for _ in range(2))
    d = draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    x = torch.randn(*batch, n, d, dtype=torch.float64, generator=generator)
    y = draw(st.sampled_from([0.5, 1.0, 3.0])) * torch.randn(*batch, m, d, dtype=torch.float64, generator=generator)
    y = y + torch.randn(d, dtype=torch.float64, generator=generator)
    if not generic and draw(st.booleans()):
        x[..., -1, :] = x[..., 0, :]
        y[..., -1, :] = x[..., 0, :]
    return x, y


def fitted(name: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The return alone for quantiles."""
    return (x[..., :1], y[..., :1]) if name == "quantile" else (x, y)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-8) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@over(ALL)
@examples
@given(sample_sets())
def test_shape_and_finite_first_and_second_derivatives(name: str, sets: tuple[Tensor, Tensor]) -> None:
    x, y = (z.requires_grad_() for z in fitted(name, *sets))
    loss = ALL[name](x, y)
    assert loss.shape == x.shape[:-2]
    assert loss.dtype == torch.float64
    first = torch.autograd.grad(loss.sum(), (x, y), create_graph=True)
    probe = sum((g * torch.ones_like(g).cumsum(-1)).sum() for g in first) + loss.sum() * 0
    second = torch.autograd.grad(probe, (x, y))
    assert all(g.isfinite().all() for g in (loss, *first, *second))


@over(ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_where_all_samples_coincide(name: str, dtype: torch.dtype) -> None:
    for size in (0.0, 1.0, 1e-20, 1e6):
        x, y = (z.requires_grad_() for z in fitted(name, *torch.full((2, 3, 4, 3), size, dtype=dtype)))
        loss = ALL[name](x, y)
        first = torch.autograd.grad(loss.sum(), (x, y), create_graph=True)
        second = torch.autograd.grad(sum(g.sum() for g in first) + loss.sum() * 0, (x, y))
        assert loss.dtype == dtype
        assert all(g.isfinite().all() for g in (loss, *first, *second))


@over(ALL)
@pytest.mark.parametrize("side", [0, 1])
def test_nan_is_seen_and_stays_in_its_transition(name: str, side: int) -> None:
    generator = torch.Generator().manual_seed(4)
    clean = [torch.randn(3, 5, 4, dtype=torch.float64, generator=generator) for _ in range(2)]
    spoilt = [z.clone() for z in clean]
    spoilt[side][1, 2, 0] = torch.nan
    loss, expected = ALL[name](*fitted(name, *spoilt)), ALL[name](*fitted(name, *clean))
    assert loss.isnan().tolist() == [False, True, False]
    if "batch" not in name:  # there all transitions share theta
        close(loss[::2], expected[::2])


@over(MMDS, SLICED, TRANSPORT, leave_out="unbiased")
@examples
@given(sample_sets(), st.randoms(use_true_random=False))
def test_zero_on_equal_sets(name: str, sets: tuple[Tensor, Tensor], random: object) -> None:
    """The biased estimators; the unbiased ones are zero on average over equal laws (null tests)."""
    x, _ = sets
    order = list(range(x.shape[-2]))
    if "cross_fitted" not in name:  # its halves are equal sets only in this order
        random.shuffle(order)  # type: ignore[attr-defined]
    loss = ALL[name](x, x[..., order, :])
    close(loss, torch.zeros_like(loss), 1e-10)


@over(REGRESSION, QUANTILE)
@examples
@given(sample_sets())
def test_zero_where_all_samples_are_one_point_and_never_negative(name: str, sets: tuple[Tensor, Tensor]) -> None:
    x, y = fitted(name, *sets)
    assert (ALL[name](x, y) >= 0).all()
    point = x[..., :1, :]
    loss = ALL[name](point.expand_as(x), point.expand_as(y))
    close(loss, torch.zeros_like(loss))


@over(MMDS, SLICED, leave_out="unbiased")
@examples
@given(sample_sets())
def test_the_biased_estimator_is_never_negative(name: str, sets: tuple[Tensor, Tensor]) -> None:
    assert (ALL[name](*sets) >= -1e-12).all()


@over(MMDS, SLICED, REGRESSION, ANCHORED, TRANSPORT)
@examples
@given(sample_sets(generic=True))
def test_symmetry(name: str, sets: tuple[Tensor, Tensor]) -> None:
    x, y = sets
    close(ALL[name](x, y), ALL[name](y, x))


@over(ALL, leave_out="cross_fitted")
@examples
@given(sample_sets(generic=True), st.integers(0, 100))
def test_permutation_of_samples(name: str, sets: tuple[Tensor, Tensor], seed: int) -> None:
    """Not for cross-fitting, whose halves depend on the order; not in x for quantiles, whose order is their level."""
    x, y = fitted(name, *sets)
    generator = torch.Generator().manual_seed(seed)
    p, q = (torch.randperm(z.shape[-2], generator=generator) for z in (x, y))
    expected = ALL[name](x, y)
    close(ALL[name](x, y[..., q, :]), expected)
    if name != "quantile":
        close(ALL[name](x[..., p, :], y), expected)


@over(ALL)
@examples
@given(sample_sets(generic=True), st.integers(0, 100))
def test_translation(name: str, sets: tuple[Tensor, Tensor], seed: int) -> None:
    x, y = fitted(name, *sets)
    shift = 3 * torch.randn(x.shape[-1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    close(ALL[name](x + shift, y + shift), ALL[name](x, y))


@over(ROTATED)
@examples
@given(sample_sets(generic=True), st.integers(0, 100))
def test_rotation(name: str, sets: tuple[Tensor, Tensor], seed: int) -> None:
    """Also of the gradient: the loss of the rotated samples pushes them in the rotated direction."""
    x, y = sets
    d = x.shape[-1]
    rotation, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
    divergence = ROTATED[name]
    gradient = torch.func.grad(lambda u, v: divergence(u, v).sum())
    close(divergence(x @ rotation, y @ rotation), divergence(x, y), 1e-6)
    close(gradient(x @ rotation, y @ rotation), gradient(x, y) @ rotation, 1e-5)


@over({k: v for k, v in (MMDS | SLICED).items() if "energy" in k})
@examples
@given(sample_sets(generic=True), st.sampled_from([1e-3, 0.2, 50.0]))
def test_the_energy_distance_scales_with_the_samples(name: str, sets: tuple[Tensor, Tensor], scale: float) -> None:
    x, y = sets
    close(ALL[name](scale * x, scale * y) / scale, ALL[name](x, y), 1e-7)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@examples
@given(sample_sets(batch=(4,)), st.integers(0, 100))
def test_max_sliced_is_at_least_a_random_slice(estimator: str, sets: tuple[Tensor, Tensor], seed: int) -> None:
    """With a long ascent, up to its tolerance: the search is local, so one slice in a hundred may be better."""
    x, y = sets
    kernel = EnergyDistance()
    largest = MaxSlicedMMD(kernel, estimator, "transition", ascent_steps=12, step_size=2.0)(x, y)
    generator = torch.Generator().manual_seed(seed)
    theta = torch.nn.functional.normalize(
        torch.randn(100, 4, x.shape[-1], dtype=torch.float64, generator=generator), dim=-1
    )
    slices = MMD(kernel, estimator)(*((z @ theta.unsqueeze(-1)) for z in (x, y)))
    slack = 1e-9 + 0.02 * largest.abs()
    assert (slices <= largest + slack).double().mean() > 0.95
    assert slices.mean(0).le(largest + slack).all()


@over(MMDS, REGRESSION, QUANTILE, {"anchored-mmd": ANCHORED["anchored-mmd"]})
def test_derivatives_against_finite_differences(name: str) -> None:
    """Those of max-sliced MMD hold theta constant: test_divergences_max_sliced.py."""
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.randn(n, 3, dtype=torch.float64, generator=generator) for n in (3, 2))
    x, y = (z.requires_grad_() for z in fitted(name, x, y))
    small = {"eps": 1e-7, "atol": 1e-3, "rtol": 1e-4} if "mq100" in name else {}
    assert torch.autograd.gradcheck(ALL[name], (x, y), **small)
    if "mq100" not in name:  # finite differences of its second derivative, of order h^2, do not resolve
        assert torch.autograd.gradgradcheck(ALL[name], (x, y))


@over(ALL, leave_out="batch")
@examples
@given(sample_sets(batch=(2, 3)))
def test_a_batch_is_a_loop(name: str, sets: tuple[Tensor, Tensor]) -> None:
    """A direction shared by the batch has its own test."""
    x, y = fitted(name, *sets)
    divergence = ALL[name]
    loop = torch.stack([torch.stack([divergence(x[i, j], y[i, j]) for j in range(3)]) for i in range(2)])
    close(divergence(x, y), loop)
    close(torch.func.vmap(torch.func.vmap(divergence))(x, y), loop)


@over(ALL)
@examples
@given(sample_sets(batch=(2, 3)))
def test_functional_transforms_agree_with_autograd(name: str, sets: tuple[Tensor, Tensor]) -> None:
    """vmap over the outer dimension (seeds, critics), grad, and grad under vmap; without a graph the same value."""
    x, y = fitted(name, *sets)
    divergence = ALL[name]
    leaf = x.clone().requires_grad_()
    loss = divergence(leaf, y)
    (expected,) = torch.autograd.grad(loss.sum(), leaf)
    gradient = torch.func.grad(lambda u, v: divergence(u, v).sum())
    close(torch.func.vmap(divergence)(x, y), loss.detach())
    close(gradient(x, y), expected)
    close(torch.func.vmap(gradient)(x, y), expected)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            close(divergence(x, y), loss.detach())


@over(ALL)
def test_float32_agrees_with_float64_and_the_device_is_the_samples(name: str) -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(8, 10, 4, dtype=torch.float64, generator=generator)
    y = torch.randn(8, 10, 4, dtype=torch.float64, generator=generator) + 0.5
    x, y = fitted(name, x, y)
    single = ALL[name](x.float(), y.float())
    assert single.dtype == torch.float32
    close(single.double(), ALL[name](x, y), 2e-3 if "mq100" in name else 1e-4)
    assert ALL[name](x.to("meta"), y.to("meta")).device.type == "meta"


@over(ALL)
def test_compiles_to_one_graph(name: str) -> None:
    """Alone and as many seeds do it, under vmap; six samples against four, as truncation leaves them."""
    divergence = ALL[name]
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(6)
    x, y = (torch.randn(2, 4, n, 3, dtype=torch.float64, generator=generator) for n in (6, 4))
    x, y = fitted(name, x, y)
    for function in (divergence, torch.func.vmap(divergence)):
        compiled = torch.compile(function, fullgraph=True, dynamic=False, backend="aot_eager")
        results = []
        for variant in (function, compiled):
            leaf = x.clone().requires_grad_()
            loss = variant(leaf, y)
            results.append((loss.detach(), *torch.autograd.grad(loss.sum(), leaf)))
        close(results[1][0], results[0][0])
        close(results[1][1], results[0][1])


@over(ALL)
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ((5, 3, 2), (5, 2), r"batch dimensions differ.* x \[5, 3, 2\] and y \[5, 2\]"),
        ((5, 3, 2), (1, 3, 2), r"batch dimensions differ.* x \[5, 3, 2\] and y \[1, 3, 2\]"),
        ((5, 4, 2), (5, 4, 3), r"vectors differ in size.* x \[5, 4, 2\] and y \[5, 4, 3\]"),
        ((3,), (3,), r"expected x \[..., N, D\] and y \[..., M, D\], got x \[3\] and y \[3\]"),
        ((5, 0, 2), (5, 4, 2), r"at least one sample and one component, got x \[5, 0, 2\]"),
        ((5, 4, 0), (5, 4, 0), r"at least one sample and one component"),
    ],
)
def test_shapes_that_do_not_fit(name: str, x: tuple[int, ...], y: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ALL[name](torch.zeros(x), torch.zeros(y))


def test_every_divergence_of_the_room_is_covered() -> None:
    public = {getattr(room, name) for name in room.__all__}
    divergences = {c for c in public if isinstance(c, type) and issubclass(c, Divergence)} - {Divergence}
    assert divergences == {type(d) for d in ALL.values()}
