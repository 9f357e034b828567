"""Multilayer perceptrons with a smooth activation, alone or as an ensemble evaluated in one batched product."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

# A Sobolev loss differentiates the network twice (in the input, then in the parameters), so the activation must be C2:
# with ReLU the second derivative vanishes almost everywhere and the gradient part of the loss would train nothing.
ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "softplus": nn.Softplus, "tanh": nn.Tanh, "gelu": nn.GELU}


def _silu(z: Tensor) -> tuple[Tensor, Tensor]:
    gate = z.sigmoid()
    value = z * gate
    return value, gate + value * (1 - gate)


def _softplus(z: Tensor) -> tuple[Tensor, Tensor]:
    return nn.functional.softplus(z), z.sigmoid()


def _tanh(z: Tensor) -> tuple[Tensor, Tensor]:
    value = z.tanh()
    return value, 1 - value.square()


def _gelu(z: Tensor) -> tuple[Tensor, Tensor]:
    cdf = torch.special.ndtr(z)
    return z * cdf, cdf + z * torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)


# Activation and its first derivative, both as differentiable functions.
_WITH_DERIVATIVE: dict[type[nn.Module], Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    nn.SiLU: _silu,
    nn.Softplus: _softplus,
    nn.Tanh: _tanh,
    nn.GELU: _gelu,
}


def activation_by_name(name: str) -> nn.Module:
    """A twice differentiable activation: silu, softplus, tanh or gelu. Raises ValueError for any other name."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: '{name}' is not one of {', '.join(ACTIVATIONS)}, the twice differentiable ones")
    return ACTIVATIONS[name]()


class EnsembleLinear(nn.Module):
    """``E`` affine maps, one for each slab of rows, evaluated as one batched product: ``[E, R, in] -> [E, R, out]``.

    Args:
        members: number of maps E.
        in_features: size of the last input dimension.
        out_features: size of the last output dimension.
    """

    def __init__(self, members: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(members, in_features, out_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """``x [E, R, in] -> [E, R, out]`` for R rows."""
        return torch.baddbmm(self.bias, x, self.weight)


class EnsembleMLP(nn.Module):
    """``E`` multilayer perceptrons of one shape: ``x [E, ..., in] -> [E, ..., out]``, member e maps slab e.

    Args:
        members: number of networks E.
        in_features: input size.
        hidden: widths of the hidden layers.
        out_features: output size.
        activation: name of a twice differentiable activation.
    """

    def __init__(
        self, members: int, in_features: int, hidden: Sequence[int], out_features: int, activation: str = "silu"
    ) -> None:
        super().__init__()
        widths = [in_features, *hidden, out_features]
        self._layers = nn.ModuleList(EnsembleLinear(members, a, b) for a, b in itertools.pairwise(widths))
        self.activation = activation_by_name(activation)

    @property
    def layers(self) -> list[EnsembleLinear]:
        """The affine maps, from input to output."""
        return list(self._layers)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """``x [E, ..., in] -> [E, ..., out]``."""
        *hidden, last = self.layers
        rows = x.flatten(1, -2)
        for layer in hidden:
            rows = self.activation(layer(rows))
        return last(rows).reshape(*x.shape[:-1], -1)

    def value_and_input_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scalar output and its derivative in the input, written out, for networks with one output.

        The backward sweep is made of ordinary differentiable products, so one more derivative (in the parameters)
        costs a single backward pass and needs neither ``create_graph`` nor a nested transform.

        Args:
            x: ``[E, ..., in]``.

        Returns:
            value ``[E, ...]`` and gradient ``[E, ..., in]``.
        """
        both = _WITH_DERIVATIVE[type(self.activation)]
        *hidden, last = self.layers
        rows = x.flatten(1, -2)
        slopes = []
        for layer in hidden:
            rows, slope = both(layer(rows))
            slopes.append(slope)
        value = last(rows)
        gradient = last.weight.mT  # [E, 1, H]; [E, R, H] after the first slope
        for layer, slope in zip(reversed(hidden), reversed(slopes)):
            gradient = (gradient * slope) @ layer.weight.mT
        return value.reshape(x.shape[:-1]), gradient.reshape(x.shape)


class MLP(nn.Sequential):
    """One multilayer perceptron: ``x [..., in] -> [..., out]``.

    Args:
        in_features: input size.
        hidden: widths of the hidden layers.
        out_features: output size.
        activation: name of a twice differentiable activation.
    """

    def __init__(self, in_features: int, hidden: Sequence[int], out_features: int, activation: str = "silu") -> None:
        widths = [in_features, *hidden]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b), activation_by_name(activation)]
        super().__init__(*layers, nn.Linear(widths[-1], out_features))
