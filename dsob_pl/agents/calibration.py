"""Whether realised returns fall where the predicted law says they do: calibration in evaluation episodes.

Where they do, the place of a realised return within its predicted law, the probability integral transform (PIT), is
uniform (Dawid, 1984). It is judged at states that the episodes passed through, with the policy's own actions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dsob_pl.envs import Episodes

COVERAGE_LEVELS = (0.5, 0.8, 0.95)
LARGEST_REST = 0.2  # how much the unseen rest of an episode may count, as a factor on it
_STATES, _SAMPLES = 256, 64  # states judged, and samples of each member of the critic's ensemble


class Calibration(NamedTuple):
    """Realised returns and the law that was predicted for them, at R states.

    Attributes:
        realised: ``[R]`` discounted returns-to-go, in units of reward.
        predicted: ``[R, K]`` samples of their predicted law.
        remaining: ``[R]`` environment steps to the end of the episode.
        episode: ``[R]`` which episode the state is of.
    """

    realised: Tensor
    predicted: Tensor
    remaining: Tensor
    episode: Tensor


def calibrate(values: Callable[[Tensor, int], Tensor], episodes: Episodes, gamma: float) -> Calibration | None:
    """Compares what a critic predicts at states of ``episodes`` with what came after them.

    An episode that terminated has been seen to its end. One that was cut off has not: what would have followed is
    replaced by a draw of the predicted law at its last observation, and states so near to the end that this rest
    counts for more than a fifth of itself (``gamma ** remaining > 0.2``) are left out. So are states of episodes that
    terminated, where that would have been so near to the end of the longest that was cut off: what becomes of an
    episode must not decide whether its states are judged.

    Args:
        values: return samples ``[E, n, count]`` of the policy, given raw observations ``[n, S]`` and a count.
        episodes: of the policy.
        gamma: discount.

    Returns:
        At most 256 states at even distances; None where all are left out.
    """
    visits = episodes.visits
    ended = episodes.terminated[visits.episode]
    weight = torch.where(ended, 0.0, gamma ** visits.remaining.float())
    judged = weight <= LARGEST_REST
    if not bool(episodes.terminated.all()):
        limit = episodes.lengths[~episodes.terminated].max()
        time = episodes.lengths[visits.episode] - visits.remaining
        judged &= gamma ** (limit - time) <= LARGEST_REST
    rows = torch.nonzero(judged).squeeze(-1)
    if not len(rows):
        return None
    rows = rows[torch.linspace(0, len(rows) - 1, min(len(rows), _STATES)).long()]
    # In one call, so that the samples that stand for the rest are independent of those that are judged.
    asked = torch.cat([visits.observations[rows], visits.last_observations])
    samples = values(asked, _SAMPLES).cpu().transpose(0, 1).flatten(1)  # [R + n, E * 64]
    predicted, rest = samples[: len(rows)], samples[len(rows) :]
    # Of any critic: taken in order, the first rows would all be completed by the first one.
    which = torch.randint(rest.shape[1], (len(rows),), generator=torch.Generator().manual_seed(0))
    drawn = rest[visits.episode[rows], which]
    realised = visits.returns_to_go[rows] + weight[rows] * drawn
    return Calibration(realised, predicted, visits.remaining[rows], visits.episode[rows])


def calibration_metrics(calibration: Calibration) -> dict[str, Tensor]:
    """Coverage of the central intervals, mean PIT and mean CRPS, by logged name."""
    places = probability_integral_transform(calibration.predicted, calibration.realised)
    metrics = {f"eval/coverage_{level * 100:.0f}": coverage(places, level) for level in COVERAGE_LEVELS}
    scores = continuous_ranked_probability_score(calibration.predicted, calibration.realised)
    return metrics | {"eval/pit_mean": places.mean(), "eval/crps": scores.mean()}


def probability_integral_transform(samples: Tensor, realised: Tensor) -> Tensor:
    """Where ``realised [R]`` falls within the law that ``samples [R, K]`` are of: ``[R]``, between 0 and 1.

    Where it is one more draw of that law its rank is uniform on 0 to K, and the result on the K + 1 midpoints
    ``(rank + 1/2) / (K + 1)``. A tie counts half.
    """
    own = realised.unsqueeze(-1)
    rank = (samples < own).to(samples.dtype).sum(-1) + (samples == own).to(samples.dtype).sum(-1) / 2
    return (rank + 0.5) / (samples.shape[-1] + 1)


def coverage(places: Tensor, level: float) -> Tensor:
    """Fraction of the PIT values ``[R]`` within the central interval of probability ``level``."""
    return ((places - 0.5).abs() <= level / 2).to(places.dtype).mean()


def continuous_ranked_probability_score(samples: Tensor, realised: Tensor) -> Tensor:
    """CRPS of the law that ``samples [R, K]`` are of, at ``realised [R]``; ``[R]``, in their unit, smaller is better.

    ``E|X - y| - E|X - X'| / 2`` (Gneiting and Raftery, 2007, eq. 21), the second mean over pairs of different samples,
    which makes it unbiased. Of one sample it is the absolute error.
    """
    count = samples.shape[-1]
    error = (samples - realised.unsqueeze(-1)).abs().mean(-1)
    if count == 1:
        return error
    # Sum over pairs of |x - x'| by ranks: the i-th smallest of K is the larger of i pairs, the smaller of K-1-i.
    weights = 2 * torch.arange(count, dtype=samples.dtype, device=samples.device) - (count - 1)
    return error - (samples.sort(-1).values * weights).sum(-1) / (count * (count - 1))
