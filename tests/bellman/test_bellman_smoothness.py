"""The norm of the operator's linear part, its derivatives and the penalty on it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsob_pl.bellman import StepJacobians, gamma_kappa_statistics, jacobian_penalty, operator_norms, spectral_norm
from dsob_pl.networks import DeterministicPolicy
from dsob_pl.world_models import CVAE, Deterministic, Prediction


def linear(w, b):
    """``s' = s w^T + a b^T``, reward 0."""

    def step(s, a, eps):
        zero = 0 * s.sum(-1)
        return Prediction(s @ w.mT + a @ b.mT, zero, zero + 1)

    return step


def parameters(*values):
    return [torch.tensor(v, requires_grad=True) for v in values]


def test_hand_computed_penalty_and_gradient(float64):
    # s' = 1.5 s + 0.5 a, pi(s) = -0.4 s: K = m p^T with m = (1.5, 0.5), p = (1, -0.4), so ||K|| = |m| |p|
    w, b, gain = parameters([[1.5]], [[0.5]], [[-0.4]])
    s = torch.tensor([[2.0], [-1.0]])
    arguments = (linear(w, b), lambda s: s @ gain.mT, s, s, torch.zeros(2, 0))
    m, p = math.sqrt(2.5), math.sqrt(1.16)
    torch.testing.assert_close(operator_norms(*arguments), torch.full((2,), m * p))
    penalty = jacobian_penalty(*arguments, bound=1.2)
    assert penalty.item() == pytest.approx((m * p - 1.2) ** 2)
    penalty.backward()
    outer = 2 * (m * p - 1.2)
    assert w.grad.item() == pytest.approx(outer * 1.5 / m * p)
    assert b.grad.item() == pytest.approx(outer * 0.5 / m * p)
    assert gain.grad.item() == pytest.approx(outer * m * -0.4 / p)


def test_nothing_is_asked_below_the_bound(float64):
    w, b, gain = parameters([[1.5]], [[0.5]], [[-0.4]])
    s = torch.ones(3, 1)
    penalty = jacobian_penalty(linear(w, b), lambda s: s @ gain.mT, s, s, torch.zeros(3, 0), bound=1.71)
    penalty.backward()
    assert penalty == 0
    assert w.grad == b.grad == gain.grad == 0


def test_rows_are_squared_before_they_are_averaged(float64):
    # s' = s^2 / 2: K = s, with norms 1, 2 and 4 and excesses 0, 0.5 and 2.5 over the bound
    def step(s, a, eps):
        zero = 0 * s.sum(-1)
        return Prediction(s**2 / 2, zero, zero + 1)

    s = torch.tensor([[1.0], [-2.0], [4.0]])
    penalty = jacobian_penalty(step, lambda s: 0 * s, s, s, torch.zeros(3, 0), bound=1.5)
    assert penalty.item() == pytest.approx((0.25 + 6.25) / 3)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), state=st.integers(1, 5), action=st.integers(1, 3))
def test_norm_of_any_linear_system(seed, state, action):
    generator = torch.Generator().manual_seed(seed)
    w, b, gain = (
        torch.randn(*size, dtype=torch.float64, generator=generator)
        for size in ((state, state), (state, action), (action, state))
    )
    s, a = torch.zeros(1, state, dtype=torch.float64), torch.zeros(1, action, dtype=torch.float64)
    norm = operator_norms(linear(w, b), lambda s: s @ gain.mT, s, a, s[:, :0])
    k = torch.cat([w, b], 1).mT @ torch.cat([torch.eye(state, dtype=torch.float64), gain.mT], 1)
    torch.testing.assert_close(norm, torch.linalg.eigvalsh(k.mT @ k)[-1:].sqrt())


@pytest.mark.parametrize(
    "k",
    [torch.zeros(3, 3), torch.eye(3), torch.ones(3, 3), torch.diag(torch.tensor([2.0, 2.0, 0.0]))],
    ids=["zero", "identity", "rank one", "rank two"],
)
def test_derivative_is_finite_where_singular_values_coincide(k):
    k = k.clone().requires_grad_()
    norm = spectral_norm(k)
    (slope,) = torch.autograd.grad(norm, k)
    assert slope.isfinite().all()
    # Euler: a norm is homogeneous of degree one. And it is a subgradient: of nuclear norm 1.
    assert (slope * k).sum().item() == pytest.approx(norm.item())
    assert torch.linalg.matrix_norm(slope, ord="nuc").item() == pytest.approx(1.0)


def test_a_rotation_has_equal_singular_values_and_a_usable_gradient(float64):
    # s' = 1.2 Rot s without action or feedback: K has singular values 1.2, 1.2 and 0
    turn = torch.tensor([[math.cos(0.5), -math.sin(0.5)], [math.sin(0.5), math.cos(0.5)]])
    w = (1.2 * turn).requires_grad_()
    s, a = torch.randn(4, 2), torch.randn(4, 1)

    def penalty():
        return jacobian_penalty(linear(w, torch.zeros(2, 1)), lambda s: 0 * s[..., :1], s, a, torch.zeros(4, 0), 1.0)

    for _ in range(100):
        (slope,) = torch.autograd.grad(penalty(), w)
        w.data -= 0.2 * slope
    assert penalty() < 1e-4
    torch.testing.assert_close(w.data, turn, atol=0.02, rtol=0)


def test_a_matrix_that_is_not_finite_gives_nan():
    k = torch.stack([torch.eye(2), torch.full((2, 2), torch.nan), torch.tensor([[1.0, torch.inf], [0.0, 1.0]])])
    norm = spectral_norm(k)
    assert norm[0] == 1
    assert norm[1:].isnan().all()


@pytest.fixture
def parts(float64):
    torch.manual_seed(1)
    model = CVAE(3, 2, latent_size=4, hidden=(16, 16), prior_hidden=(8,), termination_hidden=(8,))
    policy = DeterministicPolicy(3, 2, hidden=(16,))
    return model, policy, torch.randn(6, 3), torch.rand(6, 2) * 2 - 1, torch.randn(6, model.noise_size)


def test_norm_equals_autograd_on_one_row(parts):
    """K is the derivative, in (s, a), of <s', p> + <pi(s'), q> with p and q constants."""
    model, policy, s, a, eps = parts
    norms = operator_norms(*parts)
    for row in range(6):

        def carried(s, a, eps=eps[row]):
            s_next = model(s, a, eps).s_next
            return torch.cat([s_next, policy(s_next)])

        js, ja = torch.autograd.functional.jacobian(carried, (s[row], a[row]))
        transition = torch.cat([js[:3], ja[:3]], 1)
        feedback = torch.autograd.functional.jacobian(policy, model(s[row], a[row], eps[row]).s_next)
        k = transition.mT @ torch.cat([torch.eye(3), feedback.mT], 1)
        assert norms[row].item() == pytest.approx(torch.linalg.svdvals(k)[0].item())
        # The chain rule in one go: the present gradient of G'(s', pi(s')) is K times the next one.
        q = torch.randn(5)
        torch.testing.assert_close(torch.cat([js, ja], 1).mT @ q, k @ q)


def test_gradient_equals_finite_differences(parts):
    model, policy, *rows = parts
    bound = 0.9 * operator_norms(*parts).median().item()  # some rows above, some below
    weights = [p for p in [*model.parameters(), *policy.parameters()] if p.requires_grad]
    slopes = torch.autograd.grad(jacobian_penalty(model, policy, *rows, bound), weights, allow_unused=True)
    used = [(p, g) for p, g in zip(weights, slopes) if g is not None]
    assert any(g.abs().max() > 1e-3 for p, g in used if any(p is q for q in model.parameters()))
    assert any(g.abs().max() > 1e-3 for p, g in used if any(p is q for q in policy.parameters()))
    step = 1e-6
    for _ in range(10):
        direction = [torch.randn_like(p) for p, _ in used]
        expected = sum((g * d).sum() for (_, g), d in zip(used, direction))
        values = []
        for sign in (1, -2, 1):  # there, across, and back
            for (p, _), d in zip(used, direction):
                p.data += sign * step * d
            values.append(jacobian_penalty(model, policy, *rows, bound).item())
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx(expected.item(), rel=1e-6, abs=1e-8)


def test_the_penalty_alone_brings_model_and_policy_below_the_bound():
    torch.manual_seed(0)
    model, policy = Deterministic(4, 2, hidden=(32, 32)), DeterministicPolicy(4, 2, hidden=(32,))
    with torch.no_grad():
        policy.mlp[-1].weight *= 10
    s, a, eps = torch.randn(32, 4), torch.rand(32, 2) * 2 - 1, torch.zeros(32, 0)

    def largest():
        j = StepJacobians(model, policy, s, a, eps)
        norms = spectral_norm(j.linear_part()), j.transition.flatten(1).norm(dim=1), j.policy.flatten(1).norm(dim=1)
        return [x.max().item() for x in norms]

    norm, transition, feedback = largest()
    assert norm > 2
    adam = torch.optim.Adam([*model.parameters(), *policy.parameters()], 3e-3)
    for _ in range(150):
        adam.zero_grad()
        jacobian_penalty(model, policy, s, a, eps, bound=0.9).backward()
        adam.step()
    assert largest()[0] < 0.95
    assert largest()[1] < 0.95 * transition
    assert largest()[2] < 0.95 * feedback


def test_gamma_kappa_statistics_by_hand(float64):
    statistics = gamma_kappa_statistics(torch.tensor([3.0, 0.9, 1.0, 1.1, 2.0]))
    # sorted 0.9, 1, 1.1, 2, 3: the 0.9 quantile lies 0.6 of the way from 2 to 3
    assert {name: value.item() for name, value in statistics.items()} == pytest.approx(
        {"bellman/gamma_kappa": 3.0, "bellman/gamma_kappa_p90": 2.6, "bellman/gamma_kappa_median": 1.1}
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_spectral_norm_of_half_precision_is_that_of_single(dtype):
    k = torch.randn(7, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(spectral_norm(k), spectral_norm(k.float()))
