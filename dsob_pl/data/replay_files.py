"""Replay on disk, written as it grows: each checkpoint adds the transitions since the one before."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor

from dsob_pl.data.replay import FIELDS
from dsob_pl.errors import UsageError
from dsob_pl.files import is_whole, save

# Smaller segments are written again together with what follows them, so that there are few; larger ones never.
LARGEST_BYTES = 64_000_000


class Written(Protocol):
    """A buffer, as its files see it."""

    @property
    def total(self) -> int:
        """Transitions that have ever been written to it."""

    def __len__(self) -> int:
        """Transitions that it holds."""

    def newest(self, n: int) -> TensorDict:
        """The last n that were written, oldest first, as a copy [n]."""


class Segment(NamedTuple):
    """A file of transitions of every buffer.

    Attributes:
        file: its name.
        spans: for each buffer the numbers, from 0, of its transitions: first, and one behind the last.
        size: in bytes.
    """

    file: str
    spans: dict[str, tuple[int, int]]
    size: int


class ReplayFiles:
    """Segments of replay in a folder; a manifest, which belongs into a checkpoint, says which ones it takes.

    A segment is never changed, and has a name that no other ever had. Small ones are merged as they accumulate: of n
    checkpoints there are about log2(n) segments, and a transition is written about log2(n) times, until its segment
    is of ``LARGEST_BYTES``.

    Args:
        folder: made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.segments: list[Segment] = []

    def update(self, buffers: Mapping[str, Written]) -> list[dict[str, Any]]:
        """Writes what is new in ``buffers``, and returns the manifest of all that they hold.

        Raises:
            RunFailed: there is no room.
        """
        held = {name: (buffer.total - len(buffer), buffer.total) for name, buffer in buffers.items()}
        kept = [s for s in self.segments if any(s.spans[n][1] > low for n, (low, _) in held.items() if n in s.spans)]
        ends = {name: max((s.spans[name][1] for s in kept if name in s.spans), default=0) for name in held}
        if any(ends[name] < total for name, (_, total) in held.items()):
            while kept and kept[-1].size < LARGEST_BYTES and _count(kept[-1]) <= _new(held, ends):
                last = kept.pop()
                ends = {name: last.spans[name][0] if name in last.spans else end for name, end in ends.items()}
            kept.append(self._write(buffers, held, ends))
        self.segments = kept
        return self.manifest()

    def manifest(self) -> list[dict[str, Any]]:
        """The segments, as plain types."""
        return [
            {"file": s.file, "spans": {k: list(v) for k, v in s.spans.items()}, "size": s.size} for s in self.segments
        ]

    def load(self, manifest: list[dict[str, Any]], wanted: Mapping[str, tuple[int, int]]) -> dict[str, TensorDict]:
        """Reads back for each buffer the transitions of the numbers ``wanted``, first and one behind the last.

        Later ``update``s go on from these segments.

        Raises:
            UsageError: a segment is missing or damaged, or the segments do not hold what is wanted.
        """
        self.segments = [_segment(entry) for entry in manifest]
        parts: dict[str, list[TensorDict]] = {name: [] for name in wanted}
        reached = {name: low for name, (low, _) in wanted.items()}
        for segment in self.segments:
            content = self._read(segment)
            for name, (low, high) in wanted.items():
                first, end = segment.spans.get(name, (0, 0))
                start, stop = max(first, low), min(end, high)
                if start < stop and start == reached[name]:
                    fields = {key: tensor[start - first : stop - first] for key, tensor in content[name].items()}
                    parts[name].append(from_fields(fields))
                    reached[name] = stop
        for name, (_, high) in wanted.items():
            if reached[name] < high:
                raise UsageError(f"the segments in '{self.folder}' do not hold the replay of the checkpoint")
        return {name: torch.cat(own) if own else TensorDict({}, [0]) for name, own in parts.items()}

    def forget_others(self, *manifests: list[dict[str, Any]]) -> None:
        """Removes the segments that are in none of ``manifests``."""
        named = {entry["file"] for manifest in manifests for entry in manifest}
        for path in self.folder.glob("*.pt") if self.folder.is_dir() else ():
            if path.name not in named:
                path.unlink(missing_ok=True)
        for path in self.folder.glob(".*.part"):
            path.unlink(missing_ok=True)

    def _write(self, buffers: Mapping[str, Written], held: dict[str, tuple[int, int]], ends: dict[str, int]) -> Segment:
        spans, content = {}, {}
        for name, (low, total) in held.items():
            first = max(low, ends[name])
            if first < total:
                data = buffers[name].newest(total - first)
                content[name] = {key: data[place] for key, place in FIELDS.items()}
                spans[name] = (first, total)
        file = f"{max(end for _, end in spans.values()):012d}-{secrets.token_hex(4)}.pt"
        return Segment(file, spans, save(content, self.folder / file))

    def _read(self, segment: Segment) -> dict[str, dict[str, Tensor]]:
        path = self.folder / segment.file
        if not path.is_file():
            raise UsageError(f"the checkpoint's replay file '{path}' is missing; it belongs beside the checkpoint")
        if not is_whole(path):
            raise UsageError(f"the checkpoint's replay file '{path}' is damaged")
        content: dict[str, dict[str, Tensor]] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return content


def are_whole(manifest: list[dict[str, Any]], folder: Path) -> bool:
    """Whether every segment of a manifest is there and undamaged."""
    return all(is_whole(folder / str(entry["file"])) for entry in manifest)


def from_fields(fields: Mapping[str, Tensor]) -> TensorDict:
    """A TensorDict [n] of the tensors [n, ...] of ``FIELDS``."""
    data = TensorDict({}, [len(fields["observation"])])
    for name, key in FIELDS.items():
        data[key] = fields[name]
    return data


def _segment(entry: dict[str, Any]) -> Segment:
    name = str(entry["file"])
    if Path(name).name != name:
        raise UsageError(f"the checkpoint names the replay file '{name}', which is not a file name")
    return Segment(name, {k: (int(v[0]), int(v[1])) for k, v in entry["spans"].items()}, int(entry["size"]))


def _count(segment: Segment) -> int:
    return sum(end - first for first, end in segment.spans.values())


def _new(held: dict[str, tuple[int, int]], ends: dict[str, int]) -> int:
    return sum(total - max(low, ends[name]) for name, (low, total) in held.items())
