"""Problems with known differentiable stochastic dynamics, and the gymnasium environments over the same equations."""

from dsob_pl.envs.problems.base import Outcome, Problem
from dsob_pl.envs.problems.cliff import Cliff
from dsob_pl.envs.problems.environment import ProblemEnv, register_problems
from dsob_pl.envs.problems.jack import Jack
from dsob_pl.envs.problems.linear_quadratic import LinearQuadratic, LinearQuadraticReturn
from dsob_pl.envs.problems.multiplicative import MultiplicativeLinearQuadratic, MultiplicativeReturn
from dsob_pl.envs.problems.optimum import Plan, normalized_score, plan, reference, score_of
from dsob_pl.envs.problems.planar import PlanarProblem
from dsob_pl.envs.problems.point_mass import PointMass
from dsob_pl.envs.problems.reward_chain import RewardChain
from dsob_pl.envs.problems.risk_optimum import RiskPlan, play, play_policy, risk_plan
from dsob_pl.envs.problems.rotation import Rotation
from dsob_pl.envs.problems.summit import Summit

__all__ = [
    "Cliff",
    "Jack",
    "LinearQuadratic",
    "LinearQuadraticReturn",
    "MultiplicativeLinearQuadratic",
    "MultiplicativeReturn",
    "Outcome",
    "Plan",
    "PlanarProblem",
    "PointMass",
    "Problem",
    "ProblemEnv",
    "RewardChain",
    "RiskPlan",
    "Rotation",
    "Summit",
    "normalized_score",
    "plan",
    "play",
    "play_policy",
    "reference",
    "register_problems",
    "risk_plan",
    "score_of",
]
