"""The file of transitions that a user hands in or takes away: written from a buffer, and checked when it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer

from dsob_pl.data.on_disk import contents_of_checkpoint
from dsob_pl.data.replay import FIELDS, oldest_first, transitions
from dsob_pl.errors import UsageError

_FLAGS = ("terminated", "truncated")
_ROUNDING = 1e-5  # beyond [-1, 1], for actions that were rescaled; they are cut to it


def save_replay(replay: TensorDictReplayBuffer, path: str | Path) -> None:
    """Writes all transitions, oldest first, as a plain file of tensors."""
    data = transitions(replay)
    torch.save({"replay": {"size": len(data), "cursor": 0} | {name: data[key] for name, key in FIELDS.items()}}, path)


def load_replay(path: str | Path) -> TensorDict:
    """The transitions [n], oldest first, of a file of ``save_replay`` or of a checkpoint of a run.

    Numbers become float32 and flags bool, whatever types they were saved in. A terminal next observation may be NaN:
    nothing is bootstrapped from it.

    Raises:
        UsageError: the file is missing, unreadable, or holds no transitions, or its tensors are not what a collection
            would have stored.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"data.replay_path: no file '{path}'")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsageError(f"data.replay_path: '{path}' is not a file of save_replay or a checkpoint") from error
    try:
        return oldest_first(_checked(_replay_state(content, path)))
    except UsageError as error:
        raise UsageError(f"data.replay_path: '{path}': {error}") from error


def _replay_state(content: Any, path: Path) -> dict[str, Any]:
    """The state of the training buffer in a file's content, with its transitions."""
    if isinstance(content, dict) and "ManySeedsData" in content:
        raise UsageError("it holds the transitions of several seeds; expected a checkpoint of a run of one seed")
    content = content.get("ReplayDataModule", content) if isinstance(content, dict) else {}
    state = content.get("replay") if isinstance(content, dict) else None
    state = state if isinstance(state, dict) else {}
    if isinstance(content, dict) and isinstance(content.get("files"), dict) and state.get("size"):
        try:
            state = contents_of_checkpoint(path, state, content["files"])
        except UsageError:
            raise
        except Exception as error:  # a manifest of another program can be anything
            raise UsageError("its list of replay files cannot be read") from error
    if not all(isinstance(state.get(name), Tensor) for name in FIELDS):
        raise UsageError("it holds no transitions; expected a file of save_replay or a checkpoint with a replay")
    return state


def _checked(state: dict[str, Any]) -> dict[str, Any]:
    """The same transitions as a collection stores them; raises UsageError where they cannot be such."""
    found = {name: state[name].detach() for name in FIELDS}
    for name, tensor in found.items():
        odd = tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta or tensor.is_quantized
        if odd or tensor.is_complex() or (tensor.dtype == torch.bool and name not in _FLAGS):
            raise UsageError(f"expected {name} as a plain tensor of real numbers, got {_type(tensor)}")
    n = _check_shapes(found)
    cursor = state.get("cursor", 0)  # a segment of a run's replay files has none: it is in order
    if isinstance(cursor, bool) or not isinstance(cursor, int) or not 0 <= cursor <= n:
        raise UsageError(f"expected an integer cursor from 0 to {n}, got {cursor!r}")

    data = {name: tensor.float() for name, tensor in found.items() if name not in _FLAGS}
    data |= {name: _flags(found[name], name) for name in _FLAGS}
    for name in ("observation", "action", "reward"):
        _refuse(~data[name].isfinite(), data[name], f"finite numbers in {name}")
    after = data["next_observation"]
    unsound = ~after.isfinite() & ~(after.isnan() & data["terminated"])
    _refuse(unsound, after, "finite numbers in next_observation, or NaN where terminated")
    action = data["action"]
    _refuse(action.abs() > 1 + _ROUNDING, action, "action in [-1, 1], scaled from the environment's limits")
    return data | {"action": action.clamp(-1.0, 1.0), "cursor": cursor}


def _check_shapes(found: dict[str, Tensor]) -> int:
    """n, where the tensors belong together."""
    first = found["observation"]
    if first.ndim != 2 or not len(first):
        raise UsageError(f"expected observation [n, size] with n of at least 1, got {list(first.shape)}")
    n, size = first.shape
    for name, tensor in found.items():
        width = {"observation": size, "next_observation": size, "action": "size"}.get(name, 1)
        if tensor.ndim != 2 or len(tensor) != n or width not in ("size", tensor.shape[1]):
            raise UsageError(f"expected {name} [{n}, {width}], got {list(tensor.shape)}")
    return n


def _flags(tensor: Tensor, name: str) -> Tensor:
    if tensor.dtype != torch.bool:
        number = tensor.float()
        _refuse((number != 0) & (number != 1), number, f"true and false, or 1 and 0, in {name}")
    return tensor.bool()


def _refuse(unsound: Tensor, data: Tensor, expected: str) -> None:
    """Raises UsageError for the first entry [n, size] that is marked."""
    if unsound.any():
        row, column = unsound.nonzero()[0].tolist()
        raise UsageError(f"expected {expected}, got {data[row, column].item():g} in row {row}")


def _type(tensor: Tensor) -> str:
    kind = "nested" if tensor.is_nested else "meta" if tensor.is_meta else str(tensor.layout)
    return f"{kind} {tensor.dtype}".replace("torch.", "").removeprefix("strided ")
