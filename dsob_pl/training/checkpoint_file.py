"""Reading checkpoint files: only tensors and plain types are ever loaded from one."""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsob_pl.errors import UsageError, nearest

FORMAT_VERSION = 2
FORMAT_KEY, CONFIG_KEY, SIZES_KEY = "dsob_format", "dsob_config", "dsob_sizes"
RANDOM_KEY, RUN_KEY = "dsob_random", "dsob_run"  # only in a checkpoint that a run can be gone on from
OWNER_KEY = "dsob_owner"  # the MLflow run that wrote it
SEEDS_KEY = "dsob_seeds"  # only in a checkpoint of many seeds at once: those that were running


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a Lightning checkpoint on the CPU; large tensors are mapped from the file, not read.

    Raises:
        UsageError: the file is missing, is not a checkpoint, or holds objects other than tensors and plain types.
    """
    path = Path(path)
    if not path.is_file():
        folder = path.parent
        names = [p.name for p in folder.iterdir() if p.is_file()] if folder.is_dir() else []
        reason = "is a folder, not a checkpoint" if path.is_dir() else f"does not exist{nearest(path.name, names)}"
        raise UsageError(f"checkpoint '{path}' {reason}")
    try:
        # weights_only: unpickling anything else would run whatever code the file contains.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() or "Unsupported" in str(error):
            raise UsageError(
                f"checkpoint '{path}' holds objects other than tensors and plain types, which are not loaded because "
                "unpickling them can run code"
            ) from error
        raise UsageError(f"checkpoint '{path}' is not a readable checkpoint") from error
    except Exception as error:  # a damaged pickle raises anything
        raise UsageError(f"checkpoint '{path}' is damaged or not a checkpoint") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UsageError(f"checkpoint '{path}' has no 'state_dict'; it was not written by Lightning")
    if not isinstance(content.get(FORMAT_KEY, FORMAT_VERSION), int):
        raise UsageError(f"checkpoint '{path}' is damaged or not a checkpoint")
    return content


def check_readable(state: Any, name: str) -> None:
    """Raises UsageError where a callback's state would make the checkpoint a file that is never read again."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    try:
        torch.load(buffer, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        held = f" ({found[1]})" if found else ""
        raise UsageError(
            f"trainer.callbacks: the state_dict of '{name}' holds objects other than tensors and plain types{held}, "
            "and no checkpoint with it could be read again; return e.g. float(x) or torch.as_tensor(x)"
        ) from error


def checkpoint_config(content: dict[str, Any], path: str | Path) -> str:
    """The resolved config, as YAML, of the run that wrote a checkpoint.

    Raises:
        UsageError: another program or a newer version wrote it.
    """
    if content.get(FORMAT_KEY, FORMAT_VERSION) > FORMAT_VERSION:
        raise UsageError(
            f"checkpoint '{path}' has format {content[FORMAT_KEY]}, this version of dsob_pl reads {FORMAT_VERSION}"
        )
    if CONFIG_KEY not in content:
        raise UsageError(f"checkpoint '{path}' carries no config; it was not written by dsob_pl")
    return str(content[CONFIG_KEY])


def check_fits(content: dict[str, Any], model: nn.Module, path: str | Path) -> None:
    """Raises UsageError where the checkpoint's tensors and the model's differ; names the first that does."""
    saved, own = content["state_dict"], model.state_dict()
    for name, tensor in own.items():
        if name not in saved:
            raise UsageError(f"checkpoint '{path}' has no tensor '{name}' that the configured model has")
        if saved[name].shape != tensor.shape:
            raise UsageError(
                f"checkpoint '{path}': tensor '{name}' has shape {list(saved[name].shape)}, "
                f"the configured model has {list(tensor.shape)}"
            )
    for name in saved:
        if name not in own:
            raise UsageError(f"checkpoint '{path}' has a tensor '{name}' that the configured model lacks")
