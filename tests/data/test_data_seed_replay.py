"""The joint replay of several seeds: memory, and equality with buffers of their own under any order of writes."""

from __future__ import annotations

import ctypes
import multiprocessing
import platform
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from dsob_pl.data import build_replay, transitions
from dsob_pl.data.replay import load_replay_state, replay_state, transition_rows
from dsob_pl.data.seed_replay import SeedReplay


def rows(seeds: int, number: int) -> TensorDict:
    """A transition [seeds] whose reward tells the seed and the time."""
    o = np.random.default_rng(number).normal(size=(seeds, 2)).astype(np.float32)
    rewards = number + 1000.0 * np.arange(seeds)
    return transition_rows(o, torch.from_numpy(o[:, :1].copy()), o + 1, rewards, rewards % 2 == 0, rewards % 3 == 0)


@settings(deadline=None, max_examples=40)
@given(
    seeds=st.integers(1, 4),
    capacity=st.integers(1, 5),
    writes=st.lists(st.tuples(st.integers(0, 15), st.booleans(), st.integers(0, 9)), min_size=1, max_size=12),
)
def test_any_writes_draws_and_departures_are_those_of_separate_buffers(
    seeds: int, capacity: int, writes: list[tuple[int, bool, int]]
) -> None:
    single = [build_replay(capacity, 40 + i) for i in range(seeds)]
    joint = SeedReplay(capacity, seeds)
    for i, replay in enumerate(single):
        joint.load_state(i, replay_state(replay))
    for number, (subset, draw, leaving) in enumerate(writes):
        new = rows(len(single), number)
        chosen = [i for i in range(len(single)) if number == 0 or subset >> i & 1]
        for i in chosen:
            single[i].extend(new[i : i + 1])
        if chosen:
            joint.extend(new, chosen)
        if draw:
            drawn = joint.sample(6)
            for i, replay in enumerate(single):
                assert (drawn[i] == replay.sample(6).exclude("index")).all()
        if leaving < len(single) and len(single) > 1:
            keep = [i for i in range(len(single)) if i != leaving]
            single = [single[i] for i in keep]
            joint.select(keep)
    assert len(joint) == min(len(replay) for replay in single)
    for i, replay in enumerate(single):
        assert (joint.transitions(i) == transitions(replay)).all()
        state, expected = joint.state(i), replay_state(replay)
        assert (state["size"], state["cursor"]) == (expected["size"], expected["cursor"] % capacity)


@pytest.mark.parametrize("capacity", [2, 4, 9])
def test_a_state_of_another_capacity_is_taken_as_a_buffer_alone_takes_it(capacity: int) -> None:
    full = build_replay(4, 1)
    for number in range(6):
        full.extend(rows(1, number))
    single, joint = build_replay(capacity, 0), SeedReplay(capacity, 2)
    load_replay_state(single, replay_state(full))
    for i in range(2):
        joint.load_state(i, replay_state(full))
    for number in range(7, 12):
        assert (joint.transitions(1) == transitions(single)).all()
        assert (joint.sample(20)[1] == single.sample(20).exclude("index")).all()
        single.extend(rows(2, number)[1:])
        joint.extend(rows(2, number))


def test_a_state_is_a_copy_of_the_valid_part_only(tmp_path: Path) -> None:
    joint = SeedReplay(100_000, 3)
    joint.extend(rows(3, 0))
    state = joint.state(1)
    joint.extend(rows(3, 1))
    assert state["reward"].tolist() == [[1000.0]]
    torch.save(state, tmp_path / "state.pt")
    assert (tmp_path / "state.pt").stat().st_size < 15_000
    assert joint.transitions(2)["next", "reward"].flatten().tolist() == [2000.0, 2001.0]


def test_ten_seeds_of_a_hundred_thousand_walker_transitions_take_less_than_200_megabytes() -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("resident memory is read from /proc")
    # In a process of its own: what other tests have left in the allocator is not this replay's.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
        first, full = apart.submit(megabytes_taken).result()
    assert first < 10  # nothing is taken before transitions arrive
    assert full < 200


def megabytes_taken() -> tuple[float, float]:
    """By a replay for ten seeds with 20 transitions of each, and full."""
    joint = SeedReplay(100_000, 10)
    o = np.zeros((10, 17), np.float32)
    new = transition_rows(o, torch.zeros(10, 6), o, np.zeros(10), np.zeros(10, bool), np.zeros(10, bool))
    before = resident()
    for _ in range(20):
        joint.extend(new)
    first = resident() - before
    assert joint.storage is not None
    leaves = list(joint.storage._storage.values(True, True))
    assert all(leaf.shape[:2] == (10, 100_000) for leaf in leaves)
    stored = sum(leaf.untyped_storage().nbytes() for leaf in leaves)
    # both observations, action and reward in float32, two flags
    assert stored == 1_000_000 * (4 * (2 * 17 + 6 + 1) + 2) < 200e6
    state = {"generator": torch.Generator().get_state(), "size": 100_000, "cursor": 0}
    state |= {
        name: leaf[0].expand(100_000, -1)
        for name, leaf in zip(("observation", "action"), (new["observation"], new["action"]))
    }
    after = {"next_observation": 17, "reward": 1, "terminated": 1, "truncated": 1}
    state |= {
        name: torch.zeros(1, 1, dtype=torch.bool if name[0] == "t" else None).expand(100_000, n)
        for name, n in after.items()
    }
    for i in range(10):
        joint.load_state(i, state)
    assert len(joint) == 100_000
    return first, resident() - before


def resident() -> float:
    """Megabytes in use: blocks that were freed and are kept by the allocator are given back first."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) / 1000
