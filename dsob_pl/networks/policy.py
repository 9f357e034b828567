"""Deterministic policies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dsob_pl.errors import UsageError
from dsob_pl.networks.mlp import MLP


class DeterministicPolicy(nn.Module):
    """Deterministic policy ``pi(s) = tanh(x)``, ``x = MLP(s)``: ``s [..., S] -> a [..., A]`` in [-1, 1].

    With ``output_limit`` l it is ``tanh(x / sqrt(1 + mean(x^2) / l^2))``: the root mean square of what the tangent is
    given stays below l, and with it the policy can be moved again where its actions have come close to -1 or 1 early.
    That is the output normalisation of Wang et al. (2020, *Striving for Simplicity and Performance in Off-Policy DRL*),
    who divide by the mean size where that is above 1, made smooth: the policy's Jacobian is part of the Sobolev target.

    Args:
        observation_size: S.
        action_size: A.
        hidden: widths of the hidden layers.
        activation: name of a twice differentiable activation; its Jacobian is part of the Sobolev target.
        output_limit: l above 0; all components together reach tanh(l) at most (2: 0.96), one alone more. None is
            without.

    Raises:
        UsageError: a limit that is not a finite number above 0, or a width below 1.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden: Sequence[int] = (256, 256),
        activation: str = "silu",
        output_limit: float | None = None,
    ) -> None:
        super().__init__()
        if output_limit is not None and not (math.isfinite(output_limit) and output_limit > 0):
            raise UsageError(
                f"model.policy: output_limit: expected a finite number above 0 or null, got {output_limit}"
            )
        self.output_limit = output_limit
        self.mlp = MLP(observation_size, hidden, action_size, activation)

    def forward(self, s: Tensor) -> Tensor:
        """``s [..., S] -> a [..., A]``."""
        x = self.mlp(s)
        if self.output_limit is not None:
            x = x * (1 + x.square().mean(-1, keepdim=True) / self.output_limit**2).rsqrt()
        return x.tanh()


class LinearPolicy(nn.Module):
    """Fixed linear policy ``pi(s) = K s``, or ``tanh(K s)``: ``s [..., S] -> a [..., A]``; nothing to train.

    For the evaluation of a policy with a known answer. It sees the observations that networks see: where these are
    normalised, K applies to normalised observations.

    Args:
        observation_size: S.
        action_size: A.
        gain: K ``[A, S]``, as nested lists; a number stands for that multiple of the identity, 0 for the zero policy.
        squash: take the hyperbolic tangent, which keeps actions in [-1, 1].

    Raises:
        UsageError: a gain of the wrong shape or not finite, or a number other than 0 where S and A differ.
    """

    gain: Tensor

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        gain: Sequence[Sequence[float]] | float = 0.0,
        squash: bool = False,
    ) -> None:
        super().__init__()
        shape = [action_size, observation_size]
        option = f"model.policy: LinearPolicy.gain: expected shape {shape} (actions, observations)"
        try:
            k = torch.as_tensor(gain, dtype=torch.get_default_dtype()).detach().clone()
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"{option}, got {gain!r}") from error
        if k.dim() == 0:
            if k != 0 and action_size != observation_size:
                raise UsageError(f"{option}, since a number needs as many actions as observations; got {gain!r}")
            k = k * torch.eye(action_size, observation_size)
        if list(k.shape) != shape:
            raise UsageError(f"{option}, got {list(k.shape)}")
        if not k.isfinite().all():
            raise UsageError(f"{option} of finite numbers, got {gain!r}")
        self.squash = squash
        self.register_buffer("gain", k)

    def forward(self, s: Tensor) -> Tensor:
        """``s [..., S] -> a [..., A]``."""
        a = nn.functional.linear(s, self.gain)
        return a.tanh() if self.squash else a
