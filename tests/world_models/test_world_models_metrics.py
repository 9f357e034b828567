"""The held-out metrics on models whose quality is known."""

import math

import pytest
import torch

from dsob_pl.world_models import CVAE, Deterministic, Prediction, Transition, WorldModel
from dsob_pl.world_models.figure import prediction_figure
from dsob_pl.world_models.metrics import heldout_log_likelihood, open_loop_error, spread_ratio


class KnownLaw(WorldModel):
    """s' = 0.9 s + a + spread * 0.5 e + bias, r = s' + spread * 2 e; the real law has spread 1 and bias 0."""

    noise_size = 2

    def __init__(self, spread=1.0, bias=0.0):
        super().__init__(1, 1)
        self.spread, self.bias = spread, bias

    def forward(self, s, a, eps):
        s_next = 0.9 * s + a + self.spread * 0.5 * eps[..., :1] + self.bias
        return Prediction(s_next, s_next[..., 0] + self.spread * 2 * eps[..., 1], torch.ones(s.shape[:-1]))


def real(*shape, spread=1.0):
    s, a, eps = torch.randn(*shape, 1), torch.rand(*shape, 1) * 2 - 1, torch.randn(*shape, 2)
    step = KnownLaw(spread)(s, a, eps)
    return Transition(s, a, step.r, step.s_next, torch.zeros(shape))


@pytest.mark.parametrize("samples", [2, 5, 64])
@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_spread_is_the_factor_by_which_the_model_is_too_wide(spread, samples):
    ratio = spread_ratio(KnownLaw(spread), real(20_000), torch.randn(samples, 20_000, 2))
    # with N samples the mean itself spreads: sqrt(c^2 (1 + 1/N) / (1 + c^2/N)), which is 1 at c = 1 for every N
    expected = spread * math.sqrt((1 + 1 / samples) / (1 + spread**2 / samples))
    assert ratio.item() == pytest.approx(expected, rel=0.02)


def test_spread_falls_with_a_wrong_mean_and_is_zero_without_noise():
    assert spread_ratio(KnownLaw(bias=2.0), real(2000), torch.randn(16, 2000, 2)) < 0.8
    assert spread_ratio(Deterministic(1, 1), real(2000), torch.zeros(4, 2000, 0)).item() == pytest.approx(0, abs=1e-6)


def trajectories(n, k, spread):
    s, rows = torch.randn(n, 1), []
    for _ in range(k):
        a, eps = torch.rand(n, 1) * 2 - 1, torch.randn(n, 2)
        step = KnownLaw(spread)(s, a, eps)
        rows.append((s, a, step.r, step.s_next, torch.zeros(n)))
        s = step.s_next
    return Transition(*(torch.stack(x, 1) for x in zip(*rows)))


def test_open_loop_error_of_the_true_model_is_zero_or_the_noise_floor():
    noiseless = trajectories(100, 6, spread=0.0)
    assert open_loop_error(KnownLaw(0.0), noiseless, torch.randn(6, 3, 100, 2)).item() == pytest.approx(0, abs=1e-6)
    noisy = trajectories(4000, 6, spread=1.0)
    variance = 0.25 * sum(0.81**i for i in range(6))
    expected = math.sqrt(variance * (1 + 1 / 50)) / noisy.s_next.std().item()
    measured = open_loop_error(KnownLaw(), noisy, torch.randn(6, 50, 4000, 2))
    assert measured.item() == pytest.approx(expected, rel=0.05)


def test_open_loop_error_accumulates_a_bias_over_the_steps():
    path = trajectories(100, 3, spread=0.0)
    error = open_loop_error(KnownLaw(0.0, bias=0.1), path, torch.zeros(3, 2, 100, 2))
    assert error.item() == pytest.approx(0.1 * (1 + 0.9 + 0.81) / path.s_next.std().item(), rel=1e-4)


def test_a_blind_gaussian_scores_what_the_docstring_says():
    model, data = Deterministic(1, 1, hidden=()), real(5000)
    model.update_statistics(data)
    with torch.no_grad():
        model.mean[0].weight.zero_()
        model.mean[0].bias.zero_()
        model.sigma.logit.fill_(math.log(math.log(100) / math.log(2)))  # sigma = 1, of [0.01, 2]
    value = heldout_log_likelihood(model, data, torch.zeros(1, 5000, 0))
    assert value.item() == pytest.approx(-1.4189, abs=1e-3)


@pytest.mark.parametrize("observation_size", [1, 2, 15])
def test_the_figure_has_one_panel_per_component_up_to_twelve(observation_size):
    model = CVAE(observation_size, 1, hidden=(8,))
    s, s_next = torch.randn(2, 30, observation_size)
    data = Transition(s, torch.rand(30, 1), torch.randn(30), s_next, torch.zeros(30))
    figure = prediction_figure(model, data, torch.randn(8, 30, model.noise_size))
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert len(titles) == min(observation_size + 1, 12)
    assert titles[-1].startswith("reward")
