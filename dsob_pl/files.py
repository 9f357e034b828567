"""Files that are there whole or not at all, and that show when they have been damaged."""

from __future__ import annotations

import errno
import io
import os
import pickle
import shutil
import weakref
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsob_pl.errors import OutOfRoom, UsageError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def save(content: Any, path: Path, keep_as: Path | None = None) -> int:
    """Writes ``content`` by ``torch.save`` in one piece: a process that dies on the way leaves the file as it was.

    Args:
        content: tensors and plain types.
        path: of the file; its folder is made.
        keep_as: where the file that was there so far is to be found afterwards.

    Returns:
        Bytes written.

    Raises:
        OutOfRoom: says how much was needed. The file is as it was.
    """
    import torch  # not at the top: a journal is replayed without it

    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    size = buffer.getbuffer().nbytes
    try:
        with open(part, "wb") as file:
            write(file, buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno not in NO_ROOM:
            raise
        free = shutil.disk_usage(path.parent).free
        raise OutOfRoom(
            f"'{path.name}' needs {size / 1e6:,.1f} MB, and there is no room for it: {free / 1e6:,.1f} MB are free in "
            f"'{path.parent}'"
        ) from error
    if keep_as is not None and path.exists():
        link(path, keep_as)
    os.replace(part, path)
    sync_folder(path.parent)
    return size


def link(path: Path, name: Path) -> None:
    """Gives a file a second name, in place of what has it so far."""
    spare = name.with_name(f".{name.name}.part")
    spare.unlink(missing_ok=True)
    try:
        os.link(path, spare)
    except OSError:  # a file system without links
        shutil.copy2(path, spare)
    os.replace(spare, name)


def write(file: Any, data: memoryview) -> None:
    """Writes ``data``; in pieces, so that a signal is not kept waiting for gigabytes."""
    piece = 1 << 24
    for start in range(0, len(data), piece):
        file.write(data[start : start + piece])


_FOLDER = 0x10  # in the attributes of an entry of an archive


def is_whole(path: Path) -> bool:
    """Whether a file of ``torch.save`` is complete and every checksum (CRC-32) in it is right.

    Raises:
        UsageError: it may not be read, which does not make it damaged.
    """
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return False
            # torch takes what is marked as a folder for one, and reads nothing where its numbers should go.
            if any(entry.external_attr & _FOLDER for entry in archive.infolist()):
                return False
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # torch reads headers that zipfile does not
    except PermissionError as error:
        raise UsageError(f"'{path}' cannot be read: permission denied") from error
    except pickle.UnpicklingError:  # whole, whatever is in it
        return True
    # zlib.error: one bit of a header turns what is stored as it is into something to be decompressed.
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, ValueError, EOFError):
        return False
    return True


class Hold:
    """Of a folder, until it is released, dropped, or the process ends, whatever ends it. A fork does not hold it."""

    def __init__(self, handle: int | None = None) -> None:
        self.release: Callable[[], Any] = (lambda: None) if handle is None else weakref.finalize(self, os.close, handle)
        _HOLDS.add(self)


_HOLDS: weakref.WeakSet[Hold] = weakref.WeakSet()


def _let_go_in_fork() -> None:
    for hold in list(_HOLDS):
        hold.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_fork)


def hold_folder(folder: Path) -> Hold | None:
    """Holds a folder; None where somebody else does.

    A file system that cannot say so is taken for one where nobody does. Nothing is written.
    """
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return Hold()
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:
        pass
    return Hold(handle)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder last; not every file system lets a folder be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
