"""Distributional Sobolev actor-critic (DSDPG): the agent, composed of parts.

One training step is one environment step and all of its updates. What an update computes stands in ``objectives`` and
``losses``; the agent owns modules, optimizers, running scales and counters, and calls those functions.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from tensordict import TensorDictBase
from torch import Tensor, nn

from dsob_pl.agents.calibration import Calibration, calibrate, calibration_metrics
from dsob_pl.agents.numbers import Numbers, described, divergence_warning
from dsob_pl.agents.objectives import PARTS, Part, compiled, draw_noise, objective, target_samples, update
from dsob_pl.agents.optimizers import Annealing, build_optimizers, check_optimizers, step_schedulers
from dsob_pl.agents.options import (
    check_collection,
    check_divergence,
    check_length,
    check_networks,
    check_options,
    check_pessimism,
    check_risk,
    warn_of_warm_up,
)
from dsob_pl.agents.recent_returns import adapt_pessimism
from dsob_pl.agents.reports import Speed, clean_metrics, evaluation_metrics, model_diagnostics
from dsob_pl.agents.scales import Scales
from dsob_pl.agents.value_distribution import ValueDistribution, value_distribution
from dsob_pl.bellman import (
    BoundUnit,
    OverestimationCorrection,
    SobolevOrder,
    Truncation,
    sobolev_samples,
)
from dsob_pl.critics import Critic, GenerativeCritic
from dsob_pl.data import Step
from dsob_pl.diagnostics import save_diagnostics
from dsob_pl.divergences import Divergence, MaxSlicedMMD, Multiquadric
from dsob_pl.envs import Episodes, env_name
from dsob_pl.errors import RunFailed, UsageError
from dsob_pl.networks import DeterministicPolicy, RewardScale, RunningNormalizer, polyak_update, target_copy
from dsob_pl.risk import Mean, RiskMeasure
from dsob_pl.world_models import CVAE, Transition, WorldModel

if TYPE_CHECKING:
    from gymnasium import Env

log = logging.getLogger(__name__)

# Samples per first state of an evaluation episode, of which eval/value is the mean.
_EVALUATION_SAMPLES = 32


class SobolevActorCritic(L.LightningModule):
    """Deterministic policy gradient with a critic of the joint law of return and return gradients.

    Args:
        observation_size: S; linked from the data.
        action_size: A; linked from the data.
        critic: builds the critic from (S, A).
        policy: builds the policy from (S, A).
        world_model: builds the world model from (S, A); None for targets without gradients from replayed transitions.
        divergence: between predicted and target samples ``(x [..., B, N, D], y [..., B, M, D]) -> [..., B]``; None is
            max-sliced MMD as ``conf/walker.yaml`` has it: bandwidth 10 (of scaled returns), unbiased, cross-fitted, or
            with one direction for the batch where there are fewer than four samples.
        overestimation: which target samples are kept, or how far they are moved; None is ``Truncation()``.
        sobolev: which derivatives belong to a sample: none, action (the paper's) or state_action (the full operator).
        target_source: imagined (s' and r drawn from the model) or replayed (the real s', r and termination, with the
            model's noise inferred; the model gives the derivatives).
        gamma: discount in [0, 1).
        tau: Polyak step of the target networks per update.
        samples: predicted samples N per transition.
        target_samples: samples M per target critic; None means N.
        gradient_weight: factor on gradient components inside the divergence.
        gradient_rms_limit: largest root mean square that the norm of a batch's target gradients has there, relative to
            the width of possible returns; those of both sides weigh as much less as that takes. None is no limit.
        gradient_bound: longest target gradient relative to the width of possible returns; None leaves targets
            unbounded.
        bound_unit: what is kept within the possible returns, each target sample by itself, or the law of a transition
            as a whole, which leaves a possible mean where it is.
        return_range: rewards are multiplied by one constant that makes the width of the returns which the rewards of
            the warm-up allow this large, so that a kernel bandwidth means the same on every task; None keeps rewards.
        policy_delay: critic updates per policy and target update.
        exploration_std: standard deviation of the Gaussian action noise.
        target_policy_noise: standard deviation of the noise, clipped to 0.5, on the next actions in the target (target
            policy smoothing, Fujimoto et al. 2018); 0 is without.
        critic_optimizer: optimizer of the critic.
        policy_optimizer: optimizer of the policy; None keeps the policy as it is (policy evaluation), and the
            normalisation of what it sees from the first update on.
        world_model_optimizer: optimizer of the world model.
        max_gradient_norm: global-norm limit of each optimizer's gradient.
        diagnostic_samples: transitions on which gamma*kappa and the world model's spread are estimated, at the logging
            cadence, and the Jacobian penalty at every update.
        normalize_observations: networks see observations normalised by their running mean and standard deviation.
        jacobian_penalty: weight, in the losses of world model and policy, of ``mean relu(||K||_2 - bound)^2``: a soft
            bound on the linear part of the operator, which contracts where ``gamma ||K||_2 < 1``.
        jacobian_bound: that bound; None is ``1 / gamma``, the edge of contraction. A soft bound is exceeded a little:
            ask for less where gamma*kappa is to be below 1.
        critic_scheduler: of the critic's learning rate, stepped once per environment step since learning began.
        world_model_scheduler: of the world model's, likewise.
        anneal_after: fraction of ``trainer.max_steps`` after which all learning rates fall linearly until its end; None
            keeps them. Where a run is made longer afterwards, they rise again.
        anneal_to: fraction of themselves that is left of them at the end.
        freeze_policy_at: fraction of ``trainer.max_steps`` at which nothing is left of the policy's rate and of its
            exploration, which fall from ``anneal_after`` on: what follows evaluates that policy, the normalisation of
            its observations included. None lets the rate fall as the others do, and keeps exploration.
        divergence_margin: a warning is given, once, where a mean return lies farther than this many widths outside of
            the range that rewards and gamma allow: a target where ``gradient_bound`` is None, else a prediction, which
            bounded targets do not hold back at once; None gives none.
        risk: what the policy ascends, of a critic's return samples ``[..., P] -> [...]`` at (s, pi(s)), then averaged
            over transitions and critics; None is ``Mean()``. Targets stay those of the law of returns.
        policy_samples: samples P per transition and critic that the policy ascends; None means N.
        compile: fuse the operations of the losses by ``torch.compile``, which takes a C++ compiler and a minute or two
            before the first update; worth it for long runs. The reporting updates are not compiled, nor is what the
            policy ascends while a RiskSchedule moves it.

    Raises:
        UsageError: an option is out of range, or a combination cannot be had.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        critic: Callable[[int, int], Critic] = GenerativeCritic,
        policy: Callable[[int, int], nn.Module] = DeterministicPolicy,
        world_model: Callable[[int, int], WorldModel] | None = CVAE,
        divergence: Divergence | None = None,
        overestimation: OverestimationCorrection | None = None,
        sobolev: Literal["none", "action", "state_action"] = "action",
        target_source: Literal["imagined", "replayed"] = "imagined",
        gamma: float = 0.99,
        tau: float = 0.005,
        samples: int = 10,
        target_samples: int | None = None,
        gradient_weight: float = 1.0,
        gradient_rms_limit: float | None = None,
        gradient_bound: float | None = 0.2,
        bound_unit: BoundUnit = "sample",
        return_range: float | None = 10.0,
        policy_delay: int = 2,
        exploration_std: float = 0.1,
        target_policy_noise: float = 0.0,
        critic_optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=3e-4, fused=True),
        policy_optimizer: OptimizerCallable | None = lambda p: torch.optim.Adam(p, lr=3e-4, fused=True),
        world_model_optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=3e-4, fused=True),
        max_gradient_norm: float = 10.0,
        diagnostic_samples: int = 64,
        normalize_observations: bool = True,
        jacobian_penalty: float = 0.0,
        jacobian_bound: float | None = None,
        critic_scheduler: LRSchedulerCallable | None = None,
        world_model_scheduler: LRSchedulerCallable | None = None,
        anneal_after: float | None = None,
        anneal_to: float = 0.0,
        freeze_policy_at: float | None = None,
        divergence_margin: float | None = 1.5,
        risk: RiskMeasure | None = None,
        policy_samples: int | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.order = SobolevOrder(sobolev)
        self.target_source = target_source
        self.gamma = gamma
        self.tau = tau
        self.samples = samples
        self.target_samples = samples if target_samples is None else target_samples
        self.policy_samples = samples if policy_samples is None else policy_samples
        self.gradient_weight = gradient_weight
        self.gradient_rms_limit = gradient_rms_limit
        self.gradient_bound = gradient_bound
        self.bound_unit = bound_unit
        self.return_range = return_range
        self.policy_delay = policy_delay
        self.exploration_std = exploration_std
        self.target_policy_noise = target_policy_noise
        self.action_size = action_size
        self.max_gradient_norm = max_gradient_norm
        self.diagnostic_samples = diagnostic_samples
        self.jacobian_penalty = jacobian_penalty
        self.jacobian_bound = jacobian_bound
        self.divergence_margin = divergence_margin
        self.anneal_after = anneal_after
        self.anneal_to = anneal_to
        self.freeze_policy_at = freeze_policy_at
        check_options(self)
        for name, part in (("critic", critic), ("policy", policy)):
            if part is None:  # which the parser of the command line takes for any callable
                raise UsageError(f"model.{name}: expected a class, got null")

        if divergence is None:
            few = min(self.samples, self.target_samples) < 4  # too few to halve
            divergence = MaxSlicedMMD(Multiquadric(10.0), direction="batch" if few else "cross_fitted")
        self.divergence = divergence
        self.overestimation = Truncation() if overestimation is None else copy.deepcopy(overestimation)  # it may adapt
        self.risk = Mean() if risk is None else risk
        self.evaluation_risk = self.risk  # what evaluations judge by, also while a schedule leads ``risk`` there
        self.scales = Scales(observation_size, gamma, return_range, normalize_observations)
        self.critic = critic(observation_size, action_size)
        check_divergence(self, observation_size, action_size)
        check_risk(self)
        check_pessimism(self)
        self.policy = policy(observation_size, action_size)
        self.target_critic = target_copy(self.critic)
        self.target_policy = target_copy(self.policy)
        self.world_model = None if world_model is None else world_model(observation_size, action_size)
        if self.world_model is not None:
            self.world_model.normalizer = self.normalizer  # one statistic of observations and rewards, shared
            self.world_model.reward_scale = self.reward_scale
        check_networks(self, observation_size, action_size)
        self._check_inference()
        if self.world_model is None and self.order is not SobolevOrder.NONE:
            raise UsageError(f"model.sobolev: '{self.order.value}' needs a world model, and model.world_model is null")
        self.learns_model = self.world_model is not None and self.world_model.learns
        if self.world_model is None and jacobian_penalty:
            raise UsageError("model.jacobian_penalty: needs a world model, and model.world_model is null")
        self.learns_policy = policy_optimizer is not None
        if self.learns_policy and not any(p.requires_grad for p in self.policy.parameters()):
            raise UsageError(
                f"model.policy_optimizer: {type(self.policy).__name__} has no parameters to train; use null"
            )
        self.optimizer_factories = (
            world_model_optimizer if self.learns_model else None,
            critic_optimizer,
            policy_optimizer,
        )
        self.scheduler_factories = (world_model_scheduler if self.learns_model else None, critic_scheduler)
        check_optimizers(self.optimizer_factories, self.scheduler_factories)

        self.annealing = Annealing(anneal_after, anneal_to, freeze_policy_at)
        if anneal_after is not None and self.scheduler_factories != (None, None):
            raise UsageError("model.anneal_after: expected null beside a scheduler (critic_scheduler, ...)")

        self.compiled = compile
        self._objective = compiled(objective) if compile else objective
        self.risk_varies = False  # in the course of training; what the policy ascends is then not compiled
        self.generator: torch.Generator | None = None  # of exploration and updates; None is torch's global one
        self.updates = 0  # of the critic, so far; a number and not a buffer, which a GPU would have to be asked for
        self._latest: dict[str, Tensor] = {}  # of the most recent updates; the policy's are rarer than the critic's
        self._episode: dict[str, Tensor] = {}  # of the most recent episode that ended
        self.calibration: Calibration | None = None  # of the latest evaluation
        self._speed = Speed()
        self._numbers = Numbers()
        self._gradient_norms: list[tuple[str, Tensor]] = []  # of each parameter, by part, in this step's updates
        self._gamma_kappa: Tensor | None = None  # as last measured
        self._warned = False

    @property
    def normalizer(self) -> RunningNormalizer:
        """Of the observations."""
        return self.scales.normalizer

    @property
    def reward_scale(self) -> RewardScale:
        """Of the rewards, and so of the returns."""
        return self.scales.reward_scale

    # Acting -----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        """The policy's action for raw observations on any device: ``[..., S] -> [..., A]`` in [-1, 1]."""
        return self.policy(self.normalizer(observation.to(self.device)))

    @torch.no_grad()
    def explore(self, observation: Tensor) -> Tensor:
        """``act`` plus Gaussian noise, clipped to [-1, 1]: ``[..., S] -> [..., A]``."""
        action = self.act(observation)
        noise = torch.randn(action.shape, device=action.device, generator=self.generator)
        return (action + self.exploration_std * self.annealing.policy_moves(self) * noise).clamp(-1, 1)

    # Training ---------------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """Optimizers of world model, critic, policy, and the clock; schedulers of the first two where there are any.

        Lightning counts optimizer steps. The three real optimizers are stepped raw, behind its back; the clock, which
        moves nothing, is stepped once per environment step, so every cadence of the Trainer is in environment steps.
        """

        networks = {part: getattr(self, part) for part in PARTS}
        parameters: dict[Part, list[nn.Parameter]] = {
            part: list(net.parameters()) for part, net in networks.items() if net is not None
        }
        optimizers, schedulers = build_optimizers(parameters, self.optimizer_factories, self.scheduler_factories)
        self.annealing.begin(optimizers)
        return optimizers, schedulers

    def setup(self, stage: str) -> None:
        """Shows the world model the environment, which may decide what the model can do."""
        if stage == "fit":
            self.attach(self.trainer.datamodule.env)  # type: ignore[attr-defined]

    def attach(self, env: Env) -> None:
        """Shows the world model the environment.

        Raises:
            UsageError: the model cannot do there what the targets need.
        """
        if self.world_model is not None:
            self.world_model.attach(env)
            self._check_inference(f" on '{env_name(env)}'")

    def _check_inference(self, where: str = "") -> None:
        model = self.world_model
        if model is not None and self.target_source == "replayed" and not model.infers_noise:
            needs = "'replayed' needs a world model that infers noise from a step"
            raise UsageError(f"model.target_source: {needs}; {type(model).__name__} does not{where}; use 'imagined'")

    def on_fit_start(self) -> None:
        """Connects exploration to the data's environment; the running scales begin with transitions already at hand.

        Raises:
            UsageError: there is nothing to take the scale of the rewards from.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        check_length(self.trainer, self)
        check_collection(self, data.collect, data.replay.storage.max_size)
        warn_of_warm_up(self.trainer, data.collect, data.collector.warmup_steps)
        data.attach(self.explore)
        self.begin(data.replay[:] if len(data.replay) else None, not data.collect or data.collector.warmup_steps > 0)
        self._speed.measure(self.trainer.global_step, self.updates)

    def begin(self, stored: TensorDictBase | None, warms_up: bool) -> None:
        """Gives the running scales the transitions ``[n]`` that are stored before the first step.

        Raises:
            UsageError: there are none, and no warm-up to take the scale of the rewards from.
        """
        if stored is not None and not self.reward_scale.low.isfinite():
            self.scales.take_in(stored.to(self.device), learning=False)
        elif stored is None and self.return_range is not None and not warms_up:
            raise UsageError("data.warmup_steps: expected at least 1; its rewards fix the scale of model.return_range")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the counter of updates, and what is reported again until there is something newer."""
        checkpoint["dsob_updates"] = self.updates
        checkpoint["dsob_latest"] = {name: value.detach().clone() for name, value in self._latest.items()}
        checkpoint["dsob_episode"] = dict(self._episode)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes it back."""
        self.updates = int(checkpoint["dsob_updates"])
        self._latest = {name: value.to(self.device) for name, value in checkpoint.get("dsob_latest", {}).items()}
        self._episode = dict(checkpoint.get("dsob_episode", {}))

    def training_step(self, step: Step, _: int) -> None:
        """One environment step (already taken by the data) and its U updates."""
        seen = step.batch if step.new is None else step.new
        assert seen is not None  # without collection every step brings a batch
        self.scales.take_in(seen, self.updates > 0, self.annealing.policy_moves(self) == 0 or self.keeps_policy)
        metrics: dict[str, Tensor] = {}
        report = (self.trainer.global_step + 1) % self._report_every == 0
        if step.batch is not None:
            self.annealing.apply(self)
            transitions = self.transitions(step.batch)
            rounds = transitions.r.shape[0]
            for u in range(rounds):
                updated = self._update(Transition(*(x[u] for x in transitions)), report and u == rounds - 1)
                self._numbers.take(updated)
                self._latest |= updated
            step_schedulers(self)
            self._adapt_pessimism()
            self._check_numbers(step.batch)
            if report:
                diagnostics = self.diagnose(Transition(*(x[-1] for x in transitions)))
                self._gamma_kappa = diagnostics.get("bellman/gamma_kappa")
                metrics = self._latest | diagnostics | self._speed.measure(self.trainer.global_step + 1, self.updates)
        if step.episode is not None:
            self._episode |= {
                "train/episode_return": torch.tensor(float(step.episode.return_)),
                "train/episode_length": torch.tensor(float(step.episode.length)),
            }
        if step.dropped_episodes:
            self._episode["train/dropped_episodes"] = torch.tensor(float(step.dropped_episodes))
        if report or step.episode is not None or step.dropped_episodes:
            metrics |= self._episode
        self.optimizers()[-1].step()  # type: ignore[index]
        self._log(metrics)

    def _update(self, transition: Transition, report: bool) -> dict[str, Tensor]:
        """One update of world model, critic and (every ``policy_delay``) policy and targets, on ``transition [B]``."""
        self.updates += 1
        due = self.updates % self.policy_delay == 0
        noise = draw_noise(self, len(transition.r), due)

        def evaluate(part: Part) -> tuple[Tensor, dict[str, Tensor]]:
            varies = part == "policy" and self.risk_varies
            function = objective if report or varies else self._objective
            return function(self, part, transition, noise.of(part), report, nested=self.compiled)

        rests = self.annealing.policy_moves(self) == 0
        parts = (evaluate, self._descend, self._gradient_norm, self._follow)
        return update(self, *parts, policy_due=due, policy_rests=rests, report=report)

    @property
    def keeps_policy(self) -> bool:
        """Whether the policy has come to be what it stays: one that does not learn, once the warm-up has been seen."""
        return not self.learns_policy and self.updates > 0

    def _adapt_pessimism(self) -> None:
        replay = self.trainer.datamodule.buffers()["replay"]  # type: ignore[attr-defined]
        self._latest |= adapt_pessimism(self, self.trainer.global_step + 1, self.trainer.max_steps, replay)

    def target(self, transition: Transition) -> tuple[Tensor, Tensor]:
        """Target samples ``[B, M', D]`` for ``transition [B]``, and the fraction that the bounds changed."""
        noise = draw_noise(self, len(transition.r), policy=False)
        return target_samples(self, transition, noise.step, noise.target, noise.smoothing)

    def _descend(self, part: Part, loss: Tensor) -> Tensor:
        """One optimizer step of a part on its ``loss``; the norm of the gradient before clipping."""
        optimizer = self.optimizers(use_pl_optimizer=False)[PARTS.index(part)]  # type: ignore[index]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=parameters)
        # As clip_grad_norm_ does it, which keeps the norms of the single parameters to itself.
        each = torch.stack(torch._foreach_norm([p.grad for p in parameters if p.grad is not None]))
        norm = torch.linalg.vector_norm(each)
        nn.utils.clip_grads_with_norm_(parameters, self.max_gradient_norm, norm)
        optimizer.step()
        self._gradient_norms.append((part, each))
        return norm

    def _gradient_norm(self, part: Part, loss: Tensor) -> Tensor:
        return nn.utils.get_total_norm(torch.autograd.grad(loss, list(getattr(self, part).parameters())))

    def _follow(self) -> None:
        polyak_update(self.target_critic, self.critic, self.tau)
        polyak_update(self.target_policy, self.policy, self.tau)

    def _critic_noise(self, rows: int, count: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randn(rows, count, self.critic.noise_size, device=self.device, generator=generator)

    def _side_generator(self) -> torch.Generator:
        """Noise for reports: they must not move the noise of training, or the logging cadence would change the run."""
        return torch.Generator(self.device).manual_seed(self.updates)

    def transitions(self, batch: TensorDictBase) -> Transition:
        """A replay sample ``[...]`` as the networks see it; refreshes the world model's scales with it."""
        transition = Transition.from_replay(batch, self.normalizer, self.reward_scale.factor)
        if self.world_model is not None:
            self.world_model.update_statistics(transition)
        return transition

    # Reporting --------------------------------------------------------------------------------------------------------

    def validation_step(self, seeds: Tensor, _: int) -> None:
        """Episodes of the policy without exploration on the evaluation environments, one for each of ``seeds [n]``.

        Where the environment has noise of the config, as many episodes without it.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        episodes = data.evaluate(self.act, self.gamma)
        clean = data.evaluate(self.act, self.gamma, clean=True) if data.noise else None
        self.log_dict(self.judge(episodes, clean), batch_size=1)

    test_step = validation_step

    def judge(self, episodes: Episodes, clean: Episodes | None = None) -> dict[str, Tensor]:
        """Metrics of evaluation episodes, of those without the noise of the config, and of the predicted return."""
        metrics = evaluation_metrics(episodes) | ({} if clean is None else clean_metrics(clean))
        if not isinstance(self.evaluation_risk, Mean):
            metrics["eval/risk"] = self.risk_of(episodes.discounted_returns)
        metrics["eval/value"] = self.values(episodes.first_observations, _EVALUATION_SAMPLES).mean()
        self.calibration = calibrate(self.values, episodes, self.gamma) if self.critic.noise_size else None
        return metrics | ({} if self.calibration is None else calibration_metrics(self.calibration))

    def risk_of(self, returns: Tensor) -> Tensor:
        """The agent's risk measure of ``returns [..., n]`` that episodes realised, in units of reward: ``[...]``.

        Of whole episodes, where the policy ascends the measure anew at every step.
        """
        scaled = self.reward_scale(returns.to(self.reward_scale.factor))  # as is the parameter of Entropic
        return self.reward_scale.inverse(self.evaluation_risk(scaled))

    @torch.no_grad()
    def values(self, observation: Tensor, count: int) -> Tensor:
        """Return samples of the policy from raw observations, in units of reward: ``[n, S] -> [E, n, count]``.

        Critics have noise of their own: of the same, samples of two that agree would be no two draws of one law.
        """
        s = self.normalizer(observation.to(self.device))
        members = self.critic.ensemble_size
        noise = self._critic_noise(members * len(s), count, self._side_generator()).unflatten(0, (members, len(s)))
        s, a = (x.unsqueeze(1).expand(members, -1, count, -1) for x in (s, self.policy(s)))
        return self.reward_scale.inverse(self.critic(s, a, noise))

    @torch.no_grad()
    def sobolev_returns(self, observation: Tensor, action: Tensor, count: int, shared: bool = False) -> Tensor:
        """Samples of the return and its gradients from raw observations, in units of reward and observation.

        Args:
            observation: ``[n, S]``.
            action: first action ``[n, A]``; the policy's own afterwards.
            count: samples per row.
            shared: of the same noise for all rows.

        Returns:
            ``[E, n, count, 1+S+A]``, ordered return, state gradient, action gradient.
        """
        s, a = self.normalizer(observation.to(self.device)), action.to(self.device)
        noise = self._critic_noise(1 if shared else len(s), count, self._side_generator()).expand(len(s), -1, -1)
        samples = sobolev_samples(self.critic, s, a, noise, SobolevOrder.STATE_ACTION)
        through = torch.ones(len(s), samples.shape[-1], device=self.device)
        through[:, 1 : 1 + s.shape[-1]] = self.normalizer.derivative(observation.to(self.device))
        return self.reward_scale.inverse(samples) * through.unsqueeze(1)

    def value_distribution(self, observation: Tensor, action: Tensor, count: int = 1000) -> ValueDistribution:
        """The predicted law of return and gradients from raw observations ``[..., S]`` and actions ``[..., A]``.

        See :class:`ValueDistribution`; ``count`` samples n of each critic.

        Raises:
            UsageError: a deterministic critic, or arguments of which there cannot be a law.
        """
        return value_distribution(self, observation, action, count)

    def diagnose(self, transition: Transition) -> dict[str, Tensor]:
        """gamma*kappa and the world model's spread on a few of ``transition [B]``; nothing without a world model."""
        if self.world_model is None:
            return {}
        rows = Transition(*(x[: self.diagnostic_samples] for x in transition))
        return model_diagnostics(self.world_model, self.target_policy, rows, self.gamma, self._side_generator())

    @property
    def _report_every(self) -> int:
        return max(self.trainer.log_every_n_steps, 1)  # type: ignore[attr-defined]

    def _check_numbers(self, batch: TensorDictBase) -> None:
        """Looks at what the updates on ``batch [U, B]`` gave.

        Raises:
            RunFailed: a loss, gradient or target is not finite; names it, the step and the file of a diagnostic batch.
        """
        step = self.trainer.global_step + 1
        (reading,) = self._numbers.read()
        each, self._gradient_norms = self._gradient_norms, []
        if reading.broken is not None:
            name, which = reading.broken
            part, _, kind = name.partition("/")
            own = [norms for owner, norms in each if owner == part]  # none of a policy at rest
            gradients = []
            if kind == "grad_norm" and which < len(own):
                names = [n for n, p in getattr(self, part).named_parameters() if p.grad is not None]
                gradients = [n for n, norm in zip(names, own[which].tolist()) if not math.isfinite(norm)]
            reason = described(name, gradients, step)
            kept = save_diagnostics(self.trainer, step, reason, batch, reading.history, self, gradients)
            raise RunFailed(reason + kept)
        if self.exceeds(reading.excess):
            log.warning("%s", divergence_warning(self, reading.excess, step, self._gamma_kappa))

    def exceeds(self, excess: float) -> bool:
        """Whether values so many widths outside of the possible returns are to be warned of: the first time only."""
        margin = self.divergence_margin
        if self._warned or margin is None or abs(excess) <= margin:
            return False
        self._warned = True
        return True

    def _log(self, metrics: dict[str, Tensor]) -> None:
        """One call for everything: on reporting steps the whole dictionary, else only a finished episode."""
        if self.trainer.global_step % self._report_every:
            metrics = {name: value for name, value in metrics.items() if name.startswith("train/")}
        if metrics:
            self.log_dict(metrics, batch_size=1)
