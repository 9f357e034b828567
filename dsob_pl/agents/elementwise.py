"""Whether an optimizer may be shared by parameters that have nothing to do with one another."""

from __future__ import annotations

import torch
from lightning.pytorch.cli import OptimizerCallable

from dsob_pl.errors import UsageError


def check_elementwise(optimizer: OptimizerCallable, option: str) -> None:
    """Raises UsageError where a row of a matrix moves differently among other rows than by itself.

    It is tried: three steps on a row beside one with gradients a thousand times as long, and on the row alone. Adam,
    SGD, RMSprop and their like treat every number by itself; LBFGS, Muon and Adafactor do not.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 6, generator=generator)
    together, alone = torch.nn.Parameter(rows.clone()), torch.nn.Parameter(rows[1:].clone())
    refused = f"{option}: with many seeds an optimizer must treat every number by itself (Adam, SGD, RMSprop, ...)"
    both = [optimizer([together]), optimizer([alone])]
    name = type(both[0]).__name__
    try:
        for _ in range(3):
            gradient = torch.randn(2, 6, generator=generator) * torch.tensor([[1e3], [1.0]])
            together.grad, alone.grad = gradient, gradient[1:].clone()
            for each in both:
                each.step()
    except TypeError as error:  # a step that asks for a closure
        raise UsageError(f"{refused}; {name} needs a closure") from error
    if not torch.allclose(together[1:], alone, rtol=1e-4, atol=1e-6):
        raise UsageError(f"{refused}; {name} does not")
