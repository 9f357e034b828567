"""True joint samples of the return and its gradients, and how far a learned law is from them.

- ``true_returns``: Monte-Carlo with autograd through whole rollouts of a problem with known dynamics.
- ``scores``: a critic's samples against them. ``model_scores``: a world model against the problem itself.
- ``truth_figure``: learned against true samples at a few states.
- ``GroundTruth``: the callback that does all of this along a fit.
- ``Score``: the callback that puts evaluations on a scale from staying put to the best policy.
"""

from dsob_pl.ground_truth.callback import GroundTruth
from dsob_pl.ground_truth.figure import truth_figure
from dsob_pl.ground_truth.model_scores import model_scores
from dsob_pl.ground_truth.rollout import horizon_of, true_returns
from dsob_pl.ground_truth.score import Score
from dsob_pl.ground_truth.scores import scores

__all__ = ["GroundTruth", "Score", "horizon_of", "model_scores", "scores", "true_returns", "truth_figure"]
