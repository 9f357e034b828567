"""Several environments of one kind as rows that step together: one after the other, or as one batch of a problem."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit, TransformAction

from dsob_pl.envs.problems import ProblemEnv
from dsob_pl.envs.state import put_back, saved_environment
from dsob_pl.envs.stepping import EnvironmentFailed, env_name, reset_environment, step_environment


class RowSteps(NamedTuple):
    """One step of n environments; where one went wrong its numbers are finite and mean nothing.

    Attributes:
        observations: ``[n, S]`` float32.
        rewards: ``[n]`` float64.
        terminated: ``[n]`` bool.
        truncated: ``[n]`` bool.
        failures: why, by place in the n, in one line.
    """

    observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    failures: dict[int, str]

    def spread(self, places: np.ndarray, n: int) -> RowSteps:
        """The same steps at their places among n, zeros at the others; failures are left out."""

        def wide(x: np.ndarray) -> np.ndarray:
            result = np.zeros((n, *x.shape[1:]), x.dtype)
            result[places] = x
            return result

        return RowSteps(wide(self.observations), wide(self.rewards), wide(self.terminated), wide(self.truncated), {})

    def put(self, place: int, one: RowSteps) -> None:
        """Puts the only step of ``one`` in the place of another."""
        for own, new in zip(self[:4], one[:4]):
            own[place] = new[0]
        self.failures.pop(place, None)
        if one.failures:
            self.failures[place] = one.failures[0]


class EnvironmentRows(ABC):
    """R environments that were made alike, each with its own generator.

    Attributes:
        observation_size: S.
    """

    observation_size: int

    @abstractmethod
    def __len__(self) -> int:
        """R."""

    @abstractmethod
    def reset(self, row: int, seed: int | None, step: int) -> np.ndarray:
        """The first observation ``[S]`` float32 of a new episode in one row; ``step`` is for the message.

        Raises:
            EnvironmentFailed: the environment raises, or its observation cannot be used.
        """

    @abstractmethod
    def step(self, rows: np.ndarray, actions: np.ndarray, step: int) -> RowSteps:
        """One step of the environments ``rows [n]`` with ``actions [n, A]`` float32; ``step`` is for the messages."""

    @abstractmethod
    def state(self, row: int) -> dict[str, Any] | None:
        """How one row goes on, in mid-episode, as plain tensors and numbers; None where that cannot be saved."""

    @abstractmethod
    def load_state(self, row: int, state: dict[str, Any] | None) -> bool:
        """Puts one row where a saved one was; False where that cannot be done."""

    @abstractmethod
    def replace(self, row: int, env: gymnasium.Env) -> None:
        """Puts an environment made like the others in the place of one; it is to be reset next."""

    @abstractmethod
    def select(self, rows: Sequence[int]) -> None:
        """Leaves out all other rows."""


def join_environments(envs: Sequence[gymnasium.Env]) -> EnvironmentRows:
    """The environments of ``make_env``, all made with the same arguments, as rows.

    Problems with known dynamics step as one batch, unless they have wrappers that ``make_env`` does not add.
    """
    problems = [_plain_problem(env) for env in envs]
    alike = {(type(problem.problem), limit) for problem, limit in filter(None, problems)}
    if None in problems or len(alike) != 1:
        return SeparateRows(envs)
    return ProblemRows([problem for problem, _ in filter(None, problems)], alike.pop()[1], env_name(envs[0]))


def _plain_problem(env: gymnasium.Env) -> tuple[ProblemEnv, int | None] | None:
    """The problem's environment and its time limit, where there is nothing else between it and ``make_env``."""
    if type(env) is not TransformAction or type(env.unwrapped) is not ProblemEnv:
        return None
    limit, inner = None, env.env
    while isinstance(inner, gymnasium.Wrapper):
        if type(inner) is TimeLimit and limit is None:
            limit = inner._max_episode_steps
        elif type(inner) not in (OrderEnforcing, PassiveEnvChecker):
            return None
        inner = inner.env
    return env.unwrapped, limit


class SeparateRows(EnvironmentRows):
    """Any environments, stepped one after the other."""

    def __init__(self, envs: Sequence[gymnasium.Env]) -> None:
        self._envs = list(envs)
        self.observation_size = int(envs[0].observation_space.shape[0])  # type: ignore[index]

    def __len__(self) -> int:
        return len(self._envs)

    def reset(self, row: int, seed: int | None, step: int) -> np.ndarray:
        """As in ``EnvironmentRows``."""
        return reset_environment(self._envs[row], seed, step)

    def step(self, rows: np.ndarray, actions: np.ndarray, step: int) -> RowSteps:
        """As in ``EnvironmentRows``."""
        n = len(rows)
        observations, rewards = np.zeros((n, self.observation_size), np.float32), np.zeros(n)
        terminated, truncated = np.zeros(n, bool), np.zeros(n, bool)
        failures: dict[int, str] = {}
        for i, row in enumerate(rows):
            try:
                observations[i], rewards[i], terminated[i], truncated[i] = step_environment(
                    self._envs[row], actions[i], step
                )
            except EnvironmentFailed as error:
                failures[i] = str(error)
        return RowSteps(observations, rewards, terminated, truncated, failures)

    def replace(self, row: int, env: gymnasium.Env) -> None:
        """As in ``EnvironmentRows``."""
        self._envs[row] = env

    def state(self, row: int) -> dict[str, Any] | None:
        """As in ``EnvironmentRows``."""
        return saved_environment(self._envs[row])

    def load_state(self, row: int, state: dict[str, Any] | None) -> bool:
        """As in ``EnvironmentRows``."""
        return put_back(self._envs[row], state)

    def select(self, rows: Sequence[int]) -> None:
        """As in ``EnvironmentRows``."""
        self._envs = [self._envs[row] for row in rows]


class ProblemRows(EnvironmentRows):
    """Environments of one problem, stepped as one batch; each draws its noise as it would alone.

    Args:
        envs: of the same problem, without wrappers.
        limit: steps after which an episode is truncated.
        name: for messages.
    """

    def __init__(self, envs: Sequence[ProblemEnv], limit: int | None, name: str) -> None:
        self._envs = list(envs)
        self._limit = limit
        self._name = name
        self.observation_size = envs[0].problem.observation_size
        self._states = torch.zeros(len(envs), self.observation_size)
        self._elapsed = np.zeros(len(envs), np.int64)

    def __len__(self) -> int:
        return len(self._envs)

    def reset(self, row: int, seed: int | None, step: int) -> np.ndarray:
        """As in ``EnvironmentRows``."""
        env = self._envs[row]
        observation = reset_environment(env, seed, step)
        self._states[row] = torch.from_numpy(observation)
        self._elapsed[row] = 0
        return observation

    @torch.no_grad()
    def step(self, rows: np.ndarray, actions: np.ndarray, step: int) -> RowSteps:
        """As in ``EnvironmentRows``."""
        problem, places = self._envs[0].problem, torch.from_numpy(rows)
        noise = np.empty((len(rows), problem.noise_size), np.float32)
        for i, row in enumerate(rows):
            self._envs[row].np_random.standard_normal(dtype=np.float32, out=noise[i])
        # the clipping that make_env adds; the equations themselves do not clip
        a = torch.from_numpy(actions).clamp(-1.0, 1.0)
        s_next, r, terminated = problem(self._states[places], a, torch.from_numpy(noise))
        self._states[places] = s_next
        self._elapsed[rows] += 1
        truncated = np.zeros(len(rows), bool) if self._limit is None else self._elapsed[rows] >= self._limit
        found = RowSteps(s_next.numpy(), r.double().numpy(), terminated.numpy() != 0, truncated, {})
        return _checked(found, self._name, step)

    def state(self, row: int) -> dict[str, Any] | None:
        """As in ``EnvironmentRows``."""
        here = {"state": self._states[row].clone(), "elapsed": int(self._elapsed[row])}
        return {**here, "environment": saved_environment(self._envs[row])}

    def load_state(self, row: int, state: dict[str, Any] | None) -> bool:
        """As in ``EnvironmentRows``."""
        if state is None or "elapsed" not in state or not put_back(self._envs[row], state["environment"]):
            return False
        self._states[row], self._elapsed[row] = state["state"], state["elapsed"]
        return True

    def replace(self, row: int, env: gymnasium.Env) -> None:
        """As in ``EnvironmentRows``."""
        assert isinstance(env.unwrapped, ProblemEnv)
        self._envs[row] = env.unwrapped

    def select(self, rows: Sequence[int]) -> None:
        """As in ``EnvironmentRows``."""
        self._envs = [self._envs[row] for row in rows]
        self._states, self._elapsed = self._states[list(rows)], self._elapsed[list(rows)]


def _checked(found: RowSteps, name: str, step: int) -> RowSteps:
    """Adds what is not finite to the failures, and takes it out."""
    sound, paid = np.isfinite(found.observations).all(1), np.isfinite(found.rewards)
    if sound.all() and paid.all():
        return found
    for i in np.flatnonzero(~sound):
        found.failures.setdefault(
            int(i), f"{name} returned an observation that is not finite at environment step {step}"
        )
    for i in np.flatnonzero(~paid):
        reason = f"{name} returned the reward {found.rewards[i]} at environment step {step}"
        found.failures.setdefault(int(i), reason)
    found.observations[~sound] = 0.0
    found.rewards[~paid] = 0.0
    return found
