"""Deterministic policies."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dsob_pl.networks.mlp import MLP


class DeterministicPolicy(nn.Module):
    """Deterministic policy ``pi(s) = tanh(MLP(s))``: ``s [..., S] -> a [..., A]`` in [-1, 1].

    Args:
        observation_size: S.
        action_size: A.
        hidden: widths of the hidden layers.
        activation: name of a twice differentiable activation; its Jacobian is part of the Sobolev target.
    """

    def __init__(
        self, observation_size: int, action_size: int, hidden: Sequence[int] = (256, 256), activation: str = "silu"
    ) -> None:
        super().__init__()
        self.mlp = MLP(observation_size, hidden, action_size, activation)

    def forward(self, s: Tensor) -> Tensor:
        """``s [..., S] -> a [..., A]``."""
        return self.mlp(s).tanh()
