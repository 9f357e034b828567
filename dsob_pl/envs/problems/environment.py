"""A problem as a gymnasium environment: the same equations, one row at a time."""

from __future__ import annotations

import inspect
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box

from dsob_pl.envs.problems.arguments import tensor
from dsob_pl.envs.problems.base import Problem
from dsob_pl.envs.problems.cliff import Cliff
from dsob_pl.envs.problems.jack import Jack
from dsob_pl.envs.problems.linear_quadratic import LinearQuadratic
from dsob_pl.envs.problems.multiplicative import MultiplicativeLinearQuadratic
from dsob_pl.envs.problems.point_mass import PointMass
from dsob_pl.envs.problems.reward_chain import RewardChain
from dsob_pl.envs.problems.rotation import Rotation
from dsob_pl.envs.problems.summit import Summit
from dsob_pl.errors import UsageError, nearest

_CLASSES = (Cliff, Jack, LinearQuadratic, MultiplicativeLinearQuadratic, PointMass, RewardChain, Rotation, Summit)
_PROBLEMS: dict[str, type[Problem]] = {c.__name__: c for c in _CLASSES}
_STEPS = {
    "Cliff": 30,
    "Jack": 10,
    "LinearQuadratic": 20,
    "MultiplicativeLinearQuadratic": 20,
    "PointMass": 30,
    "RewardChain": 20,
    "Rotation": 20,
    "Summit": 30,
}


class ProblemEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """A problem as an environment with observations ``Box [S]`` and actions ``[-1, 1]^A``, float32.

    The noise of a step comes from the environment's generator and stands in ``info["noise"] [noise_size]``, so that
    the problem can repeat the step. Actions go into the equations as they are: they are not clipped here.

    Args:
        problem: taken over, and kept in float32 on the CPU.

    Attributes:
        problem: the same.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (gymnasium declares it so)

    def __init__(self, problem: Problem) -> None:
        self.problem = problem.float()
        self.observation_space = Box(-np.inf, np.inf, (problem.observation_size,), np.float32)
        self.action_space = Box(-1.0, 1.0, (problem.action_size,), np.float32)
        self._state: torch.Tensor | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A new episode, from the problem's first states or from ``options["state"] [S]``.

        Raises:
            UsageError: another option, or a state of the wrong size or not finite.
        """
        super().reset(seed=seed)
        options = options or {}
        for name in options:
            if name != "state":
                raise UsageError(f"reset: unknown option '{name}'{nearest(name, ['state'])}")
        if options.get("state") is not None:
            self._state = tensor("reset: state", options["state"], (self.problem.observation_size,))[None].float()
        else:
            with torch.no_grad():
                self._state = self.problem.initial_state(self._normal(self.problem.observation_size))
        return self._state[0].numpy().copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step of the problem; truncation is left to a time limit around it."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("step was called before reset")
        a = torch.from_numpy(np.array(action, np.float32).reshape(1, self.problem.action_size))
        eps = self._normal(self.problem.noise_size)
        with torch.no_grad():
            self._state, r, terminated = self.problem(self._state, a, eps)
        # A copy, since the observation is the caller's to change.
        return self._state[0].numpy().copy(), r.item(), bool(terminated.item()), False, {"noise": eps[0].numpy()}

    def render(self) -> None:
        """There are no frames."""

    def _normal(self, size: int) -> torch.Tensor:
        """Standard normal numbers ``[1, size]``."""
        return torch.from_numpy(self.np_random.standard_normal((1, size), dtype=np.float32))


def make_problem_env(problem: str, render_mode: str | None = None, **arguments: Any) -> ProblemEnv:
    """The environment of a registered id.

    Args:
        problem: name of the problem's class.
        render_mode: accepted, since ``gymnasium.make`` passes it on; nothing is rendered.
        arguments: of the problem.

    Raises:
        UsageError: an argument that the problem does not have, or does not accept.
    """
    accepted = inspect.signature(_PROBLEMS[problem]).parameters
    for name in arguments:
        if name not in accepted:
            raise UsageError(f"'{name}' is not an argument of {problem}{nearest(name, accepted)}")
    return ProblemEnv(_PROBLEMS[problem](**arguments))


def register_problems() -> None:
    """Makes ``dsob_pl/<problem>-v0`` known to gymnasium."""
    for name, steps in _STEPS.items():
        gymnasium.register(
            f"dsob_pl/{name}-v0",
            entry_point=f"{__name__}:make_problem_env",
            max_episode_steps=steps,
            kwargs={"problem": name},
        )
