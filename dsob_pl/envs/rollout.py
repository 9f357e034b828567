"""Evaluation episodes: fixed seeds, no exploration noise, one batched policy call per step for all of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

from dsob_pl.envs.stepping import EnvironmentFailed, env_name, reset_environment, step_environment
from dsob_pl.envs.visits import VisitRecorder, Visits
from dsob_pl.errors import RunFailed

log = logging.getLogger(__name__)

LONGEST_EPISODE = 1_000_000
LONG_EPISODE = 10_000  # several times the time limit of any task of gymnasium


class Episodes(NamedTuple):
    """Statistics of n finished episodes, on the CPU.

    Fields: returns, discounted_returns and lengths [n] float32, first_observations [n, S] float32,
    terminated [n] bool, False where the episode ended by its time limit, and visits, some of the states between.
    """

    returns: Tensor
    lengths: Tensor
    discounted_returns: Tensor
    first_observations: Tensor
    terminated: Tensor
    visits: Visits


@torch.no_grad()
def run_episodes(
    envs: Sequence[gymnasium.Env],
    policy: Callable[[Tensor], Tensor],
    seeds: Sequence[int],
    gamma: float,
    device: torch.device | str | None = None,
) -> Episodes:
    """One episode per seed in lock step; an environment whose episode has ended leaves the batch.

    Args:
        envs: at least as many environments of ``make_env`` as there are seeds; environment i takes seed i.
        policy: raw observations [n, S] float32 of the n running episodes, on ``device``, to actions [n, A] in [-1, 1].
        seeds: reset seeds, one per episode.
        gamma: discount of ``discounted_returns``.
        device: where the policy wants its observations.

    Raises:
        RunFailed: an environment that fails, an action that is not finite, or an episode that does not end.
    """
    if len(envs) < len(seeds):
        raise ValueError(f"run_episodes needs an environment per seed, got {len(envs)} for {len(seeds)} seeds")
    n = len(seeds)
    # accumulated in float64: a thousand float32 additions would show in the fourth digit
    returns, discounted, lengths = np.zeros(n), np.zeros(n), np.zeros(n, dtype=np.int64)
    terminated = np.zeros(n, dtype=bool)
    with _evaluating():
        first = np.stack([reset_environment(env, int(seed), 0) for env, seed in zip(envs, seeds)])
    observations, running = first.copy(), list(range(n))
    recorder = VisitRecorder(n)
    while running:
        batch = torch.from_numpy(observations[running])
        actions = policy(batch if device is None else batch.to(device)).to("cpu", torch.float32).numpy()
        still_running = []
        for i, action in zip(running, actions, strict=True):
            if not np.isfinite(action).all():
                raise RunFailed(f"evaluation: the policy's action is not finite at step {lengths[i] + 1} of an episode")
            recorder.leave(i, observations[i])
            with _evaluating():
                observations[i], reward, ended, cut = step_environment(envs[i], action, int(lengths[i]) + 1)
            recorder.earn(i, reward)
            returns[i] += reward
            discounted[i] += gamma ** lengths[i] * reward
            lengths[i] += 1
            terminated[i] = ended
            if not (ended or cut):
                still_running.append(i)
                if lengths[i] == LONG_EPISODE:
                    tell_long_episode()
            if lengths[i] >= LONGEST_EPISODE:
                raise RunFailed(
                    f"evaluation: an episode of {env_name(envs[i])} has not ended after {lengths[i]} steps; "
                    "set data.env_kwargs.max_episode_steps"
                )
        running = still_running
    return Episodes(
        torch.from_numpy(returns).float(),
        torch.from_numpy(lengths).float(),
        torch.from_numpy(discounted).float(),
        torch.from_numpy(first),
        torch.from_numpy(terminated),
        recorder.visits(range(n), gamma, observations),
    )


@cache  # once is enough
def tell_long_episode() -> None:
    """Says that an evaluation episode goes on and on: without a time limit it may never end."""
    log.warning(
        "evaluation: an episode has not ended after %d steps; data.env_kwargs.max_episode_steps would end it",
        LONG_EPISODE,
    )


@contextmanager
def _evaluating() -> Iterator[None]:
    """Says of an environment that fails that it is one of the evaluation's."""
    try:
        yield
    except EnvironmentFailed as error:
        raise EnvironmentFailed(f"evaluation: {error}") from error.__cause__
