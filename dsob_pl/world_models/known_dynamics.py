"""The problem's own equations as a world model."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsob_pl.envs import Problem, env_name
from dsob_pl.errors import UsageError
from dsob_pl.world_models.base import Prediction, Transition, WorldModel

if TYPE_CHECKING:
    from gymnasium import Env


class KnownDynamics(WorldModel):
    """The right model: steps the problem that the environment is made of, in the networks' units. Nothing is learned.

    Right within ten standard deviations of the observations seen: an agent clips what lies farther off, and from a
    clipped state there is no way back to the one that it was.

    Args:
        observation_size: S.
        action_size: A.
        problem: the problem, of which a copy is taken; by default that of the environment to which the model is
            attached. Another problem than the environment's makes a model with a known error.

    Raises:
        UsageError: the problem's sizes are not S and A; on use, no problem is known yet.
    """

    problem: Problem | None

    def __init__(self, observation_size: int, action_size: int, problem: Problem | None = None) -> None:
        super().__init__(observation_size, action_size)
        self.noise_size = 0
        self.register_module("problem", None)
        self._given = problem is not None
        if problem is not None:
            self._take(problem)

    def attach(self, env: Env) -> None:
        """Takes a copy of the environment's problem, unless one was given.

        Raises:
            UsageError: the environment has none, or one of other sizes.
        """
        if self._given:
            return
        problem = getattr(env.unwrapped, "problem", None)
        if not isinstance(problem, Problem):
            raise UsageError(
                "world_model: KnownDynamics needs an environment with known dynamics (dsob_pl/PointMass-v0, "
                f"dsob_pl/LinearQuadratic-v0, ...); '{env_name(env)}' has none"
            )
        self._take(problem)

    @property
    def learns(self) -> bool:
        """There is nothing to train."""
        return False

    @property
    def infers_noise(self) -> bool:
        """Whether a step of the problem determines its noise; True while no problem is known."""
        return self.problem is None or type(self.problem).infer_noise is not Problem.infer_noise

    def forward(self, s: Tensor, a: Tensor, eps: Tensor) -> Prediction:
        """``s [..., S], a [..., A], eps [..., noise_size] -> Prediction``."""
        outcome = self._known()(self.normalizer.inverse(s), a, eps)
        return Prediction(self.normalizer(outcome.s_next), self.reward_scale(outcome.r), 1 - outcome.terminated)

    @torch.no_grad()
    def infer_noise(self, transition: Transition, eps: Tensor) -> Tensor:
        """The problem's own inference; ``eps`` is unused. See :meth:`WorldModel.infer_noise`.

        Raises:
            UsageError: a step of this problem does not determine its noise.
        """
        problem, unscaled = self._known(), self.normalizer.inverse
        s, a, r, s_next, _ = transition
        inferred = problem.infer_noise(unscaled(s), a, self.reward_scale.inverse(r), unscaled(s_next))
        if inferred is None:
            raise UsageError(
                "model.target_source: 'replayed' needs noise that a step determines; a step of "
                f"{type(problem).__name__} does not; use 'imagined'"
            )
        return inferred

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Raises UsageError: there is nothing to fit."""
        raise UsageError("model: KnownDynamics has nothing to fit by itself; use it as an agent's world_model")

    def _known(self) -> Problem:
        if self.problem is None:
            raise UsageError(
                "world_model: KnownDynamics has no problem; attach it to an environment with known dynamics "
                "(dsob_pl/PointMass-v0, ...) or give init_args.problem"
            )
        return self.problem

    def _take(self, problem: Problem) -> None:
        for name in ("observation_size", "action_size"):
            if getattr(problem, name) != getattr(self, name):
                raise UsageError(
                    f"world_model: KnownDynamics expected a problem of {name} {getattr(self, name)}; "
                    f"{type(problem).__name__} has {getattr(problem, name)}"
                )
        # A copy: moving this model to another device must not move the environment's problem.
        self.problem = copy.deepcopy(problem).to(self.normalizer.shift)
        self.noise_size = problem.noise_size
