"""Whole runs: what they leave in MLflow, and how they end when something stops them."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
import yaml
from cli_project import BASE, ROOT, Finished, client_of, runs_of

from dsob_pl.cli import main
from dsob_pl.cli.resume import changed_settings
from dsob_pl.data import load_replay
from dsob_pl.tracking import unknown_metrics
from dsob_pl.training import read_checkpoint


def test_two_runs_started_at_one_moment_on_an_empty_folder(finished: Finished) -> None:
    for done in finished.outputs:
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
    runs = runs_of(finished.folder)
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    names = {run.info.run_name for run in runs}
    assert names == {f"SobolevActorCritic-InvertedPendulum-v5-{seed}" for seed in (0, 1)}


def test_the_output_of_a_run(finished: Finished) -> None:
    lines = finished.outputs[0].stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[:2]] == ["step 30/60", "step 60/60"]
    assert "steps/s" in lines[0]
    assert "eta" in lines[0]
    assert "eval return" in lines[0]
    assert "best eval/return_mean" in lines[2]
    assert "python -m dsob_pl evaluate --run" in lines[3]
    assert len(lines) == 4


def test_metrics_config_and_tags_read_back_through_the_client(finished: Finished) -> None:
    client = client_of(finished.folder)
    assert {e.name for e in client.search_experiments()} == {"Default", "InvertedPendulum-v5"}
    for run in runs_of(finished.folder):
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "eval/return_mean")]
        assert steps == [30, 60]  # environment steps
        assert [m.step for m in client.get_metric_history(run.info.run_id, "critic/loss")] == [20, 30, 40, 50, 60]
        assert unknown_metrics(run.data.metrics) == []
        assert "epoch" not in run.data.metrics
        assert run.data.params["data.batch_size"] == "4"
        assert run.data.params["model.critic"] == "dsob_pl.critics.GenerativeCritic"
        assert run.data.params["model.critic.hidden"] == "[8]"
        assert run.data.tags["env"] == "InvertedPendulum-v5"
        assert run.data.tags["seed"] == run.data.params["seed_everything"]
        assert torch.__version__.startswith(run.data.tags["version.torch"])  # which may lack the name of the build
        assert run.data.tags["command"].startswith("python -m dsob_pl fit --config base.yaml")
        config = yaml.safe_load(Path(run.info.artifact_uri, "config.yaml").read_text())
        assert config["data"]["batch_size"] == 4
        assert config["trainer"]["max_steps"] == 60
        assert {a.path for a in client.list_artifacts(run.info.run_id)} == {"checkpoints", "config.yaml", "figures"}
        assert [a.path for a in client.list_artifacts(run.info.run_id, "figures")] == ["figures/calibration.png"]
        paths = {a.path for a in client.list_artifacts(run.info.run_id, "checkpoints")}
        assert paths == {f"checkpoints/{name}" for name in ("best.ckpt", "last.ckpt", "previous.ckpt", "replay")}


def test_checkpoints_hold_only_tensors_and_plain_types_and_only_last_has_the_replay(finished: Finished) -> None:
    for run in runs_of(finished.folder):
        folder = Path(run.info.artifact_uri) / "checkpoints"
        best, last = (torch.load(folder / f"{name}.ckpt", weights_only=True) for name in ("best", "last"))
        assert last["global_step"] == 60
        assert "ReplayDataModule" in last
        assert "ReplayDataModule" not in best
        for content in (best, last):
            assert content["dsob_format"] == 2
            assert content["dsob_sizes"] == {"observation_size": 4, "action_size": 1}
            assert yaml.safe_load(content["dsob_config"])["data"]["env_id"] == "InvertedPendulum-v5"


PART = """\
import os, signal
from dsob_pl.divergences import MMD
class Stops(MMD):
    '''Does ``how`` in the 41st update, after the evaluation at step 30 has been saved.'''
    def __init__(self, how: str = "nan"):
        super().__init__()
        self.how, self.calls = how, 0
    def __call__(self, x, y):
        self.calls += 1
        value = super().__call__(x, y)
        if self.calls == 42:  # the first call is the agent's trial of it
            if self.how == "nan":
                return value * float("nan")
            if self.how == "bug":
                raise ZeroDivisionError("a bug")
            os.kill(os.getpid(), {"term": signal.SIGTERM, "int": signal.SIGINT}[self.how])
        return value
"""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "base.yaml").write_text(BASE)
    (folder / "stops.py").write_text(PART)
    return folder


@pytest.mark.parametrize(
    ("how", "code", "status", "message"),
    [
        ("nan", 3, "FAILED", "critic/loss became non-finite at environment step 51"),
        ("term", 143, "KILLED", "terminated"),
        ("int", 130, "KILLED", "interrupted"),
        ("bug", None, "FAILED", None),
    ],
)
def test_a_run_that_is_stopped(
    how: str,
    code: int | None,
    status: str,
    message: str | None,
    stopped: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(stopped)
    monkeypatch.syspath_prepend(str(stopped))
    monkeypatch.delenv("DSOB_PL_TRACEBACK", raising=False)
    arguments = ["fit", "--config", "base.yaml", "--model.divergence=stops.Stops", f"--model.divergence.how={how}"]
    arguments += ["--trainer.logger=dsob_pl.tracking.MLflowLogger", f"--trainer.logger.run_name={how}"]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started with it ignored
    try:
        if code is None:
            with pytest.raises(ZeroDivisionError, match="a bug"):
                main(arguments)
        else:
            assert main(arguments) == code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    run = next(run for run in runs_of(stopped) if run.info.run_name == how)
    assert run.info.status == status
    folder = Path(run.info.artifact_uri) / "checkpoints"
    last = torch.load(folder / "last.ckpt", weights_only=True)
    # a process that is told to stop saves what it has; after anything else the last good state stays
    assert last["global_step"] == (51 if code in (130, 143) else 30)
    history = client_of(stopped).get_metric_history(run.info.run_id, "critic/loss")
    assert [m.step for m in history][-1] == 50  # nothing collected before the end is lost
    if message is not None:
        lines = capfd.readouterr().err.strip().splitlines()
        (line,) = [line for line in lines if "last good checkpoint" in line]
        assert message in line
        assert "last good checkpoint: mlruns/InvertedPendulum-v5/" in line
        if code in (130, 143):
            assert "finishing the step and saving a checkpoint" in lines[0]
            assert lines[-1].startswith("dsob_pl: go on with it: python -m dsob_pl fit --config base.yaml ")
            assert lines[-1].endswith("/checkpoints/last.ckpt")


def test_a_command_that_does_not_fit_leaves_the_run_to_the_next(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fit = ["fit", "--config", "base.yaml"]
    assert main(fit) == 0
    again = [*fit, "--ckpt_path=last", "--trainer.max_steps=80"]
    assert main([*again, "--model.critic.hidden=[5]"]) == 2
    assert main(again) == 0
    assert "finished at step 80" in capfd.readouterr().out


def test_another_logger(project: Path) -> None:
    logger = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=runs"]
    assert main(["fit", "--config", "base.yaml", *logger]) == 0
    folder = project / "runs" / "lightning_logs" / "version_0"
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["batch_size"] == 4
    assert "eval/return_mean" in (folder / "metrics.csv").read_text()
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
        "previous.ckpt",
        "replay",
    ]
    assert not (project / "mlflow.db").exists()


def test_everything_switched_off(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    off = ["logger", "enable_checkpointing", "enable_progress_bar"]
    assert main(["fit", "--config", "base.yaml", *(f"--trainer.{name}=false" for name in off)]) == 0
    assert sorted(p.name for p in project.iterdir() if p.name != "__pycache__") == ["base.yaml"]
    assert capfd.readouterr().out == "finished at step 60\n"


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_other_precisions_run_to_the_end_with_every_figure(precision: str, project: Path) -> None:
    files = [f"--config={ROOT / 'conf' / name}.yaml" for name in ("pendulum", "debug")]
    assert main(["fit", *files, f"--trainer.precision={precision}"]) == 0
    (last,) = project.rglob("last.ckpt")
    assert (last.parents[1] / "figures" / "calibration.png").is_file()
    kinds = {t.dtype for t in torch.load(last, weights_only=True)["state_dict"].values() if t.is_floating_point()}
    assert (torch.float32 in kinds) == (precision != "64-true")


def test_a_fast_development_run_leaves_nothing(project: Path) -> None:
    assert main(["fit", "--config", "base.yaml", "--trainer.fast_dev_run=2"]) == 0
    assert not (project / "mlflow.db").exists()
    assert not list(project.rglob("*.ckpt"))


@pytest.mark.parametrize("seeds", [[], ["--seeds=0-1"]], ids=["one", "many"])
def test_checkpoints_in_a_folder_of_ones_own_are_those_of_the_run(
    seeds: list[str], project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fit = ["fit", "--config", "base.yaml", "--checkpoint.dirpath=kept", "--trainer.max_steps=30", *seeds]
    assert main(fit) == 0
    runs = {run.data.tags.get("seed"): run for run in runs_of(project)}
    assert not list((project / "mlruns").rglob("*.ckpt"))
    capfd.readouterr()
    assert main(["evaluate", "--run", runs["0"].info.run_id, "--episodes=1", "--json"]) == 0
    place = Path(json.loads(capfd.readouterr().out)["checkpoint"])
    assert place == (project / "kept" / ("seed_0" if seeds else "") / "best.ckpt")
    # Going on, by whatever name, is going on with the same runs.
    last = Path("kept") / "last.ckpt"
    for path, steps in (("last", 60), (last, 90)):
        assert main([*fit, f"--ckpt_path={path}", f"--trainer.max_steps={steps}"]) == 0
    after = runs_of(project)
    assert {run.info.run_id for run in after} == {run.info.run_id for run in runs.values()}
    history = client_of(project).get_metric_history(runs["0"].info.run_id, "eval/return_mean")
    assert [point.step for point in history] == [30, 60, 90]


def test_what_a_checkpoint_lacks_is_said(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fit = ["fit", "--config", "base.yaml", "--trainer.logger=false"]
    lightnings = ["--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.save_last=true"]
    lightnings += ["--trainer.callbacks.dirpath=theirs"]
    assert main([*fit, "--checkpoint.dirpath=own", "--trainer.max_steps=30"]) == 0
    assert main([*fit, *lightnings, "--trainer.max_steps=30"]) == 0
    no_replay = "it holds no replay: the run begins with a new warm-up"
    no_states = "it holds the replay, but not the states of the random generators"
    lacking = {"own/last.ckpt": [], "own/best.ckpt": [no_replay], "theirs/last.ckpt": [no_states]}
    for number, (path, expected) in enumerate(lacking.items()):
        capfd.readouterr()
        folder = f"on_{number}"
        more = [f"--ckpt_path={path}", "--trainer.max_steps=60", f"--checkpoint.dirpath={folder}"]
        assert main([*fit, *more]) == 0
        out = capfd.readouterr().out
        assert f"going on from step 30 of '{path}'" in out
        assert [text for text in (no_replay, no_states) if text in out] == expected
        assert len(load_replay(Path(folder) / "last.ckpt")) == (30 if no_replay in expected else 60)


@pytest.mark.parametrize("seeds", [[], ["--seeds=0-1"]], ids=["one", "many"])
def test_a_folder_with_the_checkpoints_of_another_run_is_refused(
    seeds: list[str], project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fit = ["fit", "--config", "base.yaml", "--checkpoint.dirpath=kept", "--trainer.max_steps=30", *seeds]
    assert main(fit) == 0
    first = runs_of(project)
    before = {path: path.read_bytes() for path in (project / "kept").rglob("*.ckpt")}
    capfd.readouterr()
    assert main([*fit, "--model.init_args.gamma=0.9"]) == 2
    assert "has the checkpoints of another run, which this one would replace" in capfd.readouterr().err
    assert len(runs_of(project)) == len(first)
    assert {path: path.read_bytes() for path in (project / "kept").rglob("*.ckpt")} == before


def test_a_checkpoint_that_a_later_run_has_replaced_is_not_taken_for_the_earlier_one_s(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fit = ["fit", "--config", "base.yaml", "--checkpoint.dirpath=kept", "--trainer.max_steps=30"]
    assert main(fit) == 0
    (first,) = runs_of(project)
    shutil.rmtree(project / "kept")
    assert main([*fit, "--seed_everything=1"]) == 0
    capfd.readouterr()
    assert main(["evaluate", "--run", first.info.run_id, "--episodes=1"]) == 2
    assert "which began later with the same checkpoint.dirpath" in capfd.readouterr().err
    # Where there are no names, of the same environment at least.
    assert main([*fit, "--trainer.logger=false", "--ckpt_path=last", "--data.env_id=InvertedDoublePendulum-v5"]) == 2
    assert "there is no last.ckpt of an earlier run" in capfd.readouterr().err


@pytest.mark.parametrize("seeds", [[], ["--seeds=0-1"]], ids=["one", "many"])
def test_runs_without_a_logger_replace_nothing_of_each_other(seeds: list[str], project: Path) -> None:
    fit = ["fit", "--config", "base.yaml", "--trainer.logger=false", "--trainer.max_steps=30", *seeds]
    assert main(fit) == 0
    before = {path: path.read_bytes() for path in project.rglob("*.ckpt")}
    assert main(fit) == 0
    assert {path: path.read_bytes() for path in before} == before
    new = {path.parent.relative_to(project) for path in project.rglob("*.ckpt")} - {
        path.parent.relative_to(project) for path in before
    }
    assert new == {Path("checkpoints_2"), *(Path(f"seed_{seed}/checkpoints_2") for seed in (0, 1) if seeds)}
    # Going on is with the newest, in its own folder.
    assert main([*fit, "--ckpt_path=last", "--trainer.max_steps=60"]) == 0
    assert read_checkpoint(project / "checkpoints_2" / "last.ckpt")["global_step"] == 60
    assert {path: path.read_bytes() for path in before} == before
    assert not list(project.rglob("checkpoints_3"))


def test_two_runs_at_once_do_not_share_a_folder(project: Path) -> None:
    fit = ["fit", "--config", "base.yaml", "--checkpoint.dirpath=kept"]
    command = [sys.executable, "-m", "dsob_pl", *fit]
    with subprocess.Popen([*command, "--trainer.max_steps=1000000"], stdout=subprocess.DEVNULL) as first:
        try:
            deadline = time.monotonic() + 60
            while not (project / "kept").is_dir():  # nothing is saved in it before the first evaluation
                assert first.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            second = subprocess.run([*command, "--trainer.max_steps=30"], stderr=subprocess.PIPE, text=True)
            assert first.poll() is None
        finally:
            first.terminate()
    assert second.returncode == 2
    assert "Traceback" not in second.stderr
    assert re.search("a run that is still going on writes to|has the checkpoints of another run", second.stderr)


def test_what_a_resumed_run_changes_by_hand() -> None:
    def told(before: dict[str, object], now: dict[str, object]) -> str:
        return changed_settings(
            {"dsob_config": yaml.safe_dump(before, sort_keys=False)}, {"model": {}, "data": {}} | now
        )

    model = {"gamma": 0.9, "tau": 0.1, "compile": False, "critic": {"class_path": "A", "init_args": {"hidden": [8]}}}
    before = {"model": {"init_args": model}, "data": {"noise": None, "env_id": "X"}, "trainer": {"max_steps": 5}}
    now = {"model": {"init_args": {**model, "compile": True}}, "data": before["data"], "seed_everything": 3}
    assert told(before, now) == ""  # how it is computed, for how long, and a seed that was none of one run
    of_today = {**model, "drift": 0.5}  # an option that there was not
    del of_today["tau"]  # and one that is no more
    assert told(before, {**now, "model": {"init_args": of_today}}) == ""
    assert told(before, {**now, "data": {"noise": ["N"], "env_id": "X"}}) == "data.noise null -> ['N']"
    other = {"model": {"init_args": {**model, "gamma": 0.5, "tau": 0.2, "critic": {"class_path": "B"}}}}
    each = "model.init_args.gamma 0.9 -> 0.5, model.init_args.tau 0.1 -> 0.2, model.init_args.critic.class_path A -> B"
    assert told(before, {**now, **other}) == each
    assert told(before, {**now, **other, "data": {"noise": None, "env_id": "Y"}}) == f"{each}, and 1 more"
    assert told({}, now) == ""  # of another program


def test_the_last_run_is_not_gone_on_with_by_another_experiment(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fit = ["fit", "--config", "base.yaml"]
    other = ["--trainer.max_steps=60", "--model.gamma=0.5", "--seed_everything=3", "--model.compile=false"]
    assert main([*fit, "--trainer.max_steps=30"]) == 0
    capfd.readouterr()
    assert main([*fit, *other[:2], "--ckpt_path=last"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "ckpt_path: 'last': the newest run of that name began with other settings (model.init_args.gamma" in line
    assert " -> 0.5)" in line
    path = line.rpartition(": ")[2].strip("'")
    (run,) = runs_of(project)
    assert run.info.status == "FINISHED"
    assert client_of(project).get_metric_history(run.info.run_id, "eval/return_mean")[-1].step == 30
    assert main([*fit, *other, f"--ckpt_path={path}"]) == 0
    said = "with other settings than its run began with: model.init_args.gamma 0.99 -> 0.5, seed_everything 0 -> 3\n"
    assert said in capfd.readouterr().out
    assert main([*fit, *other, "--trainer.max_steps=70", f"--ckpt_path={path}"]) == 0
    assert "other settings" not in capfd.readouterr().out  # which are in the checkpoint now
    # The run keeps each of its configs.
    folder = Path(run.info.artifact_uri)
    configs = {file.name: yaml.safe_load(file.read_text()) for file in folder.glob("*.yaml")}
    settings = {name: (c["model"]["init_args"]["gamma"], c["trainer"]["max_steps"]) for name, c in configs.items()}
    later = {"config_from_step_30.yaml": (0.5, 60), "config_from_step_60.yaml": (0.5, 70)}
    assert settings == {"config.yaml": (0.99, 30), **later}
    assert main([*fit, *other, "--trainer.max_steps=70", f"--ckpt_path={path}"]) == 0
    assert {file.name for file in folder.glob("*.yaml")} == set(configs)


def test_the_last_checkpoint_without_a_logger_is_found(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fit = ["fit", "--config", "base.yaml", "--trainer.logger=false"]
    assert main([*fit, "--trainer.max_steps=30"]) == 0
    assert main([*fit, "--ckpt_path=last"]) == 0
    assert "going on from step 30 of 'checkpoints/last.ckpt'" in capfd.readouterr().out


@pytest.mark.parametrize("seeds", [[], ["--seeds=0-1"]], ids=["one", "many"])
def test_a_metric_that_is_not_there_is_said_in_one_line(
    seeds: list[str], project: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    fit = ["fit", "--config", "base.yaml", "--trainer.logger=false", "--trainer.max_steps=30", *seeds]
    stopping = ["--trainer.callbacks=lightning.pytorch.callbacks.EarlyStopping", "--trainer.callbacks.monitor=nope"]
    assert main([*fit, *stopping]) == 2
    (line,) = [x for x in capfd.readouterr().err.splitlines() if "error" in x]
    assert line.startswith("dsob_pl: error: trainer.callbacks: Early stopping conditioned on metric 'nope'")
    assert main([*fit, "--checkpoint.monitor=eval/returns_mean"]) == 0
    missed = "'eval/returns_mean' was not evaluated, no best checkpoint is kept; did you mean 'eval/return_mean'?"
    assert missed in caplog.text


def test_a_warm_up_as_long_as_the_run_is_said(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit = ["fit", "--config", "base.yaml", "--trainer.logger=false", "--trainer.max_steps=30"]
    for steps, said in ((30, True), (29, False)):
        assert main([*fit, f"--data.warmup_steps={steps}"]) == 0
        assert ("leaves nothing of the run's 30 to learn in" in caplog.text) == said
        caplog.clear()


def test_looking_for_a_run_leaves_somebody_s_database_alone_and_waits_for_no_server(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(project / "own.db")) as database:
        database.execute("CREATE TABLE mine (x)")
    before = (project / "own.db").read_bytes()
    for look in (["evaluate", "--run", "ab"], ["explain", "--run", "ab"]):
        assert main([*look, "--tracking_uri", "sqlite:///own.db"]) == 2
        assert "own.db' is not a database of MLflow" in capfd.readouterr().err
    assert (project / "own.db").read_bytes() == before
    start = time.monotonic()
    assert main(["evaluate", "--run", "ab", "--tracking_uri", "http://127.0.0.1:9"]) == 2
    error = capfd.readouterr().err
    assert error.startswith("dsob_pl: error: MLflow 'http://127.0.0.1:9' cannot be read: no answer from ")
    assert error.count("\n") == 1
    assert time.monotonic() - start < 60  # of MLflow's own accord four minutes
