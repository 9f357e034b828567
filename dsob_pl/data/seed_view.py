"""What stands for the data module of one seed where several train together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tensordict import TensorDict

from dsob_pl.data.datamodule import ReplayDataModule
from dsob_pl.data.episodes import trajectories

if TYPE_CHECKING:
    from dsob_pl.data.many_seeds import ManySeedsData


class SeedView:
    """A part of ``ManySeedsData``, with its transitions, which it does not hold itself any more.

    It stays with its seed when others leave. Whatever is not here is the part's own.
    """

    def __init__(self, data: ManySeedsData, part: ReplayDataModule) -> None:
        self._data = data
        self._part = part

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)

    @property
    def replay(self) -> TensorDict:
        """A copy [n] of the transitions, oldest first."""
        return self._data.replay.transitions(self._data.parts.index(self._part))

    @property
    def holdout(self) -> TensorDict:
        """A copy [n] of the held-out transitions, oldest first."""
        return self._data.holdout.transitions(self._data.parts.index(self._part))

    def holdout_trajectories(self, k: int, n: int) -> TensorDict:
        """As in ``ReplayDataModule``."""
        return trajectories(self.holdout, k, n)
