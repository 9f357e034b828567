"""A store that fails does not stop a run; what it did not take is written later, each point once, in order."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import Server
from stores import OUTAGES, history, locked, make, moved

from dsob_pl.cli import main
from dsob_pl.errors import UsageError
from dsob_pl.tracking import MLflowLogger
from dsob_pl.tracking.journal import FORMAT, JOURNAL, Header, Journal, journals_under, read_rows
from dsob_pl.tracking.store import mlflow_client


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database of MLflow's, which takes seconds to make, to be copied."""
    folder = tmp_path_factory.mktemp("store")
    assert make(folder).run_id
    return folder


@pytest.fixture
def folder(tmp_path: Path, empty_store: Path) -> Path:
    shutil.copy(empty_store / "mlflow.db", tmp_path)
    return tmp_path


def log(logger: MLflowLogger, *steps: int) -> None:
    for step in steps:
        logger.log_metrics({"m": step / 2, "n": -step}, step=step)


def expected(*steps: int) -> list[tuple[int, float]]:
    return [(step, step / 2) for step in steps]


# An outage in the middle of a run -------------------------------------------------------------------------------------


@pytest.mark.parametrize("outage", OUTAGES)
def test_metrics_of_an_outage_are_written_when_it_is_over(
    folder: Path, outage: str, caplog: pytest.LogCaptureFixture
) -> None:
    logger = make(folder)
    log(logger, 1, 2)
    journal = logger.artifact_dir / JOURNAL
    with OUTAGES[outage](folder / "mlflow.db"), caplog.at_level(logging.WARNING):
        log(logger, 3, 4)
        logger.log_hyperparams({"late": 7})
        rows = list(read_rows(journal))
    assert [row["step"] for row in rows if row.get("metric") == "m"] == [3, 4]
    log(logger, 5)
    assert not journal.exists()
    logger.finalize("success")
    assert history(logger.tracking_uri, logger.run_id) == expected(1, 2, 3, 4, 5)
    assert history(logger.tracking_uri, logger.run_id, "n") == [(step, -step) for step in range(1, 6)]
    run = mlflow_client(logger.tracking_uri).get_run(logger.run_id)
    assert (run.data.params["late"], run.info.status) == ("7", "FINISHED")
    said = [record.getMessage() for record in caplog.records if record.name.startswith("dsob_pl")]
    assert len(said) == 2, said  # that it is down and that it is up, and nothing in between
    assert "takes nothing" in said[0]
    assert str(journal) in said[0]
    assert "\n" not in said[0] + said[1]
    assert not list(logger.artifact_dir.glob("journal*"))


@pytest.mark.parametrize("outage", OUTAGES)
def test_a_run_that_ends_in_an_outage_is_written_by_replay(
    folder: Path, outage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = make(folder)
    log(logger, 1)
    with OUTAGES[outage](folder / "mlflow.db"):
        log(logger, 2, 3)
        logger.finalize("success")
    err = capsys.readouterr().err
    assert "MLflow did not take 4 metrics" in err
    assert f"python -m dsob_pl tracking replay {logger.artifact_dir}" in err
    assert history(logger.tracking_uri, logger.run_id) == expected(1)
    assert main(["tracking", "replay", str(logger.artifact_dir.parent)]) == 0
    assert capsys.readouterr().out == f"run {logger.run_id}: 4 metrics written\n"
    assert history(logger.tracking_uri, logger.run_id) == expected(1, 2, 3)
    info = mlflow_client(logger.tracking_uri).get_run(logger.run_id).info
    assert info.status == "FINISHED"
    assert abs(info.end_time / 1000 - time.time()) < 60
    assert main(["tracking", "replay", str(logger.artifact_dir)]) == 0
    assert "all of the run is in MLflow" in capsys.readouterr().out
    assert history(logger.tracking_uri, logger.run_id) == expected(1, 2, 3)


def test_training_does_not_wait_for_a_store_that_stays_locked(folder: Path) -> None:
    logger = make(folder, flush_seconds=5.0)
    assert logger.run_id
    with locked(folder / "mlflow.db"):
        start = time.monotonic()
        for step in range(1, 3001):
            logger.log_metrics({"m": float(step)}, step=step)
            logger.flush()
        assert (
            time.monotonic() - start < 90
        )  # one attempt of two seconds, then files; waiting each time would take 6,000
    logger.finalize("success")
    assert history(logger.tracking_uri, logger.run_id) == [(step, float(step)) for step in range(1, 3001)]


def test_a_replay_that_was_cut_off_doubles_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = make(folder)
    log(logger, 1)
    with moved(folder / "mlflow.db"):
        log(logger, *range(2, 8))
        logger.finalize("failed")
    place = logger.artifact_dir / JOURNAL
    rows = list(read_rows(place))
    client = mlflow_client(logger.tracking_uri)
    for row in rows[:5]:  # of the points, metric m has three and n two
        client.log_metric(logger.run_id, row["metric"], row["value"], row["timestamp"], row["step"])
    assert main(["tracking", "replay", str(place.parent)]) == 0
    assert capsys.readouterr().out.endswith("7 metrics written, 5 were there already\n")
    assert history(logger.tracking_uri, logger.run_id) == expected(*range(1, 8))
    assert len(history(logger.tracking_uri, logger.run_id, "n")) == 7
    assert client.get_run(logger.run_id).info.status == "FAILED"


def test_a_point_that_was_logged_twice_at_one_step_stays_two(folder: Path) -> None:
    """MLflow keeps both; the journal is no stricter than MLflow."""
    logger = make(folder)
    assert logger.run_id
    with moved(folder / "mlflow.db"):
        logger.log_metrics({"m": 1.0}, step=1)
        time.sleep(0.005)  # their times differ
        logger.log_metrics({"m": 2.0}, step=1)
    logger.finalize("success")
    assert sorted(history(logger.tracking_uri, logger.run_id)) == [(1, 1.0), (1, 2.0)]


def test_numbers_that_are_none_pass_through_the_journal(folder: Path) -> None:
    logger = make(folder)
    assert logger.run_id
    with moved(folder / "mlflow.db"):
        logger.log_metrics({"nan": float("nan"), "up": float("inf"), "down": -float("inf")}, step=1)
    logger.finalize("success")
    values = {key: history(logger.tracking_uri, logger.run_id, key)[0][1] for key in ("nan", "up", "down")}
    assert values["nan"] != values["nan"]
    assert values["up"] > 1e300 > -1e300 > values["down"]


# Going on after a kill ------------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_takes_over_the_journal_of_the_process_before(folder: Path) -> None:
    first = make(folder)
    log(first, 1, 2)
    with moved(folder / "mlflow.db"):
        log(first, 3, 4)
    let_go(first)
    second = make(folder, run_id=first.run_id)
    log(second, 3, 4, 5)  # goes on from a checkpoint of step 2
    second.finalize("success")
    assert history(second.tracking_uri, second.run_id) == expected(1, 2, 3, 4, 5)
    assert mlflow_client(second.tracking_uri).get_run(second.run_id).info.status == "FINISHED"


def test_a_run_that_was_stopped_in_an_outage_and_went_on_has_one_end(folder: Path) -> None:
    first = make(folder)
    log(first, 1)
    with moved(folder / "mlflow.db"):
        log(first, 2)
        first.final_status = "KILLED"
        first.finalize("failed")
    second = make(folder, run_id=first.run_id)
    assert second.run_id
    assert mlflow_client(second.tracking_uri).get_run(second.run_id).info.status == "RUNNING"
    log(second, 2, 3)
    second.finalize("success")
    assert history(second.tracking_uri, second.run_id) == expected(1, 2, 3)
    assert mlflow_client(second.tracking_uri).get_run(second.run_id).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("ends", "status"),
    [(["KILLED"], "KILLED"), (["KILLED", None], "RUNNING"), (["KILLED", None, "FAILED"], "FAILED")],
)
def test_only_the_last_end_in_a_journal_counts(folder: Path, ends: list[str | None], status: str) -> None:
    """A run that went on while the store was locked keeps that, too: it has not ended then."""
    logger = make(folder)
    log(logger, 1)
    journal = logger._delivery.journal  # type: ignore[union-attr]
    for end in ends:
        journal.append([{"resumed": 1} if end is None else {"status": end, "end_time": 2}])
    journal.close()
    assert main(["tracking", "replay", str(logger.artifact_dir)]) == 0
    assert mlflow_client(logger.tracking_uri).get_run(logger.run_id).info.status == status


def test_going_on_while_the_store_is_locked_is_kept(folder: Path) -> None:
    first = make(folder)
    log(first, 1)
    delivery = first._delivery
    assert delivery is not None
    delivery.journal.append([{"status": "KILLED", "end_time": 2}])
    with locked(folder / "mlflow.db"):
        kept = [next(iter(row)) for row in delivery.resume()]
    assert kept == ["status", "resumed"]
    delivery.journal.close()


def let_go(logger: MLflowLogger) -> None:
    """As the end of its process does."""
    logger._delivery.journal.close()  # type: ignore[union-attr]
    if logger._hold is not None:
        logger._hold.release()


STEP = st.sampled_from(["log", "log", "log", "down", "up", "kill", "stop", "replay"])


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(actions=st.lists(STEP, min_size=4, max_size=14))
def test_whatever_happens_each_point_is_there_once(
    empty_store: Path, tmp_path_factory: pytest.TempPathFactory, actions: list[str]
) -> None:
    """Outages, kills, polite ends and replays in any order; a run goes on from the last point that was handed over."""
    folder = tmp_path_factory.mktemp("any")
    shutil.copy(empty_store / "mlflow.db", folder)
    database, away = folder / "mlflow.db", folder / "away.db"
    logger: MLflowLogger | None = make(folder)
    run_id, place = logger.run_id, logger.artifact_dir  # type: ignore[union-attr]
    step = 0
    for action in [*actions, "up", "log"]:
        if action == "down" and database.exists():
            database.rename(away)
        elif action == "up" and away.exists():
            away.rename(database)
        elif action == "replay" and database.exists() and logger is None:
            assert main(["tracking", "replay", str(place)]) == 0
            assert not (place / JOURNAL).exists()
        elif action in ("kill", "stop") and logger is not None:
            if action == "stop":
                logger.finalize("failed")
            let_go(logger)
            logger = None
        elif action == "log":
            if logger is None and database.exists():
                logger, step = make(folder, run_id=run_id), max(step - 1, 0)  # one step is done again
            if logger is not None:
                step += 1
                log(logger, step)
    assert logger is not None
    logger.finalize("success")
    assert history(logger.tracking_uri, run_id) == expected(*range(1, step + 1))
    assert mlflow_client(logger.tracking_uri).get_run(run_id).info.status == "FINISHED"
    assert not list(place.glob("journal*"))


# A server -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill()


def test_a_server_that_is_killed_or_hangs_loses_nothing(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.start()
    logger = make(server.folder, uri=server.uri)
    log(logger, 1)
    server.kill()
    log(logger, 2)
    assert (logger.artifact_dir / JOURNAL).is_file()
    server.start()
    log(logger, 3)
    assert not (logger.artifact_dir / JOURNAL).exists()
    server.signal(signal.SIGSTOP)  # takes the connection and says nothing
    start = time.monotonic()
    log(logger, 4)
    waited = time.monotonic() - start
    logger.log_text("some text", "note.txt")
    logger.finalize("success")
    assert waited < 12  # an attempt of five seconds for each of two metrics at most
    assert "tracking replay" in capsys.readouterr().err
    server.signal(signal.SIGCONT)
    assert main(["tracking", "replay", str(logger.artifact_dir)]) == 0
    assert history(server.uri, logger.run_id) == expected(1, 2, 3, 4)
    client = mlflow_client(server.uri)
    assert client.get_run(logger.run_id).info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(logger.run_id)] == ["note.txt"]


def test_a_server_that_is_not_there_at_the_start_is_one_line(tmp_path: Path) -> None:
    logger = make(tmp_path, uri="http://127.0.0.1:9")
    with pytest.raises(UsageError, match=r"the run cannot begin in MLflow 'http://127.0.0.1:9': no answer from"):
        log(logger, 1)


# The journal itself ---------------------------------------------------------------------------------------------------

HEADER = Header("sqlite:///x.db", "abc", "")


def row(step: int) -> dict[str, object]:
    return {"metric": "m", "value": 0.5, "timestamp": 1, "step": step}


def test_a_last_line_that_a_crash_has_torn_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    journal = Journal(path, HEADER)
    journal.append([row(1), row(2)])
    journal.close()
    whole = path.read_bytes()
    for cut in range(len(whole.rstrip().rpartition(b"\n")[0]) + 1, len(whole)):
        path.write_bytes(whole[:cut])
        assert list(read_rows(path)) == [row(1)]
    again = Journal(path, HEADER)
    again.append([row(3)])
    assert again.metrics == 2
    assert list(read_rows(path)) == [row(1), row(3)]
    again.remove()
    assert list(tmp_path.iterdir()) == []


def _damage_line(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "{]\n", *lines[1:]]))


def _other_format(path: Path) -> None:
    header, _, rest = path.read_text().partition("\n")
    path.write_text(json.dumps(json.loads(header) | {"journal": FORMAT + 1}) + "\n" + rest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_text("not one"), "is not a journal of dsob_pl"),
        (lambda path: path.write_text('{"journal": 1, "run_id": 3}\n'), "does not name its tracking uri"),
        (_damage_line, "line 2: damaged"),
        (_other_format, f"has format {FORMAT + 1}; this version of dsob_pl reads {FORMAT}"),
    ],
)
def test_a_file_that_is_no_journal_is_refused_and_kept(
    folder: Path, change: Callable[[Path], object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = folder / "run" / "artifacts"
    place.mkdir(parents=True)
    path = place / JOURNAL
    journal = Journal(path, HEADER._replace(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}"))
    journal.append([row(1)])
    journal.close()
    change(path)
    before = path.read_bytes()
    assert main(["tracking", "replay", str(place)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(path) in error
    assert error.count("\n") == 1
    assert path.read_bytes() == before


def test_a_journal_in_use_is_not_replayed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = make(folder)
    assert logger.run_id
    with moved(folder / "mlflow.db"):
        log(logger, 1)
    assert main(["tracking", "replay", str(logger.artifact_dir)]) == 2
    assert "is in use: its run goes on" in capsys.readouterr().err
    logger.finalize("success")
    assert history(logger.tracking_uri, logger.run_id) == expected(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "tracking: the following arguments are required: ACTION, FOLDER"),
        (["replai", "."], "unknown action 'replai'; did you mean 'replay'?"),
        (["replay", "nowhere"], "there is no folder 'nowhere'"),
        (["replay", ".", "--tracking_url=x"], "unknown option '--tracking_url=x'; did you mean '--tracking_uri'?"),
        (["replay", "run", "--tracking_uri=mlflow.db"], "expected a uri such as sqlite:///mlflow.db"),
        (["replay", "run", "--tracking_uri=sqlite:///none.db"], "none.db'; run from the project's folder"),
        (["replay", "run", "--tracking_uri=sqlite:///run/journal.jsonl"], "is not a database of MLflow"),
        (["replay", "run"], "there is no run 'abc' in 'sqlite:///"),
        (["replay", "."], "'.' is not the folder of a run, such as mlruns/EXPERIMENT/RUN_ID"),
    ],
)
def test_what_cannot_be_replayed_is_one_line(
    folder: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    (folder / "run").mkdir()
    journal = Journal(folder / "run" / JOURNAL, HEADER._replace(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}"))
    journal.append([row(1)])
    journal.close()
    there = sorted(folder.rglob("*"))
    assert main(["tracking", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(folder.rglob("*")) == there


def test_the_journals_of_seeds_are_found_under_their_parents(folder: Path) -> None:
    parent = make(folder)
    children = [parent.child(seed) for seed in (3, 4)]
    other = make(folder, run_name="other")
    loggers = [parent, *children, other]
    for logger in loggers:
        log(logger, 1)
    with moved(folder / "mlflow.db"):
        for logger in loggers:
            log(logger, 2)
    for logger in loggers:
        logger._delivery.journal.close()  # type: ignore[union-attr]  # a kill
    found = journals_under(parent.artifact_dir.parent)
    assert sorted(found) == sorted(logger.artifact_dir / JOURNAL for logger in loggers[:3])
    for above in (parent.artifact_dir.parents[1], parent.artifact_dir.parents[2]):  # of the experiment, and of all
        with pytest.raises(UsageError, match=r"is not the folder of a run, .*; '.*' has a journal"):
            journals_under(above)
    assert main(["tracking", "replay", str(parent.artifact_dir.parent)]) == 0
    histories = [history(logger.tracking_uri, logger.run_id) for logger in loggers]
    assert histories == [expected(1, 2)] * 3 + [expected(1)]


def test_a_row_that_is_refused_for_ever_holds_up_no_other(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Such as one in a journal of an older version, which did not look at names."""
    logger = make(folder)
    bad = {"metric": "m(1)", "value": 0.0, "timestamp": 1, "step": 1}
    journal = logger_journal(logger)
    journal.append([row(1), bad, row(2)])
    journal.close()
    assert main(["tracking", "replay", str(logger.artifact_dir)]) == 0
    assert history(logger.tracking_uri, logger.run_id) == [(1, 0.5), (2, 0.5)]
    assert "MLflow refuses 'm(1)', which is left out" in caplog.text
    assert not journal.exists


def test_what_a_deleted_run_does_not_take_is_kept(folder: Path) -> None:
    logger = make(folder)
    log(logger, 1)
    client = mlflow_client(logger.tracking_uri)
    client.delete_run(logger.run_id)
    log(logger, 2, 3)
    client.restore_run(logger.run_id)
    logger.finalize("success")
    assert history(logger.tracking_uri, logger.run_id) == expected(1, 2, 3)


def logger_journal(logger: MLflowLogger) -> Journal:
    assert logger.client
    return logger._delivery.journal  # type: ignore[union-attr]
