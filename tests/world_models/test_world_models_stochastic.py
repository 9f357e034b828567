"""Ensemble and flow: likelihood by reference, inference, torch.func, and their laws on a system with a known one."""

import builtins
import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from dsob_pl.errors import UsageError
from dsob_pl.world_models import Ensemble, Flow, Transition
from dsob_pl.world_models.metrics import sample_targets, spread_ratio

S, A = 2, 1
DYNAMICS = torch.tensor([[0.9, 0.2], [-0.2, 0.9]])
CONTROL = torch.tensor([[0.0], [0.5]])
REWARD = torch.tensor([0.5, -0.3, 1.0])
NOISE = torch.tensor([0.3, 0.1, 0.2])


def make(kind, **options):
    if kind is Flow:
        pytest.importorskip("zuko")
    return kind(S, A, **{"hidden": (32, 32), "termination_hidden": (16,), **options})


MODELS = pytest.mark.parametrize("kind", [Ensemble, Flow])


def system(n):
    """(s', r) linear in (s, a) with independent Gaussian noise."""
    s, a = torch.randn(n, S), torch.rand(n, A) * 2 - 1
    dynamics, control, reward, noise = (x.to(s.dtype) for x in (DYNAMICS, CONTROL, REWARD, NOISE))
    e = torch.randn(n, S + 1) * noise
    s_next = s @ dynamics.T + a @ control.T + e[:, :S]
    return Transition(s, a, torch.cat([s, a], -1) @ reward + e[:, S], s_next, (s_next[:, 0] > 2).to(s.dtype))


def unlike_the_start(model):
    """Weights at which the members, or the layers, do differ."""
    model.update_statistics(system(200))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module", params=[Ensemble, Flow], ids=lambda k: k.__name__)
def trained(request):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, data = (
        make(request.param, **({"members": 3} if request.param is Ensemble else {"transforms": 2})),
        system(20_000),
    )
    model.update_statistics(data)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 800)
    for _ in range(800):
        rows = torch.randint(len(data.r), (256,))
        loss, _ = model.loss(Transition(*(x[rows] for x in data)), torch.randn(256, model.loss_noise_size))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


def test_the_law_is_the_systems(trained):
    data = system(2000)
    eps = torch.randn(64, 2000, trained.noise_size)
    assert spread_ratio(trained, data, eps).item() == pytest.approx(1, abs=0.1)
    s, a = torch.randn(200, S), torch.rand(200, A) * 2 - 1
    samples = sample_targets(trained, s, a, torch.randn(400, 200, trained.noise_size))
    mean = torch.cat([s @ DYNAMICS.T + a @ CONTROL.T - s, (torch.cat([s, a], -1) @ REWARD)[:, None]], -1)
    assert ((samples.mean(0) - mean).square().mean(0).sqrt() < 0.3 * NOISE).all()
    torch.testing.assert_close(samples.std(0).mean(0), NOISE, rtol=0.1, atol=0)
    true = Normal(torch.zeros(3), NOISE / trained.target_scale.scale).entropy().sum()
    value = trained.log_likelihood(data, torch.zeros(1, 2000, trained.loss_noise_size)).mean()
    assert value.item() == pytest.approx(-true.item(), abs=0.12)


def test_the_mean_jacobian_is_the_systems(trained):
    s, a, eps = torch.randn(2000, S), torch.rand(2000, A) * 2 - 1, torch.randn(2000, trained.noise_size)

    def step(s, a, eps):
        prediction = trained(s, a, eps)
        return torch.cat([prediction.s_next, prediction.r[None]])

    ds, da = torch.func.vmap(torch.func.jacrev(step, argnums=(0, 1)))(s, a, eps)
    torch.testing.assert_close(ds.mean(0), torch.cat([DYNAMICS, REWARD[None, :S]]), atol=0.08, rtol=0)
    torch.testing.assert_close(da.mean(0), torch.cat([CONTROL, REWARD[None, S:]]), atol=0.08, rtol=0)


@MODELS
def test_inferred_noise_reproduces_the_transition(kind, float64):
    model, data = unlike_the_start(make(kind)), system(7)
    eps = torch.randn(7, model.noise_size)
    inferred = model.infer_noise(data, eps)
    prediction = model(data.s, data.a, inferred)
    torch.testing.assert_close(prediction.s_next, data.s_next, atol=1e-8, rtol=0)
    torch.testing.assert_close(prediction.r, data.r, atol=1e-8, rtol=0)
    assert not inferred.requires_grad
    once, eps = Transition(*(x.unsqueeze(1) for x in data)), torch.randn(2, 7, 5, model.noise_size)
    s, a = (x.unsqueeze(1).expand(2, 7, 5, -1) for x in (data.s, data.a))
    prediction = model.reproduce(once, s, a, eps)  # as targets ask for it: [E, B, M] from [B, 1]
    torch.testing.assert_close(prediction.s_next, data.s_next[:, None].expand(2, 7, 5, S), atol=1e-8, rtol=0)


@MODELS
def test_noise_inferred_from_the_models_own_samples_is_standard_normal(kind, float64):
    model, n = unlike_the_start(make(kind)), 20_000
    s, a, eps = torch.randn(n, S), torch.rand(n, A), torch.randn(2, n, model.noise_size)
    prediction = model(s, a, eps[0])
    inferred = model.infer_noise(Transition(s, a, prediction.r, prediction.s_next, torch.zeros(n)), eps[1])
    torch.testing.assert_close(inferred.mean(0), torch.zeros(model.noise_size), atol=0.04, rtol=0)
    torch.testing.assert_close(inferred.T.cov(), torch.eye(model.noise_size), atol=0.05, rtol=0)
    if kind is Flow:
        torch.testing.assert_close(inferred, eps[0], atol=1e-8, rtol=0)


def test_the_ensembles_likelihood_is_that_of_the_mixture(float64):
    model, data = unlike_the_start(make(Ensemble)), system(9)
    mean, log_std = (x.movedim(0, 1) for x in model._laws(data.s, data.a))
    members = Independent(Normal(mean, log_std.exp()), 1)
    law = MixtureSameFamily(Categorical(torch.ones(9, model.members)), members)
    target = model.target_scale.encode(data.s, data.s_next, data.r)
    torch.testing.assert_close(model.log_likelihood(data, torch.zeros(1, 9, 0)), law.log_prob(target).detach())
    loss, statistics = model.loss(data, torch.zeros(9, 0))
    each = members.log_prob(target.unsqueeze(1))
    torch.testing.assert_close(statistics["reconstruction"], -each.mean().detach())
    torch.testing.assert_close(loss.detach() - statistics["termination_loss"], -each.mean(0).sum().detach())


def test_one_component_of_the_noise_chooses_the_member(float64):
    model = unlike_the_start(make(Ensemble, members=4))
    s, a = torch.randn(1, S), torch.rand(1, A)
    mean, log_std = model._laws(s, a)
    for member, tau in enumerate((0.1, 0.3, 0.6, 0.9)):
        eps = torch.tensor([[math.sqrt(2) * torch.erfinv(torch.tensor(2 * tau - 1)).item(), 0.5, -1.0, 2.0]])
        expected = mean[member] + log_std[member].exp() * eps[:, 1:]
        prediction = model(s, a, eps)
        torch.testing.assert_close(model.target_scale.encode(s, prediction.s_next, prediction.r), expected)


def test_the_flows_likelihood_is_a_density_and_its_loss_adds_the_floor(float64):
    model = unlike_the_start(make(Flow))
    eps = torch.randn(5, S + 1)
    s, a = torch.randn(5, S), torch.rand(5, A)
    prediction = model(s, a, eps)
    data = Transition(s, a, prediction.r, prediction.s_next, torch.zeros(5))
    # log p = log N(eps) - log |det d(target)/d(eps)|, the Jacobian by differentiation of the sampler
    jacobian = torch.stack([torch.func.jacrev(model._target, argnums=2)(s[i], a[i], eps[i]) for i in range(5)])
    expected = Normal(0, 1).log_prob(eps).sum(-1) - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(model.log_likelihood(data, torch.zeros(1, 5, 3)), expected.detach())
    noise = torch.randn(5, S + 1)
    target = model.target_scale.encode(s, data.s_next, data.r) + 0.01 * noise
    torch.testing.assert_close(
        model.loss(data, noise)[1]["reconstruction"], -model._log_density(s, a, target).mean().detach()
    )


@MODELS
def test_derivatives_are_those_of_finite_differences(kind, float64):
    model, eps = unlike_the_start(make(kind)), torch.randn(3, make(kind).noise_size)

    def step(s, a):
        prediction = model(s, a, eps)
        return torch.cat([prediction.s_next, prediction.r[:, None], prediction.continuation[:, None]], -1)

    assert torch.autograd.gradcheck(step, (torch.randn(3, S, requires_grad=True), torch.rand(3, A, requires_grad=True)))


class Both(torch.nn.Module):
    """Loss and step of a model, as a function of (s, a)."""

    def __init__(self, model, data, noise, eps):
        super().__init__()
        self.model, self.data, self.noise, self.eps = model, data, noise, eps

    def forward(self, s, a):
        return self.model.loss(self.data, self.noise)[0], self.model.reproduce(self.data, s, a, self.eps).s_next


def shells_around(models):
    data = system(6)
    noise, eps = torch.randn(6, models[0].loss_noise_size), torch.randn(6, models[0].noise_size)
    return [Both(model, data, noise, eps) for model in models]


@MODELS
def test_loss_and_step_of_stacked_parameters_are_those_of_each(kind, float64):
    shells = shells_around([unlike_the_start(make(kind)) for _ in range(3)])
    data, state = shells[0].data, torch.func.stack_module_state(shells)
    losses, steps = torch.func.vmap(lambda p, b: torch.func.functional_call(shells[0], (p, b), (data.s, data.a)))(
        *state
    )
    for i, shell in enumerate(shells):
        loss, step = shell(data.s, data.a)
        torch.testing.assert_close(losses[i], loss)
        torch.testing.assert_close(steps[i], step)


@MODELS
def test_loss_and_gradients_compile_without_a_graph_break(kind, float64):
    shells = shells_around([unlike_the_start(make(kind)) for _ in range(2)])
    data, state = shells[0].data, torch.func.stack_module_state(shells)

    def pull_back(*own):
        both, back = torch.func.vjp(lambda s, a: torch.func.functional_call(shells[0], own, (s, a)), data.s, data.a)
        return both, back((torch.ones(()), torch.ones(6, S)))

    fast = torch.compile(lambda p, b: torch.func.vmap(pull_back)(p, b), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(fast(*state), torch.func.vmap(pull_back)(*state))


@MODELS
def test_the_loss_reaches_every_parameter(kind):
    model, data = make(kind), system(20)
    model.loss(data, torch.randn(20, model.loss_noise_size))[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Ensemble, {"members": 0}),
        (Ensemble, {"minimum_sigma": 3.0}),
        (Flow, {"transforms": 0}),
        (Flow, {"bins": 1}),
        (Flow, {"noise_floor": float("nan")}),
        (Ensemble, {"maximum_sigma": float("inf")}),
        *((kind, {"termination_weight": weight}) for kind in (Ensemble, Flow) for weight in (-1.0, float("nan"))),
    ],
)
def test_bad_options_are_refused(kind, options):
    with pytest.raises(UsageError, match="world_model"):
        make(kind, **options)


def test_without_zuko_one_line_says_how_to_get_it(monkeypatch):
    original = builtins.__import__

    def missing(name, *rest, **more):
        if name.startswith("zuko"):
            raise ModuleNotFoundError("No module named 'zuko'", name="zuko")
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UsageError, match=r"pip install 'dsob_pl\[flow\]'"):
        Flow(S, A)
