"""Noise as gymnasium wrappers: on observations, dynamics, actions and rewards, and pushes."""

from dsob_pl.envs.noise.base import Noise
from dsob_pl.envs.noise.dynamics import DynamicsNoise, in_units_of
from dsob_pl.envs.noise.pushes import RandomPushes
from dsob_pl.envs.noise.signals import ActionNoise, ObservationNoise, RewardNoise
from dsob_pl.envs.noise.spread import state_spread

__all__ = [
    "ActionNoise",
    "DynamicsNoise",
    "Noise",
    "ObservationNoise",
    "RandomPushes",
    "RewardNoise",
    "in_units_of",
    "state_spread",
]
