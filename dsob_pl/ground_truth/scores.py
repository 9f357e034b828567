"""How far a learned joint law of return and gradients is from the true one, from samples of both.

What is compared are laws, of which both sides give samples only. Sampling noise alone would make a perfect critic look
wrong by the root of 1/K + 1/M, so it is subtracted: of every squared difference of two means the sampling variance of
both, and energy distances are unbiased. A perfect critic then scores 0 on average, before the negative half of that
average is clipped to 0 where a root is taken, whatever the numbers of samples.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dsob_pl.risk import CVaR

_ENERGY_SAMPLES = 512
_DECILES = 10
_FOLDS = 5
_TAILS = (0.1, 0.25)
# Spread below this fraction of the spread over rows is none; so is any that rounding of the values can explain.
_LEAST_SPREAD, _ROUNDING = 1e-3, 1e-6


@torch.no_grad()
def scores(learned: Tensor, true: Tensor, state_size: int, state: bool = False) -> dict[str, Tensor]:
    """Scores of learned samples against true ones, R pairs (s, a) side by side.

    ===========================  ====================================================================================
    return_error                 RMSE over rows of the mean return, in the truth's pooled within-row standard deviation
    gradient_error               relative RMS error of the mean action gradient, ``sqrt(sum |l - t|^2 / sum |t|^2)``
    gradient_cosine              cosine of the two mean action gradients, averaged over rows
    return_spread                learned over true standard deviation, variances summed over rows (1 is right)
    gradient_spread              the same, summed over the action gradient's components as well
    energy_distance              of ``[G, dG/da]``, each component in the truth's units, averaged over rows
    conditional_gradient_error   relative RMS error of E[dG/da | decile of G], each law having its own deciles
    cvar_10_gradient_error       relative RMS error of the gradient of CVaR_0.1, E[dG/da | lowest tenth of G]
    cvar_10_gradient_cosine      cosine of the two, averaged over rows
    cvar_25_gradient_error       both for CVaR_0.25
    cvar_25_gradient_cosine
    ===========================  ====================================================================================

    With ``state``, for dG/ds: ``state_gradient_error``, ``state_gradient_cosine``, ``state_gradient_spread``,
    ``state_conditional_gradient_error``; and ``state_energy_distance`` of the whole ``[G, dG/ds, dG/da]``.

    A deterministic critic has K = 1: its one sample is taken for its law, of spread 0, without sampling variance and
    with E|x - x'| = 0. The unit of a component is its pooled standard deviation within rows; where the truth has none,
    that of its mean over rows, or its size where that is the same everywhere, or 1 where it is 0 throughout. The ratio
    to a spread of 0 is ``1 + learned standard deviation / unit``, so that 1 remains right. The truth's own mean square
    in a relative error is unbiased too, and at least its sampling variance. Energy distances look at no more than 512
    samples of each law, evenly strided. Deciles want some hundred samples of each law, or one.

    Args:
        learned: ``[R, K, 1+S+A]``, samples of ``[G, dG/ds, dG/da]``.
        true: ``[R, M, 1+S+A]``, M at least 2.
        state_size: S.
        state: whether the state gradient is scored.

    Returns:
        0-d tensors by name, without a prefix.

    Raises:
        ValueError: shapes that do not fit.
    """
    if learned.ndim != 3 or true.ndim != 3 or learned.shape[::2] != true.shape[::2] or true.shape[1] < 2:
        shapes = f"{list(learned.shape)} and {list(true.shape)}"
        raise ValueError(f"scores: expected learned [R, K, 1+S+A] and true [R, M, 1+S+A] with M > 1, got {shapes}")
    if not 0 <= state_size < true.shape[-1] - 1:
        raise ValueError(f"scores: state_size {state_size} leaves no action in {true.shape[-1]} components")
    unit = units(true)
    returns, action = slice(0, 1), slice(1 + state_size, None)
    mean_error = _squared_error(*_mean(learned[..., returns]), *_mean(true[..., returns])).mean()
    result = {
        "return_error": mean_error.clamp_min(0).sqrt() / unit[0],
        "return_spread": _spread_ratio(learned, true, unit, returns),
        **_gradient_scores(learned, true, unit, action, ""),
        **_tail_scores(learned, true, action),
    }
    joint = [0, *range(1 + state_size, true.shape[-1])]
    result["energy_distance"] = energy_distance(learned[..., joint], true[..., joint], unit[joint])
    if state:
        result |= _gradient_scores(learned, true, unit, slice(1, 1 + state_size), "state_")
        result["state_energy_distance"] = energy_distance(learned, true, unit)
    return result


def _gradient_scores(learned: Tensor, true: Tensor, unit: Tensor, part: slice, prefix: str) -> dict[str, Tensor]:
    """Scores of the components ``part``, their names with ``prefix``."""
    (mean, variance), (true_mean, true_variance) = _mean(learned[..., part]), _mean(true[..., part])
    conditional = (*conditional_means(learned, part), *conditional_means(true, part))
    return {
        f"{prefix}gradient_error": relative_error(mean, variance, true_mean, true_variance),
        f"{prefix}gradient_cosine": _cosine(mean, true_mean),
        f"{prefix}gradient_spread": _spread_ratio(learned, true, unit, part),
        f"{prefix}conditional_gradient_error": relative_error(*conditional),
    }


def _tail_scores(learned: Tensor, true: Tensor, part: slice) -> dict[str, Tensor]:
    """Error and cosine of the gradient of CVaR, the components ``part`` being the gradient."""
    result = {}
    for alpha in _TAILS:
        (mean, variance), (true_mean, true_variance) = (tail_means(x, part, alpha) for x in (learned, true))
        name = f"cvar_{alpha * 100:.0f}_gradient"
        result[f"{name}_error"] = relative_error(mean, variance, true_mean, true_variance)
        result[f"{name}_cosine"] = _cosine(mean, true_mean)
    return result


def units(true: Tensor) -> Tensor:
    """The scale of each component of ``true [R, M, D]``: ``[D]``, never 0; see :func:`scores`."""
    within = true.var(1).mean(0).sqrt()
    across = true.mean(1).std(0, correction=0)
    size = true.square().mean((0, 1)).sqrt()
    size = torch.where(size > 0, size, 1.0)
    across_or_size = torch.where(across > _ROUNDING * size, across, size)
    return torch.where((within > _LEAST_SPREAD * across) & (within > _ROUNDING * size), within, across_or_size)


def _variance(x: Tensor) -> Tensor:
    """Unbiased variance of the samples ``x [R, K, ...]``: ``[R, ...]``; that of a single one is 0."""
    return x.var(1) if x.shape[1] > 1 else torch.zeros_like(x[:, 0])


def _mean(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the samples ``x [R, K, D]`` and the sampling variance of that mean, ``[R, D]`` each."""
    return x.mean(1), _variance(x) / x.shape[1]


def _squared_error(mean: Tensor, variance: Tensor, true_mean: Tensor, true_variance: Tensor) -> Tensor:
    """Unbiased squared difference of what two independent means estimate, from their sampling variances."""
    return (mean - true_mean).square() - variance - true_variance


def relative_error(mean: Tensor, variance: Tensor, true_mean: Tensor, true_variance: Tensor) -> Tensor:
    """``sqrt(sum |l - t|^2 / sum |t|^2)`` of what two means estimate, unbiased in numerator and denominator (0-d).

    Args:
        mean: ``[...]``, an estimate.
        variance: its sampling variance ``[...]``.
        true_mean: ``[...]``, likewise.
        true_variance: ``[...]``.
    """
    error = _squared_error(mean, variance, true_mean, true_variance).sum().clamp_min(0)
    noise = true_variance.sum()
    # A true mean that cannot be told from 0 must not divide by 0, or by a negative number.
    size = torch.maximum(true_mean.square().sum() - noise, noise)
    return (error / torch.where(size > 0, size, 1.0)).sqrt()


def _cosine(mean: Tensor, true_mean: Tensor) -> Tensor:
    """Cosine of ``mean [R, D]`` and ``true_mean``, averaged over rows (0-d)."""
    # A gradient that is exactly 0 has no direction; that both agree on it is a full score.
    return torch.where((mean == true_mean).all(-1), 1.0, cosine_similarity(mean, true_mean, -1)).mean()


def _spread_ratio(learned: Tensor, true: Tensor, unit: Tensor, part: slice) -> Tensor:
    """Learned over true standard deviation of the components ``part``, see :func:`scores` (0-d)."""
    spread, true_spread = (_variance(x)[:, part].mean(0).sum().sqrt() for x in (learned, true))
    without = true_spread <= _ROUNDING * true[..., part].square().mean((0, 1)).sum().sqrt()
    relative = spread / unit[part].square().sum().sqrt()
    return torch.where(without, 1 + relative, spread / torch.where(without, 1.0, true_spread))


def energy_distance(x: Tensor, y: Tensor, unit: Tensor) -> Tensor:
    """Unbiased energy distance ``2E|x - y| - E|x - x'| - E|y - y'|`` of each row's laws, averaged over rows (0-d).

    Of each law at most 512 samples are used, evenly strided, and a row at a time: memory is that of one row's pairs.

    Args:
        x: ``[R, K, D]``.
        y: ``[R, M, D]``.
        unit: ``[D]`` that the components are divided by.
    """
    x, y = _thinned(x) / unit, _thinned(y) / unit
    rows = [2 * _distances(u, v).mean() - _own_distance(u) - _own_distance(v) for u, v in zip(x, y)]
    return torch.stack(rows).mean()


def _distances(u: Tensor, v: Tensor) -> Tensor:
    """Of all pairs: ``u [K, D], v [M, D] -> [K, M]``. Not by way of |u|^2 + |v|^2 - 2 <u, v>, which cancels."""
    return torch.cdist(u, v, compute_mode="donot_use_mm_for_euclid_dist")


def _own_distance(u: Tensor) -> Tensor:
    """``E|x - x'|`` of two independent draws, from the pairs of different samples ``u [K, D]``; 0 for a single one."""
    return _distances(u, u).sum() / max(1, len(u) * (len(u) - 1))


def _thinned(x: Tensor) -> Tensor:
    """At most 512 of the samples ``x [R, K, D]``, evenly strided; a set that is in order keeps its law that way."""
    if x.shape[1] <= _ENERGY_SAMPLES:
        return x
    return x[:, torch.arange(_ENERGY_SAMPLES, device=x.device) * x.shape[1] // _ENERGY_SAMPLES]


def conditional_means(samples: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """``E[x | G in its d-th decile]`` for the components x in ``part``, and the sampling variance of these means.

    The means of five interleaved folds of the samples are averaged, and their variance is that of the average: what a
    formula for one set of samples would have to say about deciles that are estimates too, the folds show. A sample
    stands for 1/K of its fold and belongs to two deciles, in parts, where it lies on their border.

    Args:
        samples: ``[R, K, D]`` with G in component 0. With K = 1 the variance is 0.
        part: components.

    Returns:
        ``[R, 10, D']`` each.
    """
    folds = min(_FOLDS, samples.shape[1])
    means = torch.stack([_decile_means(samples[:, fold::folds], part) for fold in range(folds)], 1)
    return means.mean(1), _variance(means) / folds


def tail_means(samples: Tensor, part: slice, alpha: float) -> tuple[Tensor, Tensor]:
    """``E[x | G in its lowest alpha]`` for the components x in ``part``, and the sampling variance of these means.

    Of the gradient this is the gradient of CVaR (Tamar et al., 2015). Folds as in :func:`conditional_means`.

    Args:
        samples: ``[R, K, D]`` with G in component 0. With K = 1 the variance is 0.
        part: components.
        alpha: part of the outcomes.

    Returns:
        ``[R, D']`` each.
    """
    folds = min(_FOLDS, samples.shape[1])
    measure = CVaR(alpha)
    own = [samples[:, fold::folds] for fold in range(folds)]
    means = torch.stack([(measure.weights(x[..., 0]).unsqueeze(-1) * x[..., part]).sum(1) for x in own], 1)
    return means.mean(1), _variance(means) / folds


def _decile_means(samples: Tensor, part: slice) -> Tensor:
    """Means of ``samples [R, K, D][..., part]`` over the deciles of component 0: ``[R, 10, D']``."""
    count = samples.shape[1]
    order = samples[..., 0].argsort(-1)
    values = samples[..., part]
    ordered = values.gather(1, order.unsqueeze(-1).expand_as(values))
    edges = torch.arange(count + 1, dtype=samples.dtype, device=samples.device) * (_DECILES / count)
    decile = torch.arange(_DECILES, dtype=samples.dtype, device=samples.device).unsqueeze(-1)
    overlap = torch.minimum(edges[1:], decile + 1) - torch.maximum(edges[:-1], decile)
    return overlap.clamp_min(0) @ ordered
