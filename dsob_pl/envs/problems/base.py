"""The protocol of a problem with known, differentiable, stochastic dynamics."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class Outcome(NamedTuple):
    """One step of a problem.

    Attributes:
        s_next: ``[..., S]``, differentiable in s and a.
        r: ``[...]``, differentiable in s and a.
        terminated: 1.0 where the task ended, else 0.0 ``[...]``.
    """

    s_next: Tensor
    r: Tensor
    terminated: Tensor


class Problem(nn.Module):
    """A Markov decision problem as a batched torch model, reparameterised: all randomness is standard normal input.

    With the noise held fixed a step is a differentiable function of (s, a), so that returns along whole rollouts can
    be differentiated: the ground truth of a Sobolev critic. Actions are in [-1, 1] in the environment that belongs to
    a problem; the equations themselves do not clip. Tensors are buffers that are not saved with a checkpoint.

    Attributes:
        observation_size: S.
        action_size: A.
        noise_size: standard normal numbers that a step takes.
    """

    observation_size: int
    action_size: int
    noise_size: int

    def forward(self, s: Tensor, a: Tensor, eps: Tensor) -> Outcome:
        """``s [..., S], a [..., A], eps [..., noise_size] -> Outcome``."""
        raise NotImplementedError

    def initial_state(self, eps: Tensor) -> Tensor:
        """First states from standard normal numbers: ``eps [..., S] -> s [..., S]``."""
        raise NotImplementedError

    def infer_noise(self, s: Tensor, a: Tensor, r: Tensor, s_next: Tensor) -> Tensor | None:
        """The noise ``[..., noise_size]`` of a step that was observed; None where a step does not determine it."""
        return None
