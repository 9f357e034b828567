"""The Sobolev Bellman operator written out as an affine map of the next sample, from explicit Jacobians.

Training never calls this: it differentiates the sampled target instead, which costs one backward pass in place of
Jacobians. Here every factor of the equation stands by itself, so that the two can be compared and gamma*kappa measured.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dsob_pl.bellman.target import Policy, Step


class StepJacobians:
    """Jacobians of one imagined step at rows of (s, a), noise held fixed.

    Attributes:
        s_next: ``[R, S]``.
        r: ``[R]``.
        continuation: ``[R]``.
        transition: ds'/d(s,a) ``[R, S, S+A]``.
        reward: dr/d(s,a) ``[R, S+A]``.
        termination: dc/d(s,a) ``[R, S+A]``; zero where the model gives a constant.
        policy: dpi/ds at s' ``[R, A, S]``.
    """

    def __init__(self, step: Step, policy: Policy, s: Tensor, a: Tensor, eps: Tensor) -> None:
        size = s.shape[-1]

        def flat(sa: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
            prediction = step(sa[:size], sa[size:], eps)
            out = torch.cat([prediction.s_next, prediction.r[None], prediction.continuation[None]])
            return out, out

        sa = torch.cat([s, a], -1).detach()
        jacobian, values = torch.func.vmap(torch.func.jacrev(flat, has_aux=True))(sa, eps)
        self.s_next, self.r, self.continuation = values[:, :size], values[:, size], values[:, size + 1]
        self.transition, self.reward, self.termination = jacobian[:, :size], jacobian[:, size], jacobian[:, size + 1]
        self.policy = torch.func.vmap(torch.func.jacrev(policy))(self.s_next)

    def linear_part(self) -> Tensor:
        """``K = [ds'/ds ds'/da]^T [I (dpi/ds')^T]``, the map of next to present gradients ``[R, S+A, S+A]``."""
        rows, _, size = self.policy.shape
        identity = torch.eye(size, dtype=self.s_next.dtype, device=self.s_next.device).expand(rows, size, size)
        return self.transition.mT @ torch.cat([identity, self.policy.mT], -1)


def affine_backup(
    step: Step,
    policy: Policy,
    next_samples: Callable[[Tensor, Tensor], Tensor],
    s: Tensor,
    a: Tensor,
    eps: Tensor,
    gamma: float,
) -> Tensor:
    """``[G, dG/ds, dG/da]`` of the backup as the affine map of the next state-action sample.

    Args:
        step: world model.
        policy: target policy.
        next_samples: ``(s', a') -> [R, 1+S+A]``, the next Sobolev samples.
        s: ``[R, S]``.
        a: ``[R, A]``.
        eps: ``[R, noise_size]``.
        gamma: discount.

    Returns:
        ``[R, 1+S+A]``.
    """
    j = StepJacobians(step, policy, s, a, eps)
    z = next_samples(j.s_next, policy(j.s_next))
    value, gradient = z[:, :1], z[:, 1:]
    c = j.continuation.unsqueeze(-1)
    returns = j.r.unsqueeze(-1) + gamma * c * value
    carried = torch.einsum("rij,rj->ri", j.linear_part(), gradient)
    return torch.cat([returns, j.reward + gamma * (c * carried + value * j.termination)], -1)


def spectral_norm(k: Tensor) -> Tensor:
    """Largest singular value ``||K||_2``: ``[..., n, n] -> [...]``, NaN for a matrix that is not finite.

    Its derivative is ``u v^T`` with the top singular vectors, averaged over them where singular values coincide: finite
    for every matrix, K = 0 and matrices of low rank included.
    """
    # The decomposition raises on NaN; a run that diverges is to end where its loss is checked.
    k = k.float() if k.dtype in (torch.bfloat16, torch.float16) else k  # for which there is no decomposition
    broken = ~k.isfinite().all(-1).all(-1)
    norm = torch.linalg.matrix_norm(k.masked_fill(broken[..., None, None], 0.0), ord=2)
    return norm.masked_fill(broken, torch.nan)


def gamma_kappa(step: Step, policy: Policy, s: Tensor, a: Tensor, eps: Tensor, gamma: float) -> Tensor:
    """``gamma * max(1, ||K||_2)`` at rows of (s, a): below 1 everywhere, the operator contracts.

    Two things are left out. The continuation, at most 1, which multiplies K. And, where termination is differentiated,
    the term ``gamma G' dc/d(s,a)`` of the gradient parts: it leads from the return to the gradients and never back, so
    that (if bounded) it vanishes when the gradient parts are measured in a large enough unit. The fixed point stays
    unique, but the distance in the units of the networks may first grow.

    Args:
        step: world model.
        policy: target policy.
        s: ``[R, S]``.
        a: ``[R, A]``.
        eps: ``[R, noise_size]``.
        gamma: discount.

    Returns:
        ``[R]``; its maximum over many rows estimates gamma*kappa, from below.
    """
    return gamma * spectral_norm(StepJacobians(step, policy, s, a, eps).linear_part()).clamp_min(1.0)


def gamma_kappa_statistics(factors: Tensor) -> dict[str, Tensor]:
    """What is logged of ``gamma_kappa``'s ``factors [R]``: maximum, 0.9 quantile and median (0-d), by logged name.

    The maximum alone decides about the bound, and a single odd row sets it; the quantiles say how odd.
    """
    median, p90 = factors.quantile(torch.tensor([0.5, 0.9], dtype=factors.dtype, device=factors.device))
    return {
        "bellman/gamma_kappa": factors.max(),
        "bellman/gamma_kappa_p90": p90,
        "bellman/gamma_kappa_median": median,
    }
