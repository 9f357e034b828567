"""What data modules share that keep their replay in files beside the checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsob_pl.data.replay import FIELDS, with_contents
from dsob_pl.data.replay_files import ReplayFiles, Written, are_whole
from dsob_pl.errors import UsageError

FILES_KEY = "files"  # of a data module's state: the manifest of its replay
REPLAY_FOLDER = "replay"  # beside the checkpoints


class ReplayOnDisk:
    """Replay that a checkpoint only refers to, once ``write_replay_to`` has been called; before, states contain it."""

    _files: ReplayFiles | None = None
    _source: ReplayFiles | None = None

    def buffers(self) -> dict[str, Written]:
        """Every buffer, by a name that is the same in every process."""
        raise NotImplementedError

    @property
    def contained(self) -> bool:
        """Whether ``state_dict`` contains the transitions."""
        return self._files is None

    def write_replay_to(self, folder: Path) -> None:
        """From now on the replay goes to files in ``folder``; goes on with those that it was read from."""
        same = self._source is not None and self._source.folder.resolve() == folder.resolve()
        self._files = self._source if same else ReplayFiles(folder)

    def read_replay_from(self, folder: Path) -> None:
        """Where ``load_state_dict`` finds the files that a state refers to."""
        self._source = ReplayFiles(folder)

    def update_replay_files(self) -> dict[str, Any]:
        """Writes what is new; what belongs under ``FILES_KEY`` into the state: the folder and a list of the files.

        Raises:
            RunFailed: there is no room.
        """
        assert self._files is not None
        return {"segments": self._files.update(self.buffers()), "folder": str(self._files.folder.absolute())}

    def forget_replay_files(self, *kept: dict[str, Any]) -> None:
        """Removes the files that are in none of the results of ``update_replay_files`` that are ``kept``."""
        assert self._files is not None
        self._files.forget_others(*(files["segments"] for files in kept))

    def states_with_contents(
        self, states: Mapping[str, dict[str, Any]], files: dict[str, Any] | None
    ) -> dict[str, dict[str, Any]]:
        """States of buffers, by name, with the transitions in the files that were under ``FILES_KEY``.

        Raises:
            UsageError: files are missing or damaged, or a state has transitions that are nowhere.
        """
        if files is None:
            if any(state["size"] and not set(FIELDS) <= set(state) for state in states.values()):
                raise UsageError("the checkpoint has no replay to go on with; use last.ckpt")
            return dict(states)
        if self._source is None or not self._source.folder.is_dir():  # a checkpoint that was saved elsewhere
            self._source = ReplayFiles(Path(files["folder"]))
        wanted = {name: (state["total"] - state["size"], state["total"]) for name, state in states.items()}
        contents = self._source.load(files["segments"], wanted)
        return {name: with_contents(state, contents[name]) for name, state in states.items()}


def files_are_whole(data_state: dict[str, Any], checkpoint: Path) -> bool:
    """Whether the replay files that a data module's state in ``checkpoint`` refers to are there and undamaged."""
    files = data_state.get(FILES_KEY)
    if files is None:
        return True
    beside = checkpoint.parent / REPLAY_FOLDER
    return are_whole(files["segments"], beside if beside.is_dir() else Path(files["folder"]))


def contents_of_checkpoint(path: Path, state: dict[str, Any], files: dict[str, Any]) -> dict[str, Any]:
    """The state of the buffer ``replay`` of the checkpoint ``path``, with its transitions.

    Raises:
        UsageError: files are missing or damaged.
    """
    reader = ReplayOnDisk()
    reader.read_replay_from(path.parent / REPLAY_FOLDER)
    return reader.states_with_contents({"replay": state}, files)["replay"]
