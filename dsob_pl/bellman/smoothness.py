"""A soft bound on the Jacobians of world model and policy: what the Bellman operator's contraction is made of."""

from __future__ import annotations

from torch import Tensor

from dsob_pl.bellman.operator import StepJacobians, spectral_norm
from dsob_pl.bellman.target import Policy, Step


def operator_norms(step: Step, policy: Policy, s: Tensor, a: Tensor, eps: Tensor) -> Tensor:
    """``||K||_2`` with ``K = [ds'/ds ds'/da]^T [I (dpi/ds')^T]``, the map of next to present gradients.

    Args:
        step: world model.
        policy: policy that acts at s'.
        s: ``[R, S]``; not differentiated.
        a: ``[R, A]``; likewise.
        eps: ``[R, noise_size]``.

    Returns:
        ``[R]``, differentiable in the parameters of ``step`` and ``policy``. Costs S+2 backward passes through the
        model, A through the policy and a singular value decomposition of size S+A for each row.
    """
    return spectral_norm(StepJacobians(step, policy, s, a, eps).linear_part())


def jacobian_penalty(step: Step, policy: Policy, s: Tensor, a: Tensor, eps: Tensor, bound: float) -> Tensor:
    """Mean of ``max(||K||_2 - bound, 0)^2`` over rows of (s, a), a soft spectral bound.

    The Bellman operator contracts where ``gamma ||K||_2 < 1`` everywhere, so a useful bound is below ``1 / gamma``.
    What this does and does not cover:

    - K is measured with the continuation c left out. The operator carries ``gamma c K``, so where an episode may end
      the penalty asks for more than contraction needs.
    - The term ``gamma G' dc/d(s,a)`` of a differentiated termination is not part of K (see :func:`gamma_kappa`).
    - It is a penalty at the rows given, not a bound at all states, and in the units of s and a that the networks see.
    - Small ``||K||_2`` is sufficient, not necessary: a stable loop may have ``||K||_2`` above 1 in one step. True
      dynamics with large Jacobians are then fitted worse.

    Args:
        step: world model.
        policy: policy that acts at s'; pass one whose parameters require no gradient to bound the model alone.
        s: ``[R, S]``.
        a: ``[R, A]``.
        eps: ``[R, noise_size]``.
        bound: norm up to which nothing is asked.

    Returns:
        scalar, differentiable in the parameters of ``step`` and ``policy``.
    """
    return (operator_norms(step, policy, s, a, eps) - bound).relu().square().mean()
