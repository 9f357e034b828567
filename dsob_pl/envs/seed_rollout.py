"""Evaluation episodes of several policies, one for each training seed, all in lock step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from dsob_pl.envs.rollout import LONG_EPISODE, LONGEST_EPISODE, Episodes, tell_long_episode
from dsob_pl.envs.rows import EnvironmentRows
from dsob_pl.envs.visits import VisitRecorder
from dsob_pl.errors import RunFailed


@torch.no_grad()
def run_seed_episodes(
    rows: EnvironmentRows,
    policy: Callable[[Tensor], Tensor],
    seeds: Sequence[int],
    gamma: float,
    device: torch.device | str | None = None,
) -> tuple[list[Episodes], dict[int, str]]:
    """The episodes that ``run_episodes`` would run with each of S policies.

    Args:
        rows: ``R = S * n`` environments; policy i has those from ``i * n`` on.
        policy: raw observations ``[S, n, O]`` float32, on ``device``, to actions ``[S, n, A]`` in [-1, 1]. Where an
            episode has ended the observation is its last one, and the action is not used.
        seeds: reset seeds ``[n]``, the same for every policy.
        gamma: discount of ``discounted_returns``.
        device: where the policy wants its observations.

    Returns:
        The episodes of each policy, and for each that went wrong (an observation, reward or action that is not finite,
        an episode that does not end) the reason in one line; its episodes mean nothing.
    """
    n, total = len(seeds), len(rows)
    running, failures = np.ones(total, dtype=bool), dict[int, str]()

    def give_up(row: int, reason: str) -> None:
        i = row // n
        failures.setdefault(i, f"evaluation: {reason}")
        running[i * n : (i + 1) * n] = False

    observations = np.zeros((total, rows.observation_size), np.float32)
    for row in range(total):
        try:
            observations[row] = rows.reset(row, int(seeds[row % n]), 0)
        except RunFailed as error:
            give_up(row, str(error))
    first = observations
    # accumulated in float64: a thousand float32 additions would show in the fourth digit
    returns, discounted, lengths = np.zeros(total), np.zeros(total), np.zeros(total, dtype=np.int64)
    terminated, step = np.zeros(total, dtype=bool), 0
    recorder = VisitRecorder(total)
    while running.any():
        step += 1
        batch = torch.from_numpy(observations).view(total // n, n, -1)
        chosen = policy(batch if device is None else batch.to(device)).to("cpu", torch.float32)
        actions = chosen.reshape(total, -1).numpy()
        for row in np.flatnonzero(running & ~np.isfinite(actions).all(1)).tolist():
            give_up(row, f"the policy's action is not finite at step {step} of an episode")
        moving = np.flatnonzero(running)
        for row in moving.tolist():
            recorder.leave(row, observations[row])
        reached = rows.step(moving, actions[moving], step)
        observations = observations.copy()  # what the policy was given and the first ones stay as they are
        observations[moving] = reached.observations
        for row, reward in zip(moving.tolist(), reached.rewards.tolist()):
            recorder.earn(row, reward)
        returns[moving] += reached.rewards
        discounted[moving] += gamma ** (step - 1) * reached.rewards
        lengths[moving] = step
        terminated[moving] = reached.terminated
        running[moving] = ~(reached.terminated | reached.truncated)
        for place, reason in reached.failures.items():
            give_up(int(moving[place]), reason)
        if step == LONG_EPISODE and running.any():
            tell_long_episode()
        if step >= LONGEST_EPISODE:
            for row in np.flatnonzero(running).tolist():
                give_up(row, f"an episode has not ended after {step} steps; set data.env_kwargs.max_episode_steps")

    def of_policy(i: int) -> Episodes:
        own = range(i * n, (i + 1) * n)
        visits = recorder.visits(own, gamma, observations[own.start : own.stop])
        part = [_part(column, own.start, n) for column in (returns, lengths, discounted, first, terminated)]
        return Episodes(part[0], part[1], part[2], part[3], part[4], visits)

    return [of_policy(i) for i in range(total // n)], failures


def _part(column: np.ndarray, start: int, n: int) -> Tensor:
    own = torch.from_numpy(column[start : start + n].copy())
    return own if own.dtype == torch.bool else own.float()
