"""Collection for several seeds: every environment takes its step at the same time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from dsob_pl.data.collector import Collector, EpisodeStatistics
from dsob_pl.data.replay import transition_rows
from dsob_pl.envs import EnvironmentFailed, EnvironmentRows, RowSteps, join_environments
from dsob_pl.errors import RunFailed


class Collected(NamedTuple):
    """What a step of S environments brings.

    Attributes:
        new: transitions ``[S]``; finite and without meaning for a seed that failed.
        episodes: statistics of the episodes that ended, by place.
        failures: reasons in one line, by place.
    """

    new: TensorDict
    episodes: list[EpisodeStatistics | None]
    failures: dict[int, str]


class SeedCollector:
    """Takes the steps of S collectors at once.

    The collectors keep all counters, generators and observations; only the stepping of their environments and the
    policy is done for all together. They have taken equally many steps.
    """

    def __init__(self, collectors: Sequence[Collector]) -> None:
        self.collectors = list(collectors)
        self.explore: Callable[[Tensor], Tensor] | None = None
        self._joined: EnvironmentRows | None = None

    @property
    def steps(self) -> int:
        """Environment steps that each has taken."""
        return self.collectors[0].steps

    def step(self) -> Collected:
        """One step of every environment."""
        failures: dict[int, str] = {}
        environments = self._environments()
        for i, collector in enumerate(self.collectors):
            if collector.observation is None:
                self._reset(i, collector.reset_seed(), failures)
        observations = np.stack([collector.observation for collector in self.collectors])  # type: ignore[misc]
        actions = self._actions(observations, failures)

        seeds = len(self.collectors)
        moving = np.array([i for i in range(seeds) if i not in failures], dtype=np.int64)
        reached = environments.step(moving, actions.numpy()[moving], self.steps + 1)
        self._drop_episodes(moving, reached, observations, actions)
        for collector in self.collectors:
            collector.steps += 1
        failures |= {int(moving[place]): reason for place, reason in reached.failures.items()}
        if len(moving) < seeds:
            reached = reached.spread(moving, seeds)
        new = transition_rows(
            observations, actions, reached.observations, reached.rewards, reached.terminated, reached.truncated
        )
        episodes: list[EpisodeStatistics | None] = [None] * seeds
        ended = reached.terminated | reached.truncated
        for i, collector in enumerate(self.collectors):
            if i in failures:
                continue
            collector.observation = reached.observations[i]
            episodes[i] = collector.count(float(reached.rewards[i]), bool(ended[i]))
            if ended[i]:
                self._reset(i, None, failures)
        return Collected(new, episodes, failures)

    def state(self, i: int) -> dict[str, Any]:
        """``Collector.state_dict`` of one seed."""
        collector = self.collectors[i]
        running = collector.observation is not None
        return {**collector.counters(), "environment": self._environments().state(i) if running else None}

    def load_state(self, i: int, state: dict[str, Any]) -> None:
        """``Collector.load_state_dict`` of one seed."""
        collector = self.collectors[i]
        collector.load_counters(state)
        if collector.observation is not None and not self._environments().load_state(i, state["environment"]):
            collector.restart()

    def select(self, keep: Sequence[int]) -> None:
        """Leaves out the seeds at all other places."""
        self.collectors = [self.collectors[i] for i in keep]
        if self._joined is not None:
            self._joined.select(keep)

    def release(self) -> None:
        """Lets go of the environments, which are about to be closed."""
        self._joined = None

    def _environments(self) -> EnvironmentRows:
        if self._joined is None:
            self._joined = join_environments([collector.env for collector in self.collectors])
        return self._joined

    def _reset(self, i: int, seed: int | None, failures: dict[int, str]) -> None:
        collector, environments = self.collectors[i], self._environments()
        while True:
            try:
                return collector.begin(environments.reset(i, seed, self.steps))
            except EnvironmentFailed as failed:
                try:
                    seed = collector.drop_episode(failed)
                except RunFailed as error:
                    collector.begin(np.zeros(environments.observation_size, np.float32))
                    failures[i] = str(error)
                    return None
                environments.replace(i, collector.env)

    def _drop_episodes(self, moving: np.ndarray, reached: RowSteps, observations: np.ndarray, actions: Tensor) -> None:
        """Takes the step again, each seed by itself, where its environment failed and its budget allows it.

        Args:
            moving: places of those that took the step ``[n]``.
            reached: what the step brought to them; what it brings now takes its place.
            observations: ``[S, O]``; those of the new episodes are put in.
            actions: ``[S, A]``, likewise.
        """
        environments = self._environments()
        for place in list(reached.failures):
            i = int(moving[place])
            collector, failures = self.collectors[i], dict[int, str]()
            while place in reached.failures:
                try:
                    seed = collector.drop_episode(EnvironmentFailed(reached.failures[place]))
                except RunFailed as error:
                    reached.failures[place] = str(error)
                    break
                environments.replace(i, collector.env)
                self._reset(i, seed, failures)
                if failures:
                    reached.failures[place] = failures[i]
                    break
                assert collector.observation is not None
                observations[i], actions[i] = collector.observation, collector.random_action()
                again = environments.step(np.array([i]), actions.numpy()[[i]], self.steps + 1)
                reached.put(place, again)

    def _actions(self, observations: np.ndarray, failures: dict[int, str]) -> Tensor:
        """Actions ``[S, A]`` in [-1, 1]; zero where the policy's is not finite."""
        if self.steps < self.collectors[0].warmup_steps:
            return torch.stack([collector.random_action() for collector in self.collectors])
        if self.explore is None:
            raise RuntimeError("the warm-up is over and no policy is attached: call ManySeedsData.attach(explore)")
        with torch.no_grad():
            actions = self.explore(torch.from_numpy(observations)).to("cpu", torch.float32)
        finite = torch.isfinite(actions).all(1)
        if not finite.all():
            for i in (~finite).nonzero().flatten().tolist():
                failures.setdefault(i, f"the policy's action is not finite at environment step {self.steps + 1}")
            actions = torch.where(finite.unsqueeze(1), actions, 0.0)
        return actions.clamp(-1.0, 1.0)
