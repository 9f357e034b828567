"""The losses of the actor-critic as pure functions of networks, a batch and explicit noise.

They keep no state and know no device, logger, config or optimizer. A network is any callable of the documented
signature: a module, or a module with its parameters bound by ``torch.func.functional_call``, so the same code runs
eager, compiled and vmapped over stacked parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsob_pl.bellman import SobolevOrder, sobolev_samples
from dsob_pl.bellman.target import Policy, Step
from dsob_pl.critics import Critic
from dsob_pl.divergences import Divergence
from dsob_pl.risk import Mean, RiskMeasure
from dsob_pl.world_models import Prediction, Transition, WorldModel

_MEAN = Mean()


def imagined_step(model: WorldModel) -> Step:
    """s', r and continuation of the target are drawn from the world model (Dyna, the paper's setting)."""
    return model


def replayed_step(model: WorldModel, transition: Transition) -> Step:
    """The replayed transition seen through the model (SVG's noise inference, Heess et al. 2015).

    The noise is inferred so that the sampled s' and r are the real ones, and the real termination replaces the
    predicted one; the model contributes the derivatives only.

    Args:
        model: world model with ``infer_noise``.
        transition: ``[B]``.
    """

    def step(s: Tensor, a: Tensor, eps: Tensor) -> Prediction:
        once = Transition(*(x.unsqueeze(1) for x in transition))  # [B, 1]: broadcasts to the rows [E, B, M] of s and a
        prediction = model.reproduce(once, s, a, eps)
        # Value of the real termination, derivative of the predicted probability.
        continuation = 1 - once.terminated + (prediction.continuation - prediction.continuation.detach())
        return prediction._replace(continuation=continuation)

    return step


def recorded_step(transition: Transition) -> Step:
    """The replayed transition itself, constant in (s, a): the model-free target, for samples without gradients."""

    def step(s: Tensor, a: Tensor, eps: Tensor) -> Prediction:
        s_next = transition.s_next.unsqueeze(1).expand_as(s)
        return Prediction(s_next, transition.r.unsqueeze(1), 1 - transition.terminated.unsqueeze(1))

    return step


def limited_gradient_weights(target: Tensor, weight: float, limit: Tensor) -> Tensor:
    """``weight``, or as much less as gives the batch's weighted target gradients the root mean square ``limit``.

    That of a transition is of all others: weights that saw the very targets they weigh would count least those which
    drew a large gradient, and rare ones would be learned as rarer than they are. Alone, a transition is not limited.

    Args:
        target: samples ``[B, M, D]``, component 0 being the return; rows are independent draws.
        weight: factor on the gradient components.
        limit: largest root mean square of the Euclidean norm of ``weight`` times the gradient (0-d).

    Returns:
        the factor of each transition ``[B]``.
    """
    squares = target[..., 1:].square().sum(-1).mean(-1)
    rows = len(squares)
    # A product and not the sum less its own part: where one is far larger than all others, that loses these.
    others = (1 - torch.eye(rows, dtype=target.dtype, device=target.device)) @ squares / max(rows - 1, 1)
    size = weight * others.sqrt()
    return weight * (limit / torch.maximum(size, limit).clamp_min(torch.finfo(target.dtype).tiny))


def critic_loss(
    critic: Critic,
    divergence: Divergence,
    transition: Transition,
    noise: Tensor,
    target: Tensor,
    order: SobolevOrder,
    gradient_weight: float | Tensor,
    value: bool = True,
) -> tuple[Tensor, Tensor]:
    """Divergence between the critic's Sobolev samples and the target's, mean over transitions, summed over members.

    Args:
        critic: E members.
        divergence: ``(x [..., B, N, D], y [..., B, M, D]) -> [..., B]``.
        transition: ``[B]``; only s and a are used.
        noise: ``[B, N, K]``.
        target: ``[B, M, D]``, detached.
        order: which derivatives belong to a sample.
        gradient_weight: factor on the gradient components of both sides, inside the divergence; a number, or ``[B]``.
        value: False asks for the derivative in the critic alone; terms of the targets are then left out of the loss.

    Returns:
        the scalar loss, and the predicted samples ``[E, B, N, D]`` detached.
    """
    divergence = divergence.at_levels(critic.levels(noise))
    samples = sobolev_samples(critic, transition.s, transition.a, noise, order)
    target = target.expand(samples.shape[0], *target.shape)
    if order is not SobolevOrder.NONE and (isinstance(gradient_weight, Tensor) or gradient_weight != 1.0):
        weight = torch.as_tensor(gradient_weight, dtype=samples.dtype, device=samples.device).view(-1, 1, 1)
        weights = torch.cat([torch.ones_like(weight), weight.expand(-1, -1, samples.shape[-1] - 1)], -1)
        predicted, target = samples * weights, target * weights
    else:
        predicted = samples
    loss = divergence(predicted, target) if value else divergence.objective(predicted, target)
    return loss.mean(-1).sum(), samples.detach()


def policy_loss(policy: Policy, critic: Critic, s: Tensor, noise: Tensor, risk: RiskMeasure = _MEAN) -> Tensor:
    """``-risk(Z(s, pi(s), xi_1), ..., Z(s, pi(s), xi_N))``, mean over transitions and critics.

    With the mean it is the deterministic policy gradient; else each sample's own derivative in the action counts by the
    weight that the measure gives to its return.

    Args:
        policy: being trained.
        critic: E members; the caller differentiates in the policy's parameters only.
        s: ``[B, S]``.
        noise: ``[B, N, K]``.
        risk: of the N samples of one critic.

    Returns:
        scalar.
    """
    members, (batch, count) = critic.ensemble_size, noise.shape[:2]
    a = policy(s)
    z = critic(
        s.unsqueeze(1).expand(members, batch, count, -1),
        a.unsqueeze(1).expand(members, batch, count, -1),
        noise.expand(members, batch, count, -1),
    )
    # One mean, not a mean of means: a run without a risk measure is bit by bit what it was before there were any.
    return -z.mean() if type(risk) is Mean else -risk(z).mean()
