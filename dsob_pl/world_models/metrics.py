"""How well a world model fits transitions that it was not trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsob_pl.world_models.heads import join_target

if TYPE_CHECKING:
    from dsob_pl.world_models.base import Transition, WorldModel

# A component that never moves has no scale of its own to be measured in.
_MINIMUM_STD = 1e-3


@torch.no_grad()
def sample_targets(model: WorldModel, s: Tensor, a: Tensor, eps: Tensor) -> Tensor:
    """Samples of ``(s' - s, r)`` for ``s [B, S], a [B, A], eps [N, B, noise_size]``: ``[N, B, S+1]``."""
    s, a = s.expand(len(eps), *s.shape), a.expand(len(eps), *a.shape)
    prediction = model(s, a, eps)
    return join_target(s, prediction.s_next, prediction.r)


def heldout_log_likelihood(model: WorldModel, transition: Transition, noise: Tensor) -> Tensor:
    """Mean of ``log p(s', r | s, a)`` per transition and per component of (s', r), in nats.

    The density is that of the target normalised by the model's running scale: one Gaussian with the targets' own
    mean and standard deviation, blind to (s, a), scores -(1 + log 2 pi)/2 = -1.42. For a CVAE it is a lower bound.

    Args:
        model: any model with ``log_likelihood``.
        transition: ``[B]``.
        noise: standard normal ``[K, B, loss_noise_size]``; K importance samples.
    """
    return model.log_likelihood(transition, noise).mean() / (transition.s.shape[-1] + 1)


def spread_ratio(model: WorldModel, transition: Transition, eps: Tensor) -> Tensor:
    """Spread of the model's samples over the spread that the real (s', r) shows around them; 1 is calibrated.

    ``sqrt( (1 + 1/N) sum V / sum (y - m)^2 )`` with m and V mean and unbiased variance of N samples at (s, a), y the
    real (s' - s, r), each component in units of its standard deviation, sums over transitions and components. A real
    y that comes from the model's own law is off the mean of N samples by ``V (1 + 1/N)`` on average. Below 1 the
    model is too sure (or wrong in the mean), above 1 too wide; a deterministic model has 0.

    Args:
        model: any model.
        transition: ``[B]``.
        eps: standard normal ``[N, B, noise_size]``, N at least 2.
    """
    real = join_target(transition.s, transition.s_next, transition.r)
    samples = sample_targets(model, transition.s, transition.a, eps)
    unit = real.std(0, correction=min(1, len(real) - 1)).clamp_min(_MINIMUM_STD)  # one row has no spread
    expected = (samples.var(0) / unit.square()).sum() * (1 + 1 / len(eps))
    return (expected / ((real - samples.mean(0)) / unit).square().sum()).sqrt()


@torch.no_grad()
def open_loop_error(model: WorldModel, trajectory: Transition, eps: Tensor) -> Tensor:
    """Error of the state after k imagined steps along real actions, in standard deviations of each component.

    N imagined trajectories start at each real one's first state and follow its actions; their mean after k steps is
    compared with the real state: the root mean square over trajectories and components. Always predicting the
    average state scores 1; a stochastic task has a positive floor.

    Args:
        model: any model.
        trajectory: n real trajectories of k steps that no episode end cuts, ``[n, k]``.
        eps: standard normal ``[k, N, n, noise_size]``.
    """
    s = trajectory.s[:, 0].expand(eps.shape[1], -1, -1)
    for step, a in enumerate(trajectory.a.unbind(1)):
        s = model(s, a.expand(eps.shape[1], -1, -1), eps[step]).s_next
    real = trajectory.s_next[:, -1]
    unit = trajectory.s_next.flatten(0, 1).std(0).clamp_min(_MINIMUM_STD)
    return ((s.mean(0) - real) / unit).square().mean().sqrt()
