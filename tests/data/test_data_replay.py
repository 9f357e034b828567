"""Replay: memory, sampling from its own generator, its state, and the episodes inside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from dsob_pl.data import build_replay, transitions
from dsob_pl.data.episodes import episode_ends, split_held_out, trajectories
from dsob_pl.data.replay import load_replay_state, replay_state, transition


def row(number: int, end: str = "") -> TensorDict:
    start = np.full(2, number, dtype=np.float32)
    terminated, truncated = end == "terminated", end == "cut"
    return transition(start, torch.full((1,), number / 1e6), start + 1, float(number), terminated, truncated)


def rows(*numbers: int) -> TensorDict:
    return torch.cat([row(n) for n in numbers])


def test_a_million_walker_transitions_stay_under_300_megabytes() -> None:
    replay = build_replay(1000, 0)
    o = np.zeros(17, dtype=np.float32)
    for _ in range(2):
        replay.extend(transition(o, torch.zeros(6), o, 0.0, False, False))
    stored = replay.storage._storage
    bytes_each = sum(leaf.element_size() * leaf[0].numel() for leaf in stored.values(True, True))
    assert {leaf.device.type for leaf in stored.values(True, True)} == {"cpu"}
    assert all(len(leaf) == 1000 for leaf in stored.values(True, True))
    # both observations, action and reward in float32, two flags: 166 MB for a million
    assert bytes_each == 4 * (2 * 17 + 6 + 1) + 2


def test_memory_is_taken_when_transitions_arrive() -> None:
    def resident() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) // 1024

    if not Path("/proc/self/status").exists():
        pytest.skip("resident memory is read from /proc")
    before = resident()
    replay = build_replay(1_000_000, 0)
    o = np.zeros(17, dtype=np.float32)
    replay.extend(transition(o, torch.zeros(6), o, 0.0, False, False))
    assert resident() - before < 30
    full = replay.storage[:1].expand(200_000).clone()
    for _ in range(6):
        replay.extend(full)
    del full
    assert len(replay) == 1_000_000
    assert resident() - before < 300


def test_the_oldest_are_overwritten() -> None:
    replay = build_replay(4, 0)
    for n in range(6):
        replay.extend(row(n))
    assert transitions(replay)["next", "reward"].squeeze(-1).tolist() == [2, 3, 4, 5]


def test_samples_follow_from_the_seed_and_are_uniform() -> None:
    def draw(seed: int, global_seed: int) -> torch.Tensor:
        torch.manual_seed(global_seed)
        replay = build_replay(8, seed)
        replay.extend(rows(*range(5)))
        return replay.sample(10_000)["next", "reward"].squeeze(-1).long()

    first = draw(3, 0)
    assert torch.equal(first, draw(3, 1))
    assert not torch.equal(first, draw(4, 0))
    counts = torch.bincount(first, minlength=5)
    assert counts.tolist() == pytest.approx([2000] * 5, abs=200)


def test_a_restored_buffer_goes_on_like_the_saved_one(tmp_path: Path) -> None:
    for written in (3, 4, 6):
        replay, other, smaller = build_replay(4, 0), build_replay(4, 1), build_replay(2, 1)
        other.extend(rows(50, 51, 52, 53))
        for n in range(written):
            replay.extend(row(n))
        replay.sample(3)
        torch.save(replay_state(replay), tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        load_replay_state(other, state)
        for n in (7, 8):
            assert (replay.sample(16) == other.sample(16)).all()
            replay.extend(row(n))
            other.extend(row(n))
        assert (replay.storage[:] == other.storage[:]).all()
        load_replay_state(smaller, state)
        assert transitions(smaller)["next", "reward"].squeeze(-1).tolist() == [written - 2, written - 1]


def test_a_state_is_a_copy_of_the_valid_part_only(tmp_path: Path) -> None:
    replay = build_replay(100_000, 0)
    replay.extend(rows(0, 1))
    state = replay_state(replay)
    replay.storage[:]["observation"].fill_(9.0)
    assert state["observation"].tolist() == [[0.0, 0.0], [1.0, 1.0]]
    torch.save(state, tmp_path / "state.pt")
    assert (tmp_path / "state.pt").stat().st_size < 15_000


def episode(start: int, length: int, end: str) -> TensorDict:
    """Rows with rewards start, start+1, ...; observations of their own range, each leading to the next."""
    return torch.cat([row(start + t, end if t == length - 1 else "") for t in range(length)])


def test_episodes_end_by_flag_by_a_gap_and_with_the_data() -> None:
    data = torch.cat([episode(0, 3, "terminated"), episode(3, 2, "cut"), episode(5, 2, ""), episode(30, 3, "")])
    # 3 starts where 2 ended, so that only the flag parts them; 30 is known by the gap
    assert episode_ends(data).nonzero().squeeze(-1).tolist() == [2, 4, 6, 9]
    assert episode_ends(data[:0]).shape == (0,)


def test_held_out_episodes_are_whole_and_from_the_middle_of_their_group() -> None:
    data = torch.cat([episode(10 * i, 2 + i % 3, "terminated") for i in range(9)])
    train, held_out = split_held_out(data, 4)
    starts = held_out["next", "reward"].squeeze(-1)
    assert sorted({int(n) // 10 for n in starts.tolist()}) == [2, 6]
    assert len(train) + len(held_out) == len(data)
    assert split_held_out(data, 0)[1].shape == (0,)


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=8),
    k=st.integers(1, 5),
    n=st.integers(1, 12),
    gaps=st.booleans(),
)
def test_trajectories_stay_inside_one_episode(lengths: list[int], k: int, n: int, gaps: bool) -> None:
    starts = np.cumsum([0, *lengths[:-1]]) + (np.arange(len(lengths)) * 100 if gaps else 0)
    data = torch.cat([episode(int(s), m, "" if gaps else "cut") for s, m in zip(starts, lengths)])
    found = trajectories(data, k, n)
    possible = sum(max(m - k + 1, 0) for m in lengths)
    assert found.shape == (min(n, possible), k)
    rewards = found["next", "reward"].squeeze(-1)
    assert (rewards.diff(dim=1) == 1).all()
    whole = [set(range(int(s), int(s) + m)) for s, m in zip(starts, lengths)]
    for stretch in rewards.tolist():
        assert any(set(map(int, stretch)) <= one for one in whole)
    assert len({stretch[0] for stretch in rewards.tolist()}) == len(rewards)
