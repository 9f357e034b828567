"""What an agent predicts of the return of an action: samples with their gradients, and what is read off them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dsob_pl.errors import UsageError
from dsob_pl.risk import CVaR, RiskMeasure
from dsob_pl.risk.distortion import Tail

if TYPE_CHECKING:
    from dsob_pl.agents.sobolev_actor_critic import SobolevActorCritic


class ValueDistribution(NamedTuple):
    """The law of the discounted return of an action, the policy's own afterwards, as each of E critics has it.

    Returns are in units of reward, observations as the environment gives them, actions in [-1, 1]. Sample i of the
    return and sample i of the gradients belong to one outcome. Quantiles and risk are those of the mixture of all
    critics, their samples together. The policy ascends something else, the mean over critics of the risk that each of
    them sees, ``risk(returns).mean(0)``.

    Attributes:
        returns: ``[E, ..., n]``.
        state_gradients: dG/ds ``[E, ..., n, S]``.
        action_gradients: dG/da ``[E, ..., n, A]``.
    """

    returns: Tensor
    state_gradients: Tensor
    action_gradients: Tensor

    def quantile(self, levels: float | Sequence[float] | Tensor) -> Tensor:
        """Quantiles ``inf {z : F(z) >= level}``: ``levels [*L]`` in [0, 1] ``-> [..., *L]``; 0 is the smallest sample.

        Raises:
            UsageError: a level outside of [0, 1].
        """
        pooled = _pooled(self.returns)
        given = torch.as_tensor(levels, dtype=torch.float64, device="cpu")
        if not bool(((given >= 0) & (given <= 1)).all()):
            raise UsageError(f"quantile: expected levels in [0, 1], got {levels}")
        places = (given * pooled.shape[-1] * (1 - 1e-12)).long()  # as quantile_position has it
        return pooled.sort(-1).values[..., places.to(pooled.device)]

    def risk(self, measure: RiskMeasure) -> Tensor:
        """The value of a risk measure ``[...]``, in units of reward (as is, then, the beta of Entropic)."""
        return measure(_pooled(self.returns))

    def risk_gradient(self, measure: RiskMeasure) -> Tensor:
        """Its derivative in the action ``[..., A]``: that of the samples' own, by the measure's weights."""
        weights = measure.weights(_pooled(self.returns))
        return (weights.unsqueeze(-1) * _pooled(self.action_gradients, 2)).sum(-2)

    def cvar(self, alpha: float, tail: Tail = "lower") -> Tensor:
        """Mean of the worst (``lower``) or best (``upper``) part ``alpha`` of the outcomes ``[...]``.

        Raises:
            UsageError: alpha outside of (0, 1].
        """
        return self.risk(CVaR(alpha, tail))

    @property
    def disagreement(self) -> Tensor:
        """How far the critics' laws are from one another, in units of reward ``[...]``; 0 with one critic.

        The Wasserstein-1 distance between their return samples, mean over pairs of critics: at least the difference of
        their means. They share their noise, so that equal critics are at distance 0 for any n.
        """
        ordered = self.returns.sort(-1).values
        pairs = [(one - other).abs().mean(-1) for one, other in combinations(ordered, 2)]
        return torch.stack(pairs).mean(0) if pairs else torch.zeros_like(self.returns[0, ..., 0])


def value_distribution(agent: SobolevActorCritic, observation: Tensor, action: Tensor, count: int) -> ValueDistribution:
    """``count`` samples of each critic of ``agent`` at raw observations ``[..., S]`` and actions ``[..., A]``.

    The noise is the same at every call, until the agent is trained on, and for all rows: what differs between two
    actions is not the noise. The agent and the generators are left as they are.

    Raises:
        UsageError: a deterministic critic, fewer than one sample, or sizes that are not the agent's.
    """
    if not agent.critic.noise_size:
        raise UsageError("value_distribution: a deterministic critic (noise_size 0) has no samples of the return")
    if count < 1:
        raise UsageError(f"value_distribution: expected at least 1 sample, got {count}")
    like = agent.normalizer.scale
    s, a = (torch.as_tensor(x, dtype=like.dtype, device=like.device) for x in (observation, action))
    for name, x, size in (("observation", s, len(like)), ("action", a, agent.action_size)):
        if x.shape[-1:] != (size,):
            raise UsageError(f"value_distribution: expected {name} [..., {size}], got {list(x.shape)}")
    try:
        leading = torch.broadcast_shapes(s.shape[:-1], a.shape[:-1])
    except RuntimeError as error:
        shapes = f"observation {list(s.shape)} and action {list(a.shape)}"
        raise UsageError(f"value_distribution: leading dimensions do not go together: {shapes}") from error
    rows, actions = (x.expand(*leading, x.shape[-1]).reshape(-1, x.shape[-1]) for x in (s, a))
    samples = agent.sobolev_returns(rows, actions, count, shared=True)
    samples = samples.unflatten(1, leading) if leading else samples.squeeze(1)
    returns, ds, da = samples.split([1, s.shape[-1], a.shape[-1]], -1)
    return ValueDistribution(returns.squeeze(-1), ds, da)


def _pooled(x: Tensor, last: int = 1) -> Tensor:
    """Samples of all critics together: ``[E, ..., n, *] -> [..., E n, *]``, with ``last`` dimensions from n on."""
    return x.movedim(0, -1 - last).flatten(-1 - last, -last)
