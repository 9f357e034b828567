"""Policy evaluation as an ordinary fit: what the command line logs against the truth, when, and how right it is."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from dsob_pl.cli import main
from dsob_pl.ground_truth import callback
from dsob_pl.tracking import unknown_metrics

CONF = Path(__file__).resolve().parents[2] / "conf"
LQ = CONF / "ground_truth" / "linear_quadratic.yaml"
POINT_MASS = CONF / "ground_truth" / "point_mass.yaml"
METHODS = sorted((CONF / "method").glob("*.yaml"))
CSV = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=logs"]
CSV += ["--trainer.enable_checkpointing=false"]
# Twelve learning steps behind a warm-up of 100: the scores of steps 5 and 10 of these, and of the last.
TINY = """\
trainer:
  max_steps: 112
  val_check_interval: 112
  log_every_n_steps: 4
  callbacks:
    - {class_path: dsob_pl.ground_truth.GroundTruth, init_args: {every: 5, pairs: 4, samples: 64, figure_pairs: 2}}
model: {init_args: {critic: {init_args: {hidden: [8, 8]}}, samples: 4, diagnostic_samples: 4}}
data: {warmup_steps: 100, batch_size: 8, updates_per_step: 2, capacity: 1000}
"""
STEPS = [105, 110, 112]
RETURN = {"return_error", "return_spread", "energy_distance"}
STATE = {"gradient_error", "gradient_cosine", "gradient_spread", "conditional_gradient_error"}
ACTION = STATE | {f"cvar_{level}_gradient_{score}" for level in (10, 25) for score in ("error", "cosine")}
STATE = {f"state_{name}" for name in STATE} | {"state_energy_distance"}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def fit(*files, options=(), tiny=True):
    """Rows of metrics.csv of one fit, empty entries left out."""
    configs = [f"--config={file}" for file in [*files, *(["tiny.yaml"] if tiny else [])]]
    assert main(["fit", *configs, *CSV, *options]) == 0
    (path,) = Path("logs").rglob("metrics.csv")
    with path.open() as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def scored(rows):
    """Scores by step, without their prefix."""
    return {
        int(row["step"]): {name[6:]: value for name, value in row.items() if name.startswith("truth/")}
        for row in rows
        if "truth/return_error" in row
    }


@pytest.mark.parametrize("method", METHODS, ids=lambda p: p.stem)
def test_every_method_goes_on_top_and_is_scored_at_the_cadence_and_at_the_end(method, capfd):
    rows = fit(LQ, method)
    scores = scored(rows)
    assert list(scores) == STEPS
    expected = RETURN | ACTION | (STATE if "state_action" in method.stem else set())
    assert all(set(row) == expected for row in scores.values())
    assert all(math.isfinite(value) for row in scores.values() for value in row.values())
    assert scores[105] != scores[112]  # the critic has moved
    # Known dynamics are the truth themselves: nothing to score, unless a method brings a model of its own.
    names = {name for row in rows for name in row} - {"step", "epoch"}
    learns_model = "class_path: dsob_pl.world_models" in method.read_text()
    assert ({"world_model/jacobian_error", "world_model/energy_distance"} <= names) == learns_model
    assert unknown_metrics(names) == []

    lines = capfd.readouterr().out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("ground truth after 24 updates"))
    assert lines[first].endswith("against 64 true samples at each of 4 state-action pairs")
    table = {words[0]: float(words[1]) for words in map(str.split, lines[first + 1 : first + 1 + len(expected)])}
    assert table == pytest.approx(scores[112], abs=5e-5)
    assert list(Path("logs").rglob("figures/ground_truth.png"))


def test_mlflow_has_the_scores_and_the_figure():
    assert main(["fit", f"--config={LQ}", "--config=tiny.yaml"]) == 0
    client = MlflowClient(f"sqlite:///{Path('mlflow.db').absolute()}")
    (experiment,) = client.search_experiments(filter_string="name = 'dsob_pl/LinearQuadratic-v0'")
    (run,) = client.search_runs([experiment.experiment_id])
    truth = {name for name in run.data.metrics if name.startswith("truth/")}
    assert truth == {f"truth/{name}" for name in RETURN | ACTION}
    for name in truth:
        assert [point.step for point in client.get_metric_history(run.info.run_id, name)] == STEPS
    assert unknown_metrics(run.data.metrics) == []
    assert [a.path for a in client.list_artifacts(run.info.run_id, "figures")] == ["figures/ground_truth.png"]
    assert Path(run.info.artifact_uri, "figures", "ground_truth.png").read_bytes().startswith(b"\x89PNG")


def test_a_deterministic_critic_is_one_sample_without_spread(monkeypatch):
    figures, draw = [], callback.truth_figure
    monkeypatch.setattr(callback, "truth_figure", lambda *x: figures.append(draw(*x)) or figures[-1])
    scores = scored(fit(LQ, options=["--model.init_args.critic.init_args.noise_size=0"]))
    assert list(scores) == STEPS
    for row in scores.values():
        assert row["return_spread"] == row["gradient_spread"] == 0
        assert all(math.isfinite(value) for value in row.values())
    (figure,) = figures
    points = [len(drawn.get_offsets()) for axis in figure.axes for drawn in axis.collections]
    assert points == [64, 1] * 2  # the truth's samples and one diamond, at each of two pairs


def test_a_learned_model_is_scored_too(capfd):
    rows = fit(LQ, CONF / "ground_truth" / "cvae.yaml")
    assert list(scored(rows)) == STEPS
    names = ("world_model/jacobian_error", "world_model/energy_distance")
    for name in names:
        assert [int(row["step"]) for row in rows if name in row] == STEPS
        assert all(row[name] > 0 for row in rows if name in row)
    out = capfd.readouterr().out
    assert all(name in out for name in names)
    assert unknown_metrics({name for row in rows for name in row} - {"step", "epoch"}) == []


def test_other_than_single_precision_is_refused(capfd):
    assert main(["fit", f"--config={LQ}", "--config=tiny.yaml", *CSV, "--trainer.precision=64-true"]) == 2
    assert "GroundTruth: expected trainer.precision of 32 bits" in capfd.readouterr().err


@pytest.mark.parametrize("learns", [True, False])
def test_the_truth_is_that_of_the_present_policy(monkeypatch, learns):
    drawn = []
    true_returns = callback.true_returns

    def watched(*arguments, **options):
        drawn.append(true_returns(*arguments, **options))
        return drawn[-1]

    monkeypatch.setattr(callback, "true_returns", watched)
    options = ["--model.policy=dsob_pl.networks.DeterministicPolicy", "--model.policy_optimizer=torch.optim.Adam"]
    options += ["--model.policy.hidden=[8]", "--model.policy_optimizer.lr=0.003"]
    scores = scored(fit(POINT_MASS, options=options if learns else []))
    assert list(scores) == STEPS
    if not learns:
        assert len(drawn) == 1  # it stays as it is, and costs more than all else
        return
    first, *others = drawn
    assert len(drawn) >= len(STEPS)
    # The same noise under another policy: near, and not the same.
    for other in others:
        assert not torch.equal(other, first)
        assert (other - first).abs().mean() < first.abs().mean()


@pytest.mark.parametrize("seeds", [(), ("--seeds=0-1",)])
def test_a_run_that_goes_on_keeps_the_cadence_and_the_truth(tmp_path, seeds):
    """Normalised observations: the policy is to be the one that the truth was drawn of, before and after."""
    files = [f"--config={LQ}", "--config=tiny.yaml", *seeds]
    options = ["--model.init_args.normalize_observations=true", "--trainer.val_check_interval=1"]

    def scores(client, experiment):
        runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
        own = {run.data.tags["seed"]: run.info.run_id for run in runs if "seed" in run.data.tags}
        names = [f"truth/{name}" for name in RETURN]
        return {
            (seed, name): [(point.step, point.value) for point in client.get_metric_history(run, name)]
            for seed, run in own.items()
            for name in names
        }

    for name, lengths in (("straight", [112]), ("in_two", [107, 112])):
        for i, steps in enumerate(lengths):
            again = ["--ckpt_path=last"] if i else []
            named = [f"--trainer.max_steps={steps}", f"--trainer.logger.experiment_name={name}"]
            assert (
                main(["fit", *files, *options, *named, "--trainer.logger=dsob_pl.tracking.MLflowLogger", *again]) == 0
            )
    client = MlflowClient("sqlite:///mlflow.db")
    straight, in_two = scores(client, "straight"), scores(client, "in_two")
    assert straight
    for key, points in straight.items():
        assert [step for step, _ in points] == STEPS
        kept = dict(in_two[key])
        assert list(kept) == [105, 107, 110, 112]  # a run scores itself once more at its end
        assert {step: kept[step] for step, _ in points} == dict(points)


def test_the_law_of_returns_and_gradients_is_learned():
    """The config as it is: 2,000 updates, in half a minute."""
    rows = fit(LQ, tiny=False)
    last = scored(rows)[2200]
    assert last["return_error"] < 0.08
    assert last["gradient_error"] < 0.06
    assert 0.93 < last["return_spread"] < 1.07
    assert 0.88 < last["gradient_spread"] < 1.08
    assert last["energy_distance"] < 0.006
    assert list(scored(rows)) == [2050, 2100, 2150, 2200]
