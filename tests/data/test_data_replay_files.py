"""Replay in files: what is read back is what was stored, and little is written twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from dsob_pl.data import ReplayDataModule, build_replay, load_replay, replay_files, transitions
from dsob_pl.data.replay import Counted, load_replay_state, replay_state, with_contents
from dsob_pl.data.replay_files import ReplayFiles
from dsob_pl.errors import UsageError


def rows(first: int, n: int) -> TensorDict:
    """Transitions that are told apart by their number."""
    number = torch.arange(first, first + n).float().unsqueeze(1)
    done = torch.zeros(n, 1, dtype=torch.bool)
    after = TensorDict({"observation": number + 1, "reward": number, "terminated": done, "truncated": done}, [n])
    return TensorDict({"observation": number, "action": -number, "next": after}, [n])


def wanted(buffers: dict[str, Counted]) -> dict[str, tuple[int, int]]:
    return {name: (buffer.total - len(buffer), buffer.total) for name, buffer in buffers.items()}


@settings(max_examples=60, deadline=None)
@given(
    capacities=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    growth=st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25), st.booleans()), min_size=1, max_size=12),
)
def test_every_manifest_gives_back_what_the_buffers_held(
    capacities: tuple[int, int], growth: list[tuple[int, int, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("replay")
    buffers = {name: Counted(build_replay(size, 0), 0) for name, size in zip("ab", capacities)}
    files = ReplayFiles(folder)
    earlier: dict[str, Any] | None = None
    for *new, again in growth:
        for buffer, n in zip(buffers.values(), new):
            for i in range(n):
                buffer.replay.extend(rows(buffer.total + i, 1))
            buffer.total += n
        manifest = files.update(buffers)
        if again:  # as a resumed process would
            files = ReplayFiles(folder)
        reader = files if again else ReplayFiles(folder)
        found = reader.load(manifest, wanted(buffers))
        for name, buffer in buffers.items():
            assert len(found[name]) == len(buffer)
            state = replay_state(buffer.replay, contents=False)
            other = build_replay(buffer.replay.storage.max_size, 1)
            load_replay_state(other, with_contents(state, found[name]))
            stored = replay_state(buffer.replay)
            for key, value in replay_state(other).items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(stored[key]))
        if earlier is not None:  # the checkpoint before is still there
            ReplayFiles(folder).load(earlier["manifest"], {})
        files.forget_others(manifest, *([earlier["manifest"]] if earlier else []))
        earlier = {"manifest": manifest}


def test_little_is_written_twice_and_large_files_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    real = replay_files.save

    def counting(content: Any, path: Path) -> int:
        written.append(sum(len(fields["observation"]) for fields in content.values()))
        return real(content, path)

    monkeypatch.setattr(replay_files, "save", counting)
    buffers = {"replay": Counted(build_replay(100_000, 0), 0)}
    files = ReplayFiles(tmp_path)
    for _ in range(64):
        buffers["replay"].replay.extend(rows(buffers["replay"].total, 100))
        buffers["replay"].total += 100
        manifest = files.update(buffers)
        assert len(manifest) <= 7
    assert len(written) == 64
    assert sum(written) == 64 * 100 * 4  # 1 + log2(64) / 2 times each
    assert files.update(buffers) == manifest  # nothing new
    assert len(written) == 64
    monkeypatch.setattr(replay_files, "LARGEST_BYTES", 50_000)
    for _ in range(64):
        buffers["replay"].replay.extend(rows(buffers["replay"].total, 100))
        buffers["replay"].total += 100
        files.update(buffers)
    assert max(written[64:]) < 64 * 100


def test_what_left_the_ring_leaves_the_files(tmp_path: Path) -> None:
    buffers = {"replay": Counted(build_replay(50, 0), 0)}
    files = ReplayFiles(tmp_path)
    for _ in range(30):
        buffers["replay"].replay.extend(rows(buffers["replay"].total, 40))
        buffers["replay"].total += 40
        manifest = files.update(buffers)
        files.forget_others(manifest)
        assert sum(len(torch.load(path, weights_only=True)["replay"]["reward"]) for path in tmp_path.iterdir()) <= 170
    found = ReplayFiles(tmp_path).load(manifest, wanted(buffers))["replay"]
    assert found["observation"].flatten().tolist() == list(range(1150, 1200))


def test_damage_and_tricks_are_refused(tmp_path: Path) -> None:
    buffers = {"replay": Counted(build_replay(50, 0), 0)}
    buffers["replay"].replay.extend(rows(0, 9))
    buffers["replay"].total = 9
    manifest = ReplayFiles(tmp_path / "a").update(buffers)
    (path,) = (tmp_path / "a").iterdir()
    with pytest.raises(UsageError, match="do not hold the replay"):
        ReplayFiles(tmp_path / "a").load(manifest, {"replay": (0, 10)})
    with pytest.raises(UsageError, match="is not a file name"):
        ReplayFiles(tmp_path / "a").load([{**manifest[0], "file": f"../a/{path.name}"}], {"replay": (0, 9)})
    with pytest.raises(UsageError, match="is missing; it belongs beside the checkpoint"):
        ReplayFiles(tmp_path / "b").load(manifest, {"replay": (0, 9)})
    data = bytearray(path.read_bytes())
    data[data.index(rows(0, 9)["observation"].numpy().tobytes()) + 5] ^= 1  # one bit of a transition
    path.write_bytes(data)
    with pytest.raises(UsageError, match="is damaged"):
        ReplayFiles(tmp_path / "a").load(manifest, {"replay": (0, 9)})


def test_a_data_module_refers_to_its_files_and_reads_them_back(tmp_path: Path) -> None:
    def module() -> ReplayDataModule:
        return ReplayDataModule("Pendulum-v1", capacity=40, warmup_steps=100, batch_size=4, holdout_fraction=0.5)

    data = module()
    data.write_replay_to(tmp_path / "replay")
    for _ in range(60):
        data.step()
    state = data.state_dict()
    assert "observation" not in state["replay"]
    with pytest.raises(UsageError, match="has no replay to go on with"):
        module().load_state_dict(state)
    state["files"] = data.update_replay_files()
    torch.save({"ReplayDataModule": state}, tmp_path / "last.ckpt")
    other = module()
    other.read_replay_from(tmp_path / "replay")
    other.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True)["ReplayDataModule"])
    for name in ("replay", "holdout"):
        assert len(getattr(other, name)) == len(getattr(data, name))
    assert bool((transitions(other.replay) == transitions(data.replay)).all())
    assert bool((load_replay(tmp_path / "last.ckpt") == transitions(data.replay)).all())
    for _ in range(30):  # the same steps and the same draws
        one, two = data.step(), other.step()
        assert bool((one.new == two.new).all())
        assert one.episode == two.episode
