"""Each architecture with one unit per layer and tanh: value and gradient from its formula, written with math alone."""

import math

import pytest
import torch

from dsob_pl.critics import EmbeddingCritic, FiLMCritic, GenerativeCritic, InjectedCritic

X, Y, XI = 0.7, -0.4, 0.6  # s, a, noise
W1S, W1A, B1, W2, B2, W3, B3, V, W = 0.5, -0.8, 0.1, 1.3, -0.2, 0.9, 0.05, 0.45, 0.35
H1 = math.tanh(W1S * X + W1A * Y + B1)
U = W2 * H1 + B2  # the second pre-activation of (s, a)
DU = W2 * (1 - H1**2)  # its derivative along the first pre-activation


def fill(critic, **values):
    with torch.no_grad():
        for name, parameter in critic.named_parameters():
            parameter.copy_(torch.tensor(values.pop(name)).reshape(parameter.shape))
    assert not values
    return critic


def trunk_and_head():
    return {
        "trunk._layers.0.weight": [W1S, W1A],
        "trunk._layers.0.bias": [B1],
        "trunk._layers.1.weight": [W2],
        "trunk._layers.1.bias": [B2],
        "head._layers.0.weight": [W3],
        "head._layers.0.bias": [B3],
    }


SMALL = {"members": 1, "hidden": (1, 1), "noise_size": 1, "activation": "tanh"}


def generative():
    critic = fill(
        GenerativeCritic(1, 1, **SMALL),
        **{
            "mlp._layers.0.weight": [W1S, W1A, V],
            "mlp._layers.0.bias": [B1],
            "mlp._layers.1.weight": [W2],
            "mlp._layers.1.bias": [B2],
            "mlp._layers.2.weight": [W3],
            "mlp._layers.2.bias": [B3],
        },
    )
    h1 = math.tanh(W1S * X + W1A * Y + V * XI + B1)
    h2 = math.tanh(W2 * h1 + B2)
    return critic, W3 * h2 + B3, W3 * (1 - h2**2) * W2 * (1 - h1**2)


def injected():
    h = math.tanh(U + V * XI)
    return fill(InjectedCritic(1, 1, **SMALL), **trunk_and_head(), injection=[V]), W3 * h + B3, W3 * (1 - h**2) * DU


def film():
    scale = 1 + V * XI
    h = math.tanh(scale * U + W * XI)
    critic = fill(FiLMCritic(1, 1, **SMALL), **trunk_and_head(), film=[V, W])
    return critic, W3 * h + B3, W3 * (1 - h**2) * scale * DU


def embedding():
    tau = 0.5 * (1 + math.erf(XI / math.sqrt(2)))
    phi = 1 + V * math.cos(math.pi * tau) + W * math.cos(2 * math.pi * tau)
    h = math.tanh(U)
    critic = fill(EmbeddingCritic(1, 1, **SMALL, head=None, frequencies=2), **trunk_and_head(), embedding=[V, W])
    return critic, W3 * phi * h + B3, W3 * phi * (1 - h**2) * DU


@pytest.mark.parametrize("case", [generative, injected, film, embedding])
@pytest.mark.parametrize("samples", [1, 5])
def test_hand_computed_value_and_gradient(float64, case, samples):
    critic, value, along = case()
    s, a, noise = torch.full((1, 1, 1, 1), X), torch.full((1, 1, 1, 1), Y), torch.full((1, 1, samples, 1), XI)
    z, ds, da = critic.value_and_gradient(s, a, noise)
    for ours, expected in ((z, value), (critic(s, a, noise), value), (ds, along * W1S), (da, along * W1A)):
        assert ours.flatten().tolist() == pytest.approx([expected] * samples, abs=1e-14)
