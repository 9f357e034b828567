"""Problems with known differentiable stochastic dynamics, and the gymnasium environments over the same equations."""

from dsob_pl.envs.problems.base import Outcome, Problem
from dsob_pl.envs.problems.environment import ProblemEnv, register_problems
from dsob_pl.envs.problems.linear_quadratic import LinearQuadratic, LinearQuadraticReturn
from dsob_pl.envs.problems.point_mass import PointMass
from dsob_pl.envs.problems.reward_chain import RewardChain
from dsob_pl.envs.problems.rotation import Rotation

__all__ = [
    "LinearQuadratic",
    "LinearQuadraticReturn",
    "Outcome",
    "PointMass",
    "Problem",
    "ProblemEnv",
    "RewardChain",
    "Rotation",
    "register_problems",
]
