"""The evidence lower bound by hand and by reference, and the laws that forward and infer_noise must obey."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence

from dsob_pl.errors import UsageError
from dsob_pl.world_models import CVAE, Transition

S, A = 3, 2


def transitions(*shape, s=S, a=A, dtype=torch.float64):
    observation, next_observation = torch.randn(2, *shape, s, dtype=dtype)
    terminated = (torch.rand(shape) < 0.3).to(dtype)
    action, reward = torch.rand(*shape, a, dtype=dtype) * 2 - 1, torch.randn(shape, dtype=dtype)
    return Transition(observation, action, reward, next_observation, terminated)


def small_model(**options):
    model = CVAE(S, A, **{"latent_size": 4, "hidden": (16, 16), "prior_hidden": (8,), **options}).double()
    with torch.no_grad():  # leave the quiet start: the laws must hold anywhere
        for network in (model.prior, model.encoder):
            network[-1].weight.mul_(10)
            network[-1].bias.normal_()
        model.sigma.logit.normal_()
    model.update_statistics(transitions(50))
    return model


def unbounded(log_std):
    """The network's output that the soft bound of +-5 turns into ``log_std``."""
    return 5 * math.atanh(log_std / 5)


def sigma_logits(*sigma):
    """Logits for the default bounds [0.01, 2]."""
    return [math.log(x / (1 - x)) for x in (math.log(v / 0.01) / math.log(2 / 0.01) for v in sigma)]


@pytest.fixture
def by_hand():
    """S = A = L = 1, all networks affine, the scale of the targets the identity; and one transition, one noise."""
    model = CVAE(1, 1, latent_size=1, hidden=(), prior_hidden=(), termination_hidden=()).double()
    with torch.no_grad():
        model.prior[0].weight.copy_(torch.tensor([[0.5, 0.0], [0.0, 0.0]]))  # inputs (s, a)
        model.prior[0].bias.copy_(torch.tensor([0.0, unbounded(math.log(2))]))
        model.encoder[0].weight.copy_(torch.tensor([[0.2, 0.0, 0.3, 0.0], [0.0, 0.0, 0.0, 0.0]]))  # (s, a, s'-s, r)
        model.encoder[0].bias.copy_(torch.tensor([0.0, unbounded(math.log(0.5))]))
        model.decoder[0].weight.copy_(torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.5, 0.0]]))  # (s, a, z)
        model.decoder[0].bias.zero_()
        model.termination.mlp[0].weight.zero_()
        model.termination.mlp[0].bias.fill_(math.log(3))
        model.sigma.logit.copy_(torch.tensor(sigma_logits(0.5, 1.0)))
    one = torch.ones(1, dtype=torch.float64)
    return model, Transition(one.view(1, 1), 0.5 * one.view(1, 1), one, 3 * one.view(1, 1), one), one.view(1, 1)


def test_elbo_equals_the_value_computed_by_hand(by_hand):
    # q = N(0.2 + 0.3*2, 0.5^2), p = N(0.5, 2^2), z = 0.8 + 0.5 = 1.3, decoder (1.3, 0.25), target (2, 1)
    model, transition, noise = by_hand
    loss, statistics = model.loss(transition, noise)
    reconstruction = 0.5 * ((0.7 / 0.5) ** 2 + 0.75**2) + math.log(0.5) + math.log(2 * math.pi)
    kl = math.log(4) + (0.25 + 0.3**2) / 8 - 0.5
    termination = -math.log(0.75)
    assert statistics["reconstruction"].item() == pytest.approx(reconstruction, abs=1e-6)
    assert statistics["kl"].item() == pytest.approx(kl, abs=1e-6)
    assert statistics["termination_loss"].item() == pytest.approx(termination, abs=1e-6)
    assert statistics["sigma"].item() == pytest.approx(0.75, abs=1e-6)
    assert loss.item() == pytest.approx(3.622466, abs=1e-5)


def test_elbo_has_the_gradient_computed_by_hand(by_hand):
    model, transition, noise = by_hand
    model.loss(transition, noise)[0].backward()
    expected = {
        # -(residual / sigma^2) times the input (s, a, z) = (1, 0.5, 1.3)
        "decoder": (model.decoder[0].weight.grad, [[-2.8, -1.4, -3.64], [-0.75, -0.375, -0.975]]),
        # through z: -2.8, and -2.8 * std; of the KL: (0.8 - 0.5) / 4, and std^2/4 - 1; the soft bound's slope
        "encoder": (
            model.encoder[0].bias.grad,
            [-2.8 + 0.075, (-1.4 + 0.0625 - 1) * (1 - (math.log(0.5) / 5) ** 2)],
        ),
        "prior": (model.prior[0].bias.grad, [-0.075, (1 - (0.25 + 0.09) / 4) * (1 - (math.log(2) / 5) ** 2)]),
        "termination": (model.termination.mlp[0].bias.grad, [0.75 - 1]),
    }
    for name, (gradient, value) in expected.items():
        torch.testing.assert_close(
            gradient, torch.tensor(value, dtype=torch.float64), atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )
    log_sigma = model.sigma()
    slope = torch.autograd.grad(log_sigma.sum(), model.sigma.logit)[0]  # d log sigma / d logit
    expected_sigma = torch.tensor([1 - 1.4**2, 1 - 0.75**2], dtype=torch.float64)
    torch.testing.assert_close(model.sigma.logit.grad / slope, expected_sigma, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
def test_elbo_agrees_with_torch_distributions(kl_weight):
    model = small_model(kl_weight=kl_weight, termination_weight=0.7)
    data, noise = transitions(20), torch.randn(20, 4, dtype=torch.float64)
    target = (
        torch.cat([data.s_next - data.s, data.r[:, None]], -1) - model.target_scale.shift
    ) / model.target_scale.scale
    sa = torch.cat([data.s, data.a], -1)

    def law(parameters):
        mean, raw = parameters.chunk(2, -1)
        return Normal(mean, (5 * torch.tanh(raw / 5)).exp())

    posterior, prior = law(model.encoder(torch.cat([sa, target], -1))), law(model.prior(sa))
    z = posterior.mean + posterior.stddev * noise
    likelihood = Normal(model.decoder(torch.cat([sa, z], -1)), model.sigma().exp()).log_prob(target).sum(-1)
    logits = model.termination(data.s, data.a, data.s_next)
    expected = -likelihood + kl_weight * kl_divergence(posterior, prior).sum(-1)
    expected = expected - 0.7 * Bernoulli(logits=logits).log_prob(data.terminated)
    torch.testing.assert_close(model.loss(data, noise)[0], expected.mean(), rtol=1e-12, atol=1e-12)

    weights = likelihood + prior.log_prob(z).sum(-1) - posterior.log_prob(z).sum(-1)
    torch.testing.assert_close(model.log_likelihood(data, noise.unsqueeze(0)), weights, rtol=1e-12, atol=1e-12)


def linear_gaussian(seed, latent_size=2):
    """A CVAE with an affine decoder, and its exact law of the target at given (s, a)."""
    torch.manual_seed(seed)
    model = small_model(latent_size=latent_size, hidden=(), prior_hidden=())
    model.sigma.logit.data.fill_(0.0)
    with torch.no_grad():
        model.encoder[0].weight.mul_(0.1)

    def marginal(s, a):
        sa = torch.cat([s, a], -1)
        mean, raw = model.prior(sa).chunk(2, -1)
        jacobian = model.decoder[0].weight[:, S + A :]  # [S+1, L]
        std = (5 * torch.tanh(raw / 5)).exp()
        scaled = jacobian * std.unsqueeze(-2)
        covariance = scaled @ scaled.mT + torch.diag((2 * model.sigma()).exp())
        return MultivariateNormal(model.decoder(torch.cat([sa, mean], -1)), covariance)

    return model, marginal


def expected_elbo(model, data):
    """The bound at one transition [1], its expectation exact: of a quadratic, 2L symmetric points give the mean."""
    latent = model.latent_size
    points = math.sqrt(latent) * torch.cat([torch.eye(latent), -torch.eye(latent)]).double()
    _, statistics = model.loss(Transition(*(x.expand(2 * latent, *x.shape[1:]) for x in data)), points)
    assert statistics["kl"] >= 0
    return -(statistics["reconstruction"] + statistics["kl"])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), latent_size=st.integers(1, 4))
def test_elbo_is_below_the_exact_log_likelihood(seed, latent_size):
    model, marginal = linear_gaussian(seed, latent_size)
    data = transitions(1)
    exact = marginal(data.s, data.a).log_prob(model.target_scale.encode(data.s, data.s_next, data.r))
    assert expected_elbo(model, data) <= exact.item() + 1e-9


def test_importance_weighting_tightens_the_bound_to_the_exact_log_likelihood():
    model, marginal = linear_gaussian(3)
    with torch.no_grad():  # the prior as proposal, so that the weights are bounded
        model.sigma.logit.fill_(1.0)
        model.encoder[0].weight.zero_()[:, : S + A] = model.prior[0].weight
        model.encoder[0].bias.copy_(model.prior[0].bias)
    data = transitions(100)
    sample = model(data.s, data.a, torch.randn(100, model.noise_size, dtype=torch.float64))
    data = data._replace(s_next=sample.s_next.detach(), r=sample.r.detach())
    exact = marginal(data.s, data.a).log_prob(model.target_scale.encode(data.s, data.s_next, data.r)).mean().item()
    bounds = [
        model.log_likelihood(data, torch.randn(k, 100, 2, dtype=torch.float64)).mean().item() for k in (1, 8, 8000)
    ]
    assert bounds[0] < bounds[1] < exact + 0.01
    assert bounds[2] == pytest.approx(exact, abs=0.05)


def with_exact_posterior():
    """L = 1, affine: prior N(m, t^2), decoder c + d z; the encoder is set to the posterior N(., 1/precision)."""
    torch.manual_seed(1)
    model = CVAE(S, A, latent_size=1, hidden=(), prior_hidden=()).double()
    prior, decoder, encoder = model.prior[0], model.decoder[0], model.encoder[0]
    with torch.no_grad():
        prior.weight.normal_()
        prior.weight[1].zero_()
        d = decoder.weight[:, -1].normal_()
        sigma = model.sigma().exp()
        prior_precision = (-2 * 5 * torch.tanh(prior.bias[1] / 5)).exp()
        precision = prior_precision + (d / sigma).square().sum()
        gain = d / sigma.square() / precision  # [S+1], on the decoder's residual at z = 0
        encoder.weight.zero_()
        encoder.weight[0, S + A :] = gain
        encoder.weight[0, : S + A] = prior.weight[0] * prior_precision / precision - gain @ decoder.weight[:, : S + A]
        encoder.bias[0] = prior.bias[0] * prior_precision / precision - gain @ decoder.bias
        encoder.bias[1] = 5 * torch.atanh(-0.5 * precision.log() / 5)
    return model


def test_with_the_exact_posterior_every_single_sample_gives_the_exact_likelihood():
    model, data = with_exact_posterior(), transitions(30)
    values = model.log_likelihood(data, torch.randn(1, 30, 1, dtype=torch.float64))
    again = model.log_likelihood(data, torch.randn(7, 30, 1, dtype=torch.float64))
    torch.testing.assert_close(values, again, rtol=1e-10, atol=1e-10)
    one = Transition(*(x[:1] for x in data))
    assert expected_elbo(model, one).item() == pytest.approx(values[0].item(), abs=1e-9)


def test_with_the_exact_posterior_noise_inferred_from_the_models_own_samples_is_standard_normal():
    model, n = with_exact_posterior(), 20_000
    data, eps = transitions(n), torch.randn(2, n, model.noise_size, dtype=torch.float64)
    prediction = model(data.s, data.a, eps[0])
    inferred = model.infer_noise(data._replace(s_next=prediction.s_next, r=prediction.r), eps[1])
    torch.testing.assert_close(inferred.mean(0), torch.zeros_like(inferred[0]), atol=0.03, rtol=0)
    torch.testing.assert_close(inferred.T.cov(), torch.eye(model.noise_size).double(), atol=0.04, rtol=0)


@pytest.mark.parametrize("s_at", [0, 1, 2])
def test_samples_have_the_covariance_of_latent_and_decoder_noise(s_at):
    model, marginal = linear_gaussian(s_at)
    s, a = torch.randn(S, dtype=torch.float64), torch.rand(A, dtype=torch.float64)
    n = 40_000
    prediction = model(s.expand(n, S), a.expand(n, A), torch.randn(n, model.noise_size, dtype=torch.float64))
    target = model.target_scale.encode(s, prediction.s_next, prediction.r).detach()
    law = marginal(s, a)
    scale = law.variance.sqrt()
    torch.testing.assert_close((target.mean(0) - law.mean) / scale, torch.zeros(S + 1).double(), atol=0.03, rtol=0)
    expected = law.covariance_matrix / scale.outer(scale)
    torch.testing.assert_close(target.T.cov() / scale.outer(scale), expected.detach(), atol=0.05, rtol=0)


def test_the_ablation_without_decoder_noise_keeps_the_latent_part_only():
    model = small_model(sample_decoder_noise=False)
    data, eps = transitions(5), torch.randn(2, 5, model.noise_size, dtype=torch.float64)
    eps[1, :, :4] = eps[0, :, :4]
    a, b = (model(data.s, data.a, e) for e in eps)
    assert torch.equal(a.s_next, b.s_next)
    assert torch.equal(a.r, b.r)


def test_forward_is_the_derivative_of_finite_differences_with_the_noise_fixed():
    model = small_model()
    data, eps = transitions(4), torch.randn(4, model.noise_size, dtype=torch.float64)

    def step(s, a):
        prediction = model(s, a, eps)
        return torch.cat([prediction.s_next, prediction.r[:, None], prediction.continuation[:, None]], -1)

    jacobians = torch.func.jacrev(step, argnums=(0, 1))(data.s, data.a)
    h = 1e-5
    for argument, jacobian in enumerate(jacobians):
        for row in range(4):
            for component in range(jacobian.shape[-1]):
                inputs = [[data.s.clone(), data.a.clone()] for _ in range(2)]
                inputs[0][argument][row, component] += h
                inputs[1][argument][row, component] -= h
                difference = (step(*inputs[0]) - step(*inputs[1])) / (2 * h)
                error = (jacobian[:, :, row, component] - difference).norm() / difference.norm()
                assert error < 1e-6


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("shape", [(7,), (3, 5)])
def test_inferred_noise_reproduces_the_transition(dtype, tolerance, shape):
    model = small_model(initial_sigma=0.1).to(dtype)
    data = transitions(*shape, dtype=dtype)
    eps = torch.randn(*shape, model.noise_size, dtype=dtype)
    inferred = model.infer_noise(data, eps)
    prediction = model(data.s, data.a, inferred)
    torch.testing.assert_close(prediction.s_next, data.s_next, atol=tolerance, rtol=0)
    torch.testing.assert_close(prediction.r, data.r, atol=tolerance, rtol=0)
    assert not inferred.requires_grad
    assert torch.equal(inferred[..., -1], eps[..., -1])
    assert not torch.equal(inferred[..., :4], model.infer_noise(data, torch.randn_like(eps))[..., :4])


def test_the_loss_reaches_every_network():
    model = small_model()
    model.loss(transitions(6), torch.randn(6, 4, dtype=torch.float64))[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_divergence_starts_near_zero():
    model = CVAE(S, A).double()
    _, statistics = model.loss(transitions(100), torch.randn(100, 8, dtype=torch.float64))
    assert 0 <= statistics["kl"] < 0.1


def test_a_component_that_never_moves_is_predicted_as_its_constant():
    model, data = CVAE(S, A, hidden=(8,)).double(), transitions(50)
    s_next = data.s_next.clone()
    s_next[:, 0] = data.s[:, 0]
    still = data._replace(r=torch.ones(50).double(), s_next=s_next)
    model.update_statistics(still)
    loss, _ = model.loss(still, torch.randn(50, 8, dtype=torch.float64))
    assert loss.isfinite()
    prediction = model(still.s, still.a, torch.randn(50, model.noise_size, dtype=torch.float64))
    torch.testing.assert_close(prediction.r, still.r, atol=5e-3, rtol=0)
    torch.testing.assert_close(prediction.s_next[:, 0], still.s[:, 0], atol=5e-3, rtol=0)


def test_update_statistics_normalises_difference_and_reward():
    model, data = CVAE(S, A), transitions(400, dtype=torch.float32)
    data = data._replace(r=5 + 3 * data.r, s_next=data.s + 0.1 * data.s_next - 2)
    for part in range(4):
        model.update_statistics(Transition(*(x[part * 100 : part * 100 + 100] for x in data)))
    target = model.target_scale.encode(data.s, data.s_next, data.r)
    torch.testing.assert_close(target.mean(0), torch.zeros(S + 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(target.std(0, unbiased=False), torch.ones(S + 1), atol=1e-4, rtol=0)


def test_loss_of_stacked_parameters_equals_the_loss_of_each():
    models = [small_model() for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)
    data, noise = transitions(6), torch.randn(6, 4, dtype=torch.float64)

    class Loss(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self):
            return self.model.loss(data, noise)[0]

    def loss(parameters, buffers):
        state = {f"model.{name}": value for name, value in {**parameters, **buffers}.items()}
        return torch.func.functional_call(shell, state, ())

    shell = Loss(models[0])
    gradients, losses = torch.func.vmap(torch.func.grad_and_value(loss))(parameters, buffers)
    for index, model in enumerate(models):
        own = model.loss(data, noise)[0]
        torch.testing.assert_close(losses[index], own)
        own.backward()
        torch.testing.assert_close(gradients["encoder.0.weight"][index], model.encoder[0].weight.grad)


def test_forward_and_loss_compile_without_a_graph_break():
    model = small_model()
    data, eps = transitions(6), torch.randn(6, model.noise_size, dtype=torch.float64)
    step = torch.compile(lambda s, a, e: model(s, a, e).s_next, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(step(data.s, data.a, eps), model(data.s, data.a, eps).s_next)
    loss = torch.compile(lambda *x: model.loss(Transition(*x), eps[:, :4])[0], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(loss(*data), model.loss(data, eps[:, :4])[0])


@pytest.mark.parametrize(
    "options",
    [
        {"latent_size": 0},
        {"kl_weight": -1.0},
        {"termination_weight": float("nan")},
        {"initial_sigma": 0.001},
        {"learning_rate": 0.0},
        {"max_gradient_norm": float("nan")},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(UsageError, match="world_model"):
        CVAE(S, A, **options)
