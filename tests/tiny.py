"""The agent and its data at the smallest sizes, and a trainer that prints and saves nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch

from dsob_pl.agents import ManySeeds, SobolevActorCritic
from dsob_pl.critics import GenerativeCritic
from dsob_pl.data import ManySeedsData, ReplayDataModule
from dsob_pl.divergences import MMD
from dsob_pl.networks import DeterministicPolicy
from dsob_pl.world_models import CVAE

# The same in a config file.
TINY_MODEL = """\
model:
  init_args:
    critic: {class_path: dsob_pl.critics.GenerativeCritic, init_args: {hidden: [8]}}
    policy: {class_path: dsob_pl.networks.DeterministicPolicy, init_args: {hidden: [8]}}
    world_model: {class_path: dsob_pl.world_models.CVAE, init_args: {hidden: [8]}}
    samples: 2
"""


def tiny_agent(
    env_id: str, episode_steps: int, updates: int = 3, warmup: int = 5, seed: int = 0, **options: object
) -> tuple[SobolevActorCritic, ReplayDataModule]:
    """Networks of eight units, four samples, batches of eight; ``options`` are the agent's."""
    L.seed_everything(seed, verbose=False)
    data = ReplayDataModule(env_id, {"max_episode_steps": episode_steps}, 1000, 8, updates, warmup, 1, seed=seed)
    agent = SobolevActorCritic(
        data.observation_size, data.action_size,
        critic=lambda s, a: GenerativeCritic(s, a, hidden=(8,)),
        policy=lambda s, a: DeterministicPolicy(s, a, hidden=(8,)),
        world_model=lambda s, a: CVAE(s, a, hidden=(8,), prior_hidden=(8,), termination_hidden=(8,)),
        **{"samples": 4, "diagnostic_samples": 4, "divergence": MMD(), **options},  # type: ignore[arg-type]
    )  # fmt: skip
    return agent, data


def tiny_trainer(folder: Path, steps: int, **options: object) -> L.Trainer:
    """On the CPU, without evaluations; ``options`` are the trainer's."""
    return L.Trainer(**{
        "accelerator": "cpu", "max_steps": steps, "max_epochs": -1, "limit_val_batches": 0, "log_every_n_steps": 4,
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False, "logger": False,
        "default_root_dir": folder, **options,
    })  # type: ignore[arg-type]  # fmt: skip


def tiny_seeds(build: Callable[[int], tuple[SobolevActorCritic, ReplayDataModule]]) -> tuple[ManySeeds, ManySeedsData]:
    """What ``build`` makes of the seeds 0 and 1, as one module and one source of data."""
    agents, parts, states = [], [], []
    for seed in (0, 1):
        agent, part = build(seed)
        agents.append(agent)
        parts.append(part)
        states.append(torch.get_rng_state())
    return ManySeeds(agents, [0, 1], states), ManySeedsData(parts)


def parameters(module: torch.nn.Module) -> torch.Tensor:
    """All of them in one row."""
    return torch.cat([p.detach().flatten() for p in module.parameters()])
