"""What a run keeps for the person who looks into why its numbers went wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import nn


def run_folder(trainer: Any) -> Path:
    """Folder of the run's artifacts, which is that of its first logger, else the Trainer's."""
    folders = (getattr(x, name, None) for x in trainer.loggers[:1] for name in ("artifact_dir", "log_dir", "save_dir"))
    return Path(next((f for f in folders if isinstance(f, str | Path)), trainer.default_root_dir)).absolute()


def save_diagnostics(
    trainer: Any,
    step: int,
    reason: str,
    batch: TensorDictBase | None,
    metrics: Mapping[str, Sequence[float]],
    module: nn.Module,
    gradients: Sequence[str] = (),
) -> str:
    """Writes ``diagnostics/step_<step>.pt`` into the run's folder, for ``torch.load(path, weights_only=True)``.

    The file holds ``environment_step``, ``reason``, ``metrics`` (by name, one number for each update of the step),
    ``parameters`` and ``gradients`` (names of those that are not finite) and ``batch`` (nested by key, as in replay).

    Args:
        trainer: whose run it is; a fast development run leaves nothing.
        step: environment step.
        reason: in one line.
        batch: transitions of the step's updates ``[U, B]``.
        metrics: of the step.
        module: in whose parameters to look.
        gradients: names of parameters with a gradient that is not finite.

    Returns:
        what to add to an error message: where the file is, or why there is none. It never raises: the reason why the
        run ends must not give way to a full disk.
    """
    if trainer.fast_dev_run:
        return ""
    content = {
        "environment_step": int(step),
        "reason": reason,
        "metrics": {name: [float(x) for x in values] for name, values in metrics.items()},
        "parameters": [name for name, p in module.named_parameters() if not bool(p.isfinite().all())],
        "gradients": list(gradients),
        "batch": {} if batch is None else _plain(batch),
    }
    try:
        path = run_folder(trainer) / "diagnostics" / f"step_{step}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        torch.save(content, partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        return f"; no diagnostic batch could be saved ({' '.join(str(error).split())[:120]})"
    return f"; diagnostic batch: {_relative(path)}"


def _plain(batch: TensorDictBase) -> dict[str, Any]:
    """Nested dictionaries of tensors on the CPU, each with memory of its own."""
    items = {str(key): value for key, value in batch.items()}
    return {k: _plain(v) if isinstance(v, TensorDictBase) else v.detach().cpu().clone() for k, v in items.items()}


def _relative(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
