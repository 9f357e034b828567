"""Collection: one environment, one step at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from dsob_pl.data.replay import transition
from dsob_pl.envs import EnvironmentFailed, put_back, reset_environment, saved_environment, step_environment
from dsob_pl.errors import RunFailed, UsageError

log = logging.getLogger(__name__)


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
        restart_budget: as many times an episode in which the environment fails is dropped, and does not end the run.
            What it has brought so far stays; another one begins in an environment made anew, under a seed of its own
            and with an action of the warm-up.
        make_anew: makes that environment; its predecessor is closed by then.

    Attributes:
        observation: where the running episode is [S]; None where the next step begins one.
        dropped: episodes dropped so far.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        seed: int,
        warmup_steps: int,
        restart_budget: int = 0,
        make_anew: Callable[[], gymnasium.Env] | None = None,
    ) -> None:
        self.env = env
        self.seed = seed
        self.warmup_steps = warmup_steps
        self.restart_budget = restart_budget
        self.dropped = 0
        self.explore: Callable[[Tensor], Tensor] | None = None
        self.steps = 0
        self.episodes = 0
        self.observation: np.ndarray | None = None
        self._random = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, 1]).generate_state(1)[0]))
        self._action_size = int(env.action_space.shape[0])  # type: ignore[index]
        self._return = 0.0
        self._length = 0
        self._make_anew = make_anew

    def step(self) -> tuple[TensorDict, EpisodeStatistics | None]:
        """One environment step: the transition [1], and the statistics of the episode if it ended here.

        Raises:
            RunFailed: an environment that fails more often than ``restart_budget``, or an action that is not finite.
        """
        if self.observation is None:
            self._reset(self.reset_seed())
        observation, action = self.observation, self._action()
        while True:
            try:
                reached = step_environment(self.env, action.numpy(), self.steps + 1)
                break
            except EnvironmentFailed as error:
                self._reset(self.drop_episode(error))
                observation, action = self.observation, self.random_action()
        assert observation is not None
        self.steps += 1
        next_observation, reward, terminated, truncated = reached
        new = transition(observation, action, next_observation, reward, terminated, truncated)
        self.observation = next_observation
        finished = self.count(reward, terminated or truncated)
        if finished is not None:
            self._reset(None)
        return new, finished

    def reset_seed(self) -> int:
        """Seed of a reset that does not follow the end of an episode: the first one, or one after a restart."""
        if self.steps == 0:
            return self.seed
        # an environment made anew has an unseeded generator: without a seed here a resumed run would not be repeatable
        return int(np.random.SeedSequence([self.seed, 2, self.steps]).generate_state(1)[0])

    def drop_episode(self, error: EnvironmentFailed) -> int:
        """Gives up the running episode and makes the environment anew; the seed of the reset that is due.

        Raises:
            EnvironmentFailed: ``error``, where the budget is spent.
            RunFailed: the environment cannot be made anew.
        """
        if self.dropped >= self.restart_budget or self._make_anew is None:
            if not self.dropped:
                raise error
            spent = f"{error} (data.restart_budget of {self.restart_budget} is spent)"
            raise EnvironmentFailed(spent) from error.__cause__
        self.dropped += 1
        log.warning("episode dropped (%d of data.restart_budget %d): %s", self.dropped, self.restart_budget, error)
        try:
            self.restart(self._make_anew())
        except UsageError as failed:
            raise RunFailed(f"{error}; it could not be made anew: {failed}") from failed
        return int(np.random.SeedSequence([self.seed, 3, self.dropped]).generate_state(1)[0])

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
            "dropped": self.dropped,
            "return": self._return,
            "length": self._length,
        }

    def load_counters(self, state: dict[str, Any]) -> None:
        """Goes on from ``counters``."""
        self.steps = int(state["steps"])
        self.episodes = int(state["episodes"])
        self._random.set_state(state["random"])
        self.dropped = int(state["dropped"])
        observation = state["observation"]
        self.observation = None if observation is None else observation.numpy().copy()
        self._return, self._length = float(state["return"]), int(state["length"])

    def _reset(self, seed: int | None) -> None:
        while True:
            try:
                return self.begin(reset_environment(self.env, seed, self.steps))
            except EnvironmentFailed as error:
                seed = self.drop_episode(error)

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
