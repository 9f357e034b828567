"""Where the returns that an agent realised of late fall in the law that it predicts for them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dsob_pl.agents.calibration import LARGEST_REST, probability_integral_transform
from dsob_pl.bellman import AdaptivePessimism, net_over_total
from dsob_pl.critics import full_rows
from dsob_pl.world_models import Transition

if TYPE_CHECKING:
    from dsob_pl.agents.sobolev_actor_critic import SobolevActorCritic

_STATES, _SAMPLES = 128, 32  # transitions judged at most, and samples of each member of the critic's ensemble


class Buffer(Protocol):
    """A replay buffer that knows the order in which it was written, and how many transitions ever were."""

    @property
    def total(self) -> int:
        """Transitions ever written."""
        ...

    def __len__(self) -> int: ...

    def newest(self, n: int) -> TensorDictBase:
        """The last n transitions, oldest first."""
        ...


def foresight(gamma: float) -> int:
    """Environment steps after which what follows counts for no more than a fifth of itself."""
    return 1 if gamma == 0 else max(math.ceil(math.log(LARGEST_REST) / math.log(gamma)), 1)


def returns_to_go(rewards: Tensor, terminated: Tensor, cut: Tensor, rest: Tensor, gamma: float) -> Tensor:
    """Discounted returns of consecutive transitions, in the order in which they were made.

    Args:
        rewards: ``[n]``.
        terminated: ``[n]``, not 0 where nothing follows.
        cut: ``[n]`` bool, where what follows is not the next row, such as at a time limit; the last row is so anyway.
        rest: ``[n]``, the return that stands for what follows a cut.
        gamma: discount.

    Returns:
        ``[n]``, on the CPU.
    """
    rows = list(zip(rewards.tolist(), terminated.tolist(), cut.tolist(), rest.tolist()))
    returns, following = [], None
    for reward, ends, is_cut, own in reversed(rows):
        after = 0.0 if ends else own if is_cut or following is None else following
        following = reward + gamma * after
        returns.append(following)
    return torch.tensor(returns[::-1], dtype=rewards.dtype)


class Judged(NamedTuple):
    """Realised returns beside the law predicted for them.

    Fields: places ``[R]``, their ranks in it, in [0, 1]; errors ``[R]``, what they are above its mean, in the networks'
    units.
    """

    places: Tensor
    errors: Tensor

    def balance(self) -> Tensor:
        """Net over total error, in [-1, 1] (0-d); above 0 where predictions are too low."""
        return net_over_total(self.errors)


@torch.no_grad()
def judge_recent(agent: SobolevActorCritic, recent: TensorDictBase, generator: torch.Generator) -> Judged | None:
    """Realised returns beside the law predicted at the state and action from which they came.

    Transitions so near to the end of the stretch that what is yet to come counts for more than a fifth of itself are
    not judged, whatever became of their episode: else those whose episode has ended, often badly, would be judged
    first. What was not seen to its end is completed by a draw of the predicted law, which pulls the ranks before a time
    limit towards even ones. Realised returns have exploration noise in them and are of the policy as it was: ranks are
    low where that costs more than the predicted law is wide.

    Args:
        agent: whose critics predict.
        recent: consecutive transitions ``[n]`` of a replay buffer that the agent's own policy made, oldest first.
        generator: of the predicted samples.

    Returns:
        ``[R]``; None where no transition is old enough.
    """
    rows = len(recent) - foresight(agent.gamma)
    if rows < 1:
        return None
    t = Transition.from_replay(recent.to(agent.device), agent.normalizer, agent.reward_scale.factor)
    members, size = agent.critic.ensemble_size, agent.critic.noise_size

    def noise(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, size, device=agent.device, generator=generator)
        return drawn.expand(members, *drawn.shape)

    following = agent.critic(*full_rows(t.s_next, agent.policy(t.s_next), noise(len(t.r))))
    # One critic's draw for each. Not in turn: time limits are even, and all cuts would get the same critic's.
    whose = torch.randint(members, (len(t.r),), device=agent.device, generator=generator)
    rest = following.gather(0, whose.unsqueeze(0)).squeeze(0)
    after, before = recent["next", "observation"][:-1], recent["observation"][1:]
    cut = recent["next", "truncated"].squeeze(-1).clone()
    cut[:-1] |= (after != before).any(-1)  # episodes that were held out or dropped leave a gap
    realised = returns_to_go(t.r, t.terminated, cut, rest, agent.gamma)
    judged = torch.linspace(0, rows - 1, min(rows, _STATES)).long()
    s, a = (x[judged].unsqueeze(1).expand(members, -1, _SAMPLES, -1) for x in (t.s, t.a))
    predicted = agent.critic(s, a, noise(len(judged), _SAMPLES)).transpose(0, 1).flatten(1)
    own = realised[judged].to(predicted)
    return Judged(probability_integral_transform(predicted, own), own - predicted.mean(-1))


def adapt_pessimism(agent: SobolevActorCritic, step: int, steps: int, buffer: Buffer) -> dict[str, Tensor]:
    """Where it is due, looks at recent returns, and lets them decide on the pessimism of the targets.

    The first time that it is due is where the agent's own transitions are taken to begin: what is in the buffer by then
    may be of the warm-up, or of another policy.

    Args:
        agent: whose ``overestimation`` may be adaptive; its weight changes.
        step: environment step that has just been made, updates included.
        steps: of the whole run; the weight stays in the first part of it that the correction says.
        buffer: its replay.

    Returns:
        0-d metrics by logged name; none where nothing could be judged.
    """
    correction = agent.overestimation
    if not isinstance(correction, AdaptivePessimism) or step % correction.every:
        return {}
    if correction.begun < 0:
        correction.begun.fill_(buffer.total)
    count = min(correction.window, buffer.total - int(correction.begun), len(buffer))
    # A generator of its own: how often one looks must not move the noise of training.
    generator = torch.Generator(agent.device).manual_seed(agent.updates)
    judged = judge_recent(agent, buffer.newest(count), generator) if count > 0 else None
    if judged is None:
        return {}
    if step > correction.after * steps:
        correction.adapt(*judged)
    return {
        "critic/pessimism": correction.weight.clone(),
        "critic/recent_pit": judged.places.mean(),
        "critic/recent_error": judged.balance(),
    }
