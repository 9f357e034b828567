"""Many seeds of one config, trained at once: the losses of the agent under vmap, everything else seed by seed."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from dsob_pl.agents.elementwise import check_elementwise
from dsob_pl.agents.numbers import Numbers, Reading, described, divergence_warning
from dsob_pl.agents.objectives import (
    PARTS,
    Metrics,
    Part,
    PartNoise,
    UpdateNoise,
    compiled,
    draw_noise,
    objective,
    update,
)
from dsob_pl.agents.optimizers import build_optimizers, step_schedulers
from dsob_pl.agents.options import check_collection, check_length, warn_of_warm_up
from dsob_pl.agents.recent_returns import adapt_pessimism
from dsob_pl.agents.reports import Speed
from dsob_pl.agents.sobolev_actor_critic import SobolevActorCritic
from dsob_pl.agents.stack import AgentStack
from dsob_pl.data import ManySeedsData, SeedsStep
from dsob_pl.diagnostics import save_diagnostics
from dsob_pl.envs import Episodes
from dsob_pl.errors import RunFailed
from dsob_pl.world_models import Transition

log = logging.getLogger(__name__)


class ManySeeds(L.LightningModule):
    """S agents of one config that differ in their seed; each is the run that it would be alone.

    Networks, optimizers' states and scales are stacked, and an update is the vmapped update of one agent. There is no
    reduction over the seeds anywhere: gradients are clipped for each seed, and each draws its noise from a generator of
    its own. A seed whose numbers are no longer finite leaves the stack; the others do not notice.

    Args:
        agents: one for each seed, built under that seed.
        seeds: their seeds.
        generators: state of torch's generator after an agent was built, where its run alone would go on drawing.

    Attributes:
        seeds: those still running.
        failed: why each of the others left, in one line.
        report: takes (seed, metrics), whatever a run alone would log.
        give_up: takes (seed, reason) when a seed has left.

    Raises:
        UsageError: an optimizer that mixes the parameters of different seeds.
    """

    def __init__(
        self, agents: Sequence[SobolevActorCritic], seeds: Sequence[int], generators: Sequence[Tensor]
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.seeds = list(seeds)
        self.failed: dict[int, str] = {}
        self.report: Callable[[int, dict[str, float]], None] = lambda seed, metrics: None
        self.give_up: Callable[[int, str], None] = lambda seed, reason: None
        for part, optimizer in zip(PARTS, agents[0].optimizer_factories):
            if optimizer is not None:
                check_elementwise(optimizer, f"model.{part}_optimizer")
        self.stack = AgentStack(agents)
        self._generators = list(generators)
        self.annealing = copy.copy(agents[0].annealing)
        self._fast_evaluate = compiled(self._evaluate) if agents[0].compiled else self._evaluate
        self.updates = 0
        self._latest: Metrics = {}  # [S] each
        self._returns: dict[str, dict[int, float]] = {"episode_return": {}, "return": {}}
        self._speed = Speed()
        self._numbers = Numbers()
        self._gamma_kappa: dict[int, Tensor] = {}  # by seed, as last measured

    @property
    def agents(self) -> list[SobolevActorCritic]:
        """Of ``seeds``, in that order; each is complete and current."""
        return self.stack.agents

    @property
    def _data(self) -> ManySeedsData:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    # Lightning --------------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """The optimizers and the schedulers of one agent, over the stacked parameters; see the agent's own."""
        parameters: dict[Part, list[nn.Parameter]] = {
            part: [self.stack.get_parameter(part)] for part in PARTS if part in self.stack.networks
        }
        one = self.agents[0]
        optimizers, schedulers = build_optimizers(parameters, one.optimizer_factories, one.scheduler_factories)
        self.annealing.begin(optimizers)
        return optimizers, schedulers

    def setup(self, stage: str) -> None:
        """Shows every world model its environment."""
        for i, agent in enumerate(self.agents):
            agent.attach(self._data.view(i).env)

    def on_fit_start(self) -> None:
        """Connects exploration; the running scales begin with transitions already at hand."""
        self._latest = {name: value.to(self.device) for name, value in self._latest.items()}
        self.stack.stack_buffers()  # a model may have got some from its environment, and the device is decided now
        data = self._data
        check_length(self.trainer, self.agents[0])
        check_collection(self.agents[0], data.collect, data.replay.capacity)
        warn_of_warm_up(self.trainer, data.collect, data.warmup_steps)
        data.attach(self.explore)
        for i, (agent, state) in enumerate(zip(self.agents, self._generators)):
            agent.generator = torch.Generator(self.device)
            if state.shape == agent.generator.get_state().shape:  # states are on the CPU; their size tells the device
                agent.generator.set_state(state)
            else:  # a run alone draws from the device's global generator, which building the agent has not moved
                agent.generator.manual_seed(self.seeds[i])
            stored = data.part_replay(i) if len(data.replay) else None
            agent.begin(stored, not data.collect or data.warmup_steps > 0)
        self._speed.measure(self.trainer.global_step, self.updates)

    def training_step(self, step: SeedsStep, _: int) -> None:
        """One environment step of every seed (already taken by the data) and its U updates."""
        fixed_policy = self.annealing.policy_moves(self) == 0 or self.agents[0].keeps_policy
        for i, agent in enumerate(self.agents):
            seen = step.batch if step.new is None else step.new
            assert seen is not None  # without collection every step brings a batch
            if i not in step.failures:
                agent.scales.take_in(seen[i], self.updates > 0, fixed_policy)
        metrics: list[Metrics] = [{} for _ in self.seeds]
        report = (self.trainer.global_step + 1) % self._report_every == 0
        if step.batch is not None:
            self.annealing.apply(self)
            each = [agent.transitions(step.batch[i]) for i, agent in enumerate(self.agents)]
            transitions = Transition(*(torch.stack(x, 1) for x in zip(*each)))  # [U, S, B]
            rounds = len(transitions.r)
            for u in range(rounds):
                updated = self._update(Transition(*(x[u] for x in transitions)), report and u == rounds - 1)
                self._numbers.take(updated)
                self._latest |= updated
            step_schedulers(self)
            self._adapt_pessimism()
            if report:
                metrics = self._reports(Transition(*(x[-1] for x in transitions)))
        for seed, episode, own in zip(self.seeds, step.episodes, metrics):
            if episode is not None:
                own["train/episode_return"] = torch.tensor(float(episode.return_))
                own["train/episode_length"] = torch.tensor(float(episode.length))
                self._returns["episode_return"][seed] = float(episode.return_)
        for i, count in step.dropped_episodes.items():
            metrics[i]["train/dropped_episodes"] = torch.tensor(float(count))
        broken = self._broken(step)
        self.optimizers()[-1].step()  # type: ignore[index]
        self._tell({seed: own for i, (seed, own) in enumerate(zip(self.seeds, metrics)) if i not in broken}, report)
        for seed, reason in [(self.seeds[i], reason) for i, reason in broken.items()]:
            self.drop(seed, reason)

    def validation_step(self, seeds: Tensor, _: int) -> None:
        """Episodes of every policy without exploration, on the same evaluation seeds ``[n]``; see the agent's own."""
        data, gamma = self._data, self.agents[0].gamma
        episodes, failures = data.evaluate(self.act, gamma)
        clean: list[Episodes] = []
        if data.noise:
            clean, more = data.evaluate(self.act, gamma, clean=True)
            failures = more | failures
        told = {}
        for i, (seed, agent, own) in enumerate(zip(self.seeds, self.agents, episodes)):
            if i not in failures:
                told[seed] = agent.judge(own, clean[i] if clean else None)
                self._returns["return"][seed] = float(told[seed]["eval/return_mean"])
        self._tell(told)
        for seed, reason in [(self.seeds[i], reason) for i, reason in failures.items()]:
            self.drop(seed, reason)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the counter of updates, and the generator of every seed."""
        checkpoint["dsob_updates"] = self.updates
        checkpoint["dsob_generators"] = [
            state if agent.generator is None else agent.generator.get_state()
            for agent, state in zip(self.agents, self._generators)
        ]
        checkpoint["dsob_latest"] = {name: value.detach().clone() for name, value in self._latest.items()}
        checkpoint["dsob_returns"] = {name: dict(own) for name, own in self._returns.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes them back."""
        self._count(int(checkpoint["dsob_updates"]))
        self._generators = list(checkpoint["dsob_generators"])
        self._latest = {name: value.to(self.device) for name, value in checkpoint.get("dsob_latest", {}).items()}
        self._returns |= checkpoint.get("dsob_returns", {})

    # Acting -----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, observations: Tensor) -> Tensor:
        """Every policy's actions for raw observations: ``[S, ..., O] -> [S, ..., A]`` in [-1, 1]."""
        return self.stack.evaluate(_act, observations.to(self.device))

    @torch.no_grad()
    def explore(self, observations: Tensor) -> Tensor:
        """``act`` plus every seed's own Gaussian noise, clipped to [-1, 1]: ``[S, O] -> [S, A]``."""
        actions = self.act(observations)
        noise = [torch.randn(actions.shape[1:], device=self.device, generator=a.generator) for a in self.agents]
        std = self.agents[0].exploration_std * self.annealing.policy_moves(self)
        return (actions + std * torch.stack(noise)).clamp(-1, 1)

    # Updates ----------------------------------------------------------------------------------------------------------

    def _update(self, transition: Transition, report: bool) -> Metrics:
        """One update of every agent on ``transition [S, B]``; metrics ``[S]``. See the agent's own."""
        self._count(self.updates + 1)
        first = self.agents[0]
        due = self.updates % first.policy_delay == 0
        drawn = [draw_noise(agent, transition.r.shape[1], due) for agent in self.agents]
        noise = UpdateNoise(*(torch.stack(x) for x in zip(*drawn)))

        def evaluate(part: Part) -> tuple[Tensor, Metrics]:
            varies = part == "policy" and first.risk_varies
            function = self._evaluate if report or varies else self._fast_evaluate
            return function(part, transition, noise.of(part), report)

        rests = self.annealing.policy_moves(self) == 0
        parts = (evaluate, self._descend, self._gradient_norm, self._follow)
        return update(first, *parts, policy_due=due, policy_rests=rests, report=report)

    def _evaluate(self, part: Part, transition: Transition, noise: PartNoise, report: bool) -> tuple[Tensor, Metrics]:
        """One part's objective for every agent: losses ``[S]`` and metrics ``[S]``."""
        return self.stack.evaluate(partial(_objective, part=part, report=report), transition, noise, trained=part)

    def _descend(self, part: Part, loss: Tensor) -> Tensor:
        """One optimizer step of a part on ``loss [S]``; every seed's gradient norm before clipping ``[S]``."""
        gradient, norm = self._gradient(part, loss)
        # As torch.nn.utils.clip_grad_norm_ does it, for each row.
        scale = (self.agents[0].max_gradient_norm / (norm + 1e-6)).clamp(max=1.0)
        self.stack.get_parameter(part).grad = gradient * scale.unsqueeze(1)
        self.optimizers(use_pl_optimizer=False)[PARTS.index(part)].step()  # type: ignore[index]
        return norm

    def _gradient_norm(self, part: Part, loss: Tensor) -> Tensor:
        return self._gradient(part, loss)[1]

    def _gradient(self, part: Part, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Of ``loss [S]`` in the stacked parameters of a part ``[S, P]``, and every seed's norm of it ``[S]``."""
        (gradient,) = torch.autograd.grad(loss, self.stack.get_parameter(part), torch.ones_like(loss))
        return gradient, torch.linalg.vector_norm(gradient, dim=1)

    @torch.no_grad()
    def _follow(self) -> None:
        """Polyak step of the target networks; their buffers are copied."""
        tau = self.agents[0].tau
        for network in ("critic", "policy"):
            if network in self.stack.networks:
                self.stack.get_parameter(f"target_{network}").lerp_(self.stack.get_parameter(network), tau)
            self.stack.copy_buffers(network, f"target_{network}")

    def _adapt_pessimism(self) -> None:
        step, steps, replay = self.trainer.global_step + 1, self.trainer.max_steps, self._data.replay
        each = [adapt_pessimism(agent, step, steps, replay.row(i)) for i, agent in enumerate(self.agents)]
        for name in {name for own in each for name in own}:
            # A seed of whose episodes too many were held out cannot be judged yet: NaN, which is not reported.
            unknown = self._latest.get(name, torch.full((len(each),), math.nan, device=self.device))
            self._latest[name] = torch.stack([own.get(name, unknown[i]) for i, own in enumerate(each)])

    def _count(self, updates: int) -> None:
        self.updates = updates
        for agent in self.agents:
            agent.updates = updates

    # Seeds that go wrong ----------------------------------------------------------------------------------------------

    def drop(self, seed: int, reason: str) -> None:
        """Removes a seed from everything; the others go on as before.

        Raises:
            RunFailed: it was the last.
        """
        keep = [i for i, other in enumerate(self.seeds) if other != seed]
        self.failed[seed] = reason
        if keep:
            rows = torch.tensor(keep, device=self.device)
            self.stack.select(keep, self.optimizers(use_pl_optimizer=False))  # type: ignore[arg-type]
            self._data.drop([self.seeds.index(seed)])
            self._latest = {name: values[rows] for name, values in self._latest.items()}
        self.seeds = [self.seeds[i] for i in keep]
        self.give_up(seed, reason)
        if not keep:
            raise RunFailed(f"all seeds have failed, seed {seed} last: {reason}")

    def keep(self, seeds: Sequence[int]) -> None:
        """Leaves out all seeds but these, before a run begins or goes on."""
        chosen = [self.seeds.index(seed) for seed in seeds]
        self.stack.select(chosen)
        self._generators = [self._generators[i] for i in chosen]
        self.seeds = list(seeds)

    def _broken(self, step: SeedsStep) -> dict[int, str]:
        """Positions of the seeds to give up, and why: what the data found, and numbers that are not finite.

        Of the latter a diagnostic batch is saved in the seed's own run; seeds that may diverge are warned of.
        """
        broken, number = dict(step.failures), self.trainer.global_step + 1
        for i, reading in enumerate(self._numbers.read()):
            agent, seed = self.agents[i], self.seeds[i]
            if i in broken:
                continue
            if reading.broken is not None:
                gradients = self._non_finite_gradients(i, reading)
                reason = described(reading.broken[0], gradients, number)
                batch = None if step.batch is None else step.batch[i]
                owner = self.trainer if agent._trainer is None else agent.trainer  # the seed's, where it has its own
                kept = save_diagnostics(owner, number, reason, batch, reading.history, agent, gradients)
                broken[i] = reason + kept
            elif agent.exceeds(reading.excess):
                warning = divergence_warning(agent, reading.excess, number, self._gamma_kappa.get(seed))
                log.warning("seed %d: %s", seed, warning)
        return broken

    def _non_finite_gradients(self, i: int, reading: Reading) -> list[str]:
        """Parameters of agent ``i`` whose gradient is not finite; only that of the last update is still there."""
        assert reading.broken is not None
        name, which = reading.broken
        part, _, kind = name.partition("/")
        if kind != "grad_norm" or which + 1 < len(reading.history[name]):
            return []
        gradient = self.stack.get_parameter(part).grad
        if gradient is None:  # of a policy at rest
            return []
        named = list(getattr(self.agents[i], part).named_parameters())
        pieces = gradient[i].split([p.numel() for _, p in named])
        return [name for (name, _), piece in zip(named, pieces) if not bool(piece.isfinite().all())]

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def seed_checkpoint(self, seed: int, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """The checkpoint that a run of ``seed`` alone would have written, without its data and callbacks.

        Args:
            seed: one that is still running.
            checkpoint: Lightning's, of all seeds.
        """
        index = self.seeds.index(seed)
        agent = self.agents[index]
        own = {key: value for key, value in checkpoint.items() if key not in _STACKED}
        own["state_dict"] = {name: tensor.detach().clone() for name, tensor in agent.state_dict().items()}
        own["optimizer_states"] = [
            self.stack.unstacked_optimizer_state(state, part, index) if part in self.stack.networks else state
            for part, state in zip((*PARTS, "clock"), checkpoint["optimizer_states"])
        ]
        agent.on_save_checkpoint(own)
        return own

    # Reporting --------------------------------------------------------------------------------------------------------

    def _reports(self, transition: Transition) -> list[Metrics]:
        """What every seed reports at the logging cadence, ``transition [S, B]`` being the last batch."""
        speed = self._speed.measure(self.trainer.global_step + 1, self.updates)
        unknown = torch.stack(list(self._latest.values())).isnan().tolist()  # asks the device once, for all
        reports = [
            {name: values[i] for (name, values), missing in zip(self._latest.items(), unknown) if not missing[i]}
            | agent.diagnose(Transition(*(x[i] for x in transition)))
            | speed
            for i, agent in enumerate(self.agents)
        ]
        named = ((seed, own.get("bellman/gamma_kappa")) for seed, own in zip(self.seeds, reports))
        self._gamma_kappa = {seed: factor for seed, factor in named if factor is not None}
        return reports

    def _tell(self, metrics: dict[int, Metrics], report: bool = True) -> None:
        """Hands every seed its metrics, and logs what the seeds have in common, on reporting steps in any case."""
        for seed, own in metrics.items():
            if own:
                self.report(seed, dict(zip(own, torch.stack([x.float().cpu() for x in own.values()]).tolist())))
        if not report and not any(metrics.values()):
            return
        shared = {"seeds/running": float(len(self.seeds))}
        for name, latest in self._returns.items():
            values = torch.tensor([latest[seed] for seed in self.seeds if seed in latest])
            if len(values):
                shared[f"seeds/{name}_mean"] = float(values.mean())
                shared[f"seeds/{name}_std"] = float(values.std(correction=0))
        self.log_dict(shared, batch_size=1)

    @property
    def _report_every(self) -> int:
        return max(self.trainer.log_every_n_steps, 1)  # type: ignore[attr-defined]


# What a checkpoint of all seeds holds for them together.
_STACKED = (
    "state_dict",
    "optimizer_states",
    "callbacks",
    "ManySeedsData",
    "dsob_generators",
    "dsob_latest",
    "dsob_returns",
)


def _act(agent: SobolevActorCritic, observations: Tensor) -> Tensor:
    return agent.act(observations)


def _objective(
    agent: SobolevActorCritic, transition: Transition, noise: PartNoise, part: Part, report: bool
) -> tuple[Tensor, Metrics]:
    return objective(agent, part, transition, noise, report, nested=True)
