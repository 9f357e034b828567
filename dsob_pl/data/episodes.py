"""Episodes inside a sequence of transitions: where they end, which are held out, and trajectories within them."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor


def episode_ends(data: TensorDict) -> Tensor:
    """True [n] where the next row of ``data [n]``, in the order of collection, begins another episode.

    An episode also ends where its continuation is missing (given up, overwritten, or cut off by the end of the data),
    which is seen by the next row not starting in the state that was reached.
    """
    following = data["observation"].roll(-1, 0)
    ends = (data["next", "observation"] != following).any(-1)
    ends |= (data["next", "terminated"] | data["next", "truncated"]).squeeze(-1)
    ends[-1:] = True
    return ends


def is_held_out(episode: int | Tensor, every: int) -> bool | Tensor:
    """Whether the episode of that number, counted from 0, is held out: one of ``every``, from the middle of each group.

    The first episode never is (``every`` >= 2), and ``every`` = 0 holds out none.
    """
    return episode % every == every // 2 if every else episode != episode


def split_held_out(data: TensorDict, every: int) -> tuple[TensorDict, TensorDict]:
    """Training and held-out part of ``data [n]``, split by whole episodes as ``is_held_out`` says."""
    ends = episode_ends(data).long()
    held_out = torch.as_tensor(is_held_out(ends.cumsum(0) - ends, every))
    return data[~held_out], data[held_out]


def trajectories(data: TensorDict, k: int, n: int) -> TensorDict:
    """Up to n stretches [n, k] of k consecutive transitions of one episode, spread evenly over ``data``.

    Fewer rows, possibly none, where there are fewer places to start. No random choice is involved.
    """
    ends = episode_ends(data)
    starts = torch.ones(max(len(ends) - k + 1, 0), dtype=torch.bool)
    for offset in range(k - 1):
        starts &= ~ends[offset : offset + len(starts)]
    places = starts.nonzero().squeeze(-1)
    chosen = torch.linspace(0, max(len(places) - 1, 0), min(n, len(places))).round().long()
    return data[places[chosen].unsqueeze(-1) + torch.arange(k)]
