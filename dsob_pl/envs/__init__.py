"""Environments: the factory for gymnasium ids, evaluation episodes, videos, and problems with known dynamics."""

from dsob_pl.envs.factory import make_env
from dsob_pl.envs.problems import (
    LinearQuadratic,
    Outcome,
    PointMass,
    Problem,
    ProblemEnv,
    RewardChain,
    Rotation,
    register_problems,
)
from dsob_pl.envs.rollout import Episodes, env_name, flat_observation, run_episodes
from dsob_pl.envs.rows import EnvironmentRows, join_environments
from dsob_pl.envs.seed_rollout import run_seed_episodes
from dsob_pl.envs.video import record_video

__all__ = [
    "EnvironmentRows",
    "Episodes",
    "LinearQuadratic",
    "Outcome",
    "PointMass",
    "Problem",
    "ProblemEnv",
    "RewardChain",
    "Rotation",
    "env_name",
    "flat_observation",
    "join_environments",
    "make_env",
    "record_video",
    "run_episodes",
    "run_seed_episodes",
]

register_problems()
