"""The data modules of several seeds as one: one environment step and one draw from replay for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import lightning as L
import torch
from tensordict import TensorDict
from torch import Tensor

from dsob_pl.data.datamodule import ReplayDataModule
from dsob_pl.data.episodes import is_held_out
from dsob_pl.data.on_disk import FILES_KEY, ReplayOnDisk
from dsob_pl.data.replay import build_replay, replay_state
from dsob_pl.data.seed_collector import SeedCollector
from dsob_pl.data.seed_replay import SeedReplay, SeedRow
from dsob_pl.data.seed_view import SeedView
from dsob_pl.data.stream import EnvironmentSteps, SeedsStep, SingleItem
from dsob_pl.envs import Episodes, join_environments, run_seed_episodes
from dsob_pl.errors import UsageError


class ManySeedsData(ReplayOnDisk, L.LightningDataModule):
    """Joins the data modules of S seeds; each seed gets the numbers that its data module alone would give.

    The parts keep their environments, counters and generators. Their transitions move to one storage for all, which
    leaves their own buffers empty. Seeds are named by their place among those still running.

    Args:
        parts: data modules that differ in their seed only; they are taken over.

    Raises:
        ValueError: none, or parts that differ in more.
    """

    def __init__(self, parts: Sequence[ReplayDataModule]) -> None:
        super().__init__()
        self.parts = list(parts)
        if not self.parts or any(_common(part) != _common(self.parts[0]) for part in self.parts):
            raise ValueError("ManySeedsData needs data modules that differ in their seed only")
        first = self.parts[0]
        self.env_id = first.env_id
        self.observation_size, self.action_size = first.observation_size, first.action_size
        self.noise = first.noise
        self.collect = first.collect
        self.batch_size, self.updates_per_step = first.batch_size, first.updates_per_step
        self.warmup_steps = first.collector.warmup_steps
        self.evaluation_episodes = first.evaluation_episodes
        self.replay = _joined(self.parts, "replay")
        self.holdout = _joined(self.parts, "holdout")
        self._collector = SeedCollector([part.collector for part in self.parts])
        self._steps_without_collection = 0
        self.between_steps: Callable[[], None] = lambda: None  # called when one step is over and the next not begun

    @property
    def env(self) -> gymnasium.Env:
        """The environment of the first seed."""
        return self.parts[0].env

    @property
    def evaluation_env(self) -> gymnasium.Env:
        """The environment of the first seed's first evaluation episode."""
        return self.parts[0].evaluation_env

    @property
    def seeds(self) -> list[int]:
        """Seeds of the parts still running."""
        return [part.collector.seed for part in self.parts]

    @property
    def steps_collected(self) -> int:
        """Environment steps that each seed has taken so far, those before a resume included."""
        return self._collector.steps

    def attach(self, explore: Callable[[Tensor], Tensor]) -> None:
        """Gives the policies of the collection: raw observations [S, O] to actions [S, A], their noise included."""
        self._collector.explore = explore

    def step(self) -> SeedsStep:
        """One environment step of every seed and the transitions of its updates."""
        self.between_steps()
        if not self.collect:
            self._steps_without_collection += 1
            return SeedsStep(None, self._sample(), [None] * len(self.parts), self._steps_without_collection, {})
        for part in self.parts:
            _ = part.env  # made anew where it was closed
        every = self.parts[0].holdout_every
        held_out = [i for i, part in enumerate(self.parts) if is_held_out(part.collector.episodes, every)]
        before = [part.collector.dropped for part in self.parts]
        new, episodes, failures = self._collector.step()
        now = enumerate(part.collector.dropped for part in self.parts)
        dropped = {i: count for i, count in now if count > before[i]}
        if not held_out:
            self.replay.extend(new)
        else:
            kept = [i for i in range(len(self.parts)) if i not in held_out]
            self.holdout.extend(new, held_out)
            if kept:
                self.replay.extend(new, kept)
        warm = self.steps_collected > self.warmup_steps and len(self.replay) > 0
        return SeedsStep(new, self._sample() if warm else None, episodes, self.steps_collected, failures, dropped)

    def evaluate(
        self,
        policy: Callable[[Tensor], Tensor],
        gamma: float,
        device: torch.device | str | None = None,
        clean: bool = False,
    ) -> tuple[list[Episodes], dict[int, str]]:
        """Every seed's evaluation episodes, all with the same reset seeds; see ``run_seed_episodes``.

        Args:
            policy: raw observations ``[S, n, O]``, on ``device``, to actions ``[S, n, A]``.
            gamma: discount.
            device: where the policy wants its observations.
            clean: without ``noise``.

        Returns:
            The episodes of each seed, and for those that cannot go on the reason in one line, by place.
        """
        rows = join_environments([env for part in self.parts for env in part.evaluation_environments(clean)])
        return run_seed_episodes(rows, policy, self.parts[0].evaluation_seeds().tolist(), gamma, device)

    def drop(self, indices: Sequence[int]) -> None:
        """The seeds at these places leave; the others move up and go on as before."""
        keep = [i for i in range(len(self.parts)) if i not in indices]
        for i in set(indices):
            self.parts[i].teardown("fit")
        self.parts = [self.parts[i] for i in keep]
        for member in (self.replay, self.holdout, self._collector):
            member.select(keep)

    def buffers(self) -> dict[str, SeedRow]:  # type: ignore[override]
        """Both buffers of every seed, by name."""
        return {
            _buffer(seed, name): getattr(self, name).row(i) for i, seed in enumerate(self.seeds) for name in _BUFFERS
        }

    def part_replay(self, i: int) -> TensorDict:
        """All transitions of a seed, oldest first, as a copy [n]; those held out are not among them."""
        return self.replay.transitions(i)

    def view(self, i: int) -> SeedView:
        """Stands for the data module of one seed."""
        return SeedView(self, self.parts[i])

    def train_dataloader(self) -> EnvironmentSteps[SeedsStep]:
        """One ``SeedsStep`` per environment step, without end and without prefetching."""
        return EnvironmentSteps(self.step)

    def val_dataloader(self) -> SingleItem:
        """One item: the seeds [n] of the evaluation episodes."""
        return self.parts[0].val_dataloader()

    def test_dataloader(self) -> SingleItem:
        """The same item as for validation."""
        return self.val_dataloader()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves a ``SeedsStep`` or a tensor; on the CPU nothing is touched."""
        return batch if device.type == "cpu" else batch.to(device)

    def teardown(self, stage: str) -> None:
        """Closes all environments; they are made anew where they are needed again."""
        self._collector.release()
        for part in self.parts:
            part.teardown(stage)

    def state_dict(self) -> dict[str, Any]:
        """For each seed still running what its data module alone would save, as plain tensors and numbers."""
        return {"seeds": self.seeds, "parts": [self.part_state(i) for i in range(len(self.parts))]}

    def part_state(self, i: int) -> dict[str, Any]:
        """As ``ReplayDataModule.state_dict`` of one seed."""
        return {
            "replay": self.replay.state(i, self.contained),
            "holdout": self.holdout.state(i, self.contained),
            "collector": self._collector.state(i),
            "steps_without_collection": self._steps_without_collection,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from ``state_dict``; seeds that had left by then leave here too.

        Raises:
            UsageError: a seed that is not here, or transitions of other sizes than the environment's.
        """
        unknown = [seed for seed in state["seeds"] if seed not in self.seeds]
        if unknown:
            raise UsageError(f"seeds: the checkpoint holds seed {unknown[0]}, which is not among {self.seeds}")
        buffers = {
            _buffer(seed, name): own[name] for seed, own in zip(state["seeds"], state["parts"]) for name in _BUFFERS
        }
        buffers = self.states_with_contents(buffers, state.get(FILES_KEY))
        saved = {
            seed: own | {name: buffers[_buffer(seed, name)] for name in _BUFFERS}
            for seed, own in zip(state["seeds"], state["parts"])
        }
        for own in saved.values():
            self.parts[0].check_state(own)
        self.drop([i for i, seed in enumerate(self.seeds) if seed not in saved])
        for i, part in enumerate(self.parts):
            own = saved[part.collector.seed]
            self.replay.load_state(i, own["replay"])
            self.holdout.load_state(i, own["holdout"])
            self._collector.load_state(i, own["collector"])
            self._steps_without_collection = int(own["steps_without_collection"])

    def _sample(self) -> TensorDict:
        updates, size = self.updates_per_step, self.batch_size
        return self.replay.sample(updates * size).view(len(self.parts), updates, size)


_BUFFERS = ("replay", "holdout")


def _buffer(seed: int, name: str) -> str:
    return f"{seed}/{name}"


def _common(part: ReplayDataModule) -> tuple[Any, ...]:
    """What all parts have to have in common."""
    sizes = (part.observation_size, part.action_size, part.replay.storage.max_size, part.holdout.storage.max_size)
    evaluation = (part.evaluation_episodes, part.evaluation_seed, part.evaluation_env_kwargs)
    updates = (part.batch_size, part.updates_per_step, part.collector.warmup_steps, part.collector.steps)
    return part.env_id, part.wrappers, part.env_kwargs, sizes, evaluation, updates, part.collect, part.holdout_every


def _joined(parts: Sequence[ReplayDataModule], name: str) -> SeedReplay:
    """The buffers of that name in one storage; new, empty ones take their place."""
    capacity = getattr(parts[0], name).storage.max_size
    joint = SeedReplay(capacity, len(parts))
    for i, part in enumerate(parts):
        joint.load_state(i, replay_state(getattr(part, name)))
        setattr(part, name, build_replay(capacity, 0))
    return joint
