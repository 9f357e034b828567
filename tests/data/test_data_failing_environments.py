"""Environments that fail: one line with environment, step and reason, or a dropped episode where that is allowed."""

from __future__ import annotations

import csv
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from dsob_pl.cli import main
from dsob_pl.data import ManySeedsData, ReplayDataModule
from dsob_pl.envs import EnvironmentFailed, make_env, run_episodes, step_environment

BASE = """\
threads: 1
trainer: {max_steps: 40, val_check_interval: 40, log_every_n_steps: 10, logger: false, enable_checkpointing: false}
model:
  init_args:
    critic: {class_path: dsob_pl.critics.GenerativeCritic, init_args: {hidden: [8]}}
    policy: {class_path: dsob_pl.networks.DeterministicPolicy, init_args: {hidden: [8]}}
    world_model: null
    sobolev: none
    samples: 2
data: {env_id: Failing-v0, warmup_steps: 10, updates_per_step: 1, batch_size: 4, evaluation_episodes: 1}
"""


class Failing(gymnasium.Env):
    """Goes wrong at every one of the steps ``at``, counted over all environments of a training run.

    Evaluation environments, told by their reset seed, are sound unless ``evaluation`` is set.
    """

    steps, made, closed = 0, 0, 0

    def __init__(self, how="raise", at=(17,), evaluation=False):
        self.observation_space, self.action_space = Box(-1, 1, (2,), np.float32), Box(-1, 1, (1,), np.float32)
        self.how, self.at, self.evaluation, self.judged = how, tuple(at), evaluation, False
        Failing.made += 1

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.judged = seed is not None and 10_000 <= seed < 10_010
        if self.how == "reset" and self.due():
            raise OSError("the simulator\nis gone")
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def due(self):
        return self.evaluation if self.judged else Failing.steps in self.at

    def step(self, action):
        Failing.steps += not self.judged
        observation = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        reward = float(observation[0] - action[0] ** 2)
        terminated, truncated = False, False
        if self.due() and self.how != "reset":
            if self.how == "raise":
                raise ValueError("a joint\nbroke")
            observation = {"nan": observation * np.nan, "shape": np.zeros(3, np.float32), "text": "gone"}.get(
                self.how, observation
            )
            reward = {"reward": np.inf, "no reward": None, "large reward": 1e300, "endless reward": 10**400}.get(
                self.how, reward
            )
            terminated = {"two flags": np.array([True, False]), "no flag": None}.get(self.how, False)
            truncated = {"text flag": "False", "nan flag": np.nan}.get(self.how, False)
        return observation, reward, terminated, truncated, {}

    def close(self):
        Failing.closed += 1
        raise RuntimeError("closing fails, too")


gymnasium.register("Failing-v0", entry_point=Failing, max_episode_steps=8, disable_env_checker=True)

REASONS = {
    "raise": "Failing-v0 raised at environment step 17: ValueError: a joint broke",
    "nan": "Failing-v0 returned an observation that is not finite at environment step 17",
    "shape": "Failing-v0 returned an observation of shape [3] at environment step 17; its observation space has [2]",
    "text": "Failing-v0 returned the observation 'gone' at environment step 17; numbers are needed",
    "reward": "Failing-v0 returned the reward inf at environment step 17",
    "no reward": "Failing-v0 returned the reward None at environment step 17; a number is needed",
    "large reward": "Failing-v0 returned the reward 1e+300 at environment step 17; it has to fit into 32 bits",
    "endless reward": f"Failing-v0 returned the reward 1{'0' * 196}... at environment step 17; a number is needed",
    "two flags": (
        "Failing-v0 returned array([ True, False]) for terminated at environment step 17; true or false is needed"
    ),
    "no flag": "Failing-v0 returned None for terminated at environment step 17; true or false is needed",
    "text flag": "Failing-v0 returned 'False' for truncated at environment step 17; true or false is needed",
    "nan flag": "Failing-v0 returned nan for truncated at environment step 17; true or false is needed",
    "reset": "Failing-v0 raised in reset after environment step 16: OSError: the simulator is gone",
}
AT = {"reset": [16]}


@pytest.fixture(autouse=True)
def _counts():
    Failing.steps = Failing.made = Failing.closed = 0


@pytest.fixture
def fit(tmp_path, monkeypatch, capfd):
    (tmp_path / "base.yaml").write_text(BASE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DSOB_PL_TRACEBACK", raising=False)

    def run(how, *more, at=None):
        Failing.steps = 0
        at = AT.get(how, [17]) if at is None else at
        code = main(
            ["fit", "--config", "base.yaml", f"--data.env_kwargs.how={how}", f"--data.env_kwargs.at={at}", *more]
        )
        return code, capfd.readouterr().err.strip().splitlines()

    return run


def module(how="raise", at=(17,), seed=0, **options):
    return ReplayDataModule(
        "Failing-v0", {"how": how, "at": list(at)}, 1000, 4, 1, 10, 1, seed=seed,
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("how", REASONS)
def test_a_failing_environment_ends_the_run_with_one_line(how, fit):
    code, lines = fit(how)
    assert code == 3
    assert lines[-1] == f"dsob_pl: error: {REASONS[how]}; no checkpoint had been saved"
    assert not [line for line in lines if "Traceback" in line]


@pytest.mark.parametrize("how", REASONS)
def test_the_reason_keeps_what_the_environment_raised(how):
    data = module(how, AT.get(how, [17]))
    data.attach(lambda o: torch.zeros(1))
    for _ in range(15):
        data.step()
    with pytest.raises(EnvironmentFailed) as error:  # noqa: PT012  (a failing reset is noticed a step earlier)
        for _ in range(2):
            data.step()
    assert str(error.value) == REASONS[how]
    causes = {
        "raise": ValueError,
        "reset": OSError,
        "text": ValueError,
        "no reward": TypeError,
        "endless reward": OverflowError,
        "two flags": ValueError,
    }
    assert type(error.value.__cause__) is causes.get(how, type(None))
    data.teardown("fit")  # closing fails in silence


@pytest.mark.parametrize("how", ["reward", "large reward", "two flags", "no flag"])
def test_of_several_seeds_only_the_one_fails(how, fit):
    at = [17]  # of all steps of both seeds: the ninth of the first seed
    code, lines = fit(how, "--seeds=0-1", at=at)
    assert code == 3
    reason = REASONS[how].replace("step 17", "step 9")
    assert [line for line in lines if line.startswith("dsob_pl: error")] == lines[-1:]
    assert "1 of 2" in lines[-1]
    assert [line for line in lines if reason in line]
    assert not [line for line in lines if "Traceback" in line]
    code, lines = fit(how, "--seeds=0-1", "--data.restart_budget=1", at=at)
    assert code == 0, lines


@pytest.mark.parametrize("how", ["two flags", "large reward"])
def test_a_bad_flag_or_reward_in_evaluation_is_one_line_too(how, fit):
    reason = f"evaluation: {REASONS[how]}".replace("step 17", "step 1")
    code, lines = fit(how, "--data.env_kwargs.evaluation=true", at=[])
    assert (code, lines[-1]) == (3, f"dsob_pl: error: {reason}; no checkpoint had been saved")
    code, lines = fit(how, "--data.env_kwargs.evaluation=true", "--seeds=0-1", at=[])
    assert code == 3
    assert f"all seeds have failed, seed 1 last: {reason}" in lines[-1]
    assert not [line for line in lines if "Traceback" in line]


FLAGS = [np.bool_(True), np.array(True), np.array([True]), np.array([[1.0]]), torch.tensor([True]), 1, np.int64(1), 1.0]


@pytest.mark.parametrize("flag", FLAGS, ids=repr)
def test_flags_of_numbers_and_of_arrays_with_one_entry_are_taken(flag):
    class Ends(Failing):
        def step(self, action):
            observation, reward, _, _, info = super().step(action)
            return observation, reward, flag, flag * 0, info

    env = Ends(at=[])
    env.reset(seed=0)
    assert step_environment(env, np.zeros(1, np.float32), 1)[2:] == (True, False)


def test_evaluation_environments_have_no_budget(fit):
    budget = ["--data.restart_budget=9", "--data.env_kwargs.evaluation=true"]
    code, lines = fit("raise", *budget, at=[])
    assert code == 3
    message = "dsob_pl: error: evaluation: Failing-v0 raised at environment step 1: ValueError: a joint broke"
    assert lines[-1].startswith(message)
    env = make_env("Failing-v0", env_kwargs={"how": "reset", "evaluation": True})
    with pytest.raises(
        EnvironmentFailed, match=r"evaluation: Failing-v0 raised in reset after environment step 0"
    ) as e:
        run_episodes([env], lambda o: torch.zeros(len(o), 1), [10_000], 0.9)
    assert type(e.value.__cause__) is OSError


@pytest.mark.parametrize("how", REASONS)
def test_with_a_budget_the_episode_is_dropped_and_counted(how, fit, tmp_path, caplog):
    logger = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=logs"]
    at = [16, 24] if how == "reset" else [17, 29]
    code, lines = fit(how, *logger, "--data.restart_budget=2", at=at)
    if how == "reset":  # a reset that is due at the same count fails again, until a step is taken
        assert code == 3
        assert "data.restart_budget of 2 is spent" in lines[-1]
        return
    assert code == 0, lines
    (path,) = tmp_path.rglob("metrics.csv")
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/dropped_episodes"]]
    assert float(rows[0]["train/dropped_episodes"]) == 1
    assert float(rows[-1]["train/dropped_episodes"]) == 2
    said = [r.getMessage() for r in caplog.records if r.name.startswith("dsob_pl")]
    assert [text.partition(":")[0] for text in said] == [
        f"episode dropped ({i} of data.restart_budget 2)" for i in (1, 2)
    ]
    assert REASONS[how] in said[0]


def test_a_reset_that_fails_is_tried_in_an_environment_made_anew(monkeypatch):
    data = module("raise", [], restart_budget=3)
    data.attach(lambda o: torch.zeros(1))
    tries, reset = [], Failing.reset

    def sometimes(self, seed=None, options=None):
        tries.append(seed)
        if Failing.steps == 16 and len(tries) < 5:
            raise OSError("gone")
        return reset(self, seed=seed, options=options)

    monkeypatch.setattr(Failing, "reset", sometimes)
    for _ in range(20):
        data.step()
    assert data.collector.dropped == 2
    assert tries[:3] == [0, None, None]
    assert None not in tries[3:5]
    assert tries[3] != tries[4]
    assert Failing.made == 3
    assert Failing.closed == 2
    assert data.env is data.collector.env


def test_steps_count_the_transitions_stored_and_the_failed_one_is_not_among_them():
    data = module("nan", [13, 14, 27], restart_budget=3)
    data.attach(lambda o: torch.zeros(1))
    steps = [data.step() for _ in range(30)]
    assert [step.environment_step for step in steps] == list(range(1, 31))
    assert len(data.replay) == 30
    assert all(x.isfinite().all() for x in data.replay[:].values(True, True))
    assert {i + 1: s.dropped_episodes for i, s in enumerate(steps) if s.dropped_episodes} == {13: 2, 25: 3}
    ends = [i + 1 for i, step in enumerate(steps) if step.episode is not None]
    assert ends == [8, 20]  # eight steps, four and one dropped, eight, four dropped
    assert all(step.episode.length == 8 for step in steps if step.episode is not None)
    assert data.collector.episodes == len(ends)
    # deterministic: the same run again
    Failing.steps = 0
    again = module("nan", [13, 14, 27], restart_budget=3)
    again.attach(lambda o: torch.zeros(1))
    for step in steps:
        other = again.step()
        for key in ("observation", "action", ("next", "observation"), ("next", "reward")):
            assert torch.equal(other.new[key], step.new[key])


class Own(Failing):
    """Counts by itself and fails at its 13th step for the seeds ``at``: made anew, it has another seed and is sound."""

    def due(self):
        self.count = getattr(self, "count", 0) + 1
        return self.seeded in self.at and self.count == 13

    def reset(self, seed=None, options=None):
        self.seeded = seed if seed is not None else getattr(self, "seeded", None)
        return super().reset(seed=seed, options=options)


gymnasium.register("Own-v0", entry_point=Own, max_episode_steps=8, disable_env_checker=True)


def seeds_data(budget):
    more = {"warmup_steps": 6, "restart_budget": budget}
    return [ReplayDataModule("Own-v0", {"at": [1]}, 1000, 4, 1, seed=seed, **more) for seed in (0, 1, 2)]


def test_a_seed_among_others_drops_its_episode_as_it_would_alone():
    joint = ManySeedsData(seeds_data(1))
    joint.attach(lambda o: o[:, :1] * 0.5)
    singles = seeds_data(1)
    for single in singles:
        single.attach(lambda o: o[:1] * 0.5)
    for t in range(1, 31):
        step = joint.step()
        assert step.failures == {}
        assert step.dropped_episodes == ({1: 1} if t == 13 else {})
        for i, single in enumerate(singles):
            own = single.step()
            assert own.episode == step.episodes[i]
            for key in ("observation", "action", ("next", "observation"), ("next", "reward")):
                assert torch.equal(own.new[key][0], step.new[key][i]), (t, i, key)


def test_a_seed_over_its_budget_fails_alone():
    joint = ManySeedsData(seeds_data(0))
    joint.attach(lambda o: o[:, :1] * 0.5)
    for t in range(1, 16):
        step = joint.step()
        expected = {1: "Own-v0 raised at environment step 13: ValueError: a joint broke"} if t == 13 else {}
        assert step.failures == expected
        if expected:
            joint.drop([1])


def test_a_problem_that_breaks_drops_its_episode_in_the_batch_too():
    options = {"capacity": 1000, "restart_budget": 1}
    parts = [ReplayDataModule("dsob_pl/LinearQuadratic-v0", seed=seed, **options) for seed in (0, 1)]
    joint = ManySeedsData(parts)
    joint.step()
    joint._collector._joined._states[1] = 1e30
    step = joint.step()
    assert (step.failures, step.dropped_episodes) == ({}, {1: 1})
    assert step.new["next", "observation"].abs().max() < 1e3
    joint._collector._joined._states[1] = 1e30
    assert "data.restart_budget of 1 is spent" in joint.step().failures[1]


@pytest.mark.parametrize("budget", ["-1", "1.5", "true"])
def test_a_budget_is_a_number_of_episodes(budget, fit, tmp_path):
    code, lines = fit("raise", f"--data.restart_budget={budget}")
    assert code == 2
    assert len(lines) == 1
    assert "data.restart_budget: expected an integer" in lines[0]
    assert sorted(p.name for p in Path(tmp_path).iterdir()) == ["base.yaml"]
