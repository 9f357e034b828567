"""Pessimism of the targets that follows the evidence: as much of it as realised returns ask for, and no more."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dsob_pl.bellman.overestimation import OverestimationCorrection, pooled
from dsob_pl.errors import UsageError, nearest

Evidence = Literal["rank", "error"]


def towards_lowest(samples: Tensor, weight: float | Tensor, drift: float | None = None) -> Tensor:
    """Pools the critics' samples, each moved towards the lowest of the critics' means, without a change of shape.

    The mean of critic e becomes ``(1 - weight) mean_e + weight min_e mean_e``. The gradients move with the returns: by
    the same part of the way to the mean gradient of the critic whose mean return is the lowest.
    A weight below 0 is optimism: samples move away from the lowest mean, and those of the lowest stay. Of two critics
    whose means differ by d the pooled mean is then ``-weight d / 2`` above their average, and the means are
    ``(1 - weight) d`` apart, which widens the pooled law.

    Args:
        samples: ``[E, B, M, D]`` with the return in component 0.
        weight: 0 leaves the samples where they are; with 1 all critics have the lowest mean.
        drift: most that returns may fall on average over the batch, see :func:`bounded_drift`; None bounds nothing.

    Returns:
        ``[B, E*M, D]``.
    """
    means = samples.mean(-2, keepdim=True)  # [E, B, 1, D]
    lowest = means[..., :1].argmin(0, keepdim=True)
    fall = weight * (means - means.gather(0, lowest.expand(1, *means.shape[1:])))
    return pooled(samples - (fall if drift is None else bounded_drift(fall, means, drift)))


def bounded_drift(fall: Tensor, means: Tensor, drift: float) -> Tensor:
    """By how much samples fall, less what all have in common beyond ``drift`` standard deviations of the values.

    What pessimism takes from every state alike says nothing of which state is better, and adds up over the horizon: to
    ``drift / (1 - gamma)`` standard deviations. Where rewards are noisy critics disagree by as much everywhere, and the
    values of all states would end where those of a lost episode are. What falls by more than others still does.
    Gradients fall as they did: what is taken back is one number for the batch.

    Args:
        fall: ``[E, B, 1, D]``, what is subtracted from the samples of each critic, the return in component 0.
        means: ``[E, B, 1, D]``, the critics' means; their average over E is the value, its standard deviation over B.
        drift: at least 0; with 0 returns do not fall on average.

    Returns:
        ``[E, B, 1, D]``.
    """
    spread = means[..., 0].mean(0).std(correction=0)
    beyond = (fall[..., :1].mean() - drift * spread).clamp_min(0)
    return torch.cat([fall[..., :1] - beyond, fall[..., 1:]], -1)


def net_over_total(errors: Tensor) -> Tensor:
    """``sum(errors) / sum(|errors|)`` of ``errors [R]``, in [-1, 1]; 0 where there are none (0-d)."""
    total = errors.abs().sum()
    return torch.where(total > 0, errors.sum() / total, torch.zeros_like(total))


class AdaptivePessimism(nn.Module, OverestimationCorrection):
    """Moves target samples towards the lowest mean by a weight that recent returns decide.

    Every so many environment steps the agent looks where the returns that it realised of late fall in the law that its
    critics predict for them. Where they fall low the weight grows, where high it shrinks, within a floor and a limit.
    With a floor of 0 the law may still lie too low when nothing is left to take away; below it there is optimism to
    make up for that, which a policy that still moves would exploit. Returns of training have exploration noise in them,
    so where that costs much the weight stays high, until the policy rests (``freeze_policy_at``) and explores no more.
    The idea is that of adaptively calibrated critics (Dorka et al. 2021), with the disagreement of two critics
    (Fujimoto et al. 2018) in place of truncation, and a statistic that has no unit in place of differences.

    Args:
        initial: weight at the beginning; high, it lets a policy come to be before the law becomes right.
        rate: most that the weight changes by at one look.
        every: environment steps from one look to the next.
        window: how many of the latest transitions are looked at.
        limit: largest weight; 1 is the lower mean.
        floor: smallest weight; below 0 it is optimism. With -1 the mean of the targets of two critics can come up to
            that of the higher one.
        evidence: that statistic, from -1 to 1. By "rank" every state counts as much, by the mean rank of its return in
            its law: where most states have next to no spread, it is those that are made right. By "error" the net error
            of predicted means over the total error: those where most is at stake.
        drift: most that targets fall on average over a batch at every backup, in standard deviations of the values in
            it; over the horizon that is ``1 / (1 - gamma)`` times as much. None bounds nothing.
        after: fraction of the run, ``trainer.max_steps``, after which the weight changes; before it stays.

    Attributes:
        weight: the current one (0-d), saved with the agent.
        begun: transitions that its replay had ever been given at the first look (0-d); below 0 there was none yet.

    Raises:
        UsageError: an option is out of range.
    """

    weight: Tensor
    begun: Tensor

    def __init__(
        self,
        initial: float = 1.0,
        rate: float = 0.1,
        every: int = 50,
        window: int = 500,
        limit: float = 1.0,
        after: float = 0.0,
        floor: float = 0.0,
        evidence: Evidence = "rank",
        drift: float | None = None,
    ) -> None:
        super().__init__()
        if not 0 < limit < math.inf:
            raise UsageError(f"AdaptivePessimism.limit: expected a positive number, got {limit}")
        if not -math.inf < floor <= 0:
            raise UsageError(f"AdaptivePessimism.floor: expected a number of at most 0, got {floor}")
        if not floor <= initial <= limit:
            raise UsageError(
                f"AdaptivePessimism.initial: expected a number from floor {floor:g} to limit {limit:g}, got {initial}"
            )
        if not 0 <= rate < math.inf:
            raise UsageError(f"AdaptivePessimism.rate: expected a number of at least 0, got {rate}")
        if not 0 <= after < 1:
            raise UsageError(f"AdaptivePessimism.after: expected a fraction in [0, 1), got {after}")
        if drift is not None and not 0 <= drift < math.inf:
            raise UsageError(f"AdaptivePessimism.drift: expected a number of at least 0, or null, got {drift}")
        if evidence not in get_args(Evidence):
            close = nearest(evidence, get_args(Evidence))
            raise UsageError(f"AdaptivePessimism.evidence: expected rank or error, got '{evidence}'{close}")
        for name, number in (("every", every), ("window", window)):
            if number < 1:
                raise UsageError(f"AdaptivePessimism.{name}: expected at least 1 environment step, got {number}")
        self.rate, self.every, self.window, self.after = rate, every, window, after
        self.floor, self.limit, self.evidence, self.drift = floor, limit, evidence, drift
        self.register_buffer("weight", torch.tensor(float(initial)))
        self.register_buffer("begun", torch.tensor(-1))

    def forward(self, samples: Tensor) -> Tensor:
        """``[E, B, M, D] -> [B, E*M, D]``; see :func:`towards_lowest`."""
        return towards_lowest(samples, self.weight, self.drift)

    @torch.no_grad()
    def adapt(self, places: Tensor, errors: Tensor) -> None:
        """Changes the weight by what realised returns say, which may raise or lower it by ``rate`` at most.

        Args:
            places: their ranks in the predicted law ``[R]``, in [0, 1].
            errors: what they are above its mean ``[R]``, in any unit.
        """
        too_low = 2 * places.mean() - 1 if self.evidence == "rank" else net_over_total(errors)
        self.weight.copy_((self.weight - self.rate * too_low).clamp(self.floor, self.limit))
