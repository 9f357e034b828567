"""Replay: a TorchRL buffer of transitions on the CPU, and its state as plain tensors.

Keys, raw values as the environment gave them: ``observation`` [S], ``action`` [A] in [-1, 1], and under ``next``:
``observation`` [S], ``reward`` [1], ``terminated`` [1] and ``truncated`` [1] (bool).
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import LazyTensorStorage, RandomSampler, TensorDictReplayBuffer
from torchrl.data.replay_buffers.writers import RoundRobinWriter

FIELDS: dict[str, str | tuple[str, str]] = {
    "observation": "observation",
    "action": "action",
    "next_observation": ("next", "observation"),
    "reward": ("next", "reward"),
    "terminated": ("next", "terminated"),
    "truncated": ("next", "truncated"),
}


def transition(
    observation: np.ndarray,
    action: Tensor,
    next_observation: np.ndarray,
    reward: float,
    terminated: bool,
    truncated: bool,
) -> TensorDict:
    """One transition as a TensorDict [1]; copies what it is given."""
    return transition_rows(
        observation[None].copy(),
        action.detach().clone().unsqueeze(0),
        next_observation[None].copy(),
        np.array([reward]),
        np.array([terminated]),
        np.array([truncated]),
    )


def transition_rows(
    observations: np.ndarray,
    actions: Tensor,
    next_observations: np.ndarray,
    rewards: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
) -> TensorDict:
    """Transitions as a TensorDict [n]; of the arguments, [n, ...] each, it shares the memory where types allow."""
    after = {
        "observation": torch.from_numpy(next_observations),
        "reward": torch.from_numpy(rewards).float().unsqueeze(-1),
        "terminated": torch.from_numpy(terminated).unsqueeze(-1),
        "truncated": torch.from_numpy(truncated).unsqueeze(-1),
    }
    n = [len(actions)]
    before = {"observation": torch.from_numpy(observations), "action": actions}
    return TensorDict({**before, "next": TensorDict(after, n)}, n)


def build_replay(capacity: int, seed: int) -> TensorDictReplayBuffer:
    """A ring of ``capacity`` transitions, sampled uniformly with replacement from its own generator.

    Memory is taken when transitions arrive. The indices drawn depend on ``seed`` and on the numbers drawn before, not
    on torch's global generator.
    """
    if "RL_LOGGING_LEVEL" not in os.environ:
        # torchrl announces each allocation on stderr, in the middle of the progress bar
        logging.getLogger("torchrl").setLevel(logging.WARNING)
    return TensorDictReplayBuffer(
        storage=LazyTensorStorage(capacity),
        sampler=RandomSampler(),
        # the TensorDict writer would store each transition's index beside it, 8 bytes that nothing reads
        writer=RoundRobinWriter(),
        generator=torch.Generator().manual_seed(seed),
    )


def transitions(replay: TensorDictReplayBuffer) -> TensorDict:
    """All transitions, oldest first, as a copy [n]."""
    return oldest_first(replay_state(replay))


def newest(replay: TensorDictReplayBuffer, n: int) -> TensorDict:
    """The last n transitions that were written, oldest first, as a copy [n]."""
    cursor = int(replay.writer.state_dict()["_cursor"])
    return replay.storage[(cursor - n + torch.arange(n)) % replay.storage.max_size]


def replay_state(replay: TensorDictReplayBuffer, contents: bool = True) -> dict[str, Any]:
    """The valid part in the order of the storage, the position of the next write, and the sampling generator.

    Plain tensors and numbers, so that ``torch.load(weights_only=True)`` reads it; without ``contents`` the transitions
    are left out.
    """
    state: dict[str, Any] = {
        "size": len(replay),
        "cursor": int(replay.writer.state_dict()["_cursor"]),
        "generator": replay._rng.get_state(),
    }
    if len(replay) and contents:
        stored = replay.storage[: len(replay)]
        # a view would take the whole ring into the file
        state |= {name: stored[key].clone() for name, key in FIELDS.items()}
    return state


def load_replay_state(replay: TensorDictReplayBuffer, state: dict[str, Any]) -> None:
    """Fills an empty buffer from ``replay_state``.

    With the same capacity the buffer continues exactly as the saved one would have; a smaller one keeps the newest.
    """
    replay.empty()
    data, cursor = arranged(state, replay.storage.max_size)
    if len(data):
        replay.extend(data)
        replay.writer.load_state_dict({"_cursor": cursor})
    replay._rng.set_state(state["generator"])


@dataclass
class Counted:
    """A buffer with the number of transitions that have ever been written to it."""

    replay: TensorDictReplayBuffer
    total: int

    def __len__(self) -> int:
        return len(self.replay)

    def newest(self, n: int) -> TensorDict:
        """The last n that were written, oldest first, as a copy [n]."""
        return newest(self.replay, n)


def with_contents(state: dict[str, Any], data: TensorDict) -> dict[str, Any]:
    """A ``replay_state`` that was saved without contents, with its transitions ``data`` [n], oldest first."""
    if not len(data):
        return state
    stored = data.roll(int(state["cursor"]) % len(data), 0)
    return state | {name: stored[key] for name, key in FIELDS.items()}


def arranged(state: dict[str, Any], capacity: int) -> tuple[TensorDict, int]:
    """What a ring of ``capacity`` holds of a ``replay_state``, in the order of its storage, and its next write."""
    if int(state["size"]) == capacity:
        return _from_fields(state), int(state["cursor"]) % capacity
    data = oldest_first(state)[-capacity:]
    return data, len(data) % capacity


def oldest_first(state: dict[str, Any]) -> TensorDict:
    """The transitions [n] of a ``replay_state``: the next write goes to the oldest entry of a full ring."""
    if "observation" not in state:  # nothing was stored
        return TensorDict({}, [0])
    data, cursor = _from_fields(state), int(state["cursor"])
    return data if cursor % len(data) == 0 else torch.cat([data[cursor:], data[:cursor]])


def _from_fields(state: dict[str, Any]) -> TensorDict:
    size = len(state["observation"])
    data = TensorDict({}, [size])
    for name, key in FIELDS.items():
        data[key] = state[name]
    return data
