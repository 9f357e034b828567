"""One-step differentiable models of the environment: ``(s, a, noise) -> (s', r, continuation)``."""

from dsob_pl.world_models.base import Prediction, Transition, WorldModel
from dsob_pl.world_models.cvae import CVAE
from dsob_pl.world_models.deterministic import Deterministic
from dsob_pl.world_models.ensemble import Ensemble
from dsob_pl.world_models.flow import Flow
from dsob_pl.world_models.known_dynamics import KnownDynamics

__all__ = ["CVAE", "Deterministic", "Ensemble", "Flow", "KnownDynamics", "Prediction", "Transition", "WorldModel"]
