"""A world model fitted by itself through Lightning on the real data module."""

import logging

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger
from mlflow import MlflowClient

from dsob_pl.data import ReplayDataModule, save_replay
from dsob_pl.errors import RunFailed, UsageError
from dsob_pl.world_models import CVAE, Deterministic

TRAINING = {"loss", "reconstruction", "termination_loss", "sigma", "grad_norm"}
HELD_OUT = {"heldout_log_likelihood", "spread", "open_loop_error"}


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.ERROR, logger="lightning.pytorch")


def pendulum(**options):
    short = {"max_episode_steps": 20}
    return ReplayDataModule(
        "Pendulum-v1",
        **{"env_kwargs": short, "batch_size": 16, "updates_per_step": 2, "warmup_steps": 20, "holdout_fraction": 0.5}
        | options,
    )


def trainer(tmp_path, steps, **options):
    return L.Trainer(
        **{
            "max_steps": steps,
            "val_check_interval": steps,
            "check_val_every_n_epoch": None,
            "log_every_n_steps": 10,
            "accelerator": "cpu",
            "default_root_dir": tmp_path,
            "logger": CSVLogger(tmp_path),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
        }
        | options
    )


def prefixed(names):
    return {f"world_model/{name}" for name in names}


def small(kind=CVAE, **options):
    return kind(3, 1, hidden=(8,), termination_hidden=(8,), **options)


@pytest.mark.parametrize(("kind", "extra"), [(CVAE, {"kl"}), (Deterministic, set())])
def test_fit_counts_environment_steps_and_logs_training_and_held_out_metrics(tmp_path, kind, extra):
    data, model, run = pendulum(), small(kind), trainer(tmp_path, 90)
    before = [parameter.clone() for parameter in model.parameters()]
    run.fit(model, datamodule=data)
    assert run.global_step == data.steps_collected == 90
    assert model.normalizer.count == 90
    assert model.target_scale.count == 70 * 2 * 16
    assert all((a != b).any() for a, b in zip(before, model.parameters()))
    assert set(run.callback_metrics) == prefixed(TRAINING | HELD_OUT | extra)
    assert all(value.isfinite() for value in run.callback_metrics.values())
    assert len(list(tmp_path.glob("**/figures/world_model.png"))) == 1


def test_the_figure_is_an_artifact_of_the_mlflow_run(tmp_path):
    uri = f"sqlite:///{tmp_path}/runs.db"
    logger = MLFlowLogger("world model", tracking_uri=uri, artifact_location=str(tmp_path / "artifacts"))
    trainer(tmp_path, 70, logger=logger).fit(small(), datamodule=pendulum())
    client = MlflowClient(uri)
    assert [file.path for file in client.list_artifacts(logger.run_id, "figures")] == ["figures/world_model.png"]
    assert prefixed(HELD_OUT) <= set(client.get_run(logger.run_id).data.metrics)


def test_fit_on_saved_transitions_takes_the_scale_of_the_observations_from_them(tmp_path):
    source = pendulum(warmup_steps=200)
    for _ in range(200):
        source.step()
    save_replay(source.replay, tmp_path / "replay.pt")
    data = pendulum(replay_path=str(tmp_path / "replay.pt"), collect=False)
    model, stored = small(), data.replay[:]["observation"]
    trainer(tmp_path, 30).fit(model, datamodule=data)
    assert data.steps_collected == 0
    torch.testing.assert_close(model.normalizer.shift, stored.mean(0))
    torch.testing.assert_close(model.normalizer.scale, stored.std(0, unbiased=False))


def test_nothing_is_logged_while_nothing_is_held_out(tmp_path):
    run = trainer(tmp_path, 30)
    run.fit(small(), datamodule=pendulum(holdout_fraction=0.0))
    assert not prefixed(HELD_OUT) & set(run.callback_metrics)
    with pytest.raises(UsageError, match=r"data\.holdout_fraction"):
        trainer(tmp_path, 30).validate(small(), datamodule=pendulum(holdout_fraction=0.0))


def test_episodes_too_short_for_the_open_loop_error_leave_it_out(tmp_path):
    run = trainer(tmp_path, 60)
    run.fit(small(), datamodule=pendulum(env_kwargs={"max_episode_steps": 5}))
    assert prefixed(HELD_OUT) - set(run.callback_metrics) == {"world_model/open_loop_error"}


def test_the_same_model_has_the_same_held_out_metrics_twice(tmp_path):
    data, model = pendulum(), small()
    trainer(tmp_path, 60).fit(model, datamodule=data)
    run = trainer(tmp_path, 60)
    first, second = (run.validate(model, datamodule=data, verbose=False)[0] for _ in range(2))
    assert first == second
    assert set(run.test(model, datamodule=data, verbose=False)[0]) == prefixed(HELD_OUT)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_loss_and_step(tmp_path):
    model = small()
    model.sigma.logit.data[0] = float("nan")
    with pytest.raises(RunFailed, match=r"world_model/loss .* environment step 21"):
        trainer(tmp_path, 40).fit(model, datamodule=pendulum())
