"""Divergences between N predicted and M target vectors: ``(x [..., N, D], y [..., M, D]) -> [...]``.

- ``MMD``: squared maximum mean discrepancy, unbiased or biased. The law of whole vectors.
- ``MaxSlicedMMD``: the same along the direction of largest difference, which is shared by the batch, fitted for each
  transition, or cross-fitted. The paper's divergence.
- ``Huber``, ``SobolevHuber``, ``SquaredError``: regression losses of deterministic critics.
- ``SlicedWasserstein``, ``MaxSlicedWasserstein``: optimal transport between projections.
- ``QuantileHuber``: quantile critics; the return alone (D = 1).
- ``ValueAnchored``: any of these plus a term on the return alone.

Kernels ``(u [..., N, D], v [..., M, D]) -> [..., N, M]``: ``Multiquadric``, ``EnergyDistance``, ``RBF``. Parts of one's
own are subclasses of ``Divergence`` (give ``__call__``) and ``Kernel`` (give ``profile``).
``mmd_squared``, ``fit_direction``, ``project`` and ``quantile_huber`` are the functions behind the classes. All are
pure, keep no state, take float32 or float64, and have finite first and second derivatives, coinciding samples included.
"""

from dsob_pl.divergences.base import Divergence
from dsob_pl.divergences.huber import Huber, SobolevHuber, SquaredError
from dsob_pl.divergences.kernels import RBF, EnergyDistance, Kernel, Multiquadric
from dsob_pl.divergences.max_sliced import MaxSlicedMMD, fit_direction, project
from dsob_pl.divergences.mmd import MMD, mmd_squared
from dsob_pl.divergences.quantile import QuantileHuber, quantile_huber
from dsob_pl.divergences.value_anchored import ValueAnchored
from dsob_pl.divergences.wasserstein import MaxSlicedWasserstein, SlicedWasserstein

__all__ = [
    "MMD",
    "RBF",
    "Divergence",
    "EnergyDistance",
    "Huber",
    "Kernel",
    "MaxSlicedMMD",
    "MaxSlicedWasserstein",
    "Multiquadric",
    "QuantileHuber",
    "SlicedWasserstein",
    "SobolevHuber",
    "SquaredError",
    "ValueAnchored",
    "fit_direction",
    "mmd_squared",
    "project",
    "quantile_huber",
]
