"""Each of many seeds as a run of its own: real agents, a real Trainer, a real MLflow database, real files."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from seeds_toy import CONFIG, Alone, Data, Fit, trainer

from dsob_pl.cli.loading import load, load_agent
from dsob_pl.errors import RunFailed, UsageError
from dsob_pl.ground_truth import GroundTruth
from dsob_pl.tracking import MLflowLogger
from dsob_pl.tracking.store import mlflow_client
from dsob_pl.training import BestAndLast, SeedRuns, SeedTrainer, StopOnNonFiniteLoss, read_checkpoint

RETURNS = {0: [1.0, 3.0, 2.0], 2: [5.0, 4.0, 3.0], 7: [1.0, 2.0, 3.0]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("many")


@pytest.fixture(autouse=True)
def _there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def client() -> Any:
    return mlflow_client(f"sqlite:///{Path('mlflow.db').absolute()}")


def runs_of(logger: MLflowLogger) -> tuple[Any, dict[int, Any]]:
    """The run of all seeds and those of each."""
    parent = client().get_run(logger.run_id)
    found = client().search_runs(
        [parent.info.experiment_id], filter_string=f"tags.`mlflow.parentRunId` = '{logger.run_id}'"
    )
    return parent, {int(run.data.tags["seed"]): run for run in found}


def history(run: Any, name: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client().get_metric_history(run.info.run_id, name)]


def checkpoints(run: Any) -> dict[str, dict[str, Any]]:
    folder = Path(run.info.artifact_uri) / "checkpoints"
    return {path.stem: read_checkpoint(path) for path in folder.glob("*.ckpt")}


def steps_saved(run: Any) -> dict[str, float]:
    """By the mark in the weights, which is the number of steps taken."""
    marks = {name: content["state_dict"] for name, content in checkpoints(run).items()}
    return {
        name: float(next(v for k, v in s.items() if k.startswith("critic.")).view(-1)[0]) for name, s in marks.items()
    }


@pytest.fixture(scope="module")
def finished(folder: Path) -> Fit:
    """Three seeds that all finish; the best of them are at different steps."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        # Named, since the environment may name another: this runs before a test can take that away.
        logger = MLflowLogger(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
        fit = Fit([0, 2, 7], [logger], returns={seed: list(own) for seed, own in RETURNS.items()})
        fit()
    finally:
        os.chdir(before)
    return fit


def test_every_seed_has_a_run_under_that_of_all(finished: Fit) -> None:
    parent, children = runs_of(finished.loggers[0])
    environment = CONFIG["data"]["env_id"]
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", f"SobolevActorCritic-{environment}-seeds-0,2,7")
    assert parent.data.tags["seeds"] == "0,2,7"
    assert "seed" not in parent.data.tags
    assert set(parent.data.metrics) == {"seeds/running"}
    assert sorted(children) == [0, 2, 7]
    for seed, run in children.items():
        assert (run.info.status, run.info.run_name) == ("FINISHED", f"SobolevActorCritic-{environment}-{seed}")
        assert run.info.experiment_id == parent.info.experiment_id
        assert torch.__version__.startswith(run.data.tags["version.torch"])  # which may lack the name of the build
        assert run.data.params["seed_everything"] == str(seed)
        assert yaml.safe_load(Path(run.info.artifact_uri, "config.yaml").read_text())["seed_everything"] == seed
        assert {a.path for a in client().list_artifacts(run.info.run_id)} == {"checkpoints", "config.yaml"}


def test_a_run_of_many_logs_what_it_would_log_alone(finished: Fit) -> None:
    _, children = runs_of(finished.loggers[0])
    logger = MLflowLogger(run_name="alone")
    single = trainer([logger], 12, [])
    logger.environment_step = lambda: single.global_step
    single.fit(Alone(2, list(RETURNS[2])), datamodule=Data([]))
    alone = client().get_run(logger.run_id)
    assert set(children[2].data.metrics) == set(alone.data.metrics)
    for name in alone.data.metrics:
        assert history(children[2], name) == history(alone, name)
    assert history(alone, "critic/loss") == [(step, step + 0.5) for step in (2, 4, 6, 8, 10, 12)]
    assert history(alone, "eval/return_mean") == [(4, 5.0), (8, 4.0), (12, 3.0)]


def test_best_and_last_follow_the_returns_of_their_own_seed(finished: Fit) -> None:
    parent, children = runs_of(finished.loggers[0])
    saved = {seed: steps_saved(run) for seed, run in children.items()}
    assert saved == {0: {"best": 8, "last": 12}, 2: {"best": 4, "last": 12}, 7: {"best": 12, "last": 12}}
    content = checkpoints(parent)
    assert sorted(content) == ["last", "previous"]
    assert content["last"]["dsob_seeds"] == [0, 2, 7]
    assert content["last"]["Data"]["replay"].tolist() == [0, 1, 2]
    assert finished.data.gathered == 3  # once an evaluation, and not for the file of a seed


def test_the_checkpoint_of_a_seed_is_that_of_a_run_alone(finished: Fit) -> None:
    _, children = runs_of(finished.loggers[0])
    for seed, run in children.items():
        for name, content in checkpoints(run).items():
            assert {"Data", "ReplayDataModule", "dsob_seeds"}.isdisjoint(content)
            assert yaml.safe_load(content["dsob_config"])["seed_everything"] == seed
            assert content["dsob_sizes"] == {"observation_size": 2, "action_size": 2}
            (state,) = (state for key, state in content["callbacks"].items() if key.startswith("BestAndLast"))
            assert Path(state["best_model_path"]).parent == Path(run.info.artifact_uri) / "checkpoints"
            if name == "last":
                assert (content["global_step"], content["loops"]["fit_loop"]["epoch_loop.state_dict"] != {}) == (
                    12,
                    True,
                )


def test_the_agent_of_a_seed_can_be_loaded(finished: Fit) -> None:
    _, children = runs_of(finished.loggers[0])
    for seed, agent in zip(finished.module.seeds, finished.module.agents):
        loaded = load(children[seed].info.run_id, "last")
        assert loaded.config["seed_everything"] == seed
        for name, tensor in agent.state_dict().items():
            assert torch.equal(tensor, loaded.agent.state_dict()[name])
        observation = torch.zeros(2)
        assert torch.equal(load_agent(children[seed].info.run_id, "last").act(observation), agent.act(observation))


@pytest.mark.parametrize("which", ["best", "last"])
def test_the_run_of_all_is_refused_with_the_runs_of_each(
    finished: Fit, which: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, children = runs_of(finished.loggers[0])
    ids = ", ".join(f"seed {seed}: {children[seed].info.run_id[:8]}" for seed in (0, 2, 7))
    with pytest.raises(UsageError, match=rf"holds the seeds 0,2,7 together; load the run of one of them \({ids}\)$"):
        load_agent(finished.loggers[0].run_id, which)
    monkeypatch.chdir(tmp_path)  # no database
    with pytest.raises(UsageError, match=r"load the run of one of them$"):
        load_agent(finished.checkpoint.last_model_path)


def test_seeds_that_fail_leave_the_others_alone(
    finished: Fit, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Seed 2 leaves by itself at step 7, seed 0 has a broken parameter from step 9 on, found at the evaluation."""
    returns = {seed: list(own) for seed, own in RETURNS.items()}
    fit = Fit([0, 2, 7], [MLflowLogger()], returns=returns, fails={2: 7}, breaks={0: 9})
    capsys.readouterr()
    fit()
    parent, children = runs_of(fit.loggers[0])
    assert {seed: run.info.status for seed, run in children.items()} == {0: "FAILED", 2: "FAILED", 7: "FINISHED"}
    assert parent.info.status == "FINISHED"
    reasons = {
        2: "critic/loss became non-finite at environment step 7",
        0: "policy.mlp.0.weight became non-finite by environment step 12",
    }
    assert fit.runs.failed == fit.module.failed == reasons
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [f"seed {seed} failed: {reason}" for seed, reason in reasons.items()]
    assert {seed: steps_saved(run) for seed, run in children.items()} == {
        0: {"best": 8, "last": 8},
        2: {"best": 4, "last": 4},
        7: {"best": 12, "last": 12},
    }
    assert [step for step, _ in history(children[2], "critic/loss")] == [2, 4, 6]
    assert [step for step, _ in history(children[0], "eval/return_mean")] == [4, 8, 12]
    _, alone = runs_of(finished.loggers[0])
    for name in alone[7].data.metrics:
        assert history(children[7], name) == history(alone[7], name)
    assert checkpoints(parent)["last"]["dsob_seeds"] == [7]
    runs = {seed: run.info.run_id for seed, run in children.items()}
    assert fit.runs.summary().splitlines() == [
        "finished at step 12",
        f"seed 0: failed: {reasons[0]}; best eval/return_mean 3.0; run {runs[0]}",
        f"seed 2: failed: {reasons[2]}; best eval/return_mean 5.0; run {runs[2]}",
        f"seed 7: best eval/return_mean 3.0; run {runs[7]}",
    ]
    lines = [line.split("  ")[2:] for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert [line[-1] for line in lines] == ["3 seeds", "2/3 seeds", "2/3 seeds"]


def test_when_the_last_seed_has_failed_all_have(folder: Path) -> None:
    fit = Fit([1, 2], [MLflowLogger()], fails={1: 3, 2: 5})
    with pytest.raises(RunFailed, match="all seeds have failed"):
        fit()
    parent, children = runs_of(fit.loggers[0])
    assert [run.info.status for run in (parent, *children.values())] == ["FAILED"] * 3


@pytest.mark.parametrize(("how", "status", "saved"), [("term", "KILLED", 6), ("bug", "FAILED", 4)])
def test_runs_that_are_stopped(how: str, status: str, saved: int) -> None:
    def stop() -> None:
        if how == "bug":
            raise ZeroDivisionError("a bug")
        os.kill(os.getpid(), signal.SIGTERM)

    returns = {1: [5.0], 2: [5.0]}
    fit = Fit([1, 2], [MLflowLogger()], returns=returns, stops={6: stop}, breaks={2: 6} if how == "term" else {})
    with pytest.raises(SIGTERMException if how == "term" else ZeroDivisionError):
        fit()
    parent, children = runs_of(fit.loggers[0])
    assert (parent.info.status, children[1].info.status) == (status, status)
    assert steps_saved(children[1]) == {"best": 4, "last": saved}
    # what cannot be saved when the process is told to stop fails alone
    assert children[2].info.status == "FAILED"
    assert steps_saved(children[2]) == {"best": 4, "last": 4}
    assert history(children[1], "critic/loss")[-1][0] == (6 if how == "term" else 4)
    # the checkpoint of all, written when the runs have ended already, knows each one's best
    states = torch.load(fit.checkpoint.last_model_path, weights_only=True)["callbacks"][fit.runs.state_key]["seeds"]
    best = fit.callbacks[1][0]
    assert states[1][best.state_key] == best.state_dict()
    assert best.state_dict()["best_model_score"] == 5


def test_scores_against_the_truth_are_those_of_every_agent_and_go_to_its_own_logger(tmp_path: Path) -> None:
    def scoring(seed: int) -> list[L.Callback]:
        return [GroundTruth(every=2, pairs=3, samples=16, figure_pairs=1, seed=3)]

    fit = Fit([1, 2], [CSVLogger(tmp_path)], scoring, fails={1: 4})
    fit(steps=5)
    folder = tmp_path / "lightning_logs" / "version_0"
    callbacks = {seed: own[-1] for seed, own in fit.callbacks.items()}
    assert [row["step"] for row in callbacks[1].history] == [2]
    assert [row["step"] for row in callbacks[2].history] == [2, 4, 5]
    for seed in (1, 2):
        with (folder / f"seed_{seed}" / "metrics.csv").open() as file:
            rows = {int(row["step"]): row for row in csv.DictReader(file) if row["truth/return_error"]}
        assert list(rows) == [row["step"] for row in callbacks[seed].history]
        for row in callbacks[seed].history:
            assert float(rows[int(row["step"])]["truth/return_error"]) == row["truth/return_error"]
    assert callbacks[1].history[0]["truth/return_error"] != callbacks[2].history[0]["truth/return_error"]
    expected, own = scoring(2)[0], SeedTrainer(fit.trainer, 2)
    expected.on_fit_start(own, fit.module.agents[0])
    assert expected.score(own, fit.module.agents[0]) == {
        name: value for name, value in callbacks[2].history[-1].items() if "/" in name
    }
    assert (folder / "seed_2" / "figures" / "ground_truth.png").is_file()
    assert not (folder / "seed_1" / "figures").exists()
    assert (folder / "seed_1" / "config.yaml").is_file()
    assert not (folder / "seed_1" / "checkpoints" / "best.ckpt").exists()


def test_without_loggers_every_seed_has_a_folder(tmp_path: Path) -> None:
    Fit([1, 2], [], returns={1: [1.0], 2: [2.0]})(steps=4, default_root_dir=tmp_path)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.ckpt")}
    assert found == {
        "checkpoints/last.ckpt",
        *(f"seed_{seed}/checkpoints/{name}.ckpt" for seed in (1, 2) for name in ("best", "last")),
    }


def test_the_state_of_every_callback_comes_back_to_its_seed(tmp_path: Path) -> None:
    class Counts(L.Callback):
        def __init__(self) -> None:
            self.calls = 0

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            self.calls += 1 + trainer.seed
            assert (trainer.lightning_module, module.trainer) == (module, trainer)
            assert trainer.datamodule.collector.seed == trainer.seed

        def state_dict(self) -> dict[str, Any]:
            return {"calls": self.calls}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.calls = state["calls"]

    first = Fit([0, 3], [], lambda seed: [Counts()])
    first(steps=4, default_root_dir=tmp_path)
    second = Fit([0, 3], [], lambda seed: [Counts()])
    second(6, Path(first.checkpoint.last_model_path), default_root_dir=tmp_path / "second")
    assert [second.callbacks[seed][-1].calls for seed in (0, 3)] == [6, 24]


def test_a_sanity_check_counts_for_nothing(tmp_path: Path) -> None:
    Fit([1], [CSVLogger(tmp_path)], returns={1: [99.0, 1.0]})(steps=4, num_sanity_val_steps=1)
    with (tmp_path / "lightning_logs" / "version_0" / "seed_1" / "metrics.csv").open() as file:
        rows = [(row["step"], row["eval/return_mean"]) for row in csv.DictReader(file) if row["eval/return_mean"]]
    assert rows == [("4", "1.0")]


def test_training_stops_when_every_seed_wants_to(tmp_path: Path) -> None:
    def patience(seed: int) -> list[L.Callback]:
        return [EarlyStopping("eval/return_mean", mode="max", patience=1)]

    fit = Fit([0, 2], [], patience, returns={0: [1.0, 0.0, 2.0, 3.0], 2: [1.0, 2.0, 1.0, 1.0]})
    assert fit(steps=40, default_root_dir=tmp_path).global_step == 12


def test_a_loss_that_a_seed_reports_and_that_is_no_number_ends_it_alone(tmp_path: Path) -> None:
    class Poison(L.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.seed == 1 and trainer.global_step == 6:
                trainer.record({"own/loss": float("nan")})

    fit = Fit([1, 2], [], lambda seed: [Poison(), StopOnNonFiniteLoss()])
    fit(steps=8, default_root_dir=tmp_path)
    saved = tmp_path / "seed_1" / "diagnostics" / "step_6.pt"
    assert fit.runs.failed == {1: f"own/loss became non-finite at environment step 6; diagnostic batch: {saved}"}
    assert saved.is_file()


def test_a_given_folder_is_divided_and_the_replay_left_out() -> None:
    callbacks = {seed: [BestAndLast(dirpath="/somewhere")] for seed in (1, 2)}
    SeedRuns(callbacks, {1: [], 2: []})
    assert [callbacks[seed][0].dirpath for seed in (1, 2)] == ["/somewhere/seed_1", "/somewhere/seed_2"]
    assert not any(callbacks[seed][0].replay for seed in (1, 2))


def test_a_fast_development_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit = Fit([1, 2], [MLflowLogger()])
    fit(fast_dev_run=2)
    assert list(tmp_path.iterdir()) == []
    assert fit.runs.summary().splitlines() == ["finished at step 2", "seed 1: finished", "seed 2: finished"]
