"""The losses as pure functions: numbers by hand, gradient isolation, no NaN from terminal states, torch.func."""

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch.func import functional_call

from dsob_pl.agents import SobolevActorCritic, losses
from dsob_pl.agents.objectives import draw_noise, gradient_weight, objective, target_samples
from dsob_pl.bellman import NoCorrection, SobolevOrder, sobolev_target
from dsob_pl.critics import Critic, GenerativeCritic
from dsob_pl.divergences import MMD, Multiquadric, SquaredError
from dsob_pl.networks import DeterministicPolicy
from dsob_pl.world_models import CVAE, Transition

STATE_ACTION, ACTION, NONE = SobolevOrder.STATE_ACTION, SobolevOrder.ACTION, SobolevOrder.NONE


class LinearCritic(Critic):
    """``Z = w (s + 2 a) + xi``."""

    ensemble_size, noise_size = 1, 1

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, s, a, noise):
        return (self.w * (s + 2 * a) + noise).squeeze(-1)


def transition(batch=6, s=3, a=2):
    return Transition(
        torch.randn(batch, s),
        torch.rand(batch, a) * 2 - 1,
        torch.randn(batch),
        torch.randn(batch, s),
        torch.zeros(batch),
    )


def small_parts(dtype=torch.float64):
    model = CVAE(3, 2, latent_size=4, hidden=(16,), prior_hidden=(8,), termination_hidden=(8,))
    critic = GenerativeCritic(3, 2, members=2, hidden=(16, 16), noise_size=4)
    return model, critic, DeterministicPolicy(3, 2, hidden=(16,))


def test_critic_loss_by_hand(float64):
    # s=1, a=2, xi=0.3, w=0.5: Z = 2.8, dZ/da = 2w = 1; target (2, 0.25); gradient weight 3
    # loss = (2.8-2)^2 + (3 (1 - 0.25))^2 = 0.64 + 5.0625; dloss/dw = 2*0.8*5 + 2*9*0.75*2 = 8 + 27
    critic = LinearCritic()
    batch = Transition(torch.ones(1, 1), 2 * torch.ones(1, 1), torch.zeros(1), torch.zeros(1, 1), torch.zeros(1))
    noise, target = torch.full((1, 1, 1), 0.3), torch.tensor([[[2.0, 0.25]]])
    loss, samples = losses.critic_loss(critic, SquaredError(), batch, noise, target, ACTION, 3.0)
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(5.7025))
    torch.testing.assert_close(critic.w.grad, torch.tensor(35.0))
    torch.testing.assert_close(samples, torch.tensor([[[[2.8, 1.0]]]]))


@pytest.mark.parametrize("gradient_weight", [1.0, 0.3])
def test_critic_loss_for_its_derivative_alone(float64, gradient_weight):
    _, critic, _ = small_parts()
    batch, noise, target = transition(), torch.randn(6, 5, critic.noise_size), torch.randn(6, 8, 6)
    gradients, values = [], []
    for value in (True, False):
        loss, _ = losses.critic_loss(critic, MMD(), batch, noise, target, STATE_ACTION, gradient_weight, value=value)
        gradients.append(torch.autograd.grad(loss, critic.parameters(), allow_unused=True))  # not that of the last bias
        values.append(loss.item())
    for full, alone in zip(*gradients):
        torch.testing.assert_close(alone, full)
    assert values[0] - values[1] < -1  # the term of the targets: E = 2 times the mean of -sqrt(1 + h^2 |y - y'|^2)


def test_limited_gradient_weights_by_hand(float64):
    # Mean squares of the rows' gradients: (25 + 1) / 2 = 13, 8 and 0; of the other two 4, 6.5 and 10.5. Returns have no
    # say.
    target = torch.tensor([[[9.0, 3.0, 4.0], [-7.0, 0.0, 1.0]], [[0.0, 2.0, 2.0]] * 2, [[5.0, 0.0, 0.0]] * 2])
    others, limited = torch.tensor([4.0, 6.5, 10.5]).sqrt(), losses.limited_gradient_weights
    torch.testing.assert_close(limited(target, 1.0, torch.tensor(1.8)), 1.8 / others)
    torch.testing.assert_close(limited(target, 2.0, torch.tensor(1.8)), 1.8 / others)
    torch.testing.assert_close(limited(target, 0.5, torch.tensor(1.1))[0], torch.tensor(0.5))  # 0.5 * 2 is allowed
    assert (limited(0 * target, 1.0, torch.tensor(0.2)) == 1).all()
    assert (limited(target[:1], 3.0, torch.tensor(0.2)) == 3).all()  # nothing to compare it with
    assert (limited(target, 1.0, torch.tensor(0.0)) == 0).all()  # no return but one is possible
    assert limited(0 * target, 1.0, torch.tensor(0.0)).isfinite().all()
    far = torch.tensor([[[0.0, 1e12]], [[0.0, 3.0]], [[0.0, 4.0]]])  # of the first row the others are not lost
    torch.testing.assert_close(limited(far, 1.0, torch.tensor(0.1))[0], torch.tensor(0.1 / 12.5**0.5))


@pytest.mark.parametrize("power", [-3, 0, 3])
def test_weighted_gradients_come_to_the_limit_and_weigh_no_more_than_without(float64, power):
    target = torch.randn(256, 8, 6) * 10.0**power * torch.rand(256, 1, 1)
    for weight in (0.3, 1.0, 5.0):
        found = losses.limited_gradient_weights(target, weight, torch.tensor(0.2))
        size = np.sqrt(np.mean([float((w * y[1:]).norm()) ** 2 for w, row in zip(found, target) for y in row]))
        whole = np.sqrt(np.mean([float((weight * y[1:]).norm()) ** 2 for row in target for y in row]))
        assert size == pytest.approx(min(whole, 0.2), rel=0.01)
        assert (found <= weight * (1 + 1e-12)).all()


def test_the_limit_leaves_a_rare_large_gradient_as_rare_as_it_is(float64):
    # All batches of four whose gradients are 3 with probability 0.2, else 1, each with its probability: what squared
    # error learns is E[w^2 t] / E[w^2], and that is the mean 1.4.
    draws = torch.cartesian_prod(*[torch.tensor([1.0, 3.0])] * 4)
    chance = torch.where(draws == 3, 0.2, 0.8).prod(-1)
    weights = torch.stack(
        [losses.limited_gradient_weights(x[:, None, None].expand(-1, 1, 2), 1.0, torch.tensor(0.5)) for x in draws]
    )
    assert weights.std() > 0.05  # they do depend on the batch
    learned = (chance[:, None] * weights**2 * draws).sum() / (chance[:, None] * weights**2).sum()
    torch.testing.assert_close(learned, torch.tensor(1.4))


def test_critic_loss_with_weights_of_its_transitions(float64):
    _, critic, _ = small_parts()
    batch, noise, target = transition(), torch.randn(6, 5, critic.noise_size), torch.randn(6, 8, 6)
    weights = torch.rand(6) + 0.1
    loss, _ = losses.critic_loss(critic, MMD(), batch, noise, target, STATE_ACTION, weights)
    each = [
        losses.critic_loss(critic, MMD(), Transition(*(x[i] for x in batch)), noise[i], target[i], STATE_ACTION, w)[0]
        for i, w in ((slice(i, i + 1), weights[i].item()) for i in range(6))
    ]
    both = [(x, *torch.autograd.grad(x, critic.parameters(), allow_unused=True)) for x in (loss, sum(each) / 6)]
    torch.testing.assert_close(*both)


def test_the_limit_on_gradients_is_relative_to_the_possible_returns(float64):
    batch = transition()
    for scale in (1.0, 40.0):
        it = agent(sobolev="action", gradient_rms_limit=0.01, return_range=None, gamma=0.5, gradient_bound=None)
        it.reward_scale.low.fill_(-scale), it.reward_scale.high.fill_(scale)  # returns within 2 scale of 0
        noise = draw_noise(it, 6, policy=False)
        target, _ = target_samples(it, batch, noise.step, noise.target, noise.smoothing)
        target = target * 1e3  # whatever the networks begin with
        found = gradient_weight(it, target)
        others = torch.stack([target[torch.arange(6) != i, :, 1:].square().sum(-1).mean().sqrt() for i in range(6)])
        torch.testing.assert_close(found * others, torch.tensor(0.04 * scale).expand(6))
        _, metrics = objective(it, "critic", batch, noise.of("critic"), report=True)
        assert 0 < metrics["critic/gradient_weight"] <= 1
    plain = agent(sobolev="action")
    assert gradient_weight(plain, target) == 1.0
    _, metrics = objective(plain, "critic", batch, draw_noise(plain, 6, policy=False).of("critic"), report=True)
    assert "critic/gradient_weight" not in metrics


def test_policy_loss_by_hand(float64):
    # pi(s) = k s with k = 0.5, s = 1: Z = w (s + 2 k s) + xi = 1 + xi, mean of xi = 0.1; dloss/dk = -2 w s = -1
    k = torch.tensor(0.5, requires_grad=True)
    loss = losses.policy_loss(lambda s: k * s, LinearCritic(), torch.ones(1, 1), torch.tensor([[[0.3], [-0.1]]]))
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(-1.1))
    torch.testing.assert_close(k.grad, torch.tensor(-1.0))


def test_recorded_step_gives_the_plain_distributional_target(float64):
    critic, batch = LinearCritic(), transition(4, 1, 1)._replace(terminated=torch.tensor([0.0, 1.0, 0.0, 1.0]))
    noise = torch.randn(4, 3, 1)
    target = sobolev_target(
        losses.recorded_step(batch), lambda s: -s, critic, batch.s, batch.a, torch.zeros(4, 3, 0), noise, 0.9, NONE,
        NoCorrection(),
    )  # fmt: skip
    z = critic.w * (batch.s_next - 2 * batch.s_next) + noise.squeeze(-1)
    expected = batch.r[:, None] + 0.9 * (1 - batch.terminated)[:, None] * z
    torch.testing.assert_close(target.squeeze(-1), expected.detach())


def test_replayed_step_reproduces_the_transition(float64):
    model, critic, policy = small_parts()
    batch = transition()._replace(terminated=torch.tensor([0.0, 1, 0, 1, 0, 1]))
    model.update_statistics(transition(64))
    eps = torch.randn(6, 5, model.noise_size)
    s, a = (x.unsqueeze(1).expand(6, 5, -1) for x in (batch.s, batch.a))
    step = losses.replayed_step(model, batch)(s, a, eps)
    torch.testing.assert_close(step.s_next, batch.s_next.unsqueeze(1).expand(6, 5, 3))
    torch.testing.assert_close(step.r, batch.r.unsqueeze(1).expand(6, 5))
    torch.testing.assert_close(step.continuation, 1 - batch.terminated.unsqueeze(1).expand(6, 5))
    # Terminated transitions do not bootstrap, whatever the critic says of their next state.
    target = sobolev_target(
        losses.replayed_step(model, batch), policy, critic, batch.s, batch.a, eps, torch.randn(6, 5, 4), 0.9,
        STATE_ACTION, NoCorrection(),
    )  # fmt: skip
    ends = batch.terminated.bool()
    torch.testing.assert_close(target[ends][..., 0], batch.r[ends].unsqueeze(1).expand(-1, 10))
    assert (target[~ends][..., 0] - batch.r[~ends].unsqueeze(1)).abs().min() > 1e-6


@pytest.mark.parametrize("nested", [False, True])
def test_replayed_targets_are_those_of_the_model_with_inferred_noise(float64, nested):
    model, critic, policy = small_parts()
    model.update_statistics(transition(64))
    batch, eps, noise = transition(), torch.randn(6, 5, model.noise_size), torch.randn(6, 5, 4)
    rows = Transition(*(x.unsqueeze(1).expand(6, 5, *x.shape[1:]) for x in batch))
    fixed = model.infer_noise(rows, eps)  # as a constant: the model itself, at the noise that gives the real s' and r

    def target(step, eps):
        arguments = (policy, critic, batch.s, batch.a, eps, noise, 0.9, STATE_ACTION, NoCorrection(), nested)
        return sobolev_target(step, *arguments)

    def unterminated(s, a, eps):
        prediction = model(s, a, eps)
        probability = prediction.continuation
        return prediction._replace(continuation=1 + (probability - probability.detach()))

    torch.testing.assert_close(target(losses.replayed_step(model, batch), eps), target(unterminated, fixed))


@pytest.mark.parametrize("order", [NONE, ACTION, STATE_ACTION])
def test_losses_run_under_torch_func_and_agree(float64, order):
    """The same loss with parameters as arguments: what compiling and many seeds in one process build on."""
    model, critic, policy = small_parts()
    batch, eps, noise = transition(), torch.randn(6, 5, model.noise_size), torch.randn(6, 5, 4)
    divergence = MMD(Multiquadric(1.0))

    def loss_of(parameters, batch, nested):
        bound = Bound(critic, parameters)
        target = sobolev_target(model, policy, critic, batch.s, batch.a, eps, noise, 0.9, order, NoCorrection(), nested)
        return losses.critic_loss(bound, divergence, batch, noise, target, order, 0.5)[0]

    parameters = dict(critic.named_parameters())
    eager = loss_of(parameters, batch, False)
    expected = torch.autograd.grad(eager, list(parameters.values()), allow_unused=True)
    detached = {k: v.detach() for k, v in parameters.items()}
    gradients, value = torch.func.grad_and_value(loss_of)(detached, batch, True)
    torch.testing.assert_close(value, eager.detach())
    for g, e in zip(gradients.values(), expected):
        if e is not None:
            torch.testing.assert_close(g, e)

    stacked = {k: torch.stack([v, v * 1.1]) for k, v in detached.items()}
    each = torch.func.vmap(lambda p: loss_of(p, batch, True))(stacked)
    torch.testing.assert_close(each[0], eager.detach())
    torch.testing.assert_close(each[1], loss_of({k: v * 1.1 for k, v in detached.items()}, batch, True))


class Bound(Critic):
    """A critic with its parameters given as an argument."""

    def __init__(self, critic, parameters):
        super().__init__()
        self.inner = [critic]  # in a list: not a submodule
        self.parameters_, self.ensemble_size, self.noise_size = parameters, critic.ensemble_size, critic.noise_size

    def forward(self, s, a, noise):
        return functional_call(self.inner[0], self.parameters_, (s, a, noise))


def agent(**options):
    return SobolevActorCritic(
        3, 2,
        critic=lambda s, a: GenerativeCritic(s, a, hidden=(16,), noise_size=4),
        policy=lambda s, a: DeterministicPolicy(s, a, hidden=(16,)),
        world_model=lambda s, a: CVAE(s, a, latent_size=2, hidden=(16,), prior_hidden=(8,), termination_hidden=(8,)),
        **options,
    )  # fmt: skip


def snapshot(module):
    return [p.detach().clone() for p in module.parameters()]


def moved(module, before):
    return any(not torch.equal(p, q) for p, q in zip(module.parameters(), before))


@pytest.mark.parametrize("source", ["imagined", "replayed"])
@pytest.mark.parametrize("order", [ACTION, STATE_ACTION])
def test_each_optimizer_moves_its_own_network_only(source, order):
    it = agent(target_source=source, sobolev=order, policy_delay=1, tau=0.0)
    it.reward_scale.low.fill_(-1), it.reward_scale.high.fill_(1)
    real, _ = it.configure_optimizers()
    parts = {"world_model": it.world_model, "critic": it.critic, "policy": it.policy}
    targets = {"target_critic": it.target_critic, "target_policy": it.target_policy}
    for index, trained in enumerate(parts):
        # Every loss is computed and differentiated, but only one optimizer is real.
        steps = [real[k] if k == index else Still(real[k]) for k in range(3)]
        it.optimizers = lambda use_pl_optimizer=True, steps=steps: steps
        before = {name: snapshot(part) for name, part in (parts | targets).items()}
        it._update(transition(), report=True)
        assert {name for name, part in (parts | targets).items() if moved(part, before[name])} == {trained}


def test_no_loss_reaches_another_network():
    model, critic, policy = (part.float() for part in small_parts())
    batch, noise = transition(), torch.randn(6, 5, 4)
    eps = torch.randn(6, 5, model.noise_size)
    parts = {"model": model, "critic": critic, "policy": policy}

    def reached():
        names = {name for name, part in parts.items() if any(p.grad is not None for p in part.parameters())}
        for part in parts.values():
            part.zero_grad(set_to_none=True)
        return names

    # The same networks serve as target networks: what reaches one of them through the target would show.
    target = sobolev_target(model, policy, critic, batch.s, batch.a, eps, noise, 0.9, STATE_ACTION, NoCorrection())
    losses.critic_loss(critic, MMD(), batch, noise, target, STATE_ACTION, 1.0)[0].backward()
    assert reached() == {"critic"}
    model.loss(batch, torch.randn(6, model.loss_noise_size))[0].backward()
    assert reached() == {"model"}
    losses.policy_loss(policy, critic, batch.s, noise).backward(inputs=list(policy.parameters()))
    assert reached() == {"policy"}


def test_a_policy_step_leaves_the_gradients_of_the_critics_alone():
    it = agent(policy_delay=1)
    it.reward_scale.low.fill_(-1), it.reward_scale.high.fill_(1)
    real, _ = it.configure_optimizers()
    it.optimizers = lambda use_pl_optimizer=True: real
    it._update(transition(), report=False)
    before = [p.grad.clone() for p in it.critic.parameters()]
    loss = losses.policy_loss(it.policy, it.critic, transition().s, torch.randn(6, 5, 4))
    it._descend("policy", loss)
    assert all(torch.equal(p.grad, g) for p, g in zip(it.critic.parameters(), before))


class Still:
    """An optimizer that takes gradients but no steps."""

    def __init__(self, optimizer):
        self.param_groups, self.zero_grad = optimizer.param_groups, optimizer.zero_grad

    def step(self):
        pass


def replay_batch(rows=8):
    nxt = TensorDict(
        {
            "observation": torch.randn(rows, 3),
            "reward": torch.randn(rows, 1),
            "terminated": torch.zeros(rows, 1, dtype=torch.bool),
            "truncated": torch.zeros(rows, 1, dtype=torch.bool),
        },
        [rows],
    )
    return TensorDict({"observation": torch.randn(rows, 3), "action": torch.rand(rows, 2) * 2 - 1, "next": nxt}, [rows])


@pytest.mark.parametrize(("order", "source"), [(NONE, "replayed"), (ACTION, "replayed"), (STATE_ACTION, "imagined")])
def test_nan_in_a_terminal_next_state_never_leaks(order, source):
    it = agent(sobolev=order, target_source=source)
    it.reward_scale.low.fill_(-1), it.reward_scale.high.fill_(1)
    batch = replay_batch()
    batch["next", "terminated"][::2] = True
    batch["next", "observation"][::2] = torch.nan
    rows = it.transitions(batch)
    target, _ = it.target(rows)
    assert target.isfinite().all()
    real, _ = it.configure_optimizers()
    it.optimizers = lambda use_pl_optimizer=True: real
    metrics = it._update(rows, report=True)
    assert all(torch.isfinite(v).all() for v in metrics.values())
    assert all(p.isfinite().all() for p in it.parameters())


def test_the_value_of_a_terminal_state_does_not_matter():
    it = agent(sobolev="action", target_source="replayed", gradient_bound=None)
    values = []
    for terminal in (0.0, 3.0):
        torch.manual_seed(3)
        rows = transition()._replace(terminated=torch.ones(6))
        target, _ = it.target(rows._replace(s_next=torch.full((6, 3), terminal)))
        values.append(target[..., 0])
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[0], rows.r[:, None].expand_as(values[0]))


def test_nan_in_the_next_state_of_a_running_episode_is_not_hidden():
    batch = replay_batch()
    batch["next", "observation"][0] = torch.nan
    assert agent().transitions(batch).s_next[0].isnan().all()
