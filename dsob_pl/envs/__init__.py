"""Environments: the factory for gymnasium ids, noise, evaluation episodes, videos, and problems with known dynamics."""

from dsob_pl.envs.factory import make_env
from dsob_pl.envs.noise import (
    ActionNoise,
    DynamicsNoise,
    Noise,
    ObservationNoise,
    RandomPushes,
    RewardNoise,
    state_spread,
)
from dsob_pl.envs.problems import (
    Cliff,
    Jack,
    LinearQuadratic,
    MultiplicativeLinearQuadratic,
    MultiplicativeReturn,
    Outcome,
    Plan,
    PlanarProblem,
    PointMass,
    Problem,
    ProblemEnv,
    RewardChain,
    RiskPlan,
    Rotation,
    Summit,
    normalized_score,
    plan,
    play,
    play_policy,
    reference,
    register_problems,
    risk_plan,
    score_of,
)
from dsob_pl.envs.rollout import Episodes, run_episodes
from dsob_pl.envs.rows import EnvironmentRows, RowSteps, join_environments
from dsob_pl.envs.seed_rollout import run_seed_episodes
from dsob_pl.envs.state import CannotSave, environment_state, put_back, restore_environment, saved_environment
from dsob_pl.envs.stepping import (
    EnvironmentFailed,
    env_name,
    flat_observation,
    reset_environment,
    step_environment,
)
from dsob_pl.envs.video import record_video
from dsob_pl.envs.visits import VisitRecorder, Visits

__all__ = [
    "ActionNoise",
    "CannotSave",
    "Cliff",
    "DynamicsNoise",
    "EnvironmentFailed",
    "EnvironmentRows",
    "Episodes",
    "Jack",
    "LinearQuadratic",
    "MultiplicativeLinearQuadratic",
    "MultiplicativeReturn",
    "Noise",
    "ObservationNoise",
    "Outcome",
    "Plan",
    "PlanarProblem",
    "PointMass",
    "Problem",
    "ProblemEnv",
    "RandomPushes",
    "RewardChain",
    "RewardNoise",
    "RiskPlan",
    "Rotation",
    "RowSteps",
    "Summit",
    "VisitRecorder",
    "Visits",
    "env_name",
    "environment_state",
    "flat_observation",
    "join_environments",
    "make_env",
    "normalized_score",
    "plan",
    "play",
    "play_policy",
    "put_back",
    "record_video",
    "reference",
    "reset_environment",
    "restore_environment",
    "risk_plan",
    "run_episodes",
    "run_seed_episodes",
    "saved_environment",
    "score_of",
    "state_spread",
    "step_environment",
]

register_problems()
