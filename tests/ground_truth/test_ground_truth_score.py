"""The score of an evaluation: logged beside the return it is made of, alone and for many seeds, and what has none."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import gymnasium
import pytest
from mlflow import MlflowClient

from dsob_pl.cli import main
from dsob_pl.envs import Jack, PointMass, Problem, plan
from dsob_pl.tracking import unknown_metrics

CONF = Path(__file__).resolve().parents[2] / "conf"
TINY = """\
threads: 1
trainer:
  max_steps: 40
  val_check_interval: 20
  log_every_n_steps: 10
  callbacks:
    - {class_path: dsob_pl.ground_truth.Score}
model: {init_args: {critic: {init_args: {hidden: [8, 8]}}, samples: 4, diagnostic_samples: 4, gamma: 0.8}}
data: {warmup_steps: 30, batch_size: 8, updates_per_step: 1, capacity: 1000, evaluation_episodes: 5}
"""
RETURN, SCORE = "eval/discounted_return", "eval/normalized_score"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def fit(task: str, *options: str) -> int:
    return main(["fit", f"--config={CONF / task}.yaml", "--config=tiny.yaml", *options])


def histories() -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Of every run that was evaluated, by its name: steps and values of return and score."""
    client = MlflowClient(f"sqlite:///{Path('mlflow.db').absolute()}")
    found = {}
    for run in client.search_runs([e.experiment_id for e in client.search_experiments()]):
        assert unknown_metrics(run.data.metrics) == []
        if RETURN in run.data.metrics:
            points = {name: client.get_metric_history(run.info.run_id, name) for name in (RETURN, SCORE)}
            found[run.info.run_name] = {name: [(p.step, p.value) for p in own] for name, own in points.items()}
    return found


def check(history: dict[str, list[tuple[int, float]]], problem: Problem, limit: int) -> None:
    """The score is that of the return of the same step, on the scale of dynamic programming."""
    scale = plan(problem, 0.8, limit)
    assert [step for step, _ in history[SCORE]] == [20, 40]
    for (step, value), (scored, score) in zip(history[RETURN], history[SCORE], strict=True):
        assert step == scored
        assert score == pytest.approx((value - scale.staying_put) / (scale.optimum - scale.staying_put), abs=1e-5)


def test_a_run_alone() -> None:
    assert fit("jack", "--data.env_kwargs={rarity: 3}") == 0
    (history,) = histories().values()
    check(history, Jack(3), 10)


def test_the_time_limit_of_the_environment_counts_and_noise_of_wrappers_does_not() -> None:
    noise = "--data.noise=[{class_path: dsob_pl.envs.ObservationNoise}]"
    assert fit("point_mass", "--data.env_kwargs={locations: 2, max_episode_steps: 7}", noise) == 0
    (history,) = histories().values()
    check(history, PointMass(2), 7)


def test_every_one_of_many_seeds_has_a_score_of_its_own_and_their_mean_is_the_parents() -> None:
    assert fit("jack", "--seeds=0,1") == 0
    found = histories()
    client = MlflowClient(f"sqlite:///{Path('mlflow.db').absolute()}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    (parent,) = [run.info.run_id for run in runs if "mlflow.parentRunId" not in run.data.tags]
    scores = [[value for _, value in history[SCORE]] for history in found.values()]
    for name, statistic in (("mean", statistics.fmean), ("std", statistics.pstdev)):
        logged = [(p.step, p.value) for p in client.get_metric_history(parent, f"seeds/normalized_score_{name}")]
        expected = [statistic(both) for both in zip(*scores, strict=True)]
        assert logged == [(20, pytest.approx(expected[0], abs=1e-6)), (40, pytest.approx(expected[1], abs=1e-6))]
    assert len(found) == 2
    for history in found.values():
        check(history, Jack(10), 10)
    one, other = (history[SCORE] for history in found.values())
    assert one != other


def test_a_checkpoint_can_go_by_the_score() -> None:
    assert fit("jack", f"--checkpoint.monitor={SCORE}") == 0
    assert list(Path().rglob("best*.ckpt"))
    (history,) = histories().values()
    assert all(math.isfinite(value) for _, value in history[SCORE])


@pytest.mark.parametrize(
    ("env_id", "text"),
    [("dsob_pl/Rotation-v0", "Rotation has no brute-force optimum"), ("Pendulum-v1", "has no known dynamics")],
)
def test_an_environment_without_a_scale_is_one_line(env_id: str, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert fit("jack", f"--data.env_id={env_id}", "--data.env_kwargs=null") == 2
    (line,) = [x for x in capfd.readouterr().err.splitlines() if "Score" in x]
    assert text in line


def test_what_pays_nothing_more_than_staying_put_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert fit("jack", "--data.env_kwargs={step_size: 0.0}") == 2
    assert "Score: Jack: no policy is better than staying put" in capfd.readouterr().err
    assert isinstance(gymnasium.spec("dsob_pl/Jack-v0").max_episode_steps, int)
