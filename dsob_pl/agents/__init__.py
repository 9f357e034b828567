"""Agents: the distributional Sobolev actor-critic, composed of critic, policy, world model and divergence."""

from dsob_pl.agents.many_seeds import ManySeeds
from dsob_pl.agents.sobolev_actor_critic import SobolevActorCritic
from dsob_pl.agents.value_distribution import ValueDistribution

__all__ = ["ManySeeds", "SobolevActorCritic", "ValueDistribution"]
