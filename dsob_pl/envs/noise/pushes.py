"""Pushes: now and then a MuJoCo robot is shoved, by a force on its body during one step."""

from __future__ import annotations

import math
import numbers
import sys
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from dsob_pl.envs.noise.base import Noise
from dsob_pl.envs.rollout import env_name


class RandomPushes(Noise):
    """With a probability at each step a horizontal force acts on the robot's root body, for that step and no longer.

    The force would give the robot's whole mass the speed ``scale`` within the step; what the joints, the ground and the
    agent make of it is the simulator's business. Its direction is uniform around the vertical for a robot that floats
    freely (Ant, Humanoid), and forwards or backwards with equal probability for one that is held in a plane or on a
    rail (Walker2d, Hopper, HalfCheetah, InvertedPendulum). Observation, reward, termination and contact forces are the
    simulator's own, under the push. Three random numbers are drawn at every step, pushed or not, so that scale and
    probability leave the times and directions of the others as they are. ``info["push"]`` is the force [N] of a
    step ``[2]``, along x and y.

    Args:
        env: a MuJoCo environment of gymnasium.
        scale: speed [m/s] that a push would give the robot's mass if nothing held it.
        probability: of a push at a step, in [0, 1].

    Raises:
        UsageError: another environment, scale or probability.
    """

    tag = 1005

    def __init__(self, env: gymnasium.Env, scale: float = 0.2, probability: float = 0.02) -> None:
        # First, since the base would record the scale alone.
        RecordConstructorArgs.__init__(self, scale=scale, probability=probability)
        super().__init__(env, scale)
        is_number = isinstance(probability, numbers.Real) and not isinstance(probability, bool)
        if not is_number or not 0.0 <= float(probability) <= 1.0:
            self.refuse(f"probability: expected a number in [0, 1], got {probability!r}")
        self.probability = float(probability)
        mujoco_env = sys.modules.get("gymnasium.envs.mujoco.mujoco_env")  # imported by every such environment
        inner: Any = env.unwrapped
        if mujoco_env is None or not isinstance(inner, mujoco_env.MujocoEnv):
            self.refuse(f"'{env_name(env)}' is not a MuJoCo environment of gymnasium, such as Walker2d-v5")
        import mujoco

        # Body 0 is the world; the robot's root is the first below it, and scenery has no joints.
        bodies = np.flatnonzero((inner.model.body_parentid == 0) & (inner.model.body_dofnum > 0))
        if not len(bodies):
            self.refuse(f"'{env_name(env)}' has no body that could move")
        self._body = int(bodies[0])
        first = inner.model.body_jntadr[self._body]
        self._free = bool(inner.model.jnt_type[first] == mujoco.mjtJoint.mjJNT_FREE)
        self._force = self.scale * float(inner.model.body_subtreemass[self._body]) / float(inner.dt)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """A step, with or without a push."""
        chance, angle, side = self.generator.random(3)
        force = np.zeros(2)
        if chance < self.probability:
            turn = 2.0 * math.pi * angle
            force[:] = (math.cos(turn), math.sin(turn)) if self._free else (math.copysign(1.0, side - 0.5), 0.0)
            force *= self._force
        applied = self.env.unwrapped.data.xfrc_applied[self._body]  # type: ignore[attr-defined]
        before = applied[:2].copy()
        applied[:2] += force
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
        finally:
            applied[:2] = before
        return observation, reward, terminated, truncated, {**info, "push": force}
