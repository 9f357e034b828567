"""What followed the states that an episode passed through: the returns-to-go whose law a critic predicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_KEPT = 64  # states of an episode at most, so that long episodes of large observations stay small


class Visits(NamedTuple):
    """R states that n episodes passed through, and what came after them, on the CPU.

    Attributes:
        observations: ``[R, S]`` float32.
        returns_to_go: ``[R]`` float32, discounted sum of the rewards from there to the end of the episode.
        remaining: ``[R]`` int64, environment steps to the end of the episode.
        episode: ``[R]`` int64, which one.
        last_observations: ``[n, S]`` float32, those after the last step.
    """

    observations: Tensor
    returns_to_go: Tensor
    remaining: Tensor
    episode: Tensor
    last_observations: Tensor


class VisitRecorder:
    """Takes down the states and rewards of running episodes, of each no more than 64 states at even distances.

    The distance is the same in all episodes: one that grew with the length of each would make states rare from which
    there was much to come.

    Args:
        episodes: n.
    """

    def __init__(self, episodes: int) -> None:
        self._states: list[list[np.ndarray]] = [[] for _ in range(episodes)]
        self._rewards: list[list[float]] = [[] for _ in range(episodes)]
        self._strides = [1] * episodes

    def leave(self, episode: int, observation: np.ndarray) -> None:
        """A state ``[S]`` that a step is about to be made from."""
        if len(self._rewards[episode]) % self._strides[episode]:
            return
        states = self._states[episode]
        states.append(observation.copy())
        if len(states) > _KEPT:
            del states[1::2]
            self._strides[episode] *= 2

    def earn(self, episode: int, reward: float) -> None:
        """The reward of that step."""
        self._rewards[episode].append(reward)

    def visits(self, episodes: Sequence[int], gamma: float, last: np.ndarray) -> Visits:
        """What came after the states of some of the episodes, which are over.

        Args:
            episodes: which ones; they are numbered from 0 in the result.
            gamma: discount.
            last: their observations after the last step ``[n, S]``.
        """
        observations, returns, remaining, owner = [], [], [], []
        common = max((self._strides[episode] for episode in episodes), default=1)  # powers of two
        for number, episode in enumerate(episodes):
            rewards, stride = self._rewards[episode], self._strides[episode]
            to_go = np.zeros(len(rewards) + 1)  # in float64, as the returns of the episodes
            for t in reversed(range(len(rewards))):
                to_go[t] = rewards[t] + gamma * to_go[t + 1]
            for t in range(0, len(rewards), common):
                observations.append(self._states[episode][t // stride])
                returns.append(to_go[t])
                remaining.append(len(rewards) - t)
                owner.append(number)
        states = np.stack(observations) if observations else np.zeros((0, last.shape[-1]))
        return Visits(
            torch.from_numpy(states.astype(np.float32)),
            torch.tensor(returns, dtype=torch.float32),
            torch.tensor(remaining, dtype=torch.int64),
            torch.tensor(owner, dtype=torch.int64),
            torch.from_numpy(last.astype(np.float32)),
        )
