"""Critics: ensembles of return models ``Z(s, a, xi)``."""

from dsob_pl.critics.base import Critic, full_rows
from dsob_pl.critics.embedding import EmbeddingCritic
from dsob_pl.critics.film import FiLMCritic
from dsob_pl.critics.generative import GenerativeCritic
from dsob_pl.critics.injected import InjectedCritic
from dsob_pl.critics.quantile import QuantileCritic

__all__ = [
    "Critic",
    "EmbeddingCritic",
    "FiLMCritic",
    "GenerativeCritic",
    "InjectedCritic",
    "QuantileCritic",
    "full_rows",
]
