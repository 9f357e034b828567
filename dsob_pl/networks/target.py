"""Target networks: slowly moving copies (Polyak averaging)."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def target_copy(module: Module) -> Module:
    """A copy of ``module`` with the same parameters, none of which require gradients."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def polyak_update(target: nn.Module, source: nn.Module, tau: float) -> None:
    """``target <- (1 - tau) target + tau source`` for every parameter, in place; buffers are copied.

    Args:
        target: slow copy.
        source: network being trained, of the same structure.
        tau: step in [0, 1]; 1 copies.
    """
    parameters: list[torch.Tensor] = list(target.parameters())
    if parameters:
        torch._foreach_lerp_(parameters, list(source.parameters()), tau)
    for slow, current in zip(target.buffers(), source.buffers()):
        slow.copy_(current)
