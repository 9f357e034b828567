"""Noise in the data: what is stored is what was seen, evaluations have it too, and clean ones do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsob_pl.data import ReplayDataModule, transitions
from dsob_pl.envs import DynamicsNoise, ObservationNoise, RewardNoise, make_env, run_episodes


def module(noise: list[Any] | None, env_id: str = "Hopper-v5", **options: Any) -> ReplayDataModule:
    small: dict[str, Any] = {"capacity": 200, "warmup_steps": 1000, "evaluation_episodes": 3}
    return ReplayDataModule(env_id, noise=noise, **small | options)


def policy(observations: Tensor) -> Tensor:
    return torch.sin(observations[:, :3])


def test_the_noisy_observation_is_stored_once_and_acted_on() -> None:
    data = module([ObservationNoise], warmup_steps=0)
    acted: list[Tensor] = []

    def explore(observation: Tensor) -> Tensor:
        acted.append(observation)
        return torch.sin(observation[:3])

    data.attach(explore)
    for _ in range(40):
        data.step()
    stored = transitions(data.replay)
    torch.testing.assert_close(stored["observation"], torch.stack(acted), rtol=0, atol=0)
    inside = ~(stored["next", "terminated"] | stored["next", "truncated"]).flatten()[:-1]
    torch.testing.assert_close(stored["next", "observation"][:-1][inside], stored["observation"][1:][inside])

    # the same episodes seen without noise: each component is off by its own factor
    plain = module(None, warmup_steps=0)
    actions = iter(stored["action"])
    plain.attach(lambda observation: next(actions))
    for _ in range(40):
        plain.step()
    factor = (stored["observation"] / transitions(plain.replay)["observation"]).double().numpy()
    assert (np.abs(factor - 1) <= 0.2 + 1e-5).all()
    assert 0.1 < factor.std() < 0.13
    np.testing.assert_array_equal(stored["next", "reward"], transitions(plain.replay)["next", "reward"])


def test_evaluation_has_the_noise_and_a_clean_one_is_that_of_a_module_without() -> None:
    data, plain = module([DynamicsNoise, RewardNoise]), module(None)
    noisy, clean = data.evaluate(policy, 0.9), data.evaluate(policy, 0.9, clean=True)
    own = [make_env("Hopper-v5", noise=[DynamicsNoise, RewardNoise]) for _ in range(3)]
    expected = run_episodes(own, policy, [10_000, 10_001, 10_002], 0.9)
    for ours, theirs in ((noisy, expected), (clean, plain.evaluate(policy, 0.9))):
        for name, value in {**theirs._asdict(), **theirs.visits._asdict()}.items():
            if name != "visits":
                assert torch.equal(getattr(ours.visits if name in theirs.visits._fields else ours, name), value), name
    assert not torch.equal(noisy.returns, clean.returns)
    # the first observations are those of the same seeds
    assert torch.equal(noisy.first_observations, clean.first_observations)
    assert torch.equal(data.evaluate(policy, 0.9).returns, noisy.returns)


def test_a_clean_evaluation_does_not_move_the_collection() -> None:
    runs = []
    for clean in (False, True):
        data = module([DynamicsNoise, ObservationNoise])
        for t in range(30):
            data.step()
            if t == 15 and clean:
                data.evaluate(policy, 0.9, clean=True)
        runs.append(transitions(data.replay))
    assert bool((runs[0] == runs[1]).all())


def test_teardown_closes_clean_environments_too() -> None:
    data = module([RewardNoise])
    data.evaluate(policy, 0.9)
    data.evaluate(policy, 0.9, clean=True)
    closed: list[Any] = []
    for env in (data.env, *data.evaluation_environments(), *data.evaluation_environments(clean=True)):
        env.unwrapped.close = lambda env=env: closed.append(env)  # type: ignore[method-assign]
    data.teardown("fit")
    assert len(closed) == 7
    assert "RewardNoise" in str(data.env)
