"""Regression losses over all pairs of predicted and target samples: Huber and squared error.

They are the losses of deterministic critics (N = 1). With more samples they pull every prediction to one point, the
law's centre, and are divergences only in that sense: zero when all samples of both sets coincide.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from dsob_pl.divergences.base import Divergence, check_choice, check_positive, check_samples, check_weight
from dsob_pl.divergences.kernels import squared_distances

GradientPart = Literal["norm", "componentwise"]


def huber(squared_error: Tensor, threshold: float) -> Tensor:
    """Huber's function of an error e, given e^2: ``e^2 / 2`` up to the threshold d, ``d (|e| - d/2)`` beyond.

    Written in e^2 so that the error may be the norm of a vector and still have a derivative, 0, at 0.
    """
    size = squared_error.clamp_min(threshold**2).sqrt()
    return torch.where(squared_error <= threshold**2, squared_error / 2, threshold * (size - threshold / 2))


class Huber(Divergence):
    """Huber loss of the Euclidean distance of whole vectors: ``mean_ij huber(|x_i - y_j|)``.

    Args:
        threshold: error at which the loss turns from quadratic to linear, in units of the samples (Huber 1964).

    Raises:
        UsageError: threshold not positive.
    """

    def __init__(self, threshold: float = 1.0) -> None:
        self.threshold = check_positive("Huber.threshold", threshold)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """``(x [..., N, D], y [..., M, D]) -> [...]``."""
        check_samples("Huber", x, y)
        return huber(squared_distances(x, y), self.threshold).mean((-2, -1))


class SobolevHuber(Divergence):
    """Huber loss of the value plus that of the gradient: ``mean_ij huber(dZ) + weight * huber(|dG|)``.

    Z is component 0, G the others. 'norm' is the loss of MAGE (D'Oro and Jaskowski 2020): one Huber function of the
    norm of the gradient's error. 'componentwise' sums one of each component's error. Without G the value remains.

    Args:
        threshold: error at which each term turns from quadratic to linear, in units of the samples.
        gradient_weight: factor on the gradient's term.
        gradient: 'norm' or 'componentwise'.

    Raises:
        UsageError: threshold not positive, weight negative, unknown gradient part.
    """

    def __init__(self, threshold: float = 1.0, gradient_weight: float = 1.0, gradient: GradientPart = "norm") -> None:
        check_choice("SobolevHuber.gradient", gradient, get_args(GradientPart))
        self.threshold = check_positive("SobolevHuber.threshold", threshold)
        self.gradient_weight = check_weight("SobolevHuber.gradient_weight", gradient_weight)
        self.gradient = gradient

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """``(x [..., N, D], y [..., M, D]) -> [...]``."""
        check_samples("SobolevHuber", x, y)
        value, gradient = _squared_errors(x, y)
        if self.gradient == "norm":
            gradient = gradient.sum(-1, keepdim=True)
        gradient_loss = huber(gradient, self.threshold).sum(-1)
        return (huber(value, self.threshold) + self.gradient_weight * gradient_loss).mean((-2, -1))


class SquaredError(Divergence):
    """``mean_ij value_weight * dZ^2 + gradient_weight * |dG|^2``, Z being component 0 and G the others. No factor 1/2.

    Args:
        value_weight: factor on the squared error of the return.
        gradient_weight: factor on the squared norm of the gradient's error.

    Raises:
        UsageError: a negative weight.
    """

    def __init__(self, value_weight: float = 1.0, gradient_weight: float = 1.0) -> None:
        self.value_weight = check_weight("SquaredError.value_weight", value_weight)
        self.gradient_weight = check_weight("SquaredError.gradient_weight", gradient_weight)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """``(x [..., N, D], y [..., M, D]) -> [...]``."""
        check_samples("SquaredError", x, y)
        value, gradient = _squared_errors(x, y)
        return (self.value_weight * value + self.gradient_weight * gradient.sum(-1)).mean((-2, -1))


def _squared_errors(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of all pairs, of the value ``[..., N, M]`` and of the gradient's components ``[..., N, M, D-1]``."""
    squared = (x.unsqueeze(-2) - y.unsqueeze(-3)).square()
    return squared[..., 0], squared[..., 1:]
