"""Puts evaluations on a scale that is the same for every task: staying put is 0, the best policy 1."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from gymnasium.wrappers import TimeLimit

from dsob_pl.envs import Plan, env_name, reference, score_of
from dsob_pl.errors import UsageError

_PLANS: dict[Any, Plan] = {}


class Score(L.Callback):
    """Logs ``eval/normalized_score``, the evaluation's mean discounted return on that scale.

    The ends of the scale come from dynamic programming over the evaluation environment's problem, with the agent's
    discount and the environment's time limit; a second or so at the start of a fit, and nothing afterwards. Noise
    that wrappers add to the problem's own is not in them.
    The score is a mean over evaluation episodes and has their error; it can be above 1 by chance, and below 0.

    Attributes:
        plan: the scale; None before the start.

    Raises:
        UsageError: at the start, an environment that has no such scale, or a model without a discount.
    """

    def __init__(self) -> None:
        self.plan: Plan | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses what has no such scale; finds its ends."""
        if self.plan is not None:
            return
        env, gamma = trainer.datamodule.evaluation_env, getattr(pl_module, "gamma", None)  # type: ignore[attr-defined]
        problem = getattr(env.unwrapped, "problem", None)
        if problem is None:
            raise UsageError(f"Score: '{env_name(env)}' has no known dynamics; expected e.g. dsob_pl/Summit-v0")
        if gamma is None:
            raise UsageError(f"Score: expected a model with a discount, got {type(pl_module).__name__}")
        limit = None
        while env is not env.unwrapped:
            if isinstance(env, TimeLimit):
                limit = env._max_episode_steps if limit is None else min(limit, env._max_episode_steps)
            env = env.env
        # Many seeds have the same problem: its plan is made once.
        spec = env.unwrapped.spec
        key = (spec.id, repr(sorted(spec.kwargs.items())), gamma, limit) if spec else (problem, gamma, limit)
        try:
            if key not in _PLANS:
                _PLANS[key] = reference(problem, gamma, limit)
        except UsageError as error:
            raise UsageError(f"Score: {error}") from error
        self.plan = _PLANS[key]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs the score of the evaluation that has just ended."""
        if trainer.sanity_checking or self.plan is None or "eval/discounted_return" not in trainer.callback_metrics:
            return
        score = score_of(float(trainer.callback_metrics["eval/discounted_return"]), self.plan)
        # Where a checkpoint finds what it monitors; Lightning's own log is closed by now.
        trainer.callback_metrics["eval/normalized_score"] = torch.tensor(score)
        for logger in trainer.loggers:
            logger.log_metrics({"eval/normalized_score": score}, step=trainer.global_step)

    on_test_end = on_validation_end
