"""Evaluation episodes in lock step equal the same episodes run one by one by hand."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from dsob_pl.envs import join_environments, make_env, rollout, run_episodes, run_seed_episodes, seed_rollout
from dsob_pl.errors import RunFailed

GAMMA = 0.97


def hopper_policy(observation: Tensor) -> Tensor:
    # exact operations per element, so that an episode does not depend on the size of the batch it runs in
    return (5.0 * observation[:, 2:5]).clamp(-1.0, 1.0)


def by_hand(env_id: str, seed: int, policy) -> tuple[float, float, int, bool]:
    env = make_env(env_id)
    observation, _ = env.reset(seed=seed)
    rewards: list[float] = []
    while True:
        action = policy(torch.tensor(observation, dtype=torch.float32).unsqueeze(0))[0].numpy()
        observation, reward, terminated, truncated, _ = env.step(action)
        rewards.append(float(reward))
        if terminated or truncated:
            discounted = sum(GAMMA**t * r for t, r in enumerate(rewards))
            return sum(rewards), discounted, len(rewards), bool(terminated)


def test_lock_step_equals_one_by_one_when_episodes_end_at_different_times() -> None:
    seeds = [0, 1, 2, 3]
    batch_sizes = []

    def policy(observation: Tensor) -> Tensor:
        assert observation.dtype == torch.float32
        batch_sizes.append(len(observation))
        return hopper_policy(observation)

    episodes = run_episodes([make_env("Hopper-v5") for _ in seeds], policy, seeds, GAMMA)
    expected = [by_hand("Hopper-v5", seed, hopper_policy) for seed in seeds]
    torch.testing.assert_close(episodes.returns, torch.tensor([e[0] for e in expected]))
    torch.testing.assert_close(episodes.discounted_returns, torch.tensor([e[1] for e in expected]))
    assert episodes.lengths.tolist() == [e[2] for e in expected]
    assert episodes.terminated.tolist() == [True] * 4
    assert len(set(episodes.lengths.tolist())) > 1
    # one call per step, each with the episodes that are still running
    assert batch_sizes == [int((episodes.lengths > t).sum()) for t in range(int(episodes.lengths.max()))]


def test_pendulum_is_cut_off_and_not_terminated() -> None:
    envs = [make_env("Pendulum-v1") for _ in range(2)]
    episodes = run_episodes(envs, lambda o: torch.zeros(len(o), 1), [1, 2], GAMMA)
    assert episodes.lengths.tolist() == [200, 200]
    assert episodes.terminated.tolist() == [False, False]
    first = make_env("Pendulum-v1").reset(seed=2)[0]
    np.testing.assert_array_equal(episodes.first_observations[1].numpy(), first)
    again = run_episodes(envs, lambda o: torch.zeros(len(o), 1), [1, 2], GAMMA)
    for name, value in episodes._asdict().items():
        if name == "visits":
            assert all(map(torch.equal, value, again.visits))
        else:
            assert torch.equal(value, getattr(again, name)), name


def test_failures_name_the_environment_and_the_step() -> None:
    env = gymnasium.wrappers.TransformObservation(
        make_env("Pendulum-v1"), lambda o: o * np.nan if abs(o[2]) > 0.5 else o, None
    )
    with pytest.raises(RunFailed, match=r"Pendulum-v1 returned an observation that is not finite at environment step"):
        run_episodes([env], lambda o: torch.ones(len(o), 1), [0], GAMMA)
    with pytest.raises(RunFailed, match=r"action is not finite at step 1 "):
        run_episodes([make_env("Hopper-v5")], lambda o: torch.full((len(o), 3), torch.nan), [0], GAMMA)
    with pytest.raises(ValueError, match="environment per seed"):
        run_episodes([make_env("Pendulum-v1")], lambda o: torch.ones(len(o), 1), [0, 1], GAMMA)


class Endless(gymnasium.Env):
    """Costs nothing and never ends."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, False, {}


@pytest.mark.parametrize("together", [False, True])
def test_an_episode_that_ends_just_then_is_not_told_of(together, monkeypatch, caplog) -> None:
    rollout.tell_long_episode.cache_clear()
    for module in (rollout, seed_rollout):
        monkeypatch.setattr(module, "LONG_EPISODE", 200)
    envs = [make_env("Pendulum-v1")]
    if together:
        _, failures = run_seed_episodes(join_environments(envs), lambda o: torch.zeros(1, 1, 1), [0], GAMMA)
        assert failures == {}
    else:
        assert run_episodes(envs, lambda o: torch.zeros(len(o), 1), [0], GAMMA).lengths.tolist() == [200.0]
    assert caplog.records == []


@pytest.mark.parametrize("together", [False, True])
def test_an_episode_without_end_is_told_of_once_and_given_up(together, monkeypatch, caplog) -> None:
    rollout.tell_long_episode.cache_clear()
    for module in (rollout, seed_rollout):
        monkeypatch.setattr(module, "LONG_EPISODE", 20)
        monkeypatch.setattr(module, "LONGEST_EPISODE", 50)
    envs = [Endless(), Endless()]
    if together:
        rows = join_environments(envs)
        _, failures = run_seed_episodes(rows, lambda o: torch.zeros(2, 1, 1), [0], GAMMA)
        assert set(failures) == {0, 1}
        assert "has not ended after 50 steps; set data.env_kwargs.max_episode_steps" in failures[0]
    else:
        with pytest.raises(RunFailed, match=r"has not ended after 50 steps; set data\."):
            run_episodes(envs, lambda o: torch.zeros(len(o), 1), [0, 1], GAMMA)
    (record,) = caplog.records
    assert "has not ended after 20 steps; data.env_kwargs.max_episode_steps would end it" in record.getMessage()
