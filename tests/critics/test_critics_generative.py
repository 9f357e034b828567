import pytest
import torch

from dsob_pl.critics import GenerativeCritic
from dsob_pl.errors import UsageError


def test_noise_begins_quiet():
    torch.manual_seed(0)
    critic = GenerativeCritic(3, 2, hidden=(64, 64), noise_size=8, noise_gain=0.1)
    weight = critic.mlp.layers[0].weight.detach()
    assert weight[:, 5:].std() / weight[:, :5].std() == pytest.approx(0.1, rel=0.1)
    assert weight[:, :5].abs().max() <= 5**-0.5


@pytest.mark.parametrize("noise_size", [0, 3])
def test_written_out_gradients_equal_autograd(float64, noise_size):
    critic = GenerativeCritic(3, 2, members=2, hidden=(8, 8), noise_size=noise_size)
    s, a = torch.randn(2, 4, 5, 3, requires_grad=True), torch.randn(2, 4, 5, 2, requires_grad=True)
    noise = torch.randn(2, 4, 5, noise_size)
    value, ds, da = critic.value_and_gradient(s, a, noise)
    torch.testing.assert_close(value, critic(s, a, noise))
    expected_s, expected_a = torch.autograd.grad(critic(s, a, noise).sum(), [s, a])
    torch.testing.assert_close(ds, expected_s)
    torch.testing.assert_close(da, expected_a)


@pytest.mark.parametrize("options", [{"members": 0}, {"noise_size": -1}, {"hidden": ()}, {"hidden": (64, 0)}])
def test_bad_sizes_are_refused_in_one_line(options):
    with pytest.raises(UsageError, match="critic: expected"):
        GenerativeCritic(3, 1, **options)


@pytest.mark.parametrize("gain", [-1.0, float("nan"), float("inf")])
def test_a_gain_that_is_none_is_refused(gain):
    with pytest.raises(UsageError, match=r"critic\.noise_gain: expected a number of at least 0, got"):
        GenerativeCritic(3, 1, noise_gain=gain)
