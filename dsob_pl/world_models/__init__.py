"""One-step differentiable models of the environment: ``(s, a, noise) -> (s', r, continuation)``."""

from dsob_pl.world_models.base import Prediction, Transition, WorldModel
from dsob_pl.world_models.cvae import CVAE
from dsob_pl.world_models.deterministic import Deterministic

__all__ = ["CVAE", "Deterministic", "Prediction", "Transition", "WorldModel"]
