"""Every file in conf/ runs: tasks and policy evaluations by themselves, overlays on top of one, all at tiny sizes."""

import csv
from pathlib import Path

import pytest
import yaml

from dsob_pl.cli import main

CONF = Path(__file__).resolve().parent.parent / "conf"
TASKS = sorted(p for p in CONF.glob("*.yaml") if p.name != "debug.yaml")
OVERLAYS = sorted(CONF.glob("method/*.yaml"))
ABLATIONS = sorted(CONF.glob("ablation/*.yaml"))
RISK = sorted(CONF.glob("risk/*.yaml"))
NOISE = sorted(CONF.glob("noise/*.yaml"))
SUITES = sorted(CONF.glob("suite/*.yaml"))  # tests/experiments
GROUND_TRUTH = sorted(CONF.glob("ground_truth/*.yaml"))
TINY = ["--trainer.max_steps=14", "--trainer.val_check_interval=14", "--trainer.log_every_n_steps=7", "--threads=1"]
TINY += ["--data.warmup_steps=6", "--data.batch_size=4", "--data.updates_per_step=1", "--data.capacity=1000"]
TINY += ["--data.evaluation_episodes=1", "--data.env_kwargs.max_episode_steps=5"]


def run(monkeypatch, folder, files, *more):
    monkeypatch.chdir(folder)
    logger = "--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=logs"
    return main(["fit", *(f"--config={file}" for file in files), *TINY, *logger, *more])


@pytest.mark.parametrize("path", TASKS, ids=lambda p: p.stem)
def test_a_task_runs_by_itself(path, monkeypatch, tmp_path):
    assert run(monkeypatch, tmp_path, [path]) == 0
    assert list(tmp_path.rglob("last.ckpt"))


@pytest.mark.parametrize("path", [*OVERLAYS, *ABLATIONS, *RISK], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_an_overlay_runs_on_a_task(path, monkeypatch, tmp_path):
    assert run(monkeypatch, tmp_path, [CONF / "walker.yaml", CONF / "debug.yaml", path]) == 0


@pytest.mark.parametrize("path", NOISE, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_noise_runs_as_its_first_line_says_with_an_evaluation_without_it(path, monkeypatch, tmp_path):
    files = [CONF.parent / word for word in path.read_text().splitlines()[0].split() if word.endswith(".yaml")]
    assert run(monkeypatch, tmp_path, [*files, CONF / "debug.yaml"], "--data.env_kwargs.max_episode_steps=40") == 0
    (table,) = tmp_path.rglob("metrics.csv")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    noisy, clean = (
        [float(row[name]) for row in rows if row[name]] for name in ("eval/return_mean", "eval_clean/return_mean")
    )
    assert len(noisy) == len(clean) == 1
    assert path.stem != "reward" or noisy != clean


@pytest.mark.parametrize("path", GROUND_TRUTH, ids=lambda p: p.stem)
def test_a_policy_evaluation_runs_as_its_first_line_says(path, monkeypatch, tmp_path, capfd):
    files = [CONF.parent / word for word in path.read_text().splitlines()[0].split() if word.endswith(".yaml")]
    few = [f"--trainer.callbacks.init_args.{name}={value}" for name, value in (("pairs", 2), ("samples", 16))]
    assert run(monkeypatch, tmp_path, files, *few) == 0
    assert "ground truth after 8 updates, against 16 true samples at each of 2" in capfd.readouterr().out


def test_every_config_is_run_by_one_of_these():
    files = {path for path in CONF.rglob("*.yaml") if path.name != "debug.yaml"}
    assert files == {*TASKS, *OVERLAYS, *ABLATIONS, *RISK, *NOISE, *GROUND_TRUTH, *SUITES}
    assert {path.stem for path in OVERLAYS} >= {"mmd", "mmd_sobolev", "msmmd_sobolev"}


@pytest.mark.parametrize(
    "path", [*TASKS, *OVERLAYS, *ABLATIONS, *RISK, *NOISE, *GROUND_TRUTH, CONF / "debug.yaml"], ids=lambda p: p.stem
)
def test_a_file_begins_with_its_command(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith("# python -m dsob_pl fit --config conf/")
    assert str(path.relative_to(CONF.parent)) in first
    for word in first.split():
        if word.endswith(".yaml"):
            assert (CONF.parent / word).is_file()


def test_the_complete_config_says_a_sentence_above_each_key():
    lines = (CONF / "walker.yaml").read_text().splitlines()
    for number, line in enumerate(lines):
        stripped = line.strip()
        structural = stripped.endswith(":") or stripped.startswith(("#", "class_path", "init_args")) or not stripped
        if not structural:
            above = [text.strip() for text in lines[max(number - 4, 0) : number]]
            assert any(text.startswith("#") for text in above), f"walker.yaml:{number + 1} has no sentence above it"


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_what_is_dropped_is_said_wherever_pessimism_is_chosen(path):
    """An overlay would inherit that number from the class that it replaces."""

    def look(tree):
        if isinstance(tree, dict):
            if str(tree.get("class_path")).rpartition(".")[2] in ("LowerMean", "Truncation"):
                assert "drop" in tree.get("init_args", {})
            tree = list(tree.values())
        for item in tree if isinstance(tree, list) else ():
            look(item)

    look(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("other", ["inverted_pendulum", "inverted_double_pendulum"])
def test_the_pendulums_share_their_hyperparameters(other):
    first, second = (yaml.safe_load((CONF / f"{name}.yaml").read_text()) for name in ("pendulum", other))
    assert first["model"] == second["model"]
    for data in (first["data"], second["data"]):
        data.pop("env_id")
    assert first["data"] == second["data"]


def test_the_config_of_the_double_pendulum_is_the_cell_that_was_measured():
    config, suite = (
        yaml.safe_load((CONF / name).read_text()) for name in ("inverted_double_pendulum.yaml", "suite/default.yaml")
    )
    base, options = suite["tasks"]["inverted_double_pendulum"]
    measured = yaml.safe_load((CONF.parent / base).read_text())
    for option, value in options.items():
        part, name = option.split(".")
        measured[part][name] = value
    assert config == measured
