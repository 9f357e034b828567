"""Replay of several seeds in one storage: a ring for each seed, all written and sampled at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torchrl.data import TensorStorage

from dsob_pl.data.replay import FIELDS, arranged, oldest_first


class SeedReplay:
    """The buffers of S seeds as rows of one TorchRL storage ``[S, capacity]``.

    Each seed has its own cursor, size and generator, and draws what its buffer of ``build_replay`` alone would draw.
    The storage is allocated with the first transition, and memory is taken as transitions arrive. The row of a seed
    that has left is not read any more but stays: closing the gap would need all of the memory once more.

    Args:
        capacity: transitions of each seed; the oldest ones are overwritten.
        seeds: S.
    """

    def __init__(self, capacity: int, seeds: int) -> None:
        self.capacity = capacity
        self.storage: TensorStorage | None = None
        self._rows = torch.arange(seeds)
        self._cursors = torch.zeros(seeds, dtype=torch.long)
        self._sizes = torch.zeros(seeds, dtype=torch.long)
        self._generators = [torch.Generator() for _ in range(seeds)]

    def __len__(self) -> int:
        """Transitions stored for the seed that has the fewest."""
        return int(self._sizes.min())

    def extend(self, new: TensorDict, seeds: Sequence[int] | None = None) -> None:
        """Writes one transition for each seed, ``new [S]``, or only those for the seeds at the places given."""
        chosen = slice(None) if seeds is None else torch.tensor(seeds)
        cursors = self._cursors[chosen]
        self._allocated(new[0]).set((self._rows[chosen], cursors), new[chosen], set_cursor=False)
        self._cursors[chosen] = (cursors + 1) % self.capacity
        self._sizes[chosen] = (self._sizes[chosen] + 1).clamp(max=self.capacity)

    def sample(self, n: int) -> TensorDict:
        """n transitions of each seed ``[S, n]``, uniformly with replacement, each from its seed's own generator."""
        # as RandomSampler draws them
        drawn = [torch.randint(0, m, (n,), generator=g) for m, g in zip(self._sizes.tolist(), self._generators)]
        assert self.storage is not None
        return self.storage.get((self._rows.unsqueeze(1), torch.stack(drawn)))

    def transitions(self, i: int) -> TensorDict:
        """All transitions of a seed, oldest first, as a copy ``[n]``."""
        return oldest_first(self.state(i))

    def state(self, i: int) -> dict[str, Any]:
        """What ``replay_state`` gives for the buffer of that seed alone."""
        size = int(self._sizes[i])
        state = {"size": size, "cursor": int(self._cursors[i]), "generator": self._generators[i].get_state()}
        if self.storage is not None and size:
            stored = self.storage.get((int(self._rows[i]), slice(size)))
            state |= {name: stored[key].clone() for name, key in FIELDS.items()}
        return state

    def load_state(self, i: int, state: dict[str, Any]) -> None:
        """Replaces a seed's transitions and generator by those of a ``replay_state``; see ``load_replay_state``."""
        data, cursor = arranged(state, self.capacity)
        if len(data):
            self._allocated(data[0]).set((int(self._rows[i]), slice(len(data))), data, set_cursor=False)
        self._sizes[i], self._cursors[i] = len(data), cursor
        self._generators[i].set_state(state["generator"])

    def select(self, keep: Sequence[int]) -> None:
        """Leaves out the seeds at all other places."""
        places = torch.tensor(keep)
        self._rows = torch.arange(len(keep)) if self.storage is None else self._rows[places]
        self._cursors, self._sizes = self._cursors[places], self._sizes[places]
        self._generators = [self._generators[i] for i in keep]

    def _allocated(self, example: TensorDict) -> TensorStorage:
        """The storage; made, without touching its memory, for transitions like the first one."""
        if self.storage is None:
            rows = torch.empty_like(example.expand(len(self._rows), self.capacity))
            self.storage = TensorStorage(rows, ndim=2)
        return self.storage
