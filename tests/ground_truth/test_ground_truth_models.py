"""Scores of a world model against its problem, and the figure of learned against true samples."""

import math

import pytest
import torch

from dsob_pl.envs.problems.base import Outcome, Problem
from dsob_pl.ground_truth import model_scores, truth_figure
from dsob_pl.world_models import Prediction, WorldModel


class Linear(Problem):
    """``s' = 0.5 s + a + 0.3 eps_1``, ``r = s a + 0.2 eps_2``."""

    observation_size, action_size, noise_size = 1, 1, 2

    def forward(self, s, a, eps):
        r = (s * a).squeeze(-1) + 0.2 * eps[..., 1]
        return Outcome(0.5 * s + a + 0.3 * eps[..., :1], r, torch.zeros_like(r))


class Multiplied(Problem):
    """``s' = (1 + eps) s + a``, ``r = 0``: its Jacobian is random."""

    observation_size = action_size = noise_size = 1

    def forward(self, s, a, eps):
        return Outcome((1 + eps) * s + a, torch.zeros_like(s[..., 0]), torch.zeros_like(s[..., 0]))


class Model(WorldModel):
    """The problem itself in the networks' space, its noise times ``noise``, ``tilt * a`` added to s'."""

    def __init__(self, problem, noise=1.0, tilt=0.0):
        super().__init__(1, 1)
        self.problem, self.noise, self.tilt = problem, noise, tilt
        self.noise_size = problem.noise_size
        self.normalizer.update(3 + 5 * torch.randn(1000, 1))
        self.reward_scale.factor.fill_(0.25)
        self.double()

    def forward(self, s, a, eps):
        outcome = self.problem(self.normalizer.inverse(s), a, self.noise * eps)
        s_next = self.normalizer(outcome.s_next + self.tilt * a)
        return Prediction(s_next, self.reward_scale(outcome.r), 1 - outcome.terminated)


def pairs(rows):
    return torch.randn(rows, 1).double(), torch.rand(rows, 1).double() * 2 - 1


def score(problem, rows=16, samples=300, **options):
    return model_scores(Model(problem, **options), problem, *pairs(rows), samples, torch.Generator().manual_seed(1))


def test_the_right_model_scores_zero():
    result = score(Linear())
    assert set(result) == {"energy_distance", "jacobian_error"}
    assert result["jacobian_error"] < 1e-6
    assert abs(result["energy_distance"]) < 5e-3


def test_sampling_variance_of_a_random_jacobian_is_subtracted():
    # ds'/ds = 1 + eps: with M = 10 the difference of two means has variance 0.2, the squared size of J is 2.
    result = score(Multiplied(), rows=400, samples=10)
    assert result["jacobian_error"] ** 2 < 0.02
    assert score(Multiplied(), rows=400, samples=10, tilt=0.5)["jacobian_error"].item() == pytest.approx(
        math.sqrt(0.25 / 2), abs=0.05
    )


def test_a_model_without_noise_is_found_out_by_its_law_alone():
    result = score(Linear(), noise=0.0)
    # Two independent standard normal components against their mean: (2 - sqrt 2) E|Y|, E|Y| = sqrt(pi / 2).
    assert result["energy_distance"].item() == pytest.approx((2 - math.sqrt(2)) * math.sqrt(math.pi / 2), abs=0.03)
    assert result["jacobian_error"] < 1e-6


def test_a_wrong_jacobian_has_its_hand_computed_error():
    # J = [[0.5, 1], [a, s]], wrong by 0.7 in one entry, the same at every row.
    s, a = pairs(16)
    result = model_scores(Model(Linear(), tilt=0.7), Linear(), s, a, 50)
    size = (0.25 + 1 + a**2 + s**2).sum()
    torch.testing.assert_close(result["jacobian_error"], (16 * 0.49 / size).sqrt())
    assert result["energy_distance"] > 0.05


def test_components_without_noise_have_a_unit():
    # The reward is 0 throughout. One state component of unit std |s|; the model is off by 0.5 a.
    result = score(Multiplied(), tilt=0.5)
    assert 0 < result["energy_distance"] < 1
    assert result["energy_distance"].isfinite()


def test_models_are_scored_in_inference_mode_and_left_alone():
    model = Model(Linear())
    model.weight = torch.nn.Parameter(torch.ones(()))
    with torch.inference_mode():
        result = model_scores(model, Linear(), *pairs(3), 20)
    assert result["jacobian_error"] < 1e-6
    assert model.weight.grad is None


def law(rows, count):
    return torch.randn(rows, count, 4) * torch.tensor([1.0, 1.0, 0.1, 2.0])


def drawn(figure):
    figure.canvas.draw()
    return [axes for panel in figure.subfigs for axes in panel.axes if axes.get_xlabel()]


def test_figure_shows_up_to_four_rows_of_the_component_of_largest_spread():
    figure = truth_figure(law(9, 50), law(9, 60), 1, titles=[f"pair {i}" for i in range(9)])
    panels = drawn(figure)
    assert len(panels) == 4
    assert panels[0].get_xlabel() == "return G (reward)"
    assert panels[0].get_ylabel() == "dG/da[1] (reward per unit of action)"
    titles = [axes.get_title() for panel in figure.subfigs for axes in panel.axes if axes.get_title()]
    assert titles == ["pair 0", "pair 3", "pair 5", "pair 8"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["true", "true, mean by decile of G", "learned", "learned, mean by decile of G"]
    points = [c.get_offsets() for c in panels[0].collections]
    assert [len(p) for p in points] == [60, 50]


def test_figure_keeps_the_truth_visible_beside_a_learned_law_that_is_far_off():
    true = law(1, 500)
    (panel,) = drawn(truth_figure(1000 * law(1, 500), true, 1))
    low, high = panel.get_xlim()
    assert true[0, :, 0].quantile(0.95) - true[0, :, 0].quantile(0.05) > (high - low) / 10
    assert "of learned samples outside" in panel.texts[0].get_text()
    (panel,) = drawn(truth_figure(true.clone(), true, 1))
    assert not panel.texts


@pytest.mark.parametrize("case", ["single", "nan", "constant truth"])
def test_figure_of_degenerate_laws(case):
    learned, true = law(2, 40), law(2, 50)
    if case == "single":
        learned = learned[:, :1]
    elif case == "nan":
        learned = learned * torch.nan
    else:
        true = true[:, :1].expand(2, 50, 4)
    assert len(drawn(truth_figure(learned, true, 1))) == 2
