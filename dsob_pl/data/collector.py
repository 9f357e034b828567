"""Collection: one environment, one step at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from dsob_pl.data.replay import transition
from dsob_pl.envs import env_name, flat_observation, put_back, saved_environment
from dsob_pl.errors import RunFailed


class EpisodeStatistics(NamedTuple):
    """Undiscounted return and number of environment steps of a finished training episode."""

    return_: float
    length: int


class Collector:
    """Takes environment steps and turns them into transitions.

    The first reset is seeded, later ones are not, so the whole sequence of episodes follows from the seed. The next
    observation of the last transition of an episode is the one the episode ended in, not that of the next reset.

    Args:
        env: an environment of ``make_env``.
        seed: of the first reset and of the random actions.
        warmup_steps: as many steps take actions uniform in [-1, 1]^A before the policy is asked.

    Attributes:
        observation: where the running episode is [S]; None where the next step begins one.
    """

    def __init__(self, env: gymnasium.Env, seed: int, warmup_steps: int) -> None:
        self.env = env
        self.seed = seed
        self.warmup_steps = warmup_steps
        self.explore: Callable[[Tensor], Tensor] | None = None
        self.steps = 0
        self.episodes = 0
        self.observation: np.ndarray | None = None
        self._random = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, 1]).generate_state(1)[0]))
        self._action_size = int(env.action_space.shape[0])  # type: ignore[index]
        self._return = 0.0
        self._length = 0

    def step(self) -> tuple[TensorDict, EpisodeStatistics | None]:
        """One environment step: the transition [1], and the statistics of the episode if it ended here.

        Raises:
            RunFailed: an observation, reward or action that is not finite.
        """
        if self.observation is None:
            self._reset(self.reset_seed())
        observation, action = self.observation, self._action()
        assert observation is not None
        self.steps += 1
        reached, given, terminated, truncated, _ = self.env.step(action.numpy())
        next_observation, reward = flat_observation(reached, self.env, self.steps), float(given)
        if not math.isfinite(reward):
            raise RunFailed(f"{env_name(self.env)} returned the reward {reward} at environment step {self.steps}")
        new = transition(observation, action, next_observation, reward, bool(terminated), bool(truncated))
        self.observation = next_observation
        finished = self.count(reward, bool(terminated or truncated))
        if finished is not None:
            self._reset(None)
        return new, finished

    def reset_seed(self) -> int:
        """Seed of a reset that does not follow the end of an episode: the first one, or one after a restart."""
        if self.steps == 0:
            return self.seed
        # an environment made anew has an unseeded generator: without a seed here a resumed run would not be repeatable
        return int(np.random.SeedSequence([self.seed, 2, self.steps]).generate_state(1)[0])

    def begin(self, observation: np.ndarray) -> None:
        """Starts the count of an episode at its first observation [S]."""
        self.observation = observation
        self._return, self._length = 0.0, 0

    def count(self, reward: float, ended: bool) -> EpisodeStatistics | None:
        """Adds a step to the running episode; its statistics if it ended here."""
        self._return += reward
        self._length += 1
        if not ended:
            return None
        self.episodes += 1
        return EpisodeStatistics(self._return, self._length)

    def random_action(self) -> Tensor:
        """An action [A] of the warm-up."""
        return torch.rand(self._action_size, generator=self._random) * 2.0 - 1.0

    def restart(self, env: gymnasium.Env | None = None) -> None:
        """Gives up the running episode; the next step begins a new one, in ``env`` if one is given."""
        self.env = env if env is not None else self.env
        self.observation = None

    def state_dict(self) -> dict[str, Any]:
        """Counters, the generator of the random actions, and the environment in the middle of its episode.

        An environment whose state cannot be saved is left out; see ``environment_state``.
        """
        return {**self.counters(), "environment": None if self.observation is None else saved_environment(self.env)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from ``state_dict``; where the environment was left out its episode starts anew."""
        self.load_counters(state)
        if self.observation is not None and not put_back(self.env, state["environment"]):
            self.restart()

    def counters(self) -> dict[str, Any]:
        """``state_dict`` without the environment."""
        return {
            "steps": self.steps,
            "episodes": self.episodes,
            "random": self._random.get_state(),
            "observation": None if self.observation is None else torch.from_numpy(self.observation.copy()),
            "return": self._return,
            "length": self._length,
        }

    def load_counters(self, state: dict[str, Any]) -> None:
        """Goes on from ``counters``."""
        self.steps = int(state["steps"])
        self.episodes = int(state["episodes"])
        self._random.set_state(state["random"])
        observation = state["observation"]
        self.observation = None if observation is None else observation.numpy().copy()
        self._return, self._length = float(state["return"]), int(state["length"])

    def _reset(self, seed: int | None) -> None:
        self.begin(flat_observation(self.env.reset(seed=seed)[0], self.env, self.steps))

    def _action(self) -> Tensor:
        if self.steps < self.warmup_steps:
            return self.random_action()
        if self.explore is None:
            raise RuntimeError("the warm-up is over and no policy is attached: call ReplayDataModule.attach(explore)")
        with torch.no_grad():
            action = self.explore(torch.from_numpy(self.observation)).to("cpu", torch.float32)
        if not torch.isfinite(action).all():
            raise RunFailed(f"the policy's action is not finite at environment step {self.steps + 1}")
        return action.clamp(-1.0, 1.0)
