"""The journal of a run: what MLflow did not take, kept in a file of the run's artifact folder until it does."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dsob_pl.errors import UsageError
from dsob_pl.files import sync_folder

JOURNAL = "journal.jsonl"
UPLOADS = "uploads"  # folder of those whose runs have their artifacts elsewhere
FORMAT = 1
# One of
#   {"metric": key, "value": .., "timestamp": ms, "step": ..}, {"param": key, "value": ..}, {"tag": key, "value": ..}
#   {"artifacts": true}: the folder is to be uploaded
#   {"status": .., "end_time": ms}: the run has ended
#   {"resumed": ms}: it went on after that
Row = dict[str, Any]
_KINDS = {"metric", "param", "tag", "artifacts", "status", "resumed"}


class Header(NamedTuple):
    """The first line of a journal.

    Attributes:
        tracking_uri: of the store that the rows are meant for.
        run_id: of the run that they belong to.
        parent_run_id: of the run that this one lies under, else empty.
    """

    tracking_uri: str
    run_id: str
    parent_run_id: str


class Journal:
    """Rows that MLflow has not taken yet, one JSON object a line, on the disk when ``append`` returns.

    It is locked by the process that writes it, from the first row on until it is removed.

    Args:
        path: of the file, made with the first row.
        header: its first line.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.header = header
        self.metrics = 0  # that are kept
        self._lock: Any = None

    @property
    def exists(self) -> bool:
        """Whether something is kept."""
        return self.path.is_file()

    def open(self) -> None:
        """Locks the file and, where it is there, cuts off a last line that was not finished.

        Raises:
            UsageError: another process holds it, or it is no journal.
        """
        if self._lock is not None:
            return
        from filelock import FileLock, Timeout

        lock = FileLock(_lock_path(self.path))
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UsageError(f"journal '{self.path}' is in use: its run goes on, or another replay does") from error
        self._lock = lock
        if not self.exists:
            return
        try:
            whole = self._header_size()
            for row, end in _scan(self.path):
                self.metrics += "metric" in row
                whole = end
        except UsageError:
            self.close()
            raise
        os.truncate(self.path, whole)

    def _header_size(self) -> int:
        read_header(self.path)
        with self.path.open("rb") as file:
            return len(file.readline())

    def append(self, rows: Sequence[Row]) -> None:
        """Adds ``rows`` and waits until they are on the disk; where that fails the file is as before.

        Raises:
            OSError: they cannot be written.
        """
        if not rows:
            return
        self.open()
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        if self.exists:
            self._extend(text)
        else:
            self._create(f"{json.dumps({'journal': FORMAT, **self.header._asdict()})}\n{text}")
        self.metrics += sum("metric" in row for row in rows)

    def _create(self, text: str) -> None:
        # Under another name first: the first line of a journal is never torn.
        unfinished = self.path.with_suffix(".unfinished")
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.path)
        sync_folder(self.path.parent)

    def _extend(self, text: str) -> None:
        size = self.path.stat().st_size
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            os.truncate(self.path, size)
            raise

    def remove(self) -> None:
        """Removes the file, when all its rows are in MLflow, and lets go of the lock."""
        self.path.unlink(missing_ok=True)
        self.metrics = 0
        self.close()

    def close(self) -> None:
        """Lets go of the lock."""
        if self._lock is not None:
            _lock_path(self.path).unlink(missing_ok=True)
            self._lock.release()
            self._lock = None


def read_header(path: Path) -> Header:
    """The first line.

    Raises:
        UsageError: the file is not a journal, or one of a newer version.
    """
    with path.open("rb") as file:
        first = _parsed(file.readline())
    if first is None or "journal" not in first:
        raise UsageError(f"'{path}' is not a journal of dsob_pl")
    if first["journal"] != FORMAT:
        raise UsageError(f"journal '{path}' has format {first['journal']}; this version of dsob_pl reads {FORMAT}")
    values = [value for name in Header._fields if isinstance(value := first.get(name), str)]
    if len(values) < len(Header._fields):
        raise UsageError(f"journal '{path}' does not name its tracking uri and its run in its first line")
    return Header(*values)


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a journal, one after the other; a last line that a crash has torn is left out.

    Raises:
        UsageError: the file is not a journal, or a line of it is damaged.
    """
    read_header(path)
    for row, _ in _scan(path):
        yield row


def _scan(path: Path) -> Iterator[tuple[Row, int]]:
    """Each row behind the first line, and where in the file it ends."""
    damaged = 0
    with path.open("rb") as file:
        end = len(file.readline())
        for number, line in enumerate(file, start=2):
            if damaged:  # it was not the last
                raise UsageError(f"journal '{path}', line {damaged}: damaged")
            row = _parsed(line) if line.endswith(b"\n") else None
            end += len(line)
            if row is None or not _KINDS & set(row):
                damaged = number
            else:
                yield row, end


def journals_under(folder: Path) -> list[Path]:
    """The journals of a run and of the runs under it.

    Args:
        folder: the run's artifact folder, or the one above it, which is named after the run.

    Raises:
        UsageError: there is no such folder, it is not a run's, or a journal in it is none.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder '{folder}'")
    place = (folder / "artifacts" if (folder / "artifacts").is_dir() else folder).absolute()
    own = place / JOURNAL
    if place.name != "artifacts" and not own.is_file() and place.parent.name != UPLOADS:
        below = [*folder.glob(f"*/artifacts/{JOURNAL}"), *folder.glob(f"*/*/artifacts/{JOURNAL}")]
        there = f"; '{below[0].parent.parent}' has a journal" if below else ""
        raise UsageError(f"'{folder}' is not the folder of a run, such as mlruns/EXPERIMENT/RUN_ID{there}")
    # mlruns/EXPERIMENT/RUN_ID/artifacts, and uploads/RUN_ID where MLflow keeps the artifacts elsewhere
    within = place.name == "artifacts"
    run_id = read_header(own).run_id if own.is_file() else (place.parent if within else place).name
    beside = place.parent.parent.glob(f"*/artifacts/{JOURNAL}") if within else place.parent.glob(f"*/{JOURNAL}")
    under = [path for path in sorted(beside) if path != own and _parent(path) == run_id]
    return [path for path in (own, *under) if path.is_file()]


def _parent(path: Path) -> str | None:
    try:
        return read_header(path).parent_run_id
    except UsageError:  # somebody else's; that of the run itself is read by whoever wants it
        return None


def _parsed(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _lock_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """``rows`` in lists of at most ``size``, each of one kind."""
    batch: list[Row] = []
    for row in rows:
        if batch and (len(batch) == size or next(iter(row)) != next(iter(batch[0]))):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
