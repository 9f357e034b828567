"""Divergences and kernels as parts of a config: by class path, nested, and a user's own."""

from __future__ import annotations

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from dsob_pl.divergences import MMD, RBF, Divergence, EnergyDistance, Kernel, MaxSlicedMMD, ValueAnchored


class MeanDifference(Divergence):
    """A user's divergence, without annotations."""

    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor

    def __call__(self, x, y):  # type: ignore[no-untyped-def]
        return self.factor * (x.mean(-2) - y.mean(-2)).square().sum(-1)


class Cauchy(Kernel):
    """A user's kernel."""

    def profile(self, squared: Tensor) -> Tensor:
        return 1 / (1 + squared)


def configured(divergence: dict) -> Divergence:
    parser = ArgumentParser(parser_mode="omegaconf", exit_on_error=False)
    parser.add_argument("--divergence", type=Divergence)
    return parser.instantiate_classes(parser.parse_object({"divergence": divergence})).divergence


def test_nested_parts_by_class_path() -> None:
    room = "dsob_pl.divergences"
    kernel = {"class_path": f"{room}.RBF", "init_args": {"bandwidth": [1.0, 2.0]}}
    anchored = configured(
        {
            "class_path": f"{room}.ValueAnchored",
            "init_args": {
                "divergence": {
                    "class_path": f"{room}.MaxSlicedMMD",
                    "init_args": {"direction": "cross_fitted", "kernel": {"class_path": f"{room}.EnergyDistance"}},
                },
                "value_divergence": {"class_path": f"{room}.MMD", "init_args": {"kernel": kernel}},
                "weight": 0.5,
            },
        }
    )
    assert isinstance(anchored, ValueAnchored)
    assert isinstance(anchored.divergence, MaxSlicedMMD)
    assert isinstance(anchored.divergence.kernel, EnergyDistance)
    assert anchored.divergence.direction == "cross_fitted"
    assert isinstance(anchored.value_divergence, MMD)
    assert isinstance(anchored.value_divergence.kernel, RBF)
    assert anchored.value_divergence.kernel.bandwidths == (1.0, 2.0)


def test_parts_of_ones_own() -> None:
    own = configured({"class_path": f"{__name__}.MeanDifference", "init_args": {"factor": 3.0}})
    x, y = torch.zeros(2, 3, 1), torch.ones(2, 4, 1)
    assert own(x, y).tolist() == [3.0, 3.0]
    kernel = {"class_path": f"{__name__}.Cauchy"}
    mmd = configured({"class_path": "dsob_pl.divergences.MMD", "init_args": {"kernel": kernel}})
    assert mmd(x, y).tolist() == [1.0, 1.0]  # 1 + 1 - 2 * 1/2


@pytest.mark.parametrize("init_args", [{"estimator": "unbiassed"}, {"bandwidth": 3.0}, {"kernel": "Huber"}])
def test_a_config_that_does_not_fit_is_refused(init_args: dict) -> None:
    with pytest.raises(Exception, match=r"estimator|bandwidth|kernel"):
        configured({"class_path": "dsob_pl.divergences.MMD", "init_args": init_args})
