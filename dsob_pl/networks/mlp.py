"""Multilayer perceptrons with a smooth activation, alone or as an ensemble evaluated in one batched product."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dsob_pl.errors import UsageError

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


def check_widths(hidden: Sequence[int]) -> None:
    """Raises UsageError where a hidden layer would have no unit."""
    if any(width < 1 for width in hidden):
        raise UsageError(f"hidden: expected widths of at least 1, got {list(hidden)}")


def with_slope(activation: nn.Module, z: Tensor) -> tuple[Tensor, Tensor]:
    """One of the activations above and its first derivative at ``z [...]``, both differentiable: ``[...], [...]``."""
    return _WITH_DERIVATIVE[type(activation)](z)


def ensemble_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """One batched product for E members: ``x [E, ..., in], weight [E, in, out], bias [E, 1, out] -> [E, ..., out]``.

    A leading dimension of 1 in x gives every member the same rows.
    """
    if weight.shape[-1] == 1:
        # A batched product by a single column, and its backward pass, take as long as one by sixty columns.
        column = weight.mT.reshape(weight.shape[0], *[1] * (x.dim() - 2), weight.shape[-2])
        product = (x * column).sum(-1, keepdim=True)
        return product if bias is None else product + bias.reshape(-1, *[1] * (x.dim() - 1))
    # Rows are laid out flat: one product per member, where broadcasting in `@` would make one for every transition.
    shape = (weight.shape[0], *x.shape[1:-1])
    rows = x.expand(*shape, x.shape[-1]).reshape(shape[0], math.prod(shape[1:]), x.shape[-1])
    product = torch.bmm(rows, weight) if bias is None else torch.baddbmm(bias, rows, weight)
    return product.reshape(*shape, weight.shape[-1])


class EnsembleLinear(nn.Module):
    """``E`` affine maps, one for each slab of rows, as one batched product: ``[E, ..., in] -> [E, ..., out]``.

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
        """``x [E, ..., in] -> [E, ..., out]``; a leading dimension of 1 gives every member the same rows."""
        return ensemble_product(x, self.weight, self.bias)


# Derivatives in the input are written out as sweeps of ordinary differentiable products, so that one more derivative
# (in the parameters) costs a single backward pass and needs neither `create_graph` nor a nested transform.


def value_and_slopes(layers: Sequence[EnsembleLinear], activation: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Layers with an activation between them: the output ``[E, ..., out]`` and the slopes of the activations.

    Args:
        layers: affine maps, from input to output.
        activation: one of those above.
        x: ``[E, ..., in]``.

    Returns:
        output, and ``act'`` at the pre-activations ``[E, ..., H]`` of all layers but the last.
    """
    first, *rest = layers
    z, slopes = first(x), []
    for layer in rest:
        h, slope = with_slope(activation, z)
        slopes.append(slope)
        z = layer(h)
    return z, slopes


def pull_back(weights: Sequence[Tensor], slopes: Sequence[Tensor], gradient: Tensor) -> Tensor:
    """A gradient in the output carried to the input, from last layer to first: one sweep for each row of it.

    Args:
        weights: ``[E, in, out]`` of the layers; columns of the input left out of the first are left out of the result.
        slopes: of :func:`value_and_slopes`; leading dimensions broadcast with those of the gradient.
        gradient: ``[E, ..., out]``.

    Returns:
        ``[E, ..., in]``.
    """
    *earlier, last = weights
    gradient = ensemble_product(gradient, last.mT)
    for weight, slope in zip(reversed(earlier), reversed(slopes)):
        gradient = ensemble_product(gradient * slope, weight.mT)
    return gradient


def jacobian(weights: Sequence[Tensor], slopes: Sequence[Tensor]) -> Tensor:
    """Derivative of every output in every input, from first layer to last: one sweep for each input.

    Args:
        weights: as in :func:`pull_back`, at least two of them.
        slopes: of :func:`value_and_slopes`.

    Returns:
        ``[E, ..., in, out]`` for slopes ``[E, ..., H]``.
    """
    first, *later = weights
    derivative = first.view(first.shape[0], *[1] * (slopes[0].dim() - 2), *first.shape[1:])
    for weight, slope in zip(later, slopes):
        derivative = ensemble_product(derivative * slope.unsqueeze(-2), weight)
    return derivative


class EnsembleMLP(nn.Module):
    """``E`` multilayer perceptrons of one shape: ``x [E, ..., in] -> [E, ..., out]``, member e maps slab e.

    Args:
        members: number of networks E.
        in_features: input size.
        hidden: widths of the hidden layers; without any it is an affine map.
        out_features: output size.
        activation: name of a twice differentiable activation.

    Raises:
        UsageError: a width below 1.
    """

    def __init__(
        self, members: int, in_features: int, hidden: Sequence[int], out_features: int, activation: str = "silu"
    ) -> None:
        super().__init__()
        check_widths(hidden)
        widths = [in_features, *hidden, out_features]
        self._layers = nn.ModuleList(EnsembleLinear(members, a, b) for a, b in itertools.pairwise(widths))
        self.activation = activation_by_name(activation)

    @property
    def layers(self) -> list[EnsembleLinear]:
        """The affine maps, from input to output."""
        return list(self._layers)  # type: ignore[arg-type]

    @property
    def weights(self) -> list[Tensor]:
        """Their matrices ``[E, in, out]``."""
        return [layer.weight for layer in self.layers]

    def forward(self, x: Tensor) -> Tensor:
        """``x [E, ..., in] -> [E, ..., out]``."""
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x))
        return last(x)

    def value_and_input_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scalar output and its derivative in the input, written out, for networks with one output.

        Args:
            x: ``[E, ..., in]``.

        Returns:
            value ``[E, ...]`` and gradient ``[E, ..., in]``.
        """
        value, slopes = value_and_slopes(self.layers, self.activation, x)
        gradient = pull_back(self.weights, slopes, one_per_member(value))
        return value.squeeze(-1), gradient.expand(*value.shape[:-1], x.shape[-1])


def one_per_member(value: Tensor) -> Tensor:
    """Derivative of a scalar output ``value [E, ..., 1]`` in itself: ``[E, 1, ..., 1]`` with as many dimensions.

    Not a one for every row: up to the first slope the backward sweep is the same for all rows of a member.
    """
    return value.new_ones(value.shape[0], *[1] * (value.dim() - 1))


class MLP(nn.Sequential):
    """One multilayer perceptron: ``x [..., in] -> [..., out]``.

    Args:
        in_features: input size.
        hidden: widths of the hidden layers.
        out_features: output size.
        activation: name of a twice differentiable activation.

    Raises:
        UsageError: a width below 1.
    """

    def __init__(self, in_features: int, hidden: Sequence[int], out_features: int, activation: str = "silu") -> None:
        check_widths(hidden)
        widths = [in_features, *hidden]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b), activation_by_name(activation)]
        super().__init__(*layers, nn.Linear(widths[-1], out_features))

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in] -> [..., out]``."""
        # Rows are laid out flat: under vmap a layer is then one batched product, where more dimensions would have its
        # weights copied for each of them.
        return super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1]) if x.dim() > 2 else super().forward(x)
