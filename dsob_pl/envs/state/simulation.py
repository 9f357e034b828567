"""The state of a MuJoCo simulation, by MuJoCo itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from dsob_pl.envs.state.kinds import CannotSave


def simulation_state(model: Any, data: Any) -> dict[str, Any]:
    """The state that decides the next step, and what was derived from the one before.

    Some rewards are differences of derived positions, which lag one step of integration behind the state: computing
    them anew would move them.
    """
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, state, kind)
    fresh = mujoco.MjData(model)  # contacts and constraints, which every step finds anew, have no fixed size
    derived = {
        name: torch.from_numpy(array.copy())
        for name, array in arrays_of(data)
        if array.shape == getattr(fresh, name).shape
    }
    return {"state": torch.from_numpy(state), "derived": derived}


def arrays_of(data: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Name and array of what a simulation, or its model, holds; views of its memory."""
    for name in dir(data):
        array = None if name.startswith("_") else getattr(data, name, None)
        if isinstance(array, np.ndarray) and array.size:
            yield name, array


def restore_simulation(model: Any, data: Any, saved: dict[str, Any]) -> None:
    """Puts a simulation where the saved one was.

    Raises:
        CannotSave: it is one of another size, or of another version of MuJoCo.
    """
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = saved["state"].numpy()
    if len(state) != mujoco.mj_stateSize(model, kind):
        raise CannotSave("the simulation has another size, or MuJoCo another version")
    mujoco.mj_setState(model, data, state, kind)
    for name, tensor in saved["derived"].items():
        array = getattr(data, name, None)
        if isinstance(array, np.ndarray) and array.shape == tuple(tensor.shape) and array.flags.writeable:
            array[...] = tensor.numpy()
