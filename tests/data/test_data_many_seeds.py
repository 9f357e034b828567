"""Several seeds at once: each collects, replays and evaluates exactly as its data module alone would."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from dsob_pl.data import ManySeedsData, ReplayDataModule, SeedsStep, Step, save_replay, transitions
from dsob_pl.envs import ActionNoise, DynamicsNoise, ObservationNoise, RewardNoise
from dsob_pl.errors import RunFailed, UsageError

SEEDS = [3, 0, 11]
SMALL: dict[str, Any] = {"capacity": 90, "batch_size": 4, "updates_per_step": 3, "warmup_steps": 12}
END = {"draw": "end", "end_probability": 0.2}
CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("dsob_pl/PointMass-v0", 150, {}),
    ("dsob_pl/PointMass-v0", 250, {"env_kwargs": END, "holdout_fraction": 0.3}),
    ("dsob_pl/PointMass-v0", 60, {"env_kwargs": {"max_episode_steps": 7}, "holdout_fraction": 0.5, "capacity": 20}),
    ("dsob_pl/LinearQuadratic-v0", 50, {}),
    ("dsob_pl/RewardChain-v0", 50, {}),
    ("dsob_pl/Rotation-v0", 50, {}),
    ("Pendulum-v1", 100, {"env_kwargs": {"max_episode_steps": 13}, "holdout_fraction": 0.25}),
    ("Walker2d-v5", 150, {"holdout_fraction": 0.3, "warmup_steps": 70}),
    ("Walker2d-v5", 20, {"warmup_steps": 0}),
    ("Hopper-v5", 80, {"noise": [DynamicsNoise, ObservationNoise, RewardNoise], "holdout_fraction": 0.3}),
    ("dsob_pl/PointMass-v0", 70, {"noise": [DynamicsNoise, ActionNoise], "warmup_steps": 7}),
]


def part(env_id: str, seed: int, **options: Any) -> ReplayDataModule:
    return ReplayDataModule(env_id, **SMALL | {"evaluation_episodes": 4, "seed": seed} | options)


class Policies:
    """A policy for each seed, exact operations per element, with exploration noise from its own generator."""

    def __init__(self, actions: int, seeds: list[int]) -> None:
        self.actions = actions
        self.gains = [0.5 + 0.25 * seed for seed in seeds]
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def act_one(self, i: int, observation: Tensor) -> Tensor:
        chosen = observation[..., torch.arange(self.actions) % observation.shape[-1]]
        return (self.gains[i] * chosen).clamp(-1.5, 1.5)

    def explore_one(self, i: int, observation: Tensor) -> Tensor:
        return self.act_one(i, observation) + 0.1 * torch.randn(self.actions, generator=self.generators[i])

    def act(self, observations: Tensor) -> Tensor:
        return torch.stack([self.act_one(i, observations[i]) for i in range(len(self.gains))])

    def explore(self, observations: Tensor) -> Tensor:
        return torch.stack([self.explore_one(i, observations[i]) for i in range(len(self.gains))])

    def keep(self, places: list[int]) -> None:
        self.gains = [self.gains[i] for i in places]
        self.generators = [self.generators[i] for i in places]


def together(env_id: str, seeds: list[int], **options: Any) -> tuple[ManySeedsData, Policies]:
    data = ManySeedsData([part(env_id, seed, **options) for seed in seeds])
    policies = Policies(data.action_size, seeds)
    data.attach(policies.explore)
    return data, policies


def alone(env_id: str, seeds: list[int], **options: Any) -> tuple[list[ReplayDataModule], Policies]:
    modules = [part(env_id, seed, **options) for seed in seeds]
    policies = Policies(modules[0].action_size, seeds)
    for i, module in enumerate(modules):
        module.attach(lambda o, i=i: policies.explore_one(i, o))
    return modules, policies


def equal(a: TensorDict | None, b: TensorDict | None) -> bool:
    if a is None or b is None or len(a) == 0:
        return a is b or (b is not None and len(b) == 0)
    return bool((a == b).all())


def assert_step(joint: SeedsStep, single: Step, i: int) -> None:
    assert joint.environment_step == single.environment_step
    assert (joint.new is None) == (single.new is None)
    if joint.new is not None:
        assert equal(joint.new[i : i + 1], single.new)
        assert {k: v.dtype for k, v in joint.new.items(True, True)} == {
            k: v.dtype for k, v in single.new.items(True, True)
        }
    assert equal(None if joint.batch is None else joint.batch[i], single.batch)
    assert joint.episodes[i] == single.episode


@pytest.mark.parametrize(("env_id", "steps", "options"), CASES)
def test_each_seed_is_its_data_module_alone(env_id: str, steps: int, options: dict[str, Any]) -> None:
    data, policies = together(env_id, SEEDS, **options)
    modules, own = alone(env_id, SEEDS, **options)
    ended = 0
    for t in range(steps):
        joint = data.step()
        assert not joint.failures
        for i, module in enumerate(modules):
            assert_step(joint, module.step(), i)
        ended += sum(episode is not None for episode in joint.episodes)
        if t in (steps // 2, steps - 1):
            for clean in (False, True):
                episodes, failures = data.evaluate(policies.act, 0.97, clean=clean)
                assert not failures
                for i, module in enumerate(modules):
                    expected = module.evaluate(lambda o, i=i: own.act_one(i, o), 0.97, clean=clean)
                    for name, value in expected._asdict().items():
                        torch.testing.assert_close(getattr(episodes[i], name), value, rtol=0, atol=0, msg=name)
    assert ended or steps == 20
    for i, module in enumerate(modules):
        assert equal(data.part_replay(i), transitions(module.replay))
        assert equal(data.view(i).holdout, transitions(module.holdout))
        assert data.view(i).steps_collected == steps == data.steps_collected
        assert (len(module.holdout) > 0) == ("holdout_fraction" in options)
    assert len(data.replay) == min(len(module.replay) for module in modules)


def test_problems_step_as_one_batch_and_others_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = together("dsob_pl/PointMass-v0", SEEDS)
    problem = data.env.unwrapped.problem  # type: ignore[attr-defined]
    rows = []
    monkeypatch.setattr(type(problem), "forward", _recording(type(problem).forward, rows))
    for _ in range(40):
        data.step()
    assert rows == [3] * 40
    data.evaluate(lambda o: torch.zeros(3, 4, 2), 0.9)
    assert rows[40:] == [12] * 30


def _recording(forward: Any, rows: list[int]) -> Any:
    def recorded(self: Any, s: Tensor, a: Tensor, eps: Tensor) -> Any:
        rows.append(len(s))
        return forward(self, s, a, eps)

    return recorded


@pytest.mark.parametrize("env_id", ["dsob_pl/PointMass-v0", "Pendulum-v1"])
@pytest.mark.parametrize("gone", [[1], [0, 3]])
def test_those_that_stay_do_not_notice_who_leaves(env_id: str, gone: list[int]) -> None:
    ends = END if env_id.startswith("dsob_pl/") else {}  # so that seeds are at different steps of their episodes
    seeds, options = [5, 1, 2, 8], {"holdout_fraction": 0.3, "env_kwargs": ends | {"max_episode_steps": 9}}
    data, policies = together(env_id, seeds, **options)
    modules, own = alone(env_id, seeds, **options)
    views = [data.view(i) for i in range(4)]
    for t in range(60):
        if t == 31:  # in the middle of an episode, with transitions held out
            keep = [i for i in range(4) if i not in gone]
            data.drop(gone)
            policies.keep(keep)
        joint = data.step()
        for i, seed in enumerate(data.seeds):
            assert_step(joint, modules[seeds.index(seed)].step(), i)
    assert data.seeds == [seeds[i] for i in keep]
    assert [data.parts.index(views[i]._part) for i in keep] == [0, 1, 2][: len(keep)]
    episodes, _ = data.evaluate(policies.act, 0.9)
    for place, i in enumerate(keep):
        assert equal(data.part_replay(place), transitions(modules[i].replay))
        assert equal(views[i].holdout, transitions(modules[i].holdout))
        assert equal(views[i].holdout_trajectories(3, 5), modules[i].holdout_trajectories(3, 5))
        expected = modules[i].evaluate(lambda o, i=i: own.act_one(i, o), 0.9)
        assert torch.equal(episodes[place].returns, expected.returns)


class Spoiled(gymnasium.Wrapper):
    """Goes wrong at the fifth step, or at the reset after it."""

    def __init__(self, env: gymnasium.Env, how: str) -> None:
        super().__init__(env)
        self.how, self.count = how, 0

    def reset(self, **kwargs: Any) -> Any:
        observation, info = self.env.reset(**kwargs)
        return observation * (np.nan if self.how == "reset" and self.count else 1), info

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.count += 1
        if self.count == 5:
            if self.how == "raise":
                raise RunFailed("the simulator gave up")
            observation = observation * np.nan if self.how == "observation" else observation
            reward = np.inf if self.how == "reward" else reward
            truncated = self.how == "reset"
        return observation, reward, terminated, truncated, info


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("observation", "Pendulum-v1 returned an observation that is not finite at environment step 5"),
        ("reward", "Pendulum-v1 returned the reward inf at environment step 5"),
        ("reset", "Pendulum-v1 returned an observation that is not finite at environment step 5"),
        ("raise", "the simulator gave up"),
    ],
)
def test_an_environment_that_breaks_is_that_seeds_failure_alone(how: str, message: str) -> None:
    parts = [part("Pendulum-v1", seed, warmup_steps=3) for seed in SEEDS]
    parts[1]._env = parts[1].collector.env = Spoiled(parts[1].env, how)
    data, policies = ManySeedsData(parts), Policies(1, SEEDS)
    data.attach(policies.explore)
    modules, _ = alone("Pendulum-v1", SEEDS, warmup_steps=3)
    for t in range(1, 20):
        joint = data.step()
        assert joint.failures == ({1: message} if t == 5 else {})
        assert joint.new is not None
        for whole in (joint.new, joint.batch):
            assert whole is None or all(x.isfinite().all() for x in whole.values(True, True))
        for i, seed in enumerate(data.seeds):
            single = modules[SEEDS.index(seed)].step()
            if i not in joint.failures:
                assert_step(joint, single, i)
        if joint.failures:
            data.drop(list(joint.failures))
            policies.keep([0, 2])


@pytest.mark.parametrize("env_id", ["dsob_pl/PointMass-v0", "Hopper-v5"])
def test_a_policy_that_breaks_is_that_seeds_failure_alone(env_id: str) -> None:
    data, policies = together(env_id, SEEDS, warmup_steps=3)
    modules, own = alone(env_id, SEEDS, warmup_steps=3)
    for t in range(1, 5):
        if t == 4:
            policies.gains[2] = float("nan")
        joint = data.step()
        assert joint.new is not None
        assert joint.new["action"].isfinite().all()
        assert joint.failures == ({2: "the policy's action is not finite at environment step 4"} if t == 4 else {})
        for i in range(2):
            assert_step(joint, modules[i].step(), i)

    episodes, failures = data.evaluate(policies.act, 0.9)
    assert failures == {2: "evaluation: the policy's action is not finite at step 1 of an episode"}
    for i in range(2):
        assert torch.equal(episodes[i].returns, modules[i].evaluate(lambda o, i=i: own.act_one(i, o), 0.9).returns)
    assert len(episodes) == 3


def test_a_problem_that_diverges_is_that_seeds_failure_alone() -> None:
    data, _ = together("dsob_pl/LinearQuadratic-v0", SEEDS, warmup_steps=1)
    data.step()
    data._collector._joined._states[1] = 1e30  # type: ignore[union-attr]
    joint = data.step()
    assert list(joint.failures) == [1]
    assert "LinearQuadratic-v0 returned the reward -inf at environment step 2" in joint.failures[1]
    assert joint.batch is not None
    assert all(x.isfinite().all() for x in joint.batch.values(True, True))


def test_evaluation_environments_that_break_are_named() -> None:
    data, policies = together("Pendulum-v1", SEEDS)
    environments = data.parts[2].evaluation_environments()
    environments[1] = Spoiled(environments[1], "observation")
    environments[0] = counted = Spoiled(environments[0], "nothing")
    episodes, failures = data.evaluate(policies.act, 0.9)
    message = "evaluation: Pendulum-v1 returned an observation that is not finite at environment step 5"
    assert failures == {2: message}
    assert episodes[0].lengths.tolist() == [200] * 4
    assert counted.count == 5  # its other episodes end with it


def test_the_state_is_plain_and_goes_on_as_that_of_the_parts(tmp_path: Path) -> None:
    options: dict[str, Any] = {"holdout_fraction": 0.5, "env_kwargs": {"max_episode_steps": 9}, "capacity": 25}
    data, _ = together("Pendulum-v1", SEEDS, **options)
    modules, _ = alone("Pendulum-v1", SEEDS, **options)
    for _ in range(70):
        data.step()
        for module in modules:
            module.step()
    torch.save({"ManySeedsData": data.state_dict()}, tmp_path / "state.ckpt")
    state = torch.load(tmp_path / "state.ckpt", weights_only=True)["ManySeedsData"]
    assert state["seeds"] == SEEDS

    resumed, _ = together("Pendulum-v1", SEEDS, **options)
    resumed.load_state_dict(state)
    singles, _ = alone("Pendulum-v1", SEEDS, **options)
    for single, module in zip(singles, modules):
        single.load_state_dict(module.state_dict())
    for _ in range(30):
        joint = resumed.step()
        for i, single in enumerate(singles):
            assert_step(joint, single.step(), i)
    # one seed's part of it is the state of its data module
    taken = part("Pendulum-v1", 0, **options)
    taken.load_state_dict(state["parts"][1])
    assert equal(transitions(taken.replay), transitions(modules[1].replay))
    assert equal(taken.replay.sample(50).exclude("index"), modules[1].replay.sample(50).exclude("index"))


def test_a_state_from_after_a_seed_left_is_taken_by_all_and_only_its_seeds() -> None:
    data, _ = together("Pendulum-v1", SEEDS)
    for _ in range(5):
        data.step()
    data.drop([1])
    again, _ = together("Pendulum-v1", SEEDS)
    again.load_state_dict(data.state_dict())
    assert again.seeds == [3, 11]
    assert equal(again.part_replay(1), data.part_replay(1))
    other, _ = together("Pendulum-v1", [3, 4])
    with pytest.raises(UsageError, match=r"seeds: the checkpoint holds seed 11, which is not among \[3, 4\]"):
        other.load_state_dict(data.state_dict())
    hopper, _ = together("Hopper-v5", [3, 11])
    with pytest.raises(UsageError, match="the checkpoint holds transitions of observation size 3, Hopper-v5 has 11"):
        hopper.load_state_dict(data.state_dict())


def test_saved_transitions_move_to_the_joint_storage(tmp_path: Path) -> None:
    source = part("Hopper-v5", 7, capacity=500, warmup_steps=1000)
    for _ in range(200):
        source.step()
    save_replay(source.replay, tmp_path / "hopper.pt")
    options: dict[str, Any] = {"replay_path": str(tmp_path / "hopper.pt"), "collect": False, "holdout_fraction": 0.25}
    data, _ = together("Hopper-v5", SEEDS, capacity=120, **options)
    modules, _ = alone("Hopper-v5", SEEDS, capacity=120, **options)
    assert [len(own.replay) for own in data.parts] == [0] * 3
    assert [len(own.holdout) for own in data.parts] == [0] * 3
    assert len(data.replay) == 120
    for i, module in enumerate(modules):
        assert equal(data.part_replay(i), transitions(module.replay))
        assert equal(data.view(i).holdout, transitions(module.holdout))
    for _ in range(3):
        joint = data.step()
        for i, module in enumerate(modules):
            assert_step(joint, module.step(), i)
    assert joint.new is None
    assert joint.environment_step == 3
    assert data.steps_collected == 0
    assert joint.to("meta").batch.device.type == "meta"  # type: ignore[union-attr]


def test_teardown_closes_and_the_next_step_begins_episodes_as_those_of_the_parts() -> None:
    data, _ = together("Pendulum-v1", SEEDS)
    modules, _ = alone("Pendulum-v1", SEEDS)
    for _ in range(20):
        data.step()
        for module in modules:
            module.step()
    closed = [own.env for own in data.parts]
    data.teardown("fit")
    for env in closed:
        env.step = None  # type: ignore[assignment]
    for module in modules:
        module.teardown("fit")
    joint = data.step()
    for i, module in enumerate(modules):
        assert_step(joint, module.step(), i)


def _two_noises() -> list[ReplayDataModule]:
    return [part("Pendulum-v1", seed, noise=[partial(RewardNoise, scale=0.1 + seed)]) for seed in range(2)]


def test_what_is_joined_differs_in_the_seed_only() -> None:
    for parts in ([], [part("Pendulum-v1", 0), part("Pendulum-v1", 1, batch_size=5)], _two_noises()):
        with pytest.raises(ValueError, match="differ in their seed only"):
            ManySeedsData(parts)
    data, _ = together("Pendulum-v1", SEEDS)
    assert data.env is data.parts[0].env
    assert (data.observation_size, data.action_size, data.env_id) == (3, 1, "Pendulum-v1")
    view = data.view(1)
    assert (view.env, view.collect, view.observation_size) == (data.parts[1].env, True, 3)
    assert [seeds.tolist() for seeds in data.val_dataloader()] == [[10_000, 10_001, 10_002, 10_003]]
    assert next(iter(data.train_dataloader())).environment_step == 1
