"""Sobolev Bellman targets: the sampled target, differentiated through world model, reward and target policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dsob_pl.bellman.overestimation import OverestimationCorrection
from dsob_pl.bellman.sobolev import SobolevOrder, critic_samples, value_and_pullback
from dsob_pl.critics import Critic, full_rows
from dsob_pl.world_models import Prediction

BoundUnit = Literal["sample", "law"]
Policy = Callable[[Tensor], Tensor]
Step = Callable[[Tensor, Tensor, Tensor], Prediction]


class ReturnBounds(NamedTuple):
    """Smallest and largest return that the rewards seen so far allow (0-d tensors).

    A return is at least one reward and at most ``1 / (1 - gamma)`` of them, so bounds of rewards bound it.
    """

    low: Tensor
    high: Tensor

    @classmethod
    def from_rewards(cls, lowest: Tensor, highest: Tensor, gamma: float) -> ReturnBounds:
        """Bounds for returns that may end after one step or never."""
        horizon = 1 / (1 - gamma)
        return cls(torch.minimum(lowest, lowest * horizon), torch.maximum(highest, highest * horizon))


def backup(
    step: Step, policy: Policy, critic: Critic, s: Tensor, a: Tensor, eps: Tensor, noise: Tensor, gamma: float
) -> Tensor:
    """One sampled backup ``r + gamma c Z_e(s', pi(s'), xi)`` for every target critic.

    Args:
        step: world model.
        policy: target policy.
        critic: target critics, E members.
        s: ``[E, ..., S]``, slab e for member e; or ``[1, ..., S]``, one step that all members share, and so on below.
        a: ``[E, ..., A]``.
        eps: noise of the world model ``[E, ..., noise_size]``; the same for all members, it puts them at the same s'.
        noise: noise of the critics ``[E, ..., K]``.
        gamma: discount.

    Returns:
        ``[E, ...]``, with its graph.
    """
    prediction = step(s, a, eps)
    z = critic(*full_rows(prediction.s_next, policy(prediction.s_next), noise))
    return prediction.r + gamma * prediction.continuation * z


def sobolev_target(
    step: Step,
    policy: Policy,
    critic: Critic,
    s: Tensor,
    a: Tensor,
    eps: Tensor,
    noise: Tensor,
    gamma: float,
    order: SobolevOrder,
    correction: OverestimationCorrection,
    nested: bool = False,
) -> Tensor:
    """Target samples of the Sobolev Bellman operator: values and their derivatives in (s, a) (Debes, Tuytelaars 2026).

    The backup is NOT detached before it is differentiated: the derivative through world model, reward and target
    policy is the gradient target itself. It is detached afterwards, since targets receive no gradients.

    Args:
        step: world model ``(s, a, eps) -> Prediction``.
        policy: target policy.
        critic: target critics, E members.
        s: ``[B, S]``.
        a: ``[B, A]``.
        eps: ``[B, M, noise_size]``.
        noise: ``[B, M, K]``.
        gamma: discount.
        order: which derivatives belong to a sample.
        correction: overestimation correction; it keeps value and gradient of a sample together.
        nested: see :func:`with_gradients`.

    Returns:
        ``[B, M', D]`` detached, with M' samples after the correction.
    """
    # Every sample has rows of its own, so that one backward pass gives the gradient of each. All members share the
    # model's draws, or the lower of two would be the lower of two next states as well.
    members, (batch, count) = critic.ensemble_size, eps.shape[:2]
    s, a = (x.unsqueeze(1).expand(batch, count, -1) for x in (s, a))
    noise = noise.expand(members, *noise.shape)
    # Only the result is cut off: inside, the backup is differentiated in (s, a) through model, reward and policy.
    with torch.no_grad():
        if order is SobolevOrder.NONE:
            returns = backup(step, policy, critic, s[None], a[None], eps[None], noise, gamma)
            return correction(returns.unsqueeze(-1))
        return correction(_sobolev_backup(step, policy, critic, s, a, eps, noise, gamma, order, nested))


def _sobolev_backup(
    step: Step,
    policy: Policy,
    critic: Critic,
    s: Tensor,
    a: Tensor,
    eps: Tensor,
    noise: Tensor,
    gamma: float,
    order: SobolevOrder,
    nested: bool,
) -> Tensor:
    """:func:`backup` of ``[B, M]`` rows with its derivatives, by the chain rule: ``[E, B, M, D]``.

    Model and policy, which no member has to itself, are evaluated once for all of them; the gradient of each member's
    next return is then carried back through that one graph.
    """

    def imagine(s: Tensor, a: Tensor) -> tuple[Tensor, ...]:
        prediction = step(s, a, eps)
        return prediction.s_next, policy(prediction.s_next), prediction.r, prediction.continuation

    if order is SobolevOrder.STATE_ACTION:
        outputs, pullback = value_and_pullback(imagine, (s, a), nested)
    else:
        outputs, pullback = value_and_pullback(lambda a: imagine(s, a), (a,), nested)
    s_next, a_next, r, continuation = outputs
    rows = full_rows(s_next[None], a_next[None], noise)
    next_samples = critic_samples(critic, rows[0], rows[1], rows[2], SobolevOrder.STATE_ACTION, nested)
    z, ds, da = next_samples.split([1, s_next.shape[-1], a_next.shape[-1]], -1)
    kept = (gamma * continuation).unsqueeze(-1)
    gradients = []
    for z_e, ds_e, da_e in zip(z, ds, da):
        along = (kept * ds_e, kept * da_e, torch.ones_like(r), gamma * z_e.squeeze(-1))
        gradients.append(torch.cat(pullback(along), -1))
    return torch.cat([r.unsqueeze(-1) + kept * z, torch.stack(gradients)], -1)


def bound_target(
    samples: Tensor, bounds: ReturnBounds, gradient_fraction: float, unit: BoundUnit = "sample"
) -> tuple[Tensor, Tensor]:
    """Limits targets to what rewards allow.

    By "sample", every return goes to ``[low, high]`` by itself. That moves the mean of a law away from a bound by some
    of its spread, a pessimism near the best possible return, which bootstrapping multiplies by ``1 / (1 - gamma)``. By
    "law", the mean goes to ``[low, high]``, and the samples are drawn together around it, by one factor, until the
    farthest of them is there as well: a possible mean stays. Either way the gradient of a sample, as one vector, is
    shortened to at most ``gradient_fraction * (high - low)``, which keeps its direction.

    Args:
        samples: ``[..., M, D]``, M samples of one law, with the return in component 0.
        bounds: of the return.
        gradient_fraction: largest gradient norm relative to the width of the bounds.
        unit: what is limited, each sample or the law.

    Returns:
        the limited samples ``[..., M, D]`` and the fraction of samples that were changed (0-d).
    """
    value, gradient = samples[..., 0], samples[..., 1:]
    limited = _bounded_law(value, bounds) if unit == "law" else value.clamp(bounds.low, bounds.high)
    norm = gradient.norm(dim=-1, keepdim=True)
    longest = gradient_fraction * (bounds.high - bounds.low)
    shrink = (longest / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp(max=1.0)
    changed = (limited != value) | (shrink < 1).squeeze(-1)
    return torch.cat([limited.unsqueeze(-1), gradient * shrink], -1), changed.to(samples.dtype).mean()


def _bounded_law(returns: Tensor, bounds: ReturnBounds) -> Tensor:
    """``returns [..., M]`` with their mean and then all of them brought to the bounds."""
    low, high = bounds
    mean = returns.mean(-1, keepdim=True)
    centre, deviation = mean.clamp(low, high), returns - mean
    tiny = torch.finfo(returns.dtype).tiny
    above = (high - centre) / deviation.amax(-1, keepdim=True).clamp_min(tiny)
    below = (centre - low) / (-deviation).amax(-1, keepdim=True).clamp_min(tiny)
    factor = torch.minimum(above, below).clamp(max=1.0)
    # Untouched where nothing is to be done, not a rounding error away.
    inside = ((returns >= low) & (returns <= high)).all(-1, keepdim=True)
    return torch.where(inside, returns, (centre + factor * deviation).clamp(low, high))
