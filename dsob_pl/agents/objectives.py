"""What the parts of an agent minimise: pure functions of its networks, transitions and explicit noise.

They draw nothing and change nothing, so that one agent evaluates them as they are and many agents of one shape by
``torch.func.vmap`` over stacked parameters. The order of an update stands here, too, once for both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from dsob_pl.agents import losses
from dsob_pl.agents.numbers import EXCESS, range_excess
from dsob_pl.agents.reports import sample_statistics, target_statistics
from dsob_pl.bellman import SobolevOrder, bound_target, jacobian_penalty, smoothed_policy, sobolev_target
from dsob_pl.bellman.target import Policy
from dsob_pl.errors import UsageError
from dsob_pl.world_models import Transition

if TYPE_CHECKING:
    from dsob_pl.agents.sobolev_actor_critic import SobolevActorCritic

Part = Literal["world_model", "critic", "policy"]
PARTS: tuple[Part, ...] = get_args(Part)
Metrics = dict[str, Tensor]
PartNoise = tuple[Tensor, ...]


class UpdateNoise(NamedTuple):
    """Standard normal numbers of one update on B transitions; without rows where a part has no use for them.

    Attributes:
        model: of the world model's loss ``[B, L]``.
        model_penalty: of the imagined steps in its Jacobian penalty ``[R, W]``.
        step: of the imagined steps in the target ``[B, M, W]``.
        target: of the target critics ``[B, M, K]``.
        critic: of the predicted samples ``[B, N, K]``.
        policy: of the samples that the policy ascends ``[B, P, K]``.
        policy_penalty: as ``model_penalty``.
        smoothing: of the next actions in the target ``[B, M, A]``, shared by the target critics.
    """

    model: Tensor
    model_penalty: Tensor
    step: Tensor
    target: Tensor
    critic: Tensor
    policy: Tensor
    policy_penalty: Tensor
    smoothing: Tensor

    def of(self, part: Part) -> PartNoise:
        """What one part's objective takes; the rest has other shapes where the policy is not due."""
        if part == "world_model":
            return self.model, self.model_penalty
        if part == "critic":
            return self.step, self.target, self.critic, self.smoothing
        return self.policy, self.policy_penalty


def draw_noise(agent: SobolevActorCritic, rows: int, policy: bool) -> UpdateNoise:
    """The noise of one update on ``rows`` transitions; ``policy`` says that the policy is updated as well."""

    def normal(needed: bool, *shape: int) -> Tensor:
        return torch.randn(*(shape if needed else (0,)), device=agent.device, generator=agent.generator)

    model, k = agent.world_model, agent.critic.noise_size
    width = 0 if model is None else model.noise_size
    penalised = bool(agent.jacobian_penalty) and model is not None
    few = min(agent.diagnostic_samples, rows)
    return UpdateNoise(
        model=normal(agent.learns_model, rows, model.loss_noise_size if model is not None else 0),
        model_penalty=normal(agent.learns_model and penalised, few, width),
        step=normal(True, rows, agent.target_samples, width),
        target=normal(True, rows, agent.target_samples, k),
        critic=normal(True, rows, agent.samples, k),
        policy=normal(policy and agent.learns_policy, rows, agent.policy_samples, k),
        policy_penalty=normal(policy and agent.learns_policy and penalised, few, width),
        smoothing=normal(bool(agent.target_policy_noise), rows, agent.target_samples, agent.action_size),
    )


def target_samples(
    agent: SobolevActorCritic,
    transition: Transition,
    step_noise: Tensor,
    noise: Tensor,
    smoothing: Tensor,
    nested: bool = False,
) -> tuple[Tensor, Tensor]:
    """Target samples ``[B, M', D]`` for ``transition [B]``, and the fraction that the bounds changed (0-d)."""
    policy: Policy = agent.target_policy
    if agent.target_policy_noise:
        policy = smoothed_policy(policy, smoothing, agent.target_policy_noise)
    if agent.world_model is None:
        step = losses.recorded_step(transition)
    elif agent.target_source == "replayed":
        step = losses.replayed_step(agent.world_model, transition)
    else:
        step = losses.imagined_step(agent.world_model)
    target = sobolev_target(
        step,
        policy,
        agent.target_critic,
        transition.s,
        transition.a,
        step_noise,
        noise,
        agent.gamma,
        agent.order,
        agent.overestimation,
        nested,
    )
    if agent.gradient_bound is None:
        return target, target.new_zeros(())
    return bound_target(target, agent.scales.bounds, agent.gradient_bound, agent.bound_unit)


def gradient_weight(agent: SobolevActorCritic, target: Tensor) -> float | Tensor:
    """What gradients of ``target [B, M, D]`` and of the critic's samples weigh in the loss: a number, or ``[B]``."""
    if agent.gradient_rms_limit is None or agent.order is SobolevOrder.NONE:
        return agent.gradient_weight
    bounds = agent.scales.bounds
    limit = agent.gradient_rms_limit * (bounds.high - bounds.low)
    return losses.limited_gradient_weights(target, agent.gradient_weight, limit)


def penalty(agent: SobolevActorCritic, transition: Transition, policy: nn.Module, eps: Tensor) -> Tensor:
    """Soft bound on ``||K||_2`` at the first R of ``transition [B]``, with ``eps [R, W]`` (0-d)."""
    assert agent.world_model is not None
    s, a = (x[: len(eps)] for x in (transition.s, transition.a))
    bound = agent.jacobian_bound if agent.jacobian_bound is not None else 1 / max(agent.gamma, 1e-6)
    return jacobian_penalty(agent.world_model, policy, s, a, eps, bound)


def objective(
    agent: SobolevActorCritic,
    part: Part,
    transition: Transition,
    noise: PartNoise,
    report: bool = False,
    nested: bool = False,
) -> tuple[Tensor, Metrics]:
    """What one part of an agent minimises.

    Args:
        agent: its networks and options; nothing of it is changed.
        part: whose loss.
        transition: ``[B]``.
        noise: the part's, of one update.
        report: adds the statistics of the samples, which need no gradient.
        nested: derivatives by ``torch.func``, inside of which further transforms may stand.

    Returns:
        the scalar loss, differentiable in the part's parameters (the caller leaves the others alone), and detached
        scalars by logged name.
    """
    if part == "world_model":
        return _world_model(agent, transition, noise)
    if part == "critic":
        return _critic(agent, transition, noise, report, nested)
    return _policy(agent, transition, noise)


def _world_model(agent: SobolevActorCritic, transition: Transition, noise: PartNoise) -> tuple[Tensor, Metrics]:
    assert agent.world_model is not None
    eps, penalty_eps = noise
    loss, statistics = agent.world_model.loss(transition, eps)
    metrics = {f"world_model/{name}": value for name, value in statistics.items()}
    if agent.jacobian_penalty:
        excess = penalty(agent, transition, agent.target_policy, penalty_eps)
        metrics["bellman/jacobian_penalty"] = excess.detach()
        loss = loss + agent.jacobian_penalty * excess
    return loss, metrics


def _critic(
    agent: SobolevActorCritic, transition: Transition, noise: PartNoise, report: bool, nested: bool
) -> tuple[Tensor, Metrics]:
    step_noise, target_noise, own_noise, smoothing = noise
    target, clipped = target_samples(agent, transition, step_noise, target_noise, smoothing, nested)
    weight = gradient_weight(agent, target)
    loss, samples = losses.critic_loss(
        agent.critic, agent.divergence, transition, own_noise, target, agent.order, weight, value=report
    )
    # In the order in which they come to be: the first that is not finite is the one to name. Bounded targets cannot
    # leave the range of possible returns; the critic's own values can.
    scale = agent.reward_scale.factor
    metrics = {f"critic/{name}": value for name, value in target_statistics(target, scale).items()}
    metrics["critic/loss"] = loss.detach()
    values = target if agent.gradient_bound is None else samples
    metrics[EXCESS] = range_excess(values[..., 0].mean(-1), agent.scales.bounds)
    if report:
        metrics |= {f"critic/{name}": value for name, value in sample_statistics(samples, scale).items()}
        metrics["critic/clipped_fraction"] = clipped
        if isinstance(weight, Tensor):
            metrics["critic/gradient_weight"] = weight.mean()
    return loss, metrics


def _policy(agent: SobolevActorCritic, transition: Transition, noise: PartNoise) -> tuple[Tensor, Metrics]:
    own_noise, penalty_eps = noise
    loss = losses.policy_loss(agent.policy, agent.critic, transition.s, own_noise, agent.risk)
    metrics = {"policy/loss": loss.detach()}
    if agent.jacobian_penalty and agent.world_model is not None:
        loss = loss + agent.jacobian_penalty * penalty(agent, transition, agent.policy, penalty_eps)
    return loss, metrics


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile`` without graph breaks, whose failure is the user's to see.

    Raises:
        UsageError: on call, where this machine cannot compile or a part of the agent cannot be compiled: that says
            nothing about the run, which can be gone on with without.
    """
    # A part each of three, and all of them anew for every seed that leaves a stack.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    fast = torch.compile(function, fullgraph=True, dynamic=False)

    def call(*arguments: Any, **options: Any) -> Any:
        try:
            return fast(*arguments, **options)
        except TorchDynamoException as error:
            reason = str(error).strip().partition("\n")[0]
            raise UsageError(
                f"model.compile: torch.compile failed ({type(error).__name__}: {reason}); use false"
            ) from error

    return call


def update(
    agent: SobolevActorCritic,
    evaluate: Callable[[Part], tuple[Tensor, Metrics]],
    descend: Callable[[Part, Tensor], Tensor],
    gradient_norm: Callable[[Part, Tensor], Tensor],
    follow: Callable[[], None],
    *,
    policy_due: bool,
    policy_rests: bool,
    report: bool,
) -> Metrics:
    """The order of an update: world model, then critics, and where they are due policy and target networks.

    Args:
        agent: whose options decide what is trained.
        evaluate: a part's loss and metrics, with all that was changed before.
        descend: one optimizer step of a part on its loss; returns the norm of the gradient.
        gradient_norm: that norm alone, of a part that is not to be moved.
        follow: moves the target networks.
        policy_due: whether policy and target networks take part.
        policy_rests: whether the policy stays as it is; its loss is then of interest to a report only.
        report: whether this update is reported.
    """

    def improve(part: Part, step: Callable[[Part, Tensor], Tensor] = descend) -> Metrics:
        loss, metrics = evaluate(part)
        return metrics | {f"{part}/grad_norm": step(part, loss)}

    metrics: Metrics = {}
    if agent.learns_model:
        metrics |= improve("world_model")
    metrics |= improve("critic")
    if policy_due:
        if agent.learns_policy and not policy_rests:
            metrics |= improve("policy")
        elif agent.learns_policy and report:
            metrics |= improve("policy", gradient_norm)
        follow()
    return metrics
