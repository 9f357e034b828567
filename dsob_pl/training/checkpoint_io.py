"""How Lightning writes and reads checkpoints here: whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO

from dsob_pl.files import save
from dsob_pl.training.checkpoint_file import RANDOM_KEY


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes files in one piece, and keeps the last.ckpt before the one it writes as previous.ckpt.

    Args:
        loading: told the path of a checkpoint that is about to be loaded.
    """

    def __init__(self, loading: Callable[[Path], None] = lambda path: None) -> None:
        super().__init__()
        self._loading = loading
        self._good: Path | None = None  # the one before the last, where the last was not whole

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes; remote files as Lightning does.

        Raises:
            RunFailed: there is no room.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        spare = path.with_name(f"previous{path.suffix}")
        keep = path.stem == "last" and RANDOM_KEY in checkpoint and spare.resolve() != self._good
        save(checkpoint, path, keep_as=spare if keep else None)
        if path.stem == "last":
            self._good = None

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Reads, as Lightning does."""
        self._loading(Path(path))
        # A run that goes on from the one before has found the last one damaged, which is not to take its place.
        self._good = Path(path).resolve() if Path(path).stem == "previous" else None
        return super().load_checkpoint(path, *arguments, **options)
