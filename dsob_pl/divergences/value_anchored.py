"""A divergence of whole vectors with an extra term on the return alone."""

from __future__ import annotations

from torch import Tensor

from dsob_pl.divergences.base import Divergence, check_samples, check_weight


class ValueAnchored(Divergence):
    """``divergence(x, y) + weight * value_divergence(x[..., :1], y[..., :1])``, component 0 being the return.

    In a joint divergence the return is one component among 1+A (or 1+S+A); this keeps it from being outvoted.

    Args:
        divergence: of whole vectors.
        value_divergence: of the return; by default the same as ``divergence``.
        weight: factor on the return's term.

    Raises:
        UsageError: negative weight.
    """

    def __init__(self, divergence: Divergence, value_divergence: Divergence | None = None, weight: float = 1.0) -> None:
        self.divergence = divergence
        self.value_divergence = divergence if value_divergence is None else value_divergence
        self.weight = check_weight("ValueAnchored.weight", weight)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """``(x [..., N, D], y [..., M, D]) -> [...]``."""
        check_samples("ValueAnchored", x, y)
        return self.divergence(x, y) + self.weight * self.value_divergence(x[..., :1], y[..., :1])

    def at_levels(self, tau: Tensor | None) -> ValueAnchored:
        """See :meth:`Divergence.at_levels`; both parts are told."""
        return ValueAnchored(self.divergence.at_levels(tau), self.value_divergence.at_levels(tau), self.weight)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """The same sum of the parts' objectives."""
        check_samples("ValueAnchored", x, y)
        value = self.value_divergence.objective(x[..., :1], y[..., :1])
        return self.divergence.objective(x, y) + self.weight * value
