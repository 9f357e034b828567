"""The data module: collects one environment step per training step and draws that step's batches from replay."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gymnasium
import lightning as L
import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from dsob_pl.data.collector import Collector
from dsob_pl.data.episodes import is_held_out, split_held_out, trajectories
from dsob_pl.data.on_disk import FILES_KEY, ReplayOnDisk
from dsob_pl.data.replay import Counted, build_replay, load_replay_state, replay_state, transitions
from dsob_pl.data.saved_replay import load_replay
from dsob_pl.data.stream import EnvironmentSteps, SingleItem, Step
from dsob_pl.envs import Episodes, in_units_of, make_env, run_episodes
from dsob_pl.errors import UsageError


class ReplayDataModule(ReplayOnDisk, L.LightningDataModule):
    """Owns the environment, the replay buffer, the collection of steps and the evaluation environments.

    Args:
        env_id: any gymnasium id with Box observation and action spaces, or ``module:Id-v0`` of a package of one's own.
        env_kwargs: further arguments of the environment; ``max_episode_steps`` sets its time limit.
        capacity: transitions that the replay buffer holds; the oldest ones are overwritten.
        batch_size: B, transitions per update.
        updates_per_step: U, updates per environment step (UTD ratio).
        warmup_steps: environment steps with uniformly random actions and without updates at the start.
        evaluation_episodes: episodes per evaluation.
        evaluation_seed: the evaluation episodes are reset with this seed and the ones that follow it.
        evaluation_env_kwargs: in place of those of ``env_kwargs`` with the same names, in evaluations; for a task that
            is trained from other first states than it is judged by.
        seed: of the environment's first reset, the random actions and the draws from replay.
        replay_path: a file of ``save_replay`` or a checkpoint, whose transitions fill the buffer before the start.
        collect: False trains on the transitions of ``replay_path`` only and takes no environment step.
        holdout_fraction: part of the episodes, rounded to one of k, that goes to ``holdout`` instead of ``replay``:
            the episode number i, from 0, with i mod k = k // 2. They still count as environment steps.
        restart_budget: as many times per run the training episode in which the environment fails (it raises, or returns
            what is not finite or of another shape) is dropped and the environment made anew; after that, and with 0 at
            once, the run fails.
        noise: wrappers of every environment, in training and evaluation alike, the first innermost; see ``make_env``.

    Raises:
        UsageError: a value out of its range, an environment or a file that cannot be used.
    """

    def __init__(
        self,
        env_id: str,
        env_kwargs: dict[str, Any] | None = None,
        capacity: int = 1_000_000,
        batch_size: int = 256,
        updates_per_step: int = 10,
        warmup_steps: int = 1000,
        evaluation_episodes: int = 10,
        evaluation_seed: int = 10_000,
        seed: int = 0,
        replay_path: str | None = None,
        collect: bool = True,
        holdout_fraction: float = 0.0,
        noise: list[Callable[[gymnasium.Env], gymnasium.Env]] | None = None,
        restart_budget: int = 0,
        evaluation_env_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.env_id = env_id
        self.env_kwargs = env_kwargs
        self.evaluation_env_kwargs = evaluation_env_kwargs
        self.noise = noise or []
        self.batch_size = _integer("batch_size", batch_size, 1)
        self.updates_per_step = _integer("updates_per_step", updates_per_step, 1)
        self.evaluation_episodes = _integer("evaluation_episodes", evaluation_episodes, 1)
        self.evaluation_seed = _integer("evaluation_seed", evaluation_seed, 0)
        if self.evaluation_episodes >= 2**31:
            raise UsageError(f"data.evaluation_episodes: expected an integer below 2^31, got {evaluation_episodes}")
        if self.evaluation_seed >= 2**63 - self.evaluation_episodes:  # the last episode has a seed, too
            raise UsageError(
                f"data.evaluation_seed: expected an integer below 2^63 - evaluation_episodes, got {evaluation_seed}"
            )
        self.collect = collect
        capacity, seed = _integer("capacity", capacity, 1), _integer("seed", seed, 0)
        warmup_steps = _integer("warmup_steps", warmup_steps, 0)
        self.holdout_every = _one_of("holdout_fraction", holdout_fraction)
        if not collect and replay_path is None:
            raise UsageError("data.replay_path: a file of transitions is needed where data.collect is false")

        self._env: gymnasium.Env | None = self._make_env()
        self.wrappers = str(self._env)  # factories of equal wrappers are not equal, this is
        self._evaluation_envs: dict[bool, list[gymnasium.Env]] = {}  # those without noise under True
        self.observation_size = int(self._env.observation_space.shape[0])  # type: ignore[index]
        self.action_size = int(self._env.action_space.shape[0])  # type: ignore[index]
        if evaluation_env_kwargs is not None:
            self._check_evaluation_env()
        self.replay = build_replay(capacity, int(np.random.SeedSequence([seed, 0]).generate_state(1)[0]))
        self.holdout = build_replay(max(capacity // max(self.holdout_every, 1), 1), seed)
        restart_budget = _integer("restart_budget", restart_budget, 0)
        self.collector = Collector(self._env, seed, warmup_steps, restart_budget, self._make_env_anew)
        self._steps_without_collection = 0
        self._written = {"replay": 0, "holdout": 0}  # transitions, ever
        self.between_steps: Callable[[], None] = lambda: None  # called when one step is over and the next not begun
        if replay_path is not None:
            self._fill(load_replay(replay_path), replay_path)

    @property
    def env(self) -> gymnasium.Env:
        """The environment of the collection; made anew after ``teardown`` has closed it."""
        if self._env is None:
            self._env = self._make_env()
            self.collector.restart(self._env)
        return self._env

    @property
    def steps_collected(self) -> int:
        """Environment steps taken so far, those before a resume included."""
        return self.collector.steps

    def attach(self, explore: Callable[[Tensor], Tensor]) -> None:
        """Gives the policy of the collection: a raw observation [S] to an action [A], its noise included."""
        self.collector.explore = explore

    def step(self) -> Step:
        """One environment step and the transitions of its updates."""
        self.between_steps()
        if not self.collect:
            self._steps_without_collection += 1
            return Step(None, self._sample(), None, self._steps_without_collection)
        _ = self.env
        name = "holdout" if is_held_out(self.collector.episodes, self.holdout_every) else "replay"
        dropped = self.collector.dropped
        new, episode = self.collector.step()
        dropped = self.collector.dropped if self.collector.dropped > dropped else 0
        getattr(self, name).extend(new)
        self._written[name] += 1
        warm = self.steps_collected > self.collector.warmup_steps and len(self.replay) > 0
        return Step(new, self._sample() if warm else None, episode, self.steps_collected, dropped)

    def evaluate(
        self,
        policy: Callable[[Tensor], Tensor],
        gamma: float,
        device: torch.device | str | None = None,
        clean: bool = False,
    ) -> Episodes:
        """Evaluation episodes with fixed seeds, in environments of their own; see ``run_episodes``.

        ``clean`` leaves out ``noise``; the seeds, and with them the environment's own randomness, are the same.
        """
        seeds = self.evaluation_seeds().tolist()
        return run_episodes(self.evaluation_environments(clean), policy, seeds, gamma, device)

    def evaluation_environments(self, clean: bool = False) -> list[gymnasium.Env]:
        """One environment for each evaluation episode; those that are ``clean`` are without noise."""
        if clean not in self._evaluation_envs:
            self._evaluation_envs[clean] = [self._make_evaluation_env(clean) for _ in range(self.evaluation_episodes)]
        return self._evaluation_envs[clean]

    @property
    def evaluation_env(self) -> gymnasium.Env:
        """The environment of the first evaluation episode."""
        return self.evaluation_environments()[0]

    def evaluation_seeds(self) -> Tensor:
        """Reset seeds [n] of the evaluation episodes."""
        return self.evaluation_seed + torch.arange(self.evaluation_episodes)

    def holdout_trajectories(self, k: int, n: int) -> TensorDict:
        """Up to n stretches [n, k] of k consecutive held-out transitions of one episode each, spread evenly."""
        return trajectories(transitions(self.holdout), k, n)

    def train_dataloader(self) -> EnvironmentSteps:
        """One ``Step`` per environment step, without end and without prefetching."""
        return EnvironmentSteps(self.step)

    def val_dataloader(self) -> SingleItem:
        """One item: the seeds [n] of the evaluation episodes."""
        return SingleItem(self.evaluation_seeds())

    def test_dataloader(self) -> SingleItem:
        """The same item as for validation."""
        return self.val_dataloader()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves a ``Step`` or a tensor; on the CPU nothing is touched."""
        return batch if device.type == "cpu" else batch.to(device)

    def teardown(self, stage: str) -> None:
        """Closes all environments; they are made anew where they are needed again."""
        evaluation = [env for envs in self._evaluation_envs.values() for env in envs]
        for env in (*evaluation, *([self._env] if self._env is not None else [])):
            _close(env)
        self._evaluation_envs, self._env = {}, None

    def state_dict(self) -> dict[str, Any]:
        """Both buffers, counters, generators and the running episode, as plain tensors and numbers.

        Where the replay goes to files its transitions are left out; see ``ReplayOnDisk``.
        """
        buffers = {
            name: replay_state(counted.replay, self.contained) | {"total": counted.total}
            for name, counted in self.buffers().items()
        }
        return {
            **buffers,
            "collector": self.collector.state_dict(),
            "steps_without_collection": self._steps_without_collection,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from ``state_dict``.

        Raises:
            UsageError: the transitions have other sizes than the environment, or cannot be read.
        """
        buffers = self.states_with_contents({name: state[name] for name in self._written}, state.get(FILES_KEY))
        self.check_state(buffers)
        for name, own in buffers.items():
            load_replay_state(getattr(self, name), own)
            self._written[name] = int(own.get("total", own["size"]))
        self.collector.load_state_dict(state["collector"])
        self._steps_without_collection = int(state["steps_without_collection"])

    def buffers(self) -> dict[str, Counted]:  # type: ignore[override]
        """Both buffers, by name."""
        return {name: Counted(getattr(self, name), total) for name, total in self._written.items()}

    def check_state(self, state: dict[str, Any]) -> None:
        """Raises UsageError where a ``state_dict`` holds transitions of other sizes than the environment's."""
        for name in ("replay", "holdout"):
            if state[name]["size"]:
                self._check_sizes(state[name], "the checkpoint")

    def _make_env(self) -> gymnasium.Env:
        return make_env(self.env_id, env_kwargs=self.env_kwargs, noise=self.noise)

    def _make_evaluation_env(self, clean: bool = False) -> gymnasium.Env:
        kwargs = evaluation_kwargs(self.env_kwargs, self.evaluation_env_kwargs)
        # Training's noise, whatever the environment's other arguments.
        noise = self.noise if self.evaluation_env_kwargs is None else in_units_of(self.noise, self.env_kwargs)
        return make_env(self.env_id, env_kwargs=kwargs, noise=None if clean else noise)

    def _check_evaluation_env(self) -> None:
        try:
            env = self._make_evaluation_env()
        except UsageError as error:
            raise UsageError(str(error).replace("data.env_kwargs", "data.evaluation_env_kwargs")) from error
        for space, own in (("observation", self.observation_size), ("action", self.action_size)):
            there = getattr(env, f"{space}_space").shape[0]
            if there != own:
                raise UsageError(
                    f"data.evaluation_env_kwargs: expected {space}s of size {own}, as in training, got {there}"
                )
        _close(env)

    def _make_env_anew(self) -> gymnasium.Env:
        if self._env is not None:
            _close(self._env)
        self._env = self._make_env()
        return self._env

    def _sample(self) -> TensorDict:
        updates, size = self.updates_per_step, self.batch_size
        batch = self.replay.sample(updates * size)
        del batch["index"]
        return batch.view(updates, size)

    def _fill(self, data: TensorDict, path: str) -> None:
        self._check_sizes(data, f"'{path}'")
        train, held_out = split_held_out(data, self.holdout_every)
        for replay, part in ((self.replay, train), (self.holdout, held_out)):
            if len(part):
                replay.extend(part[-replay.storage.max_size :])
        self._written = {"replay": len(self.replay), "holdout": len(self.holdout)}

    def _check_sizes(self, data: Any, source: str) -> None:
        for key, expected in (("observation", self.observation_size), ("action", self.action_size)):
            if data[key].shape[-1] != expected:
                raise UsageError(
                    f"{source} holds transitions of {key} size {data[key].shape[-1]}, {self.env_id} has {expected}"
                )


def evaluation_kwargs(training: dict[str, Any] | None, own: dict[str, Any] | None) -> dict[str, Any] | None:
    """Arguments of an evaluation environment: ``data.env_kwargs``, but for those of ``data.evaluation_env_kwargs``.

    Raises:
        UsageError: the latter are no mapping.
    """
    if own is None:
        return training
    if not isinstance(own, dict):
        raise UsageError(f"data.evaluation_env_kwargs: expected a mapping from argument names to values, got {own!r}")
    return {**(training or {}), **own}


def _close(env: gymnasium.Env) -> None:
    """Closes an environment; one that has failed may do so again, which is no reason for the run to fail."""
    with suppress(Exception):
        env.close()


def _integer(name: str, value: Any, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise UsageError(f"data.{name}: expected an integer of at least {minimum}, got {value!r}")
    if int(value) >= 2**63:
        raise UsageError(f"data.{name}: expected an integer below 2^63, got {value!r}")
    return int(value)


def _one_of(name: str, fraction: Any) -> int:
    """The k of 'one episode of k', 0 for none."""
    if isinstance(fraction, bool) or not isinstance(fraction, numbers.Real) or not 0.0 <= float(fraction) <= 0.5:
        raise UsageError(f"data.{name}: expected a number between 0 and 0.5, got {fraction!r}")
    return 0 if float(fraction) == 0.0 else math.floor(1.0 / float(fraction) + 0.5)
