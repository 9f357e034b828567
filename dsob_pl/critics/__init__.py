"""Critics: ensembles of return models ``Z(s, a, xi)``."""

from dsob_pl.critics.base import Critic
from dsob_pl.critics.generative import GenerativeCritic

__all__ = ["Critic", "GenerativeCritic"]
