"""The state of every global generator of random numbers, as plain tensors and numbers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """State of the generators of Python, numpy, torch and CUDA; ``torch.load(weights_only=True)`` reads it."""
    # The one that libraries draw from which do not take a generator.
    numpy: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    name, key, position, has_gauss, gauss = numpy
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(key.astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Puts the generators where they were when ``random_state`` was called."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, key, position, has_gauss, normal = state["numpy"]
    np.random.set_state((name, key.numpy().astype(np.uint32), position, has_gauss, normal))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
