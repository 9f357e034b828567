"""Reading and writing the state of a simulator, for those simulators where that is possible."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from typing import Any

import gymnasium
import numpy as np
import torch

from dsob_pl.envs.problems import ProblemEnv


class SimulatorState(ABC):
    """The state ``[D]`` float64 of an unwrapped environment."""

    @abstractmethod
    def read(self) -> np.ndarray:
        """A copy of the state."""

    @abstractmethod
    def write(self, state: np.ndarray) -> Any:
        """Moves the simulator to a state, or the nearest that it can have, and returns what it is observed as."""


class MujocoState(SimulatorState):
    """Positions and velocities of a MuJoCo simulation, ``D = nq + nv``."""

    def __init__(self, env: Any) -> None:
        import mujoco  # half a second, and not every run needs it

        self._env = env
        self._finish = mujoco.mj_rnePostConstraint
        model = env.model
        first = {mujoco.mjtJoint.mjJNT_FREE: 3, mujoco.mjtJoint.mjJNT_BALL: 0}
        self._quaternions = [
            slice(start + first[kind], start + first[kind] + 4)
            for kind, start in zip(model.jnt_type.tolist(), model.jnt_qposadr.tolist())
            if kind in first
        ]

    def read(self) -> np.ndarray:
        """As in ``SimulatorState``."""
        return np.concatenate([self._env.data.qpos, self._env.data.qvel])

    def write(self, state: np.ndarray) -> Any:
        """As in ``SimulatorState``; quaternions are normalised, everything derived is computed anew."""
        positions, velocities = state[: self._env.model.nq].copy(), state[self._env.model.nq :]
        for place in self._quaternions:
            positions[place] /= np.linalg.norm(positions[place])
        self._env.set_state(positions, velocities)
        # set_state leaves contact forces on bodies, which some observations hold, as they were.
        self._finish(self._env.model, self._env.data)
        return self._env._get_obs()


class PendulumState(SimulatorState):
    """Angle and angular velocity of Pendulum-v1; the velocity keeps the limit of its own step.

    The angle is read in [0, 2 pi), hanging in the middle: its spread must not count the turns that it has made.
    """

    def __init__(self, env: Any) -> None:
        self._env = env

    def read(self) -> np.ndarray:
        """As in ``SimulatorState``."""
        angle, velocity = self._env.state
        return np.array([angle % (2.0 * np.pi), velocity])

    def write(self, state: np.ndarray) -> Any:
        """As in ``SimulatorState``."""
        limit = self._env.max_speed
        self._env.state = np.array([state[0], np.clip(state[1], -limit, limit)])
        return self._env._get_obs()


class ProblemState(SimulatorState):
    """State of a problem with known dynamics, which is also its observation."""

    def __init__(self, env: ProblemEnv) -> None:
        self._env = env

    def read(self) -> np.ndarray:
        """As in ``SimulatorState``."""
        assert self._env._state is not None
        return self._env._state[0].double().numpy()

    def write(self, state: np.ndarray) -> Any:
        """As in ``SimulatorState``."""
        self._env._state = torch.from_numpy(state.astype(np.float32))[None]
        return state.astype(np.float32)


def simulator_state(env: gymnasium.Env) -> SimulatorState | None:
    """The state of the simulator behind ``env``; None where it cannot be set."""
    inner = env.unwrapped
    if isinstance(inner, ProblemEnv):
        return ProblemState(inner)
    if _is_a(inner, "gymnasium.envs.classic_control.pendulum", "PendulumEnv"):
        return PendulumState(inner)
    if _is_a(inner, "gymnasium.envs.mujoco.mujoco_env", "MujocoEnv") and hasattr(inner, "_get_obs"):
        return MujocoState(inner)
    return None


def _is_a(env: gymnasium.Env, module: str, name: str) -> bool:
    """Whether it is an instance of a class, without importing what no environment has needed so far."""
    return module in sys.modules and isinstance(env, getattr(sys.modules[module], name))
