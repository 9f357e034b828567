"""Risk measures of return samples: ``returns [..., n] -> value [...]``, the larger the better.

- ``Mean``: risk-neutral; what a deterministic critic can give, too.
- ``CVaR``: mean of the worst (or best) part of the outcomes.
- ``Wang``, ``Power``: distortions of the levels; any other is a subclass of ``Distortion`` (give ``distort``).
- ``Quantile``: one quantile.
- ``MeanStd``: mean minus a multiple of the standard deviation.
- ``Entropic``: certainty equivalent of exponential utility.

Each is the measure of the samples' own law, every sample having probability 1/n. ``weights`` are the derivatives of the
value in the samples: where samples carry their gradients, ``sum_i weights_i dZ_i/da`` is the gradient of the measure.
Parameters have one sign in the whole room: more is more averse, less than 0 (where that can be) is risk-seeking.
All are pure, keep no state, and take ``torch.func`` transforms, ``torch.compile``, float32 and float64. Measures of
one's own are subclasses of ``RiskMeasure`` (give ``weights``).
"""

from dsob_pl.risk.base import RiskMeasure
from dsob_pl.risk.distortion import CVaR, Distortion, Power, Quantile, Wang
from dsob_pl.risk.moments import Entropic, Mean, MeanStd

__all__ = ["CVaR", "Distortion", "Entropic", "Mean", "MeanStd", "Power", "Quantile", "RiskMeasure", "Wang"]
