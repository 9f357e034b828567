"""Environments: the factory for gymnasium ids, evaluation episodes and videos."""

from dsob_pl.envs.factory import make_env
from dsob_pl.envs.rollout import Episodes, env_name, flat_observation, run_episodes
from dsob_pl.envs.video import record_video

__all__ = ["Episodes", "env_name", "flat_observation", "make_env", "record_video", "run_episodes"]
