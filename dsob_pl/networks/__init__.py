"""Networks: multilayer perceptrons with smooth activations, policies, target copies, running normalisation."""

from dsob_pl.networks.mlp import MLP, EnsembleLinear, EnsembleMLP
from dsob_pl.networks.normalizer import RunningNormalizer
from dsob_pl.networks.policy import DeterministicPolicy, LinearPolicy
from dsob_pl.networks.reward_scale import RewardScale
from dsob_pl.networks.target import polyak_update, target_copy

__all__ = [
    "MLP",
    "DeterministicPolicy",
    "EnsembleLinear",
    "EnsembleMLP",
    "LinearPolicy",
    "RewardScale",
    "RunningNormalizer",
    "polyak_update",
    "target_copy",
]
