"""The Sobolev sample (return, gradients): the one place where a critic or a target is differentiated in (s, a)."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import torch
from torch import Tensor

from dsob_pl.critics import Critic, full_rows


class SobolevOrder(StrEnum):
    """Which derivatives of the return belong to a sample.

    NONE: ``[G]``; ACTION: ``[G, dG/da]``, the paper's practical variant; STATE_ACTION: ``[G, dG/ds, dG/da]``, the full
    operator, which also constrains the state derivative that the next backup uses.
    """

    NONE = "none"
    ACTION = "action"
    STATE_ACTION = "state_action"


def with_gradients(
    function: Callable[[Tensor, Tensor], Tensor], s: Tensor, a: Tensor, order: SobolevOrder, nested: bool = False
) -> Tensor:
    """Sobolev samples of a function each of whose outputs depends on its own row of (s, a) only.

    Args:
        function: ``s [..., S], a [..., A] -> y [...]``.
        s: ``[..., S]``.
        a: ``[..., A]``.
        order: which derivatives to take.
        nested: take them by ``torch.func.vjp``, which nests in ``torch.func`` transforms, in ``torch.compile`` and
            under one more backward pass. The default is plain autograd: the same numbers, detached, in less time on
            small networks.

    Returns:
        ``[..., D]`` with components ordered value, state gradient, action gradient.
    """
    if order is SobolevOrder.NONE:
        return function(s, a).unsqueeze(-1)
    if order is SobolevOrder.ACTION:
        return _append_gradients(lambda a: function(s, a), (a,), nested)
    return _append_gradients(function, (s, a), nested)


def _append_gradients(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], nested: bool) -> Tensor:
    """``y [...]`` with the derivatives of each row in ``inputs`` behind it: ``[..., 1 + sum of input sizes]``."""
    # Rows do not mix, so the gradient of the sum is the gradient of each row.
    (y,), pullback = value_and_pullback(lambda *x: (function(*x),), inputs, nested)
    return torch.cat([y.unsqueeze(-1), *pullback((torch.ones_like(y),))], -1)


def value_and_pullback(
    function: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...], nested: bool
) -> tuple[tuple[Tensor, ...], Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]]:
    """Outputs of ``function(*inputs)`` and the map from their cotangents to those of the inputs.

    Args:
        function: differentiable; an output may be a constant, and an input of no consequence.
        inputs: where to evaluate it.
        nested: see :func:`with_gradients`.

    Returns:
        outputs, detached unless ``nested``, and the pullback, which may be called any number of times.
    """
    if nested:
        return torch.func.vjp(function, *inputs)[:2]
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        outputs = function(*leaves)

    def pullback(cotangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        moving = [(y, cotangent) for y, cotangent in zip(outputs, cotangents) if y.requires_grad]
        if not moving:
            return tuple(torch.zeros_like(x) for x in leaves)
        varying, along = zip(*moving)
        return torch.autograd.grad(varying, leaves, along, retain_graph=True, materialize_grads=True)

    return tuple(y.detach() for y in outputs), pullback


def sobolev_samples(critic: Critic, s: Tensor, a: Tensor, noise: Tensor, order: SobolevOrder) -> Tensor:
    """Samples ``(Z, dZ/ds, dZ/da)`` of every member of a critic, one noise for value and gradient.

    Args:
        critic: ensemble of E members.
        s: ``[B, S]``.
        a: ``[B, A]``.
        noise: ``[B, N, K]``, shared by the members.
        order: which derivatives belong to a sample.

    Returns:
        ``[E, B, N, D]``, differentiable in the critic's parameters.
    """
    # One row of (s, a) for the N samples of a transition: a critic does once what does not depend on the noise.
    members = critic.ensemble_size
    s, a = (x.unsqueeze(1).expand(members, -1, 1, -1) for x in (s, a))
    noise = noise.expand(members, *noise.shape)
    if order is SobolevOrder.NONE:
        return critic(*full_rows(s, a, noise)).unsqueeze(-1)
    return critic_samples(critic, s, a, noise, order, nested=True)


def critic_samples(
    critic: Critic, s: Tensor, a: Tensor, noise: Tensor, order: SobolevOrder, nested: bool = False
) -> Tensor:
    """As :func:`sobolev_samples`, for ``s [E, ..., S]``, ``a [E, ..., A]`` and ``noise [E, ..., K]``: ``[E, ..., D]``.

    Args:
        critic: ensemble of E members.
        s: slab e for member e, leading dimensions broadcast.
        a: likewise.
        noise: likewise.
        order: with derivatives.
        nested: see :func:`with_gradients`; of no concern to a critic that has its gradient written out.
    """
    written_out = critic.value_and_gradient(s, a, noise, state=order is SobolevOrder.STATE_ACTION)
    if written_out is None:
        # A gradient of a shared row would be the sum over its samples, so every sample has a row of its own.
        s, a, noise = full_rows(s, a, noise)
        return with_gradients(lambda s, a: critic(s, a, noise), s, a, order, nested)
    value, ds, da = written_out
    parts = [ds, da] if order is SobolevOrder.STATE_ACTION else [da]
    return torch.cat([value.unsqueeze(-1), *parts], -1)
