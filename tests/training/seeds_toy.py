"""A module that trains several real agents at once, by moving one weight, and what a command line builds around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.utils.data import DataLoader

from dsob_pl.data import ReplayDataModule
from dsob_pl.errors import RunFailed
from dsob_pl.tracking import RecordRun, seed_loggers
from dsob_pl.training import BestAndLast, Progress, SeedRuns

CONFIG: dict[str, Any] = {
    "model": {
        "class_path": "dsob_pl.agents.SobolevActorCritic",
        "init_args": {
            "critic": {"class_path": "dsob_pl.critics.GenerativeCritic", "init_args": {"hidden": [4]}},
            "policy": {"class_path": "dsob_pl.networks.DeterministicPolicy", "init_args": {"hidden": [4]}},
            "world_model": {"class_path": "dsob_pl.world_models.CVAE", "init_args": {"hidden": [4]}},
            "samples": 2,
        },
    },
    "data": {"env_id": "dsob_pl/PointMass-v0", "capacity": 100},
}


def metrics_of(seed: int, step: int) -> dict[str, float]:
    """What training reports of a seed: two losses at every second step, a return at every third."""
    losses = {"critic/loss": step + seed / 4, "policy/loss": -float(step)} if step % 2 == 0 else {}
    return losses | ({"train/episode_return": 100.0 * seed + step} if step % 3 == 0 else {})


class Data(L.LightningDataModule):
    """The data of all seeds."""

    def __init__(self, parts: Sequence[ReplayDataModule]) -> None:
        super().__init__()
        self.parts = list(parts)
        self.gathered = 0

    def view(self, index: int) -> ReplayDataModule:
        return self.parts[index]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(1000, 1), batch_size=1)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(1, 1))

    def state_dict(self) -> dict[str, Any]:
        self.gathered += 1
        return {"replay": torch.arange(len(self.parts))}


class Many(L.LightningModule):
    """The first weight of every critic is the number of steps taken; evaluation returns are given.

    A seed of ``fails`` leaves at that step, one of ``breaks`` gets a parameter that is no number, and ``stops`` raises
    what it holds for a step.
    """

    def __init__(
        self,
        agents: Sequence[Any],
        seeds: Sequence[int],
        returns: dict[int, list[float]] | None = None,
        fails: dict[int, int] | None = None,
        breaks: dict[int, int] | None = None,
        stops: dict[int, Callable[[], None]] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.seeds, self.agents, self.failed = list(seeds), list(agents), {}
        self.returns, self.fails, self.breaks, self.stops = returns or {}, fails or {}, breaks or {}, stops or {}
        self.report: Any = lambda seed, metrics: None
        self.give_up: Any = lambda seed, reason: None
        self.weights = torch.nn.Parameter(torch.zeros(len(self.seeds)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weights], lr=0.0, momentum=0.9)

    def training_step(self, batch: Tensor, index: int) -> None:
        self.optimizers().step()  # the clock: environment steps
        step = self.trainer.global_step
        if step in self.stops:
            self.stops[step]()
        for seed, agent in list(zip(self.seeds, self.agents)):
            agent.updates = step
            with torch.no_grad():
                next(agent.critic.parameters()).view(-1)[0] = step
                if self.breaks.get(seed, step + 1) <= step:
                    next(agent.policy.parameters()).fill_(float("nan"))
            if self.fails.get(seed) == step:
                self.drop(seed, f"critic/loss became non-finite at environment step {step}")
            elif metrics := metrics_of(seed, step):
                self.report(seed, metrics)
        self.log("seeds/running", float(len(self.seeds)))

    def validation_step(self, batch: Tensor, index: int) -> None:
        for seed in self.seeds:
            if seed in self.returns:
                self.report(seed, {"eval/return_mean": self.returns[seed].pop(0)})

    def drop(self, seed: int, reason: str) -> None:
        index = self.seeds.index(seed)
        self.failed[seed] = reason
        del self.seeds[index], self.agents[index], self.trainer.datamodule.parts[index]
        self.give_up(seed, reason)
        if not self.seeds:
            raise RunFailed("all seeds have failed")

    def seed_checkpoint(self, seed: int, checkpoint: dict[str, Any]) -> dict[str, Any]:
        agent = self.agents[self.seeds.index(seed)]
        own = {k: v for k, v in checkpoint.items() if k not in ("state_dict", "callbacks", "Data")}
        assert checkpoint["optimizer_states"]
        own["state_dict"] = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
        return own


class Alone(L.LightningModule):
    """The same for one seed, logged by Lightning itself."""

    def __init__(self, seed: int, returns: list[float]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.seed, self.returns = seed, returns
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=0.0)

    def training_step(self, batch: Tensor, index: int) -> None:
        self.optimizers().step()
        if metrics := metrics_of(self.seed, self.trainer.global_step):
            self.log_dict(metrics)

    def validation_step(self, batch: Tensor, index: int) -> None:
        self.log("eval/return_mean", self.returns.pop(0))


def parser() -> LightningArgumentParser:
    result = LightningArgumentParser(exit_on_error=False)
    result.add_argument("--seed_everything", type=int, default=0)
    result.add_lightning_class_args(ReplayDataModule, "data")
    result.add_lightning_class_args(L.LightningModule, "model", subclass_mode=True)
    for size in ("observation_size", "action_size"):
        result.link_arguments(f"data.{size}", f"model.init_args.{size}", apply_on="instantiate")
    result.link_arguments("seed_everything", "data.seed")
    return result


class Fit:
    """A fit of many seeds, as a command line would put it together."""

    def __init__(
        self,
        seeds: Sequence[int],
        loggers: Sequence[Logger],
        further: Callable[[int], list[Callback]] = lambda seed: [],
        **options: Any,
    ) -> None:
        self.seeds, self.loggers = list(seeds), list(loggers)
        built, configs = [], {}
        for seed in seeds:
            torch.manual_seed(seed)
            configs[seed] = parser().parse_object({**CONFIG, "seed_everything": seed})
            built.append(parser().instantiate_classes(configs[seed]))
        self.module = Many([parts.model for parts in built], seeds, **options)
        self.data = Data([parts.data for parts in built])
        self.callbacks = {
            seed: [
                BestAndLast(),
                RecordRun(parser(), configs[seed], save_to_log_dir=False),
                *further(seed),
            ]
            for seed in seeds
        }
        self.checkpoint = BestAndLast()
        self.record = RecordRun(parser(), parser().parse_object(CONFIG), save_to_log_dir=False, seeds=seeds)

    def __call__(self, steps: int = 12, ckpt_path: Path | None = None, **options: Any) -> L.Trainer:
        self.trainer = trainer(self.loggers, steps, [self.checkpoint, self.record, Progress()], **options)
        self.runs = SeedRuns(self.callbacks, {seed: seed_loggers(self.trainer.loggers, seed) for seed in self.seeds})
        self.runs.attach(self.trainer)
        self.trainer.fit(self.module, datamodule=self.data, ckpt_path=ckpt_path, weights_only=True)
        return self.trainer


def trainer(loggers: Sequence[Logger], steps: int, callbacks: Sequence[Callback], **options: Any) -> L.Trainer:
    return L.Trainer(
        **{
            "max_steps": steps,
            "max_epochs": -1,
            "val_check_interval": 4,
            "check_val_every_n_epoch": None,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 2,
            "logger": list(loggers) or False,
            "accelerator": "cpu",
            "enable_model_summary": False,
            "enable_autolog_hparams": False,
            "callbacks": list(callbacks),
            **options,
        }
    )
