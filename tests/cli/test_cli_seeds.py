"""``fit --seeds``: every seed is the run it would be alone, with a run of its own under a parent."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from cli_project import client_of, runs_of

from dsob_pl.cli import main
from dsob_pl.cli.loading import load_agent
from dsob_pl.errors import UsageError
from dsob_pl.seeds import parse_seeds

CONF = Path(__file__).resolve().parents[2] / "conf"
TINY = """\
threads: 1
trainer: {max_steps: 50, val_check_interval: 25, log_every_n_steps: 10}
model:
  init_args:
    critic: {class_path: dsob_pl.critics.GenerativeCritic, init_args: {hidden: [12, 12]}}
    policy: {class_path: dsob_pl.networks.DeterministicPolicy, init_args: {hidden: [12]}}
    world_model: {class_path: dsob_pl.world_models.CVAE, init_args: {hidden: [12], prior_hidden: [8]}}
    samples: 4
    diagnostic_samples: 4
data:
  warmup_steps: 30
  updates_per_step: 10
  batch_size: 8
  evaluation_episodes: 2
"""
FIT = ["fit", "--config", "tiny.yaml"]

# An environment of a user's own; with some seeds it goes wrong at a step, in a way that its arguments say.
GOING_WRONG = """
import gymnasium, numpy as np
from gymnasium.spaces import Box

class Wrong(gymnasium.Env):
    def __init__(self, how="nan", at=35, who=(1,)):
        self.observation_space, self.action_space = Box(-1, 1, (2,), np.float32), Box(-1, 1, (1,), np.float32)
        self.how, self.at, self.who, self.steps, self.seed = how, at, who, 0, None

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.seed = seed if seed is not None else self.seed
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        self.steps += 1
        observation = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        reward = float(observation[0] - action[0] ** 2)
        if self.seed in self.who and self.steps >= self.at:
            if self.how == "nan":
                observation[0] = np.nan
            else:
                reward = 1e30
        return observation, reward, False, False, {}

gymnasium.register("Wrong-v0", entry_point=Wrong, max_episode_steps=10)
"""


@pytest.fixture
def tiny(project, monkeypatch):
    (project / "tiny.yaml").write_text(TINY)
    (project / "wrong_environment.py").write_text(GOING_WRONG)
    return project


def histories(folder, run):
    client = client_of(folder)
    return {
        name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
        if not name.startswith("speed/")
    }


def assert_same_histories(one, other, tolerance):
    assert one.keys() == other.keys()
    for name, history in one.items():
        assert [step for step, _ in history] == [step for step, _ in other[name]], name
        values, others = (torch.tensor([value for _, value in h]) for h in (history, other[name]))
        torch.testing.assert_close(values, others, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize(
    ("environment", "overlay", "updates"),
    [("dsob_pl/PointMass-v0", "mmd_sobolev_state_action", 10), ("InvertedPendulum-v5", "mmd_sobolev", 2)],
)
def test_a_seed_among_others_is_the_run_it_would_be_alone(tiny, environment, overlay, updates, capfd):
    options = [*FIT, "--config", str(CONF / f"method/{overlay}.yaml"), f"--data.env_id={environment}"]
    options += ["--data.env_kwargs.max_episode_steps=8", f"--data.updates_per_step={updates}"]
    assert main([*options, "--seeds", "3,0"]) == 0
    said = capfd.readouterr().out
    assert main([*options, "--seed_everything=0"]) == 0
    runs = runs_of(tiny)
    (parent,) = [run for run in runs if "seeds" in run.data.tags]
    below = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    children = {int(run.data.tags["seed"]): run for run in below}
    (single,) = [run for run in runs if "seeds" not in run.data.tags and "mlflow.parentRunId" not in run.data.tags]
    assert set(children) == {0, 3}
    assert all(run.info.status == "FINISHED" for run in runs)
    assert children[0].info.run_name == single.info.run_name
    assert parent.info.run_name.endswith("seeds-0,3")
    assert all(run.info.run_id in said for run in (*children.values(), parent))
    assert_same_histories(histories(tiny, children[0]), histories(tiny, single), 2e-3)
    # After 200 updates (40 for the second): checkpoint and artifacts.
    alone, among, other = (load_agent(run.info.run_id, "last") for run in (single, children[0], children[3]))
    observations = torch.randn(20, alone.policy.mlp[0].in_features)
    torch.testing.assert_close(among.act(observations), alone.act(observations), rtol=1e-3, atol=1e-3)
    assert (other.act(observations) - alone.act(observations)).abs().max() > 0.01
    folders = [Path(run.info.artifact_uri.removeprefix("file://")) for run in (single, children[0])]
    first, second = ({str(p.relative_to(f)) for p in f.rglob("*") if p.is_file()} for f in folders)
    # All seeds together are gone on with, not one of them.
    first = {name for name in first if not name.startswith(("checkpoints/replay", "checkpoints/previous"))}
    assert first == second
    assert (folders[0] / "config.yaml").read_text() == (folders[1] / "config.yaml").read_text()


def test_one_seed_is_an_ordinary_run(tiny):
    options = [*FIT, "--data.env_id=Pendulum-v1", "--trainer.max_steps=40", "--data.updates_per_step=1"]
    assert main([*options, "--seeds", "4"]) == 0
    assert main([*options, "--seed_everything", "4"]) == 0
    one, other = runs_of(tiny)
    assert histories(tiny, one) == histories(tiny, other)  # to the last bit
    assert one.data.tags["seed"] == other.data.tags["seed"] == "4"


@pytest.mark.parametrize(
    ("how", "reason"), [("nan", "observation that is not finite"), ("huge", "critic/loss became non-finite")]
)
def test_a_seed_that_goes_wrong_leaves_the_others_alone(tiny, how, reason, capfd):
    options = [*FIT, "--data.env_id=wrong_environment:Wrong-v0", f"--data.env_kwargs.how={how}"]
    options += ["--data.updates_per_step=2"]
    assert main([*options, "--seeds=0-2"]) == 3
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("dsob_pl: error: 1 of 3 seeds failed, the others finished; seed 1: ")
    assert reason in error
    assert main([*options, "--seeds=0,2"]) == 0
    runs = [run for run in runs_of(tiny) if "mlflow.parentRunId" in run.data.tags]
    status = {0: [], 1: [], 2: []}
    for run in runs:
        status[int(run.data.tags["seed"])].append(run.info.status)
    assert status == {0: ["FINISHED"] * 2, 1: ["FAILED"], 2: ["FINISHED"] * 2}
    for seed in ("0", "2"):
        with_it, without = (histories(tiny, run) for run in runs if run.data.tags["seed"] == seed)
        assert_same_histories(with_it, without, 2e-3)


def test_all_seeds_going_wrong_fail_the_run(tiny, capfd):
    options = [*FIT, "--data.env_id=wrong_environment:Wrong-v0", "--seeds=0-1", "--data.updates_per_step=1"]
    assert main([*options, "--data.env_kwargs.how=huge", "--data.env_kwargs.who=[0, 1]"]) == 3
    assert "all seeds have failed" in capfd.readouterr().err
    assert {run.info.status for run in runs_of(tiny)} == {"FAILED"}


def test_a_run_of_many_seeds_goes_on_from_its_checkpoint(tiny, capfd):
    options = [*FIT, "--data.env_id=Pendulum-v1", "--data.updates_per_step=1"]
    assert main([*options, "--seeds=0-1"]) == 0
    (parent,) = [run for run in runs_of(tiny) if "seeds" in run.data.tags]
    last = Path(parent.info.artifact_uri.removeprefix("file://")) / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    assert content["dsob_seeds"] == [0, 1]
    assert content["state_dict"]["stack.critic"].shape[0] == 2
    capfd.readouterr()
    assert main([*options, "--seeds=0-1", "--trainer.max_steps=75", f"--ckpt_path={last}"]) == 0
    out = capfd.readouterr().out
    assert f"going on from step {content['global_step']} of " in out
    assert min(map(int, re.findall(r"^step (\d+)/75 ", out, re.M))) > content["global_step"] > 0
    assert "finished at step 75" in out
    # The parent's config says all of it, and is run as it is.
    config = last.parents[1] / "config.yaml"
    assert main(["fit", "--config", str(config), "--trainer.max_steps=32"]) == 0
    # Not those seeds, a single seed, or the checkpoint of a single seed.
    child = next(run for run in runs_of(tiny) if run.data.tags.get("seed") == "0")
    own = Path(child.info.artifact_uri.removeprefix("file://")) / "checkpoints" / "last.ckpt"
    for more, said in (
        (["--seeds=0,2", f"--ckpt_path={last}"], "holds the seeds 0-1, not 0,2"),
        (["--seeds=0-1", f"--ckpt_path={own}"], "is that of one seed"),
        ([f"--ckpt_path={last}"], "go on with it by fit --seeds 0-1"),
    ):
        assert main([*options, *more]) == 2
        assert said in capfd.readouterr().err
    assert main(["validate", "--ckpt_path", str(last)]) == 2
    assert "is of many seeds" in capfd.readouterr().err
    with pytest.raises(UsageError, match="holds the seeds"):
        load_agent(str(last))


RISK = ["--model.init_args.risk=dsob_pl.risk.CVaR", "--trainer.callbacks+=dsob_pl.training.RiskSchedule"]
RISK += ["--trainer.callbacks.begin=35", "--trainer.callbacks.end=60"]


@pytest.mark.parametrize(("environment", "more_options"), [("Summit", []), ("Cliff", RISK)])
def test_many_seeds_cut_off_in_an_episode_go_on_as_if_they_had_not_been(
    environment, more_options, tiny, tmp_path, monkeypatch, capfd
):
    options = [*FIT, f"--data.env_id=dsob_pl/{environment}-v0", "--data.updates_per_step=1", "--seeds=0-1"]
    options += ["--trainer.logger=false", "--checkpoint.dirpath=kept", *more_options]
    found = []
    for steps in (["75"], ["43", "75"]):
        folder = tmp_path / "-".join(steps)
        folder.mkdir()
        (folder / "tiny.yaml").write_text((tmp_path / "tiny.yaml").read_text())
        monkeypatch.chdir(folder)
        assert main([*options, f"--trainer.max_steps={steps[0]}"]) == 0
        for more in steps[1:]:
            assert main([*options, f"--trainer.max_steps={more}", "--ckpt_path=kept/last.ckpt"]) == 0
            assert "going on from step 43 of " in capfd.readouterr().out
        found.append(torch.load("kept/last.ckpt", weights_only=True)["state_dict"])
    assert found[0].keys() == found[1].keys()
    assert [name for name in found[0] if not torch.equal(found[0][name], found[1][name])] == []


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0-3", [0, 1, 2, 3]), ("0,3,7", [0, 3, 7]), ("5", [5]), (5, [5]), ("2-3, 9", [2, 3, 9]), ([4, 1], [4, 1])],
)
def test_seeds_are_numbers_and_ranges(text, seeds):
    assert parse_seeds(text) == seeds


BAD = {
    "empty": (["--seeds="], ["seeds: no seed in ''", "such as 0-9"]),
    "empty list": (["--seeds=[]"], ["seeds: no seed in '[]'"]),
    "empty place": (["--seeds=0,,2"], ["seeds: an empty place in '0,,2'"]),
    "word": (["--seeds=all"], ["seeds: 'all' is not a seed or a range of seeds"]),
    "half a range": (["--seeds=3-"], ["seeds: '3-' is not a seed"]),
    "negative": (["--seeds=-1"], ["seeds: '-1' is not a seed"]),
    "fraction": (["--seeds=1.5"], ["seeds: '1.5' is not a seed"]),
    "backwards": (["--seeds=9-0"], ["seeds: the range '9-0' runs backwards; did you mean 0-9?"]),
    "twice": (["--seeds=0-4,3"], ["seeds: 3 is given twice"]),
    "too large": (["--seeds=0,4294967296"], ["seeds: expected integers from 0 to 2^32 - 1, got 4294967296"]),
    "too many": (["--seeds=0-100000"], ["seeds: '0-100000' are 100001 seeds; at most 1000"]),
    "too many together": (["--seeds=0-599,600-1199"], ["seeds: '0-599,600-1199' are 1200 seeds; at most 1000"]),
    "both": (["--seeds=0-1", "--seed_everything=0"], ["seed_everything: cannot be given together with seeds"]),
    "misspelt": (["--sedes=0-1"], ["sedes", "'seeds'"]),
    "optimizer": (["--seeds=0-1", "--model.critic_optimizer=torch.optim.LBFGS"], ["model.critic_optimizer", "LBFGS"]),
    "world model alone": (
        ["--seeds=0-1", "--config", str(CONF / "world_model.yaml")],
        ["seeds: many seeds train a SobolevActorCritic; CVAE takes one at a time"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_seeds_get_one_line(name, tiny, untouched, capfd):
    arguments, fragments = BAD[name]
    base = [] if name == "world model alone" else ["--config", "tiny.yaml", "--data.env_id=Pendulum-v1"]
    assert main(["fit", *base, *arguments]) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert all(fragment in lines[0] for fragment in fragments), lines[0]
    assert untouched()


def test_both_in_one_file_name_the_file(tiny, capfd):
    (tiny / "both.yaml").write_text("seeds: 0-3\nseed_everything: 1\n")
    assert main([*FIT, "--data.env_id=Pendulum-v1", "--config", "both.yaml"]) == 2
    assert "both.yaml: seed_everything: cannot be given together with seeds" in capfd.readouterr().err


def test_seeds_replace_the_seed_of_an_earlier_file(tiny):
    (tiny / "seed.yaml").write_text("seed_everything: 1\n")
    more = ["--config=seed.yaml", "--data.env_id=Pendulum-v1", "--trainer.max_steps=32", "--data.updates_per_step=1"]
    assert main([*FIT, *more, "--seeds=5-6"]) == 0
    assert {run.data.tags.get("seed") for run in runs_of(tiny)} == {"5", "6", None}
