"""The products of which networks are made, whatever the shape, also under vmap with weights of one's own."""

from __future__ import annotations

import pytest
import torch

from dsob_pl.networks import MLP
from dsob_pl.networks.mlp import ensemble_product


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("rows", [(), (4,), (4, 3)])
@pytest.mark.parametrize("shared", [False, True])
def test_ensemble_product(float64, columns, rows, shared):
    x = torch.randn(1 if shared else 2, *rows, 5, requires_grad=True) if rows else torch.randn(2, 5, requires_grad=True)
    weight, bias = torch.randn(2, 5, columns, requires_grad=True), torch.randn(2, 1, columns, requires_grad=True)

    def expected(x, weight, bias):
        each = [x[0 if x.shape[0] == 1 else e] @ weight[e] + bias[e, 0] for e in range(2)]
        return torch.stack(each)

    torch.testing.assert_close(ensemble_product(x, weight, bias), expected(x, weight, bias))
    torch.testing.assert_close(ensemble_product(x, weight), expected(x, weight, torch.zeros_like(bias)))
    assert torch.autograd.gradcheck(ensemble_product, (x, weight, bias))
    assert torch.autograd.gradgradcheck(ensemble_product, (x, weight, bias))
    stacked = [torch.stack([z, 2 * z, -z]).detach() for z in (x, weight, bias)]
    gradients = [
        torch.func.vmap(torch.func.grad(lambda *z, product=product: product(*z).sin().sum(), (0, 1, 2)))(*stacked)
        for product in (ensemble_product, expected)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("rows", [(), (4,), (4, 3), (2, 0, 3)])
def test_mlp_maps_every_row(float64, rows):
    net = MLP(3, (4,), 2)
    x = torch.randn(*rows, 3)
    y = net(x)
    first, _, last = net
    expected = torch.nn.functional.silu(x @ first.weight.T + first.bias) @ last.weight.T + last.bias
    assert y.shape == (*rows, 2)
    torch.testing.assert_close(y, expected)
    weights = {name: torch.stack([p, -p]).detach() for name, p in net.named_parameters()}
    both = torch.func.vmap(lambda w: torch.func.functional_call(net, w, (x,)))(weights)
    for i, scale in enumerate((1, -1)):
        with torch.no_grad():
            own = {name: scale * p for name, p in net.named_parameters()}
            torch.testing.assert_close(both[i], torch.func.functional_call(net, own, (x,)))
