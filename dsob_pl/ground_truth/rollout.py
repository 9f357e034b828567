"""True joint samples of the return and its gradients, by Monte-Carlo with autograd through whole rollouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from dsob_pl.envs.problems.base import Problem
from dsob_pl.errors import UsageError

Policy = Callable[[Tensor], Tensor]

# Of the tensors that autograd keeps for one chunk of rollouts; small chunks stay in the cache and are faster too.
_CHUNK_BYTES = 128 * 2**20
_PROBED_ROLLOUTS = 61  # a prime: what has a multiple of it in numbers grows with the rollouts, weights do not


def horizon_of(gamma: float, tolerance: float = 1e-4) -> int:
    """The smallest T with ``gamma^T <= tolerance``, up to rounding.

    Raises:
        UsageError: gamma outside [0, 1), tolerance outside (0, 1).
    """
    if not 0 <= gamma < 1:
        raise UsageError(f"gamma: expected a number in [0, 1), got {gamma}")
    if not 0 < tolerance < 1:
        raise UsageError(f"tolerance: expected a number in (0, 1), got {tolerance}")
    # The quotient of the logarithms is rounded, so the condition itself decides; 0.1^3 is above 1e-3 by one bit.
    horizon = max(1, math.floor(math.log(tolerance) / math.log(gamma)) - 1) if gamma else 1
    while gamma**horizon > tolerance * (1 + 1e-9):
        horizon += 1
    return horizon


def true_returns(
    problem: Problem,
    policy: Policy,
    s: Tensor,
    a: Tensor,
    gamma: float,
    samples: int,
    generator: torch.Generator | None = None,
    horizon: int | None = None,
    tolerance: float = 1e-4,
) -> Tensor:
    """Independent samples of ``[G, dG/ds, dG/da]`` with ``G = sum_{t<T} gamma^t r_t`` from first states and actions.

    The first action is ``a``, the policy's own follow. A sample's gradients are those of its return with its noise
    held fixed: dG/ds the total derivative in the first state with the first action held fixed, dG/da that in the first
    action, both through dynamics, reward and policy. Nothing is earned after a termination. What the horizon cuts off
    is at most ``gamma^T`` of the largest value.

    Args:
        problem: of the type and on the device of ``s``.
        policy: ``[..., S] -> [..., A]``, likewise, on the problem's own states.
        s: ``[R, S]``.
        a: ``[R, A]``.
        gamma: discount.
        samples: M.
        generator: of the noise, on the device of ``s``.
        horizon: T; by default the smallest with ``gamma^T <= tolerance``.
        tolerance: see there.

    Returns:
        ``[R, M, 1+S+A]``, detached.

    Raises:
        UsageError: gamma outside [0, 1), tolerance outside (0, 1), samples or horizon below 1.
    """
    steps = horizon_of(gamma, tolerance)
    for name, count in {"samples": samples, "horizon": horizon}.items():
        if count is not None and count < 1:
            raise UsageError(f"{name}: expected at least 1, got {count}")
    steps = steps if horizon is None else horizon

    # Lightning validates in inference mode, in which nothing can be differentiated.
    with torch.inference_mode(False), torch.enable_grad():
        s, a = (x.repeat_interleave(samples, 0) for x in (s.detach(), a.detach()))
        chunk = max(1, _CHUNK_BYTES // (_saved_bytes(problem, policy, s[:1], a[:1]) * steps))
        parts = [
            _sobolev_rollouts(problem, policy, s_part, a_part, gamma, steps, generator)
            for s_part, a_part in zip(s.split(chunk), a.split(chunk))
        ]
    return torch.cat(parts).unflatten(0, (-1, samples))


def _sobolev_rollouts(
    problem: Problem, policy: Policy, s: Tensor, a: Tensor, gamma: float, steps: int, generator: torch.Generator | None
) -> Tensor:
    """One rollout from each row of ``s [n, S], a [n, A]``: ``[n, 1+S+A]``."""
    s, a = (x.clone().requires_grad_() for x in (s, a))
    returns = _rollout(problem, policy, s, a, gamma, steps, generator)
    return torch.cat([returns.detach().unsqueeze(-1), row_gradients(returns, (s, a))], -1)


def row_gradients(y: Tensor, leaves: Sequence[Tensor], keep_graph: bool = False) -> Tensor:
    """Derivatives of ``y [n]`` in the leaves ``[n, D_i]``, row by row: ``[n, sum D_i]``, zeros where it has none."""
    if not y.requires_grad:
        return torch.zeros_like(torch.cat(list(leaves), -1))
    # Rows do not mix, so the gradient of the sum is the gradient of each; of the leaves alone, so that the parameters
    # of policy and model receive none.
    gradients = torch.autograd.grad(y.sum(), leaves, retain_graph=keep_graph, materialize_grads=True)
    return torch.cat(gradients, -1)


def _rollout(
    problem: Problem, policy: Policy, s: Tensor, a: Tensor, gamma: float, steps: int, generator: torch.Generator | None
) -> Tensor:
    """Returns ``[n]`` of one rollout from each row of ``s [n, S], a [n, A]``, with their graph."""
    returns = torch.zeros_like(s[:, 0])
    alive = torch.ones_like(returns)
    for step in range(steps):
        if step:
            a = policy(s)
        eps = torch.randn(len(s), problem.noise_size, dtype=s.dtype, device=s.device, generator=generator)
        outcome = problem(s, a, eps)
        returns = returns + gamma**step * alive * outcome.r
        alive = alive * (1 - outcome.terminated)
        if not alive.any():
            break
        # A state after the end counts for nothing, but left to itself it might overflow, and 0 * inf is NaN.
        s = torch.where(alive.unsqueeze(-1) > 0, outcome.s_next, s)
    return returns


def _saved_bytes(problem: Problem, policy: Policy, s: Tensor, a: Tensor) -> int:
    """Bytes that autograd keeps for each step of one rollout, measured on copies of ``s [1, S], a [1, A]``."""
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    s, a = (x.repeat(_PROBED_ROLLOUTS, 1).requires_grad_() for x in (s, a))
    # A generator of its own: the probe must not move the noise of the rollouts.
    own = torch.Generator(s.device).manual_seed(0)
    with saved_tensors_hooks(keep, lambda x: x):
        _rollout(problem, policy, s, a, 0.5, 2, own)
    # Two steps, of which the first does not ask the policy, count as one.
    grows = [x.untyped_storage().nbytes() for x in kept.values() if x.numel() % _PROBED_ROLLOUTS == 0]
    return max(1, sum(grows) // _PROBED_ROLLOUTS)
