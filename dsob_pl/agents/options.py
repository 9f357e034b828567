"""Ranges of the agent's numeric options, and trials of its parts."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import Tensor, nn

from dsob_pl.agents.recent_returns import foresight
from dsob_pl.bellman import AdaptivePessimism, BoundUnit, SobolevOrder
from dsob_pl.errors import UsageError, nearest
from dsob_pl.risk import Mean
from dsob_pl.world_models import WorldModel

log = logging.getLogger(__name__)


def check_options(agent: Any) -> None:
    """Raises UsageError, naming the option, where a number of ``agent`` is outside of its range."""
    if not 0 <= agent.gamma < 1:
        raise UsageError(f"model.gamma: expected a number in [0, 1), got {agent.gamma}")
    if not 0 <= agent.tau <= 1:
        raise UsageError(f"model.tau: expected a number in [0, 1], got {agent.tau}")
    for name in ("samples", "target_samples", "policy_samples", "policy_delay", "diagnostic_samples"):
        if getattr(agent, name) < 1:
            raise UsageError(f"model.{name}: expected at least 1, got {getattr(agent, name)}")
    finite = ("return_range", "gradient_bound", "gradient_rms_limit")
    for name in (*finite, "max_gradient_norm", "jacobian_bound", "divergence_margin"):
        bound = getattr(agent, name)
        if bound is not None and not bound > 0:
            raise UsageError(f"model.{name}: expected a positive number, got {bound}")
        if bound == math.inf and name in finite:
            raise UsageError(f"model.{name}: expected a finite number, or null for none, got {bound}")
    for name in ("gradient_weight", "exploration_std", "target_policy_noise", "jacobian_penalty"):
        number = getattr(agent, name)
        if not 0 <= number < math.inf:
            raise UsageError(f"model.{name}: expected a number of at least 0, got {number}")
    for name, choices in (("target_source", ("imagined", "replayed")), ("bound_unit", get_args(BoundUnit))):
        choice = getattr(agent, name)
        if choice not in choices:
            close = nearest(str(choice), choices)
            raise UsageError(f"model.{name}: expected {' or '.join(choices)}, got '{choice}'{close}")
    if agent.anneal_after is not None and not 0 <= agent.anneal_after < 1:
        raise UsageError(f"model.anneal_after: expected a fraction in [0, 1) or null, got {agent.anneal_after}")
    if not 0 <= agent.anneal_to <= 1:
        raise UsageError(f"model.anneal_to: expected a fraction in [0, 1], got {agent.anneal_to}")
    if agent.freeze_policy_at is not None:
        if agent.anneal_after is None:
            raise UsageError("model.freeze_policy_at: needs model.anneal_after, from where on the policy's rate falls")
        if not agent.anneal_after < agent.freeze_policy_at <= 1:
            raise UsageError(
                f"model.freeze_policy_at: expected a fraction above model.anneal_after {agent.anneal_after:g} and "
                f"up to 1, or null, got {agent.freeze_policy_at}"
            )


def check_length(trainer: Any, agent: Any) -> None:
    """Raises UsageError where something depends on the end of a run that has none."""
    if trainer.max_steps >= 1:
        return
    if agent.anneal_after is not None:
        raise UsageError("model.anneal_after: needs the end of the run, trainer.max_steps; got none")
    if isinstance(agent.overestimation, AdaptivePessimism) and agent.overestimation.after:
        raise UsageError(
            "model.overestimation: AdaptivePessimism.after: needs the end of the run, trainer.max_steps; got none"
        )


def check_networks(agent: Any, observation_size: int, action_size: int) -> None:
    """Raises UsageError where policy, critic or world model cannot be called as they will be, or give another shape.

    They are tried once on zeros: a shape that happens to broadcast would train something else without a word. A model
    that is shown the environment first cannot be tried yet.
    """
    rows, members, count = 2, agent.critic.ensemble_size, agent.samples
    states, actions = torch.zeros(rows, observation_size), torch.zeros(rows, action_size)
    _try("policy", agent.policy, [states], {"actions": [rows, action_size]})
    slabs = [x.expand(members, rows, -1)[..., None, :] for x in (states, actions)]
    noise = torch.zeros(members, rows, count, agent.critic.noise_size)
    _try("critic", agent.critic, [*slabs, noise], {"samples": [members, rows, count]})
    model = agent.world_model
    if model is not None and type(model).attach is WorldModel.attach:
        shapes = {"s_next": [rows, observation_size], "r": [rows], "continuation": [rows]}
        _try("world_model", model, [states, actions, torch.zeros(rows, model.noise_size)], shapes)


def _try(name: str, part: nn.Module, inputs: list[Tensor], shapes: dict[str, list[int]]) -> None:
    kind, given = type(part).__name__, ", ".join(str(list(x.shape)) for x in inputs)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), _evaluating(part):
            out = part(*inputs)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"model.{name}: {kind} cannot be called with tensors {given}: {reason}") from error
    parts = out if isinstance(out, tuple) and len(shapes) > 1 else (out,)
    found = [list(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in parts]
    if found != list(shapes.values()):
        expected = ", ".join(f"{what} {shape}" for what, shape in shapes.items())
        got = ", ".join(map(str, found))
        raise UsageError(f"model.{name}: expected tensors {given} -> {expected}; got {got} from {kind}")


@contextmanager
def _evaluating(part: nn.Module) -> Iterator[None]:
    """Has a part not learn from what it is tried on, such as statistics of a batch."""
    before = {module: module.training for module in part.modules()}
    part.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def check_divergence(agent: Any, observation_size: int, action_size: int) -> None:
    """Raises UsageError where the divergence cannot compare as many samples as there will be of that many components.

    It is tried once on zeros: otherwise a run would end at its first update, after the warm-up.
    """
    sizes = {SobolevOrder.NONE: 1, SobolevOrder.ACTION: 1 + action_size}
    components = sizes.get(agent.order, 1 + observation_size + action_size)
    members = agent.critic.ensemble_size
    targets = agent.overestimation(torch.zeros(members, 1, agent.target_samples, components))
    try:
        divergence = agent.divergence.at_levels(
            agent.critic.levels(torch.zeros(1, agent.samples, agent.critic.noise_size))
        )
        divergence(torch.zeros(1, agent.samples, components), targets)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"model.divergence: {error} (model.samples, model.target_samples)") from error


def check_pessimism(agent: Any) -> None:
    """Raises UsageError where pessimism that adapts would have nothing to adapt by, or to."""
    correction = agent.overestimation
    if not isinstance(correction, AdaptivePessimism):
        return
    if agent.critic.ensemble_size < 2:
        raise UsageError("model.overestimation: AdaptivePessimism needs at least 2 critics (critic members), got 1")
    if not agent.critic.noise_size:
        raise UsageError(
            "model.overestimation: AdaptivePessimism needs a law of the return, and a deterministic critic "
            "(noise_size 0) has none; use dsob_pl.bellman.LowerMean"
        )
    least = 2 * foresight(agent.gamma)  # half of it is judged
    if correction.window < least:
        raise UsageError(
            f"model.overestimation: AdaptivePessimism.window: expected at least {least} environment steps with "
            f"model.gamma {agent.gamma:g}, got {correction.window}"
        )


def warn_of_warm_up(trainer: Any, collects: bool, warmup_steps: int) -> None:
    """Says so where a run ends before learning begins."""
    if collects and 0 <= trainer.max_steps <= warmup_steps:
        log.warning(
            "data.warmup_steps: a warm-up of %d environment steps leaves nothing of the run's %d to learn in",
            warmup_steps,
            trainer.max_steps,
        )


def check_collection(agent: Any, collects: bool, capacity: int) -> None:
    """Raises UsageError where pessimism is to adapt to returns that nobody realises, or that are soon forgotten."""
    if not isinstance(agent.overestimation, AdaptivePessimism):
        return
    if not collects:
        raise UsageError(
            "model.overestimation: AdaptivePessimism needs returns of the policy, and data.collect is false; "
            "use e.g. dsob_pl.bellman.Truncation"
        )
    least = 2 * foresight(agent.gamma)
    if capacity < least:
        raise UsageError(
            f"data.capacity: AdaptivePessimism needs at least {least} transitions with model.gamma {agent.gamma:g}, "
            f"got {capacity}"
        )


def check_risk(agent: Any) -> None:
    """Raises UsageError where the risk measure would be given no law of returns, or does not give one number for it."""
    name, count = type(agent.risk).__name__, agent.policy_samples
    if isinstance(agent.risk, Mean):
        return
    if not agent.critic.noise_size:
        raise UsageError(
            f"model.risk: {name} needs samples of the return, and a deterministic critic (noise_size 0) has none; "
            "use dsob_pl.risk.Mean"
        )
    if count < 2:
        raise UsageError(f"model.policy_samples: {name} needs at least 2 samples of the return, got {count}")
    shape = list(agent.risk(torch.zeros(1, count)).shape)
    if shape != [1]:
        raise UsageError(f"model.risk: expected returns [1, {count}] -> value [1], got {shape} from {name}")
