from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml
from tensordict import TensorDict
from torch import nn

from dsob_pl.agents import SobolevActorCritic
from dsob_pl.bellman import SobolevOrder
from dsob_pl.critics import GenerativeCritic
from dsob_pl.divergences import MaxSlicedMMD, QuantileHuber
from dsob_pl.errors import UsageError
from dsob_pl.networks import DeterministicPolicy
from dsob_pl.world_models import Deterministic, Prediction


@pytest.mark.parametrize(
    "option",
    [
        {"gamma": 1.0},
        {"gamma": -0.1},
        {"gamma": float("nan")},
        {"tau": 1.5},
        {"samples": 0},
        {"target_samples": 0},
        {"policy_delay": 0},
        {"return_range": 0.0},
        {"return_range": float("inf")},
        {"gradient_bound": float("inf")},
        {"gradient_bound": -1.0},
        {"gradient_rms_limit": 0.0},
        {"gradient_rms_limit": float("inf")},
        {"max_gradient_norm": float("nan")},
        {"gradient_weight": -1.0},
        {"exploration_std": float("inf")},
        {"jacobian_penalty": -1.0},
        {"jacobian_bound": 0.0},
        {"anneal_after": 1.0},
        {"anneal_after": -0.1},
        {"anneal_after": float("nan")},
        {"anneal_to": -0.1},
        {"anneal_to": 1.1},
        {"target_source": "replay"},
        {"bound_unit": "low"},
    ],
)
def test_options_out_of_range_name_themselves(option):
    with pytest.raises(UsageError, match=rf"^model\.{next(iter(option))}: expected .* got"):
        SobolevActorCritic(3, 1, **option)


def test_gradients_without_a_world_model_are_refused():
    with pytest.raises(UsageError, match=r"model\.sobolev: 'action' needs a world model"):
        SobolevActorCritic(3, 1, world_model=None, sobolev=SobolevOrder.ACTION)
    agent = SobolevActorCritic(3, 1, world_model=None, sobolev=SobolevOrder.NONE)
    assert agent.act(torch.zeros(3)).shape == (1,)


class Flat(GenerativeCritic):
    """One sample too many axes: it broadcasts against targets, and nobody would notice."""

    def forward(self, s, a, noise):
        return super().forward(s, a, noise)[..., None]

    def value_and_gradient(self, s, a, noise, state=True):
        return None


class Column(Deterministic):
    """Rewards with an axis too many."""

    def forward(self, s, a, eps):
        s_next, r, continuation = super().forward(s, a, eps)
        return Prediction(s_next, r[..., None], continuation)


class Frozen(DeterministicPolicy):
    """With a part that is told not to learn from what it sees, and one that draws."""

    def __init__(self, observation_size, action_size):
        super().__init__(observation_size, action_size, hidden=[4])
        self.first = nn.Sequential(nn.BatchNorm1d(observation_size), nn.Dropout(0.5), nn.BatchNorm1d(observation_size))
        self.first[2].eval()

    def forward(self, observation):
        return super().forward(self.first(observation))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"policy": GenerativeCritic},
            r"model\.policy: GenerativeCritic cannot be called with .* \[2, 3\]: .*noise",
        ),
        (
            {"policy": lambda s, a: nn.Linear(s, 5)},
            r"model\.policy: expected .* \[2, 3\] -> actions \[2, 1\]; got",
        ),
        ({"policy": lambda s, a: nn.Linear(9, a)}, r"model\.policy: Linear cannot be called with tensors \[2, 3\]"),
        ({"policy": lambda s, a: nn.LSTM(s, a)}, r"model\.policy: .* got tuple from LSTM"),
        ({"world_model": Column}, r"-> s_next \[2, 3\], r \[2\], .*; got \[2, 3\], \[2, 1\], \[2\] from Column"),
        ({"world_model": lambda s, a: Deterministic(s + 1, a)}, r"model\.world_model: Deterministic cannot be called"),
        ({"critic": Flat}, r"-> samples \[2, 2, 10\]; got \[2, 2, 10, 1\] from Flat"),
    ],
)
def test_networks_that_cannot_be_called_or_give_another_shape_are_named(parts, message):
    with pytest.raises(UsageError, match=message):
        SobolevActorCritic(3, 1, **parts)


def test_trying_a_network_changes_nothing_in_it():
    torch.manual_seed(0)
    agent = SobolevActorCritic(3, 1, policy=Frozen)
    drawn = torch.rand(())
    assert [module.training for module in agent.policy.first] == [True, True, False]
    assert agent.policy.first[0].num_batches_tracked == 0
    torch.manual_seed(0)
    with mock.patch("dsob_pl.agents.sobolev_actor_critic.check_networks"):
        SobolevActorCritic(3, 1, policy=Frozen)
    assert torch.rand(()) == drawn  # as without the trial


def test_replayed_targets_need_a_world_model_that_infers_noise():
    with pytest.raises(UsageError, match=r"model\.target_source: 'replayed' needs .*; Deterministic does not"):
        SobolevActorCritic(3, 1, world_model=Deterministic, target_source="replayed")


def test_actions_and_values_take_observations_of_another_device():
    agent = SobolevActorCritic(3, 1).to("meta")
    assert agent.act(torch.zeros(4, 3)).device.type == "meta"
    assert agent.explore(torch.zeros(3)).device.type == "meta"


def test_exploration_stays_in_the_action_box():
    agent = SobolevActorCritic(3, 1, exploration_std=5.0)
    actions = torch.stack([agent.explore(torch.zeros(3)) for _ in range(50)])
    assert actions.abs().max() == 1
    assert actions.std() > 0.5


def test_a_policy_without_an_optimizer_stays(tmp_path):
    torch.manual_seed(0)
    agent = SobolevActorCritic(3, 1, policy_optimizer=None)
    (model, critic, policy, clock), _ = agent.configure_optimizers()
    held = {id(p) for optimizer in (model, critic, policy, clock) for g in optimizer.param_groups for p in g["params"]}
    assert not held & {id(p) for p in agent.policy.parameters()}
    assert {id(p) for p in agent.critic.parameters()} <= held


def test_samples_of_return_and_gradients_are_in_units_of_reward_and_observation(float64):
    agent = SobolevActorCritic(3, 2).double()
    observations = torch.randn(500, 3) * torch.tensor([1.0, 5.0, 0.2]) + 3
    agent.normalizer.update(observations)
    agent.reward_scale.factor.fill_(0.25)
    s, a = observations[:4], torch.rand(4, 2) * 2 - 1
    samples = agent.sobolev_returns(s, a, 6)
    assert samples.shape == (2, 4, 6, 1 + 3 + 2)
    h = 1e-5
    for i in range(3):
        step = h * torch.eye(3)[i]
        up, down = agent.sobolev_returns(s + step, a, 6)[..., 0], agent.sobolev_returns(s - step, a, 6)[..., 0]
        torch.testing.assert_close(samples[..., 1 + i], (up - down) / (2 * h), rtol=1e-5, atol=1e-7)
    for i in range(2):
        step = h * torch.eye(2)[i]
        up, down = agent.sobolev_returns(s, a + step, 6)[..., 0], agent.sobolev_returns(s, a - step, 6)[..., 0]
        torch.testing.assert_close(samples[..., 4 + i], (up - down) / (2 * h), rtol=1e-5, atol=1e-7)
    # Beyond 10 standard deviations a component of the state is clipped, and returns do not depend on it.
    s = s + torch.tensor([0.0, 100.0, 0.0])
    samples = agent.sobolev_returns(s, a, 6)
    assert (samples[..., 2] == 0).all()
    assert (samples[..., [1, 3]] != 0).all()
    torch.testing.assert_close(agent.sobolev_returns(s + torch.tensor([0.0, 1.0, 0.0]), a, 6), samples, rtol=0, atol=0)


def test_return_samples_of_two_equal_critics_are_draws_of_one_law(float64):
    agent = SobolevActorCritic(3, 1, critic=lambda s, a: GenerativeCritic(s, a, members=2, hidden=(8,))).double()
    for parameter in agent.critic.parameters():
        parameter.data[1:] = parameter.data[:1]
    x = agent.values(torch.randn(1, 3).expand(400, -1), 20)
    within = (x[:, :, :, None] - x[:, :, None, :]).abs().sum((-2, -1)) / (20 * 19)
    between = (x[0, :, :, None] - x[1, :, None, :]).abs().mean()
    assert between == pytest.approx(within.mean().item(), rel=0.03)
    assert (x[0] != x[1]).all()


def test_observations_are_left_alone_where_that_is_asked_for():
    agent = SobolevActorCritic(3, 1, normalize_observations=False)
    step = TensorDict({"observation": torch.full((1, 3), 50.0), "next": {"reward": torch.ones(1, 1)}}, [1])
    agent.scales.take_in(step, learning=False)
    assert torch.equal(agent.normalizer(step["observation"]), step["observation"])


@pytest.mark.parametrize("order", ["none", "action", "state_action"])
def test_a_divergence_that_cannot_take_so_few_samples_is_refused_before_the_run(order):
    split = MaxSlicedMMD(direction="cross_fitted")
    with pytest.raises(UsageError, match=r"model\.divergence: .*cross_fitted needs 1 or at least 4 samples, got 3"):
        SobolevActorCritic(3, 1, divergence=split, samples=3, sobolev=order)
    assert SobolevActorCritic(3, 1, divergence=split, samples=4, sobolev=order).samples == 4


def test_the_divergence_and_the_truncation_of_the_walker_are_the_agent_s_own():
    # conf/ant.yaml and its like leave both out, and refer to conf/walker.yaml.
    config = yaml.safe_load((Path(__file__).parents[2] / "conf" / "walker.yaml").read_text())
    given, own = config["model"]["init_args"], SobolevActorCritic(3, 1)
    assert given["divergence"]["class_path"] == "dsob_pl.divergences.MaxSlicedMMD"
    options = given["divergence"]["init_args"]
    assert isinstance(own.divergence, MaxSlicedMMD)
    assert own.divergence.kernel.bandwidth == options["kernel"]["init_args"]["bandwidth"]
    assert (own.divergence.estimator, own.divergence.direction) == (options["estimator"], options["direction"])
    assert own.overestimation.drop == given["overestimation"]["init_args"]["drop"]


def test_a_loss_of_quantiles_needs_a_critic_of_quantiles():
    with pytest.raises(UsageError, match=r"^model\.divergence: QuantileHuber needs a critic of quantiles"):
        SobolevActorCritic(3, 1, divergence=QuantileHuber(), sobolev="none")
