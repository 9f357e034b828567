"""What the trainer iterates over: environment steps without end, and the single item of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import torch
from tensordict import TensorDict
from torch import Tensor

from dsob_pl.data.collector import EpisodeStatistics

T = TypeVar("T")


@dataclass
class Step:
    """What one environment step brings to the training step.

    Attributes:
        new: the transition [1] just collected; None where nothing is collected (``collect=False``).
        batch: transitions [U, B] from replay; None during the warm-up.
        episode: statistics of the episode that ended at this step, if one did.
        environment_step: number of this step, from 1.
        dropped_episodes: episodes dropped so far, where that grew at this step; else 0.
    """

    new: TensorDict | None
    batch: TensorDict | None
    episode: EpisodeStatistics | None
    environment_step: int
    dropped_episodes: int = 0

    def to(self, device: torch.device | str) -> Step:
        """The same step with its tensors on ``device``."""
        new, batch = (part if part is None else part.to(device) for part in (self.new, self.batch))
        return replace(self, new=new, batch=batch)


@dataclass
class SeedsStep:
    """What one step of the environments of S seeds brings to the training step.

    Attributes:
        new: the transitions [S] just collected; None where nothing is collected (``collect=False``).
        batch: transitions [S, U, B] from replay; None during the warm-up.
        episodes: for each seed the statistics of the episode that ended at this step, if one did.
        environment_step: number of this step, from 1, the same for all.
        failures: why a seed cannot go on, in one line, by its place among the S; what stands for it in ``new`` and
            ``batch`` is finite and means nothing.
        dropped_episodes: episodes that a seed has dropped so far, by its place, where that grew at this step.
    """

    new: TensorDict | None
    batch: TensorDict | None
    episodes: list[EpisodeStatistics | None]
    environment_step: int
    failures: dict[int, str]
    dropped_episodes: dict[int, int] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> SeedsStep:
        """The same step with its tensors on ``device``."""
        new, batch = (part if part is None else part.to(device) for part in (self.new, self.batch))
        return replace(self, new=new, batch=batch)


class EnvironmentSteps(Generic[T]):
    """A plain iterable over environment steps.

    It has a length because Lightning fetches one item ahead of an iterable without one: the action would then come
    from the policy before the last update. The length is larger than any run.
    """

    def __init__(self, step: Callable[[], T]) -> None:
        self._step = step

    def __len__(self) -> int:
        return 10**12

    def __iter__(self) -> Iterator[T]:
        while True:
            yield self._step()

    def state_dict(self) -> dict[str, int]:
        """Nothing: the data module saves where the steps go on. That there is one tells Lightning that they do."""
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Nothing."""


class SingleItem:
    """An iterable of one item."""

    def __init__(self, item: Tensor) -> None:
        self._item = item

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Tensor]:
        yield self._item
