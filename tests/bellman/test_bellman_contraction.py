"""The Sobolev Bellman operator contracts by gamma*kappa in max-sliced Wasserstein-1 and has one fixed point.

For a unit theta, ``<theta, b + L z> = <theta, b> + |L^T theta| <u, z>`` with ``L = gamma blockdiag(1, K)`` and u of
norm 1, and mixtures over the model's noise are no further apart than their parts on average: so the supremum over theta
falls by ``sup |L^T theta| <= gamma kappa``.
"""

import math

import ot
import pytest
import torch

from dsob_pl.bellman import StepJacobians, affine_backup, gamma_kappa
from dsob_pl.networks import DeterministicPolicy
from dsob_pl.world_models import Prediction

pytestmark = pytest.mark.usefixtures("float64")


def sphere(dimension, count=500):
    """Directions ``[dimension, count]``; in three dimensions an even (Fibonacci) cover of half of the sphere."""
    if dimension != 3:
        directions = torch.randn(dimension, count, generator=torch.Generator().manual_seed(0))
        return directions / directions.norm(dim=0)
    index = torch.arange(count)
    height, turn = (index + 0.5) / count, math.pi * (1 + math.sqrt(5)) * index
    radius = (1 - height**2).sqrt()
    return torch.stack([radius * turn.cos(), radius * turn.sin(), height])


def max_sliced(x, y, directions):
    """Max-sliced Wasserstein-1 over ``directions [D, P]`` between ``x, y [n, D]``, and the direction where it is."""
    distances = ((x @ directions).sort(0).values - (y @ directions).sort(0).values).abs().mean(0)
    return distances.max().item(), directions[:, distances.argmax()]


def test_max_sliced_distance_equals_the_reference():
    generator = torch.Generator().manual_seed(0)
    for first, second, dimension in [("gaussian", "bimodal", 3), ("bimodal", "heavy", 5)]:
        x, y = (law(shape, 400, dimension, generator) for shape in (first, second))
        directions = sphere(dimension)
        reference = ot.sliced.max_sliced_wasserstein_distance(x.numpy(), y.numpy(), p=1, projections=directions.numpy())
        assert max_sliced(x, y, directions)[0] == pytest.approx(float(reference))
        # And the grid is dense where it is used: five times as many directions find hardly more.
        if dimension == 3:
            assert max_sliced(x, y, sphere(3, 2500))[0] == pytest.approx(float(reference), rel=0.01)


def linear(w, b, noise):
    """``s' = W s + B a + noise eps`` with a bounded reward and no end."""

    def step(s, a, eps):
        s_next = s @ w.mT + a @ b.mT + noise * eps
        return Prediction(s_next, s_next.sin().sum(-1) - 0.1 * a.square().sum(-1), torch.ones_like(s[..., 0]))

    return step


def nonlinear(s, a, eps):
    """Noise that multiplies, a reward with noise in its slope, an end that does not depend on (s, a)."""
    push = a.sum(-1, keepdim=True)
    s_next = 1.1 * s.sin() + push * (0.4 + 0.3 * eps) + 0.2 * eps * s.cos()
    return Prediction(s_next, (s * eps).sum(-1) + push[..., 0], torch.full_like(s[..., 0], 0.95))


def law(shape, count, dimension, generator):
    """A sample set ``[count, dimension]``."""
    x = torch.randn(count, dimension, generator=generator)
    mix = torch.randn(dimension, dimension, generator=generator)
    if shape == "bimodal":
        x[:, 0] += 4 * (torch.rand(count, generator=generator) < 0.3)
        x[:, -1] -= 2 * x[:, 0].sign()
    if shape == "heavy":
        x /= (torch.randn(count, 4, generator=generator).square().mean(1, keepdim=True)).sqrt()  # Student, 4 degrees
    return x @ mix + torch.randn(dimension, generator=generator)


def pushed(step, policy, samples, s, a, eps, gamma):
    """The operator applied at one (s, a) to a law that is ``samples [n, D]`` everywhere, for E draws ``[E, noise]``.

    All pairs of a draw and a sample ``[E n, D]``: with the draws for the law of the noise, the exact law.
    """
    draws, count = len(eps), len(samples)
    rows = s.expand(draws * count, -1), a.expand(draws * count, -1), eps.repeat_interleave(count, 0)
    return affine_backup(step, policy, lambda *_: samples.repeat(draws, 1), *rows, gamma)


def carried_back(step, policy, s, a, eps, gamma, theta):
    """``L^T theta / |L^T theta|`` for each draw ``[D, E]``: the directions along which theta looks before the push."""
    k = StepJacobians(step, policy, s.expand(len(eps), -1), a.expand(len(eps), -1), eps).linear_part()
    back = torch.cat([theta[:1].expand(len(eps), 1), theta[1:] @ k], -1)
    return (back / back.norm(dim=-1, keepdim=True)).mT


@pytest.mark.parametrize("size", [1, 2], ids=["S=A=1", "S=A=2"])
@pytest.mark.parametrize("kind", ["linear", "nonlinear"])
@pytest.mark.parametrize("shapes", [("gaussian", "bimodal"), ("gaussian", "heavy"), ("bimodal", "heavy")])
def test_different_laws_come_closer_by_at_least_gamma_kappa(shapes, kind, size):
    """A finite sample set is a law, and so are E equally likely draws of the noise: there is no sampling error.

    Nor an error of the grid: the left side's maximiser theta is fixed first, and the directions along which it looks
    before the push join the grid of the right side.
    """
    generator = torch.Generator().manual_seed(size)
    gamma, draws, count = 0.9, 6, 200
    policy = DeterministicPolicy(size, size, hidden=(8,)).requires_grad_(False)
    w, b = torch.randn(size, size, generator=generator), torch.randn(size, size, generator=generator)
    step = linear(w, b, 0.3) if kind == "linear" else nonlinear
    x, y = (law(shape, count, 1 + 2 * size, generator) for shape in shapes)
    assert not torch.equal(x, y)
    eps = torch.randn(draws, size, generator=generator)
    grid = sphere(1 + 2 * size, 500)
    after, before, factors = 0.0, 0.0, []
    for _ in range(3):
        s, a = torch.randn(1, size, generator=generator), torch.rand(1, size, generator=generator) * 2 - 1
        backed_up = [pushed(step, policy, samples, s, a, eps, gamma) for samples in (x, y)]
        value, theta = max_sliced(*backed_up, grid)
        back = carried_back(step, policy, s, a, eps, gamma, theta)
        after = max(after, value)
        before = max(before, max_sliced(x, y, torch.cat([grid, back], 1))[0])
        factors.append(gamma_kappa(step, policy, s.expand(draws, -1), a.expand(draws, -1), eps, gamma).max())
    assert 0 < after <= max(factors).item() * before * (1 + 1e-9)


def stretched(direction, count, generator):
    """Two laws with equal means that differ along ``direction [D]`` alone: standard deviations 1 and 3."""
    x, y = (torch.randn(count, len(direction), generator=generator) for _ in range(2))
    return x, y + 2 * (y @ direction)[:, None] * direction


@pytest.mark.parametrize(("rho", "gamma"), [(0.95, 0.9), (1.3, 0.9)], ids=["contracts", "grows"])
def test_the_bound_is_attained(rho, gamma):
    """K is one matrix: laws that differ along its top right singular vector v alone move apart by all of its norm."""
    generator = torch.Generator().manual_seed(0)
    w, b, f = torch.tensor([[rho]]), torch.tensor([[0.3]]), torch.tensor([[-0.2]])
    policy, step = lambda s: s @ f.mT, linear(w, b, 0.0)
    s = a = torch.ones(1, 1)
    eps = torch.zeros(1, 1)
    factor = gamma_kappa(step, policy, s, a, eps, gamma).item()
    assert factor == pytest.approx(gamma * math.hypot(rho, 0.3) * math.hypot(1, 0.2))
    v = torch.tensor([0.0, 1.0, -0.2]) / math.hypot(1, 0.2)
    x, y = stretched(v, 2000, generator)
    grid = sphere(3)
    before = max_sliced(x, y, grid)[0]
    after = max_sliced(*(pushed(step, policy, z, s, a, eps, gamma) for z in (x, y)), grid)[0]
    assert after == pytest.approx(factor * before, rel=0.01)
    assert (after < before) == (factor < 1)


def test_the_slope_of_a_differentiated_termination_is_outside_of_the_factor():
    """``G -> gamma (c G, dc/ds G, 0)`` with K = 0: the distance first grows, and shrinks from the next step on."""

    def step(s, a, eps):
        return Prediction(0 * s, 0 * s.sum(-1), 0.9 + 0.8 * s[..., 0])

    def policy(s):
        return 0 * s

    def apply(samples):
        return pushed(step, policy, samples, *torch.zeros(3, 1, 1), 0.9)

    x, y = torch.zeros(4, 3), torch.tensor([[1.0, 0.0, 0.0]]).expand(4, 3)
    assert gamma_kappa(step, policy, *torch.zeros(3, 1, 1), 0.9).item() == 0.9
    grid = sphere(3)
    distances = []
    for _ in range(3):
        distances.append(max_sliced(x, y, grid)[0])
        x, y = apply(x), apply(y)
    assert distances[1] / distances[0] == pytest.approx(0.9 * math.hypot(0.9, 0.8), rel=0.01)
    assert distances[1] > distances[0]
    assert distances[2] / distances[1] == pytest.approx(0.9 * 0.9)


def iterate(step, policy, start, gamma, times, generator):
    """``(s, a) -> [R, D]``: the operator applied ``times`` times to ``start``, one rollout with fresh noise a row."""
    if not times:
        return start

    def samples(s, a):
        eps = torch.randn(s.shape, generator=generator)
        return affine_backup(step, policy, iterate(step, policy, start, gamma, times - 1, generator), s, a, eps, gamma)

    return samples


def true_returns(step, policy, s, a, gamma, horizon, generator):
    """``[G, dG/ds, dG/da]`` of real rollouts, by differentiating the discounted sum of rewards ``[R, D]``."""
    s0, a0 = s.clone().requires_grad_(), a.clone().requires_grad_()
    s, a, total, weight = s0, a0, 0.0, 1.0
    for _ in range(horizon):
        prediction = step(s, a, torch.randn(s.shape, generator=generator))
        total = total + weight * prediction.r
        weight = weight * gamma * prediction.continuation
        s = prediction.s_next
        a = policy(s)
    return torch.cat([total[:, None], *torch.autograd.grad(total.sum(), (s0, a0))], 1).detach()


def test_three_laws_reach_one_fixed_point_at_the_rate_of_the_bound():
    gamma, count = 0.75, 2000
    policy = lambda s: (-0.4 * s).tanh()  # noqa: E731
    step = linear(torch.tensor([[1.0]]), torch.tensor([[0.3]]), 0.3)
    generator = torch.Generator().manual_seed(0)
    states = torch.linspace(-8, 8, 161)[:, None]
    # ||K|| = |(1, 0.3)| |(1, dpi/ds')| is largest at s' = 0, which s = a = 0 without noise reaches.
    bound = gamma_kappa(step, policy, states, 0 * states, 0 * states, gamma).max().item()
    assert bound == pytest.approx(0.75 * math.hypot(1, 0.3) * math.hypot(1, 0.4))
    assert 0.8 < bound < 0.9

    def zero(s, a):
        return torch.zeros(len(s), 3)

    def wide(s, a):
        return 10 * torch.randn(len(s), 3, generator=generator)

    def bimodal(s, a):
        sign = torch.randn(len(s), 1, generator=generator).sign()
        return torch.tensor([20.0, -15.0, 5.0]) + sign * torch.tensor([5.0, 10.0, -10.0])

    starts = [zero, wide, bimodal]
    pairs = [(0, 1), (0, 2), (1, 2)]
    s, a = torch.full((count, 1), 0.5), torch.full((count, 1), -0.7)
    grid = sphere(3, 300)

    def distances(times):
        """Between the laws after k applications; twice what sampling leaves between copies of one law; the laws."""
        x, y = ([iterate(step, policy, z, gamma, times, generator)(s, a) for z in starts] for _ in range(2))
        sampling = 2 * max(max_sliced(*copies, grid)[0] for copies in zip(x, y))
        return [max_sliced(x[i], x[j], grid)[0] for i, j in pairs], sampling, x

    first, _, _ = distances(0)
    assert min(first) > 5
    for times in (1, 3, 6, 12):
        measured, sampling, _ = distances(times)
        for start, distance in zip(first, measured):
            assert distance <= bound**times * start + sampling
    measured, sampling, laws = distances(30)
    assert max(measured) <= sampling
    truth, again = (true_returns(step, policy, s, a, gamma, 50, generator) for _ in range(2))
    scale = truth.std(0)  # in units in which the gradient's parts count as much as the return
    error = 2 * max_sliced(truth / scale, again / scale, grid)[0]
    assert max(max_sliced(samples / scale, truth / scale, grid)[0] for samples in laws) <= error
    assert error < 0.15
