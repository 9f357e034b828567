"""Sweeps as real processes: each cell of the grid once, whatever is killed on the way."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from processes import Process
from servers import Server

from dsob_pl.cli import main
from dsob_pl.cli.sweep import _set_by_signals, read_suite
from dsob_pl.experiments.local import run_local
from dsob_pl.experiments.record import cell_runs, open_suite
from dsob_pl.experiments.slurm import Slurm
from dsob_pl.experiments.suite import parse_settings
from dsob_pl.experiments.table import Table
from dsob_pl.experiments.worker import Job, Outcome, is_trained, last_error, run_cell
from dsob_pl.files import hold_folder
from dsob_pl.tracking.store import PARENT_TAG, mlflow_client

ROOT = Path(__file__).resolve().parents[2]
SUITE = """
name: toy
score: eval/normalized_score
seeds: 0-1
tasks: {summit: conf/summit.yaml}
methods: {mage: conf/method/mage.yaml, td3: conf/method/td3.yaml}
options:
  trainer.max_steps: 30
  trainer.val_check_interval: 10
  trainer.log_every_n_steps: 10
  data.warmup_steps: 10
  data.batch_size: 4
  data.updates_per_step: 1
  data.evaluation_episodes: 2
"""
CELLS = ["summit/mage/none", "summit/td3/none"]
# To be killed on the way.
THROTTLE = """
import time
from pathlib import Path
import lightning as L

class Throttle(L.Callback):
    def on_train_batch_end(self, trainer, *_):
        if not Path("fast").exists():
            time.sleep(0.05 if trainer.global_step < 80 else 3)  # not over before it is stopped
"""
CALLBACKS = "[{class_path: dsob_pl.ground_truth.Score}, {class_path: throttle.Throttle}]"
SLOW = ["trainer.max_steps=100", f"trainer.callbacks={CALLBACKS}"]
LONG = ["--set", SLOW[0], "--set", SLOW[1], "--only", "mage"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    (tmp_path / "toy.yaml").write_text(SUITE)
    (tmp_path / "throttle.py").write_text(THROTTLE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for pid in fits(tmp_path):
        os.kill(pid, signal.SIGKILL)


def sweep(*options: str) -> Process:
    words = ["sweep", "--config", "toy.yaml", "--jobs", "1", *options]
    return Process(words, Path.cwd(), ENVIRONMENT, apart=True)


def fits(folder: Path) -> list[int]:
    """Ids of the processes that train in ``folder``."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if b"\0fit\0" in (path / "cmdline").read_bytes() and (path / "cwd").resolve() == folder:
                found.append(int(path.name))
        except OSError:
            continue
    return found


def until(condition: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def log(cell: str) -> str:
    path = Path("runs/toy") / f"{cell.replace('/', ',')}.log"
    return path.read_text() if path.exists() else ""


def client() -> Any:
    return mlflow_client(f"sqlite:///{Path('mlflow.db').absolute()}")


def check_cells(names: list[str], steps: list[int], store: Any = None) -> None:
    """The cells are there, each once and whole: every seed has every evaluation once."""
    store = store or client()
    runs = cell_runs(store, "toy")
    assert sorted(runs) == sorted(names)
    for (run,) in runs.values():
        assert (run.status, run.seeds, sorted(run.children)) == ("FINISHED", (0, 1), [0, 1])
        for run_id, status in run.children.values():
            assert status == "FINISHED"
            for metric in ("eval/return_mean", "eval/normalized_score"):
                assert [point.step for point in store.get_metric_history(run_id, metric)] == steps


def test_a_sweep_runs_each_cell_of_the_grid_once_and_started_again_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    first, second = sweep(), sweep()  # at the same moment, on an empty folder
    for process in (first, second):
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        assert "2 cells: 2 finished" in out
    check_cells(CELLS, [10, 20, 30])
    assert [log(cell).count(" started\n") for cell in CELLS] == [1, 1]
    store = client()
    (suite,) = store.search_runs([store.get_experiment_by_name("toy").experiment_id], "tags.kind = 'suite'")
    assert suite.info.status == "FINISHED"
    assert suite.data.tags["score"] == "eval/normalized_score"
    for (run,) in cell_runs(store, "toy").values():
        tags = store.get_run(run.run_id).data.tags
        assert tags[PARENT_TAG] == suite.info.run_id
        assert tags["cell"] == f"{tags['task']}/{tags['method']}/{tags['noise']}"
    (job, _) = jobs()
    (run,) = cell_runs(store, "toy")[CELLS[0]]
    means = {"eval/return_mean": "seeds/return_mean", "eval/normalized_score": "seeds/normalized_score_mean"}
    for score, key in means.items():
        table = Table([job], {}, store, score)
        table.close({})
        assert table._scores == {CELLS[0]: store.get_run(run.run_id).data.metrics[key]}  # the mean over the seeds
    assert main(["sweep", "--config", "toy.yaml", "--dry-run"]) == 0
    assert capfd.readouterr().out.endswith("# 2 cells, 2 of them ended\n")
    assert main(["sweep", "--config", "toy.yaml", "--set", "trainer.max_steps=40"]) == 2
    assert "ran with other settings" in capfd.readouterr().err


def test_whatever_is_killed_the_same_runs_go_on_and_nothing_is_doubled(folder: Path) -> None:
    name = CELLS[0]

    def step() -> int:
        steps = re.findall(r"^step (\d+)/", log(name).rpartition("=== ")[2], re.M)
        return int(steps[-1]) if steps else 0

    first = sweep(*LONG)
    until(lambda: step() >= 20)
    (training,) = fits(folder)
    os.kill(training, signal.SIGKILL)  # the sweep tries once more, from the checkpoint
    until(lambda: " gone on with\n" in log(name) and step() >= 30)
    first.kill()  # its process trains on
    first.wait()
    (orphan,) = fits(folder)
    second = sweep(*LONG)
    until(lambda: (Path("mlflow.db")).exists() and step() >= 60)
    assert fits(folder) == [orphan]  # not one more
    second.kill()
    second.wait()
    os.kill(orphan, signal.SIGKILL)
    (folder / "fast").touch()
    third = sweep(*LONG)
    _, err = third.communicate(timeout=250)
    assert third.returncode == 0, err
    check_cells([name], list(range(10, 101, 10)))
    assert log(name).count(" started\n") == 1
    assert log(name).count(" gone on with\n") == 2
    from_steps = [int(step) for step in re.findall(r"^going on from step (\d+) of ", log(name), re.M)]
    assert len(from_steps) == 2
    # The step that a progress line has just told may not have been saved yet.
    assert 10 <= from_steps[0] < 60
    assert 50 <= from_steps[1] < 100


def test_what_is_killed_goes_on_where_a_server_keeps_the_artifacts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(folder)
    try:
        server.start()
        monkeypatch.setitem(ENVIRONMENT, "MLFLOW_TRACKING_URI", server.uri)
        process = sweep(*LONG)
        until(lambda: list(Path("mlruns/uploads").rglob("last.ckpt")))
        (job, _) = jobs(*SLOW, uri=server.uri)
        ((run,),) = cell_runs(mlflow_client(server.uri), "toy").values()
        assert is_trained(job, run)
        (training,) = fits(folder)
        os.kill(training, signal.SIGKILL)  # the sweep tries once more
        (folder / "fast").touch()
        _, err = process.communicate(timeout=250)
        assert process.returncode == 0, err
        assert not is_trained(job, run)
        check_cells([CELLS[0]], list(range(10, 101, 10)), mlflow_client(server.uri))
        assert log(CELLS[0]).count(" gone on with\n") == 1
        assert re.findall(r"^going on from step (\d+) of ", log(CELLS[0]), re.M)[0] != "0"
    finally:
        server.kill()


def test_a_cell_that_cannot_run_ends_the_sweep_with_one_line_that_names_it() -> None:
    process = sweep("--only", "td3", "--set", "model.init_args.gamma=2")  # which is found out as the agent is built
    _, err = process.communicate(timeout=100)
    assert process.returncode == 3
    (line,) = [line for line in err.splitlines() if line.startswith("dsob_pl: error")]
    assert "1 of 1 cells did not finish; summit/td3/none failed:" in line
    assert "gamma" in line
    assert log(CELLS[1]).count(" started\n") == 1  # it would fail again


def jobs(*settings: str, uri: str = "") -> list[Job]:
    suite, cells = read_suite("toy.yaml", parse_settings(settings))
    uri = uri or f"sqlite:///{Path('mlflow.db').absolute()}"
    parent = open_suite(mlflow_client(uri), uri, suite, cells)
    return [Job(cell, parent, uri, Path("runs/toy").absolute(), Path.cwd()) for cell in cells]


def stopped_on_ray(both: list[Job], monkeypatch: pytest.MonkeyPatch) -> dict[str, Outcome]:
    """How they end on a Ray that is there already, with a CPU for one of them, when they are stopped in mid-run."""
    ray = pytest.importorskip("ray")
    from dsob_pl.experiments.ray import _handler_kept, run_ray

    def stop_in_mid_run(_: object) -> None:
        if list(Path("mlruns").rglob("last.ckpt")):
            stop.set()

    stop = Event()
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    with _handler_kept(signal.SIGTERM):
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        outcomes = run_ray(1, both, stop, stop_in_mid_run)
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    return outcomes


def test_on_a_real_ray_a_sweep_is_stopped_and_gone_on_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    both = jobs(*SLOW)
    outcomes = stopped_on_ray(both, monkeypatch)
    assert {name: outcome.state for name, outcome in outcomes.items()} == dict.fromkeys(CELLS, "stopped")
    ((name, (run,)),) = cell_runs(client(), "toy").items()
    assert (run.status, outcomes[name].ran) == ("KILLED", True)
    (folder / "fast").touch()
    # By the command line, on a Ray of its own.
    words = ["sweep", "--config", "toy.yaml", "--on", "ray", *(word for option in SLOW for word in ("--set", option))]
    out, err = Process(words, Path.cwd(), ENVIRONMENT, apart=True).communicate(timeout=300)
    assert (out.count(" finished "), "2 cells: 2 finished" in out) == (2, True), (out, err)
    check_cells(CELLS, list(range(10, 101, 10)))
    assert {cell: log(cell).count(" gone on with\n") for cell in CELLS} == {cell: int(cell == name) for cell in CELLS}


def test_a_sweep_on_ray_is_stopped_though_no_cancellation_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "cancel", lambda *_, **__: None)
    outcomes = stopped_on_ray(jobs(*SLOW), monkeypatch)
    assert sorted((outcome.state, outcome.ran) for outcome in outcomes.values()) == [
        ("stopped", False),
        ("stopped", True),
    ]
    ((_, (run,)),) = cell_runs(client(), "toy").items()
    assert run.status == "KILLED"
    assert not list(Path("runs/toy").glob("stop-*"))


def test_a_sweep_on_ray_is_stopped_by_a_signal_as_one_that_is_not(folder: Path) -> None:
    pytest.importorskip("ray")
    interrupted(folder, "--on", "ray", jobs=())


def test_a_file_that_stops_is_an_event_of_all_that_see_it(tmp_path: Path) -> None:
    from dsob_pl.experiments.ray import StopFile

    stop, same = StopFile(tmp_path / "stop"), StopFile(tmp_path / "stop")
    begun = time.monotonic()
    assert not same.wait(0.3)
    assert time.monotonic() - begun >= 0.3
    stop.set()
    assert same.is_set()
    assert same.wait(60)


def test_the_jobs_of_slurm_run_where_submitit_runs_them_here() -> None:
    submitit = pytest.importorskip("submitit")
    told: list[dict[str, Any]] = []
    outcomes = Slurm(executor="local")(jobs()[:1], Event(), told.append)
    assert [outcome.state for outcome in outcomes.values()] == ["submitted"]
    assert told == [outcomes]
    folder = Path("runs/toy/slurm").absolute()
    identifier = outcomes[CELLS[0]].detail.removeprefix("job ")
    until((folder / f"{identifier}_0_result.pkl").exists)
    assert submitit.local.local.LocalJob(folder, identifier).result().state == "finished"
    check_cells(CELLS[:1], [10, 20, 30])


def with_slurm(folder: Path, sbatch: str) -> str:
    """A PATH that begins with an sbatch of these commands."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name, text in {"sbatch": sbatch, "srun": "exit 0"}.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    return f"{programs}{os.pathsep}{os.environ['PATH']}"


def test_slurm_is_asked_for_one_array_job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", with_slurm(folder, 'cp "$@" submitted.sh; echo Submitted batch job 12'))
    monkeypatch.setenv("A_SECRET", "hidden-from-disk")
    slurm = Slurm("gpu", 90, 1, threads=3)
    slurm.check()
    outcomes = slurm(jobs(), Event(), lambda _: None)
    assert [outcome.detail for outcome in outcomes.values()] == ["job 12_0", "job 12_1"]
    lines = (folder / "submitted.sh").read_text().splitlines()
    asked = {"--array=0-1%1", "--cpus-per-task=3", "--partition=gpu", "--time=90", "--job-name=toy"}
    assert {f"#SBATCH {option}" for option in asked} <= set(lines)
    assert all(b"hidden-from-disk" not in p.read_bytes() for p in Path("runs").rglob("*") if p.is_file())


def test_a_place_that_refuses_costs_no_results(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("ray", "submitit"):
        pytest.importorskip(package)
    one = ["--only", "td3"]
    out, err = sweep(*one).communicate(timeout=200)
    assert "1 cells: 1 finished" in out, err
    store = client()
    where = [store.get_experiment_by_name("toy").experiment_id]

    def statuses() -> dict[str, str]:
        """Of all runs that have not been given up."""
        runs = store.search_runs(where)
        return {run.info.run_id: run.info.status for run in runs if run.data.tags.get("superseded") != "true"}

    (run,) = cell_runs(store, "toy")[CELLS[1]]
    store.set_terminated(run.children[1][0], "FAILED")  # as where one seed has diverged
    (suite,) = [own.info.run_id for own in store.search_runs(where, "tags.kind = 'suite'")]
    assert statuses()[suite] == "SCHEDULED"
    before = statuses() | {suite: "FAILED"}
    refuses = with_slurm(folder, 'echo "sbatch: error: invalid partition specified: typo" >&2; exit 1')
    monkeypatch.setitem(ENVIRONMENT, "PATH", refuses)
    slurm = ["--on", "slurm", "--partition", "typo"]
    for place, again, said in (
        (["--on", "ray", "--threads", "1000"], "all", "threads: no machine of the Ray cluster has 1000 CPUs"),
        (slurm, "all", "on: SLURM refuses: invalid partition specified: typo"),
        (slurm, "failed", "on: SLURM refuses: invalid partition specified: typo"),
    ):
        process = Process(
            ["sweep", "--config", "toy.yaml", *one, *place, "--again", again], folder, ENVIRONMENT, apart=True
        )
        _, err = process.communicate(timeout=200)
        assert process.returncode == 2
        (line,) = [line for line in err.splitlines() if "dsob_pl" in line or "sbatch" in line or "Traceback" in line]
        assert line.startswith(f"dsob_pl: error: sweep: {said}")
        assert statuses() == before

    # Where nothing refuses, that is what is trained anew.
    process = sweep(*one, "--again", "failed")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    first, second = cell_runs(store, "toy")[CELLS[1]]
    assert (first.run_id, first.ended_seeds, second.status, second.seeds) == (run.run_id, [0], "FINISHED", (1,))
    monkeypatch.setitem(ENVIRONMENT, "PATH", with_slurm(folder, "echo Submitted batch job 12"))
    out, err = sweep(*one, "--on", "slurm", "--again", "all").communicate(timeout=200)
    assert "summit/td3/none submitted: job 12" in out, err
    assert statuses() == {suite: "SCHEDULED"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--on", "slurm"], "on: 'slurm' needs sbatch, which is not on the PATH"),
        (["--on", "ray", "--jobs", "2"], "jobs: is not for --on ray"),
        (["--minutes", "5"], "minutes: is for --on slurm, not for --on local"),
        (["--on", "slurm", "--minutes", "0"], "argument --minutes: expected an integer of at least 1, got '0'"),
    ],
)
def test_what_a_place_cannot_do_is_one_line_and_nothing_is_created(
    options: list[str], message: str, folder: Path
) -> None:
    process = sweep(*options)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = err.splitlines()
    assert message in line
    assert sorted(path.name for path in folder.iterdir()) == ["conf", "throttle.py", "toy.yaml"]


def test_a_database_that_goes_away_ends_a_sweep_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def spoil(*_: object) -> dict[str, object]:
        with sqlite3.connect(folder / "mlflow.db") as database:
            database.execute("ALTER TABLE runs RENAME TO ruins")
        return {}

    monkeypatch.setattr("dsob_pl.cli.sweep._runner", lambda options: spoil)
    assert main(["sweep", "--config", "toy.yaml"]) == 3
    err = capfd.readouterr().err
    assert "dsob_pl: error: MLflow failed: (sqlite3.OperationalError) no such table: runs" in err
    assert "the same command goes on from here" in err
    assert "Traceback" not in err


def test_ctrl_c_while_the_cells_are_looked_at_is_one_line(folder: Path) -> None:
    def looking() -> bool:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return any(b"sweep_check" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children)

    words = [sys.executable, "-m", "dsob_pl", "sweep", "--config", "toy.yaml", "--jobs", "1"]
    process = subprocess.Popen(
        words,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    until(looking)
    time.sleep(1)  # it loads libraries
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines() == ["dsob_pl: error: interrupted"]


def interrupted(folder: Path, *options: str, jobs: Sequence[str] = ("--jobs", "1")) -> None:
    """A sweep is stopped in the middle of its cell: it saves a checkpoint and says how to go on."""
    process = Process(["sweep", "--config", "toy.yaml", *jobs, *LONG, *options], Path.cwd(), ENVIRONMENT, apart=True)
    until(lambda: re.search(r"^step \d", log(CELLS[0]), re.M))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 143
    assert "the same command goes on from here" in err
    assert fits(folder) == []
    assert {run.status for run in cell_runs(client(), "toy")[CELLS[0]]} == {"KILLED"}
    assert list(Path("mlruns").rglob("last.ckpt"))
    (folder / "fast").touch()


def test_a_cell_that_is_killed_is_not_explained_by_the_sweep_before(folder: Path) -> None:
    interrupted(folder)
    assert "dsob_pl: go on with it: python -m dsob_pl fit" in log(CELLS[0])
    (folder / "fast").unlink()
    process = sweep(*LONG)
    for attempt in (1, 2):
        until(lambda n=attempt: log(CELLS[0]).count(" gone on with\n") == n and fits(folder))
        os.kill(*fits(folder), signal.SIGKILL)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 3
    (line,) = [line for line in err.splitlines() if line.startswith("dsob_pl: error")]
    assert line.endswith("1 of 1 cells did not finish; summit/mage/none died: ended by signal 9")


BEGUN = "=== 2026-01-01 00:00:00 summit/mage/none gone on with\n"
BEFORE = "dsob_pl: error: an old one\n=== 2026-01-01 00:00:00 ended with exit code 2\n"
LEFTOVER = "/lib/resource_tracker.py:254: UserWarning: resource_tracker: There appear to be 2\n  warnings.warn('...'\n"
TRACEBACK = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    f()\nValueError: bad\nof two lines\n'
TERMINATED = "dsob_pl: terminated; last good checkpoint: a.ckpt\ndsob_pl: go on with it: python -m dsob_pl fit\n"


@pytest.mark.parametrize(
    ("text", "killed", "why"),
    [
        ("dsob_pl: error: the new one\n" + LEFTOVER, False, "the new one"),
        ("step 10/30\n" + LEFTOVER, True, ""),
        (TRACEBACK + LEFTOVER, False, "ValueError: bad"),
        (TRACEBACK * 100 + LEFTOVER, False, "ValueError: bad"),
        (TERMINATED, False, "terminated; last good checkpoint: a.ckpt"),
        ("dsob_pl: 3 metrics are lost: neither took them\n", True, ""),
        ("python: No module named dsob_pl\n", False, "python: No module named dsob_pl"),
        ("", False, ""),
    ],
)
def test_why_a_cell_ended_is_told_by_its_last_attempt(text: str, killed: bool, why: str, tmp_path: Path) -> None:
    path = tmp_path / "cell.log"
    path.write_text(f"{BEGUN}{BEFORE}{BEGUN}{text}=== 2026-01-01 00:00:00 ended with exit code 1\n")
    assert last_error(path, killed) == why


def test_a_sweep_of_other_seeds_leaves_alone_what_was_cut_off(folder: Path) -> None:
    interrupted(folder, "--seeds", "0-1")
    before = cell_runs(client(), "toy")[CELLS[0]]
    assert [run.seeds for run in before] == [(0, 1)]
    process = sweep(*LONG, "--seeds", "2-3")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert [(run.status, run.seeds) for run in cell_runs(client(), "toy")[CELLS[0]]] == [
        ("KILLED", (0, 1)),
        ("FINISHED", (2, 3)),
    ]
    process = sweep(*LONG, "--seeds", "0-3")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    after = cell_runs(client(), "toy")[CELLS[0]]
    assert sorted((run.status, run.seeds) for run in after) == [("FINISHED", (0, 1)), ("FINISHED", (2, 3))]
    assert after[0].run_id == before[0].run_id
    assert log(CELLS[0]).count(" gone on with\n") == 1


def test_what_was_cut_off_outlives_an_environment_that_is_not_there(folder: Path) -> None:
    interrupted(folder)
    (folder / "throttle.py").rename(folder / "away.py")  # such as a plugin of another shell
    process = sweep(*LONG)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "throttle" in err
    (job, _) = jobs(*SLOW)  # where it went away a moment later
    outcome = run_cell(job)
    assert (outcome.state, "throttle" in outcome.detail) == ("failed", True)
    assert [run.status for run in cell_runs(client(), "toy")[CELLS[0]]] == ["KILLED"]
    (folder / "away.py").rename(folder / "throttle.py")
    process = sweep(*LONG)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    check_cells([CELLS[0]], list(range(10, 101, 10)))
    assert re.findall(r"^going on from step (\d+) of ", log(CELLS[0]), re.M)[-1] != "0"


FULL = """
import errno
from pathlib import Path
import lightning as L

class Full(L.Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 15 and not Path("made").exists():
            Path("made").touch()
            raise OSError(errno.ENOSPC, "No space left on device", "somewhere")
"""


FULL_FOR_A_SEED = """
import errno
from pathlib import Path
import lightning as L
from dsob_pl import files

class Full(L.Callback):
    def setup(self, *_):
        own, made = files.write, Path("made")

        def write(file, data):
            if "seed" in Path("now").read_text() and not made.exists():
                made.touch()
                raise OSError(errno.ENOSPC, "No space left on device")
            own(file, data)

        Path("now").write_text("")
        files.write = write

    def on_validation_end(self, trainer, *_):
        Path("now").write_text("seed" if trainer.global_step == 20 else "")
"""


@pytest.mark.parametrize(
    ("module", "said"),
    [(FULL, "no space is left"), (FULL_FOR_A_SEED, "there is no room for it")],
    ids=["anywhere", "the checkpoint of one seed"],
)
def test_a_full_disk_is_no_failure_of_the_cell_or_of_a_seed(module: str, said: str, folder: Path) -> None:
    (folder / "full.py").write_text(module)
    callbacks = CALLBACKS.replace("throttle.Throttle", "full.Full")
    process = sweep("--only", "mage", "--set", f"trainer.callbacks={callbacks}")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    check_cells([CELLS[0]], [10, 20, 30])
    text = log(CELLS[0])
    assert said in text
    assert "ended with exit code 4" in text
    assert text.count(" gone on with\n") == 1
    (run,) = cell_runs(client(), "toy")[CELLS[0]]
    assert not run.failed
    assert run.failed_seeds == []
    assert "paused_seconds" in client().get_run(run.run_id).data.tags


POISON = """

class Throttle(Throttle):
    def on_train_batch_start(self, trainer, module, *_):
        if Path("poison").exists():
            Path("poison").unlink()
            for parameter in module.parameters():
                parameter.data.fill_(float("nan"))
"""


def test_a_cell_whose_seeds_all_diverge_says_why(folder: Path) -> None:
    (folder / "throttle.py").write_text(THROTTLE + POISON.replace('            Path("poison").unlink()\n', ""))
    (folder / "poison").touch(), (folder / "fast").touch()
    process = sweep(*LONG)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 3
    (line,) = [line for line in err.splitlines() if line.startswith("dsob_pl: error")]
    assert "1 of 1 cells did not finish; summit/mage/none failed: seeds 0-1 failed: " in line
    assert "all seeds have failed, seed 1 last: evaluation: the policy's action is not finite" in line


def test_several_that_were_cut_off_are_all_gone_on_with_and_one_that_diverges_is_the_only_one(folder: Path) -> None:
    """One is gone on with at a time; how that ends says nothing about another that is left."""
    interrupted(folder, "--seeds", "0")
    (folder / "fast").unlink()
    Path(f"runs/toy/{CELLS[0].replace('/', ',')}.log").unlink()
    interrupted(folder, "--seeds", "1")
    first, second = cell_runs(client(), "toy")[CELLS[0]]
    client().set_terminated(first.run_id, "FAILED")  # as where a disk is full
    (folder / "throttle.py").write_text(THROTTLE + POISON)
    (folder / "poison").touch()
    process = sweep(*LONG)
    _, err = process.communicate(timeout=200)
    runs = {run.run_id: run for run in cell_runs(client(), "toy")[CELLS[0]]}
    assert not (folder / "poison").exists()
    assert {name: (run.status, run.failed) for name, run in runs.items()} == {
        first.run_id: ("FINISHED", False),
        second.run_id: ("FAILED", True),
    }
    assert process.returncode == 0, err


def another_cell(run_id: str) -> str:
    """Id of a finished run of a cell that the suite has from now on, before the one of the run ``run_id``."""
    Path("toy.yaml").write_text(SUITE.replace("methods: {", "methods: {alpha: conf/method/mmd.yaml, "))
    store, own = client(), client().get_run(run_id)
    changed = {"cell": "summit/alpha/none", "method": "alpha"}
    run = store.create_run(own.info.experiment_id, tags={**own.data.tags, **changed})
    store.set_terminated(run.info.run_id)
    return run.info.run_id


def test_a_run_that_somebody_goes_on_with_by_hand_is_left_to_them(folder: Path) -> None:
    interrupted(folder)
    (run,) = cell_runs(client(), "toy")[CELLS[0]]
    hold = hold_folder(Path(run.folder.removeprefix("file://")))
    assert hold is not None
    (job, _) = jobs(*SLOW)
    assert run_cell(job, wait=False).state == "busy"
    (same,) = cell_runs(client(), "toy")[CELLS[0]]
    assert (same.run_id, same.status) == (run.run_id, "KILLED")
    client().update_run(run.run_id, "RUNNING")  # as it is while `fit --ckpt_path` trains
    other = another_cell(run.run_id)
    process = sweep(*LONG[:-2], "--again", "all")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    assert err.strip() == f"dsob_pl: error: sweep: again: run {run.run_id} of {CELLS[0]} is being trained"
    found = cell_runs(client(), "toy")
    assert {name: [(own.run_id, own.status) for own in runs] for name, runs in found.items()} == {
        CELLS[0]: [(run.run_id, "RUNNING")],
        "summit/alpha/none": [(other, "FINISHED")],
    }
    client().set_tag(other, "superseded", "true")
    client().set_terminated(run.run_id, "KILLED")
    hold.release()
    assert run_cell(job).state == "finished"
    check_cells([CELLS[0]], list(range(10, 101, 10)))


class Gone:
    """The stderr of a terminal that is not there any more."""

    def write(self, _: str) -> int:
        raise OSError(5, "Input/output error")

    flush = write


def test_signals_that_are_ignored_stay_so_and_a_lost_terminal_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    stop = Event()
    try:
        with _set_by_signals(stop) as received:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.is_set()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        monkeypatch.setattr("sys.stderr", Gone())
        with _set_by_signals(stop) as received:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.is_set()
            assert received == [signal.SIGHUP]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_where_nobody_reads_the_table_the_cells_are_ended(folder: Path) -> None:
    def watch(outcomes: dict[str, Outcome]) -> None:
        if list(Path("mlruns").rglob("last.ckpt")):
            raise BrokenPipeError

    stop = Event()
    with pytest.raises(BrokenPipeError):
        run_local(1, jobs(*SLOW)[:1], stop, watch)
    assert stop.is_set()
    assert fits(folder) == []
    (run,) = cell_runs(client(), "toy")[CELLS[0]]
    assert run.status == "KILLED"
