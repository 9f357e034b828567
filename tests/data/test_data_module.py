"""The data module: ranges of its options, batches, held-out episodes, saved data, evaluation and its state."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDict

from dsob_pl.data import ReplayDataModule, save_replay, transitions
from dsob_pl.data.episodes import episode_ends
from dsob_pl.envs import make_env
from dsob_pl.errors import UsageError

SMALL: dict[str, Any] = {"capacity": 500, "batch_size": 4, "updates_per_step": 3, "warmup_steps": 5}


def pendulum(**options: Any) -> ReplayDataModule:
    module = ReplayDataModule("Pendulum-v1", **SMALL | options)
    module.attach(lambda o: -o[2:])
    return module


def hopper(**options: Any) -> ReplayDataModule:
    return ReplayDataModule("Hopper-v5", **SMALL | {"warmup_steps": 10_000} | options)


def test_steps_and_batches() -> None:
    module = pendulum()
    steps = list(itertools.islice(module.train_dataloader(), 8))
    assert [step.environment_step for step in steps] == list(range(1, 9))
    assert [step.batch is None for step in steps] == [True] * 5 + [False] * 3
    batch = steps[-1].batch
    assert batch is not None
    assert batch.shape == (3, 4)
    assert batch["observation"].shape == (3, 4, 3)
    assert set(batch.keys()) == {"observation", "action", "next"}
    assert steps[0].new is not None
    assert (transitions(module.replay) == torch.cat([s.new for s in steps])).all()
    assert steps[-1].to("meta").batch.device.type == "meta"


def test_without_a_warmup_the_first_step_has_a_batch() -> None:
    assert pendulum(warmup_steps=0).step().batch is not None


def test_the_same_seed_draws_the_same_batches() -> None:
    def batches(seed: int, global_seed: int) -> Any:
        torch.manual_seed(global_seed)
        module = pendulum(seed=seed, warmup_steps=10)
        return torch.stack([s.batch for s in (module.step() for _ in range(20)) if s.batch is not None])

    assert (batches(1, 0) == batches(1, 5)).all()
    assert not (batches(1, 0)["action"] == batches(2, 0)["action"]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "data.batch_size: expected an integer of at least 1, got 0"),
        ({"batch_size": float("nan")}, "data.batch_size: expected an integer of at least 1, got nan"),
        ({"batch_size": True}, "data.batch_size"),
        ({"capacity": -1}, "data.capacity: expected an integer of at least 1, got -1"),
        ({"updates_per_step": 0}, "data.updates_per_step"),
        ({"updates_per_step": 1.5}, "data.updates_per_step"),
        ({"warmup_steps": -1}, "data.warmup_steps: expected an integer of at least 0, got -1"),
        ({"evaluation_episodes": 0}, "data.evaluation_episodes"),
        ({"evaluation_seed": -1}, "data.evaluation_seed"),
        ({"evaluation_episodes": 2**31}, "data.evaluation_episodes: expected an integer below 2^31, got 2147483648"),
        ({"evaluation_seed": 2**63 - 10}, "below 2^63 - evaluation_episodes, got 9223372036854775798"),
        ({"seed": -1}, "data.seed"),
        ({"seed": None}, "data.seed"),
        ({"holdout_fraction": 0.7}, "data.holdout_fraction: expected a number between 0 and 0.5, got 0.7"),
        ({"holdout_fraction": float("nan")}, "data.holdout_fraction"),
        ({"collect": False}, "data.replay_path"),
        ({"replay_path": "no/such/file.pt"}, "data.replay_path: no file 'no/such/file.pt'"),
        ({"env_id": "Pendulum-v9"}, "did you mean 'Pendulum-v1'?"),
    ],
)
def test_values_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        ReplayDataModule(**{"env_id": "Pendulum-v1"} | options)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_one_episode_of_k_is_held_out_whole() -> None:
    module = hopper(holdout_fraction=0.25)
    steps = [module.step() for _ in range(400)]
    episode = 0
    parts: dict[bool, list[TensorDict]] = {True: [], False: []}
    for step in steps:
        parts[episode % 4 == 2].append(step.new)
        episode += step.episode is not None
    assert episode > 12
    assert (transitions(module.holdout) == torch.cat(parts[True])[-125:]).all()
    assert (transitions(module.replay) == torch.cat(parts[False])).all()
    stretches = module.holdout_trajectories(k=4, n=10)
    assert stretches.shape == (10, 4)
    assert torch.equal(stretches["next", "observation"][:, :-1], stretches["observation"][:, 1:])
    assert module.holdout_trajectories(k=999, n=10).shape == (0, 999)


def test_training_on_saved_data_alone_takes_no_environment_step(tmp_path: Path) -> None:
    source = hopper()
    for _ in range(200):
        source.step()
    save_replay(source.replay, tmp_path / "hopper.pt")
    module = hopper(replay_path=str(tmp_path / "hopper.pt"), collect=False, holdout_fraction=0.25, capacity=10_000)
    module.env.step = None  # type: ignore[assignment]
    steps = [module.step() for _ in range(3)]
    assert [(step.new, step.episode, step.environment_step) for step in steps] == [(None, None, n) for n in (1, 2, 3)]
    assert steps[0].batch is not None
    assert steps[0].batch.shape == (3, 4)
    assert module.steps_collected == 0
    both = torch.cat([transitions(module.replay), transitions(module.holdout)])
    assert len(both) == 200
    assert 0 < len(module.holdout) < 100
    assert episode_ends(transitions(module.holdout)).sum() >= 2

    checkpoint = tmp_path / "last.ckpt"
    torch.save({"epoch": 0, "ReplayDataModule": source.state_dict()}, checkpoint)
    again = hopper(replay_path=str(checkpoint), collect=False)
    assert (transitions(again.replay) == transitions(source.replay)).all()
    with pytest.raises(UsageError, match=r"hopper.pt' holds transitions of observation size 11, Pendulum-v1 has 3"):
        pendulum(replay_path=str(tmp_path / "hopper.pt"))


def test_state_is_plain_and_restores_batches_and_counters(tmp_path: Path) -> None:
    module = pendulum(warmup_steps=30, holdout_fraction=0.5, env_kwargs={"max_episode_steps": 9})
    for _ in range(20):
        module.step()
    torch.save({"ReplayDataModule": module.state_dict()}, tmp_path / "state.ckpt")
    state = torch.load(tmp_path / "state.ckpt", weights_only=True)["ReplayDataModule"]
    other = pendulum(warmup_steps=30, holdout_fraction=0.5, seed=9)
    other.load_state_dict(state)
    assert other.steps_collected == 20
    assert (transitions(other.holdout) == transitions(module.holdout)).all()
    # the rest of the warm-up draws the same actions
    pairs = [(module.step().new, other.step().new) for _ in range(10)]
    assert all(torch.equal(a["action"], b["action"]) for a, b in pairs)
    assert other.step().batch is not None

    with pytest.raises(UsageError, match="the checkpoint holds transitions of observation size 3, Hopper-v5 has 11"):
        hopper().load_state_dict(state)


def test_evaluation_uses_the_same_seeds_and_environments_of_its_own() -> None:
    module = pendulum(evaluation_episodes=3, evaluation_seed=50)
    for _ in range(7):
        module.step()
    angle = module.env.unwrapped.state.copy()  # type: ignore[attr-defined]
    first = module.evaluate(lambda o: torch.zeros(len(o), 1), 0.9)
    again = module.evaluate(lambda o: torch.zeros(len(o), 1), 0.9)
    assert torch.equal(first.returns, again.returns)
    assert (module.env.unwrapped.state == angle).all()  # type: ignore[attr-defined]
    expected = [make_env("Pendulum-v1").reset(seed=50 + i)[0] for i in range(3)]
    np.testing.assert_array_equal(first.first_observations.numpy(), np.stack(expected))
    for loader in (module.val_dataloader(), module.test_dataloader()):
        assert [seeds.tolist() for seeds in loader] == [[50, 51, 52]]
        assert len(loader) == 1


def test_teardown_closes_and_the_next_step_begins_an_episode() -> None:
    module = pendulum(evaluation_episodes=2)
    closed: list[gymnasium.Env] = []
    for _ in range(3):
        module.step()
    module.evaluate(lambda o: torch.zeros(len(o), 1), 0.9)
    for env in (module.env, *module.evaluation_environments()):
        env.unwrapped.close = lambda env=env: closed.append(env)  # type: ignore[method-assign]
    module.teardown("fit")
    assert len(closed) == 3
    step = module.step()
    assert step.environment_step == 4
    assert step.new is not None
    assert not torch.equal(step.new["observation"], transitions(module.replay)["next", "observation"][2:3])
    assert torch.isfinite(module.evaluate(lambda o: torch.zeros(len(o), 1), 0.9).returns).all()


def test_evaluations_may_have_another_environment_than_training():
    own = {"gust_probability": 0.1, "spread": 1.75}
    options = {"env_kwargs": own, "evaluation_env_kwargs": {"spread": 0.25}, "evaluation_episodes": 2}
    data = ReplayDataModule("dsob_pl/Cliff-v0", **options)
    problems = [env.unwrapped.problem for env in (data.env, *data.evaluation_environments())]
    assert [problem.spread for problem in problems] == [1.75, 0.25, 0.25]
    assert [problem.gust_probability for problem in problems] == [0.1] * 3
    assert data.evaluation_env is data.evaluation_environments()[0]
    # First states of 300 episodes, uniform within the evaluations' own spread.
    first = np.stack([data.evaluation_env.reset(seed=seed)[0] for seed in range(300)])
    assert first.std(0) == pytest.approx(0.25 / 3**0.5, rel=0.15)
    data.teardown("fit")


@pytest.mark.parametrize(
    ("env_id", "given", "line"),
    [
        ("dsob_pl/Cliff-v0", {"spred": 1.0}, r"data\.evaluation_env_kwargs: 'spred' is not an argument"),
        ("dsob_pl/Cliff-v0", [1.0], r"data\.evaluation_env_kwargs: expected a mapping .*, got \[1\.0\]"),
        (
            "Walker2d-v5",
            {"exclude_current_positions_from_observation": False},
            r"data\.evaluation_env_kwargs: expected observations of size 17, as in training, got 18",
        ),
    ],
)
def test_an_evaluation_environment_that_does_not_fit_gives_one_line(env_id, given, line):
    with pytest.raises(UsageError, match=line):
        ReplayDataModule(env_id, evaluation_env_kwargs=given)
