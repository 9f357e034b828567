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
        self._totals = [0] * seeds
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
        for i in range(len(self._totals)) if seeds is None else seeds:
            self._totals[i] += 1

    def sample(self, n: int) -> TensorDict:
        """n transitions of each seed ``[S, n]``, uniformly with replacement, each from its seed's own generator."""
        # as RandomSampler draws them
        drawn = [torch.randint(0, m, (n,), generator=g) for m, g in zip(self._sizes.tolist(), self._generators)]
        assert self.storage is not None
        return self.storage.get((self._rows.unsqueeze(1), torch.stack(drawn)))

    def transitions(self, i: int) -> TensorDict:
        """All transitions of a seed, oldest first, as a copy ``[n]``."""
        return oldest_first(self.state(i))

    def row(self, i: int) -> SeedRow:
        """The buffer of one seed, as its files see it."""
        return SeedRow(self, i)

    def state(self, i: int, contents: bool = True) -> dict[str, Any]:
        """What ``replay_state`` gives for the buffer of that seed alone, and how many were ever written to it."""
        size = int(self._sizes[i])
        state = {"size": size, "cursor": int(self._cursors[i]), "generator": self._generators[i].get_state()}
        state["total"] = self._totals[i]
        if self.storage is not None and size and contents:
            stored = self.storage.get((int(self._rows[i]), slice(size)))
            state |= {name: stored[key].clone() for name, key in FIELDS.items()}
        return state

    def load_state(self, i: int, state: dict[str, Any]) -> None:
        """Replaces a seed's transitions and generator by those of a ``replay_state``; see ``load_replay_state``."""
        data, cursor = arranged(state, self.capacity)
        if len(data):
            self._allocated(data[0]).set((int(self._rows[i]), slice(len(data))), data, set_cursor=False)
        self._sizes[i], self._cursors[i] = len(data), cursor
        self._totals[i] = int(state.get("total", len(data)))
        self._generators[i].set_state(state["generator"])

    def select(self, keep: Sequence[int]) -> None:
        """Leaves out the seeds at all other places."""
        places = torch.tensor(keep)
        self._rows = torch.arange(len(keep)) if self.storage is None else self._rows[places]
        self._cursors, self._sizes = self._cursors[places], self._sizes[places]
        self._totals = [self._totals[i] for i in keep]
        self._generators = [self._generators[i] for i in keep]

    def _allocated(self, example: TensorDict) -> TensorStorage:
        """The storage; made, without touching its memory, for transitions like the first one."""
        if self.storage is None:
            rows = torch.empty_like(example.expand(len(self._rows), self.capacity))
            self.storage = TensorStorage(rows, ndim=2)
        return self.storage


class SeedRow:
    """The buffer of one seed among several.

    Args:
        replay: of all.
        i: place of the seed, for as long as none leaves.
    """

    def __init__(self, replay: SeedReplay, i: int) -> None:
        self._replay = replay
        self._i = i

    def __len__(self) -> int:
        return int(self._replay._sizes[self._i])

    @property
    def total(self) -> int:
        """Transitions that have ever been written to it."""
        return self._replay._totals[self._i]

    def newest(self, n: int) -> TensorDict:
        """The last n that were written, oldest first, as a copy [n]."""
        assert self._replay.storage is not None
        places = (int(self._replay._cursors[self._i]) - n + torch.arange(n)) % self._replay.capacity
        return self._replay.storage.get((self._replay._rows[self._i], places)).clone()
