import pytest
import torch

from dsob_pl.agents import SobolevActorCritic
from dsob_pl.bellman import SobolevOrder
from dsob_pl.errors import UsageError
from dsob_pl.world_models import Deterministic


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
        {"gradient_bound": -1.0},
        {"max_gradient_norm": float("nan")},
        {"gradient_weight": -1.0},
        {"exploration_std": float("inf")},
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
