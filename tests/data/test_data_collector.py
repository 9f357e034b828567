"""Collection: what is stored equals an environment driven by hand, and follows from the seed alone."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from dsob_pl.data import Collector, EpisodeStatistics
from dsob_pl.envs import make_env
from dsob_pl.errors import RunFailed


def explore(observation: Tensor) -> Tensor:
    return (3.0 * observation[-3:]).clamp(-2.0, 2.0)


def swing(observation: Tensor) -> Tensor:
    return -observation[2:]


def collect(env_id: str, steps: int, seed: int, warmup: int) -> tuple[TensorDict, list[EpisodeStatistics]]:
    collector = Collector(make_env(env_id), seed, warmup)
    collector.explore = swing if env_id == "Pendulum-v1" else explore
    results = [collector.step() for _ in range(steps)]
    return torch.cat([new for new, _ in results]), [e for _, e in results if e is not None]


@pytest.mark.parametrize(("env_id", "steps", "bound"), [("Hopper-v5", 120, 1.0), ("Pendulum-v1", 620, 2.0)])
def test_transitions_equal_an_environment_driven_by_hand(env_id: str, steps: int, bound: float) -> None:
    data, episodes = collect(env_id, steps, seed=4, warmup=30)
    policy = explore if env_id == "Hopper-v5" else swing
    env = gymnasium.make(env_id)
    observation, _ = env.reset(seed=4)
    total, length, finished = 0.0, 0, []
    for t in range(len(data)):
        row = data[t]
        if t >= 30:
            expected = policy(torch.tensor(observation, dtype=torch.float32)).clamp(-1.0, 1.0)
            torch.testing.assert_close(row["action"], expected, rtol=0, atol=0)
        np.testing.assert_array_equal(row["observation"], observation.astype(np.float32))
        observation, reward, terminated, truncated, _ = env.step(bound * row["action"].numpy())
        np.testing.assert_array_equal(row["next", "observation"], observation.astype(np.float32))
        assert row["next", "reward"].item() == pytest.approx(float(reward), rel=1e-6)
        assert (row["next", "terminated"].item(), row["next", "truncated"].item()) == (terminated, truncated)
        total, length = total + float(reward), length + 1
        if terminated or truncated:
            finished.append(EpisodeStatistics(total, length))
            total, length = 0.0, 0
            observation, _ = env.reset()
    assert len(finished) >= 3
    assert [e.length for e in episodes] == [e.length for e in finished]
    assert [e.return_ for e in episodes] == pytest.approx([e.return_ for e in finished], rel=1e-6)
    assert data["action"][:30].abs().max() <= 1.0
    assert data["action"][:30].std() > 0.4


def test_shapes_and_types() -> None:
    data, _ = collect("Walker2d-v5", 1, seed=0, warmup=1)
    layout = {k: (tuple(v.shape), v.dtype) for k, v in data.items(include_nested=True, leaves_only=True)}
    assert layout == {
        "observation": ((1, 17), torch.float32),
        "action": ((1, 6), torch.float32),
        ("next", "observation"): ((1, 17), torch.float32),
        ("next", "reward"): ((1, 1), torch.float32),
        ("next", "terminated"): ((1, 1), torch.bool),
        ("next", "truncated"): ((1, 1), torch.bool),
    }


def test_a_time_limit_truncates_and_a_fall_terminates() -> None:
    pendulum, episodes = collect("Pendulum-v1", 450, seed=1, warmup=10)
    assert not pendulum["next", "terminated"].any()
    assert pendulum["next", "truncated"].squeeze(-1).nonzero().squeeze(-1).tolist() == [199, 399]
    assert [e.length for e in episodes] == [200, 200]
    assert episodes[0].return_ == pytest.approx(pendulum["next", "reward"][:200].sum().item(), rel=1e-5)
    # the transition that ends an episode leads to where it ended, not to the next episode's first observation
    assert not torch.equal(pendulum["next", "observation"][199], pendulum["observation"][200])
    assert torch.equal(pendulum["next", "observation"][198], pendulum["observation"][199])

    hopper, _ = collect("Hopper-v5", 100, seed=1, warmup=100)
    assert hopper["next", "terminated"].any()
    assert not hopper["next", "truncated"].any()


def test_the_seed_decides_everything() -> None:
    first, again, other = (collect("Hopper-v5", 80, seed, warmup=40)[0] for seed in (7, 7, 8))
    assert (first == again).all()
    assert not (first["action"] == other["action"])[:40].any()
    assert not torch.equal(first["observation"][0], other["observation"][0])


def test_torch_global_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, _ = collect("Pendulum-v1", 20, seed=7, warmup=20)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert (collect("Pendulum-v1", 20, seed=7, warmup=20)[0] == first).all()


def test_counters_and_random_actions_go_on_after_a_restart() -> None:
    straight = Collector(make_env("Pendulum-v1"), 3, 100)
    actions = [straight.step()[0]["action"] for _ in range(20)]
    broken = Collector(make_env("Pendulum-v1"), 3, 100)
    for _ in range(10):
        broken.step()
    resumed = [Collector(make_env("Pendulum-v1"), 3, 100) for _ in range(2)]
    for collector in resumed:
        collector.load_state_dict(broken.state_dict())
    later = [[collector.step()[0] for _ in range(10)] for collector in resumed]
    assert torch.equal(torch.cat([new["action"] for new in later[0]]), torch.cat(actions[10:]))
    assert (torch.cat(later[0]) == torch.cat(later[1])).all()
    assert resumed[0].steps == 20


class Broken(gymnasium.Wrapper):
    """Spoils one part of the third step, as a diverging simulation does."""

    def __init__(self, env: gymnasium.Env, part: str) -> None:
        super().__init__(env)
        self.part, self.count = part, 0

    def step(self, action):
        observation, reward, *rest = self.env.step(action)
        self.count += 1
        if self.count == 3 and self.part == "observation":
            observation = observation * np.nan
        elif self.count == 3:
            reward = np.inf
        return observation, reward, *rest


@pytest.mark.parametrize("part", ["observation", "reward"])
def test_an_environment_that_breaks_is_named_with_its_step(part: str) -> None:
    collector = Collector(Broken(make_env("Pendulum-v1"), part), 0, 10)
    collector.step()
    collector.step()
    with pytest.raises(RunFailed, match=rf"Pendulum-v1 returned .*{part}.* environment step 3"):
        collector.step()


def test_a_broken_policy_is_named_before_the_simulator_sees_it() -> None:
    collector = Collector(make_env("Hopper-v5"), 0, 2)
    with pytest.raises(RuntimeError, match="attach"):
        [collector.step() for _ in range(3)]
    collector.explore = lambda o: o[:3] * torch.nan
    with pytest.raises(RunFailed, match="action is not finite at environment step 3"):
        collector.step()
