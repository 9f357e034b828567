"""Target policy smoothing: the target's next action is perturbed, so that a narrow error of the critic is averaged."""

from __future__ import annotations

from torch import Tensor

from dsob_pl.bellman.target import Policy

# Fujimoto et al. 2018, for actions in [-1, 1].
_LONGEST = 0.5


def smoothed_policy(policy: Policy, noise: Tensor, std: float) -> Policy:
    """``clip(pi(s') + clip(std * noise, -0.5, 0.5), -1, 1)`` (TD3, Fujimoto et al. 2018, algorithm 1).

    The noise is a constant: a Sobolev target's derivative goes through pi(s'), and is 0 in components that the outer
    clip holds at a bound.

    Args:
        policy: target policy ``[..., S] -> [..., A]``.
        noise: standard normal, broadcasts to the actions ``[..., A]``.
        std: standard deviation before clipping.
    """
    perturbation = (std * noise).clamp(-_LONGEST, _LONGEST)
    return lambda s: (policy(s) + perturbation).clamp(-1, 1)
