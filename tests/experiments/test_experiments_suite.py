"""A suite file becomes cells, each with the command that trains it; what is wrong in it is said in one line."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dsob_pl.cli import main
from dsob_pl.cli.config_files import read_sources
from dsob_pl.cli.sweep import read_suite
from dsob_pl.errors import UsageError
from dsob_pl.experiments.suite import expand, parse_settings, parse_suite, select

ROOT = Path(__file__).resolve().parents[2]
SUITES = sorted((ROOT / "conf" / "suite").glob("*.yaml"))
GRID = """
name: toy
seeds: 0-2
tasks:
  summit_1: [conf/summit.yaml, {data.env_kwargs.directions: 1}]
  summit_5: conf/summit.yaml
methods:
  mage: conf/method/mage.yaml
  few: [conf/method/mmd.yaml, {model.init_args.samples: 5, trainer.max_steps: 7}]
noise: {none: [], observation: conf/noise/observation.yaml}
options: {trainer.max_steps: 100}
"""


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def written(folder: Path, text: str) -> str:
    (folder / "toy.yaml").write_text(text)
    return str(folder / "toy.yaml")


def test_a_grid_is_tasks_times_noise_times_methods(tmp_path: Path) -> None:
    suite, cells = read_suite(written(tmp_path, GRID))
    assert [cell.name for cell in cells] == [
        f"{task}/{method}/{noise}"
        for task in ("summit_1", "summit_5")
        for noise in ("none", "observation")
        for method in ("mage", "few")
    ]
    assert suite.seeds == (0, 1, 2)
    assert suite.score == "eval/return_mean"


def test_a_cell_has_its_files_in_order_and_options_of_the_suite_last(tmp_path: Path) -> None:
    _, cells = read_suite(written(tmp_path, GRID), parse_settings(["data.batch_size=4"]))
    words = shlex.split(cells[3].command)
    assert cells[3].name == "summit_1/few/observation"
    assert words[:10] == [
        *("python", "-m", "dsob_pl", "fit", "--config", "conf/summit.yaml", "--config", "conf/method/mmd.yaml"),
        *("--config", "conf/noise/observation.yaml"),
    ]
    assert words[10:15] == [
        "--seeds=0-2",
        "--data.env_kwargs.directions=1",
        "--model.init_args.samples=5",
        "--trainer.max_steps=100",
        "--data.batch_size=4",
    ]
    assert '"cell": "summit_1/few/observation"' in words[-1]


def test_settings_tell_cells_apart_by_what_comes_of_them_and_not_by_names(tmp_path: Path) -> None:
    _, cells = read_suite(written(tmp_path, GRID))
    assert len({cell.settings for cell in cells}) == len(cells)
    _, renamed = read_suite(written(tmp_path, GRID.replace("few:", "other:").replace("name: toy", "name: more")))
    assert [cell.settings for cell in renamed] == [cell.settings for cell in cells]
    _, longer = read_suite(written(tmp_path, GRID.replace("max_steps: 100", "max_steps: 200")))
    assert not {cell.settings for cell in longer} & {cell.settings for cell in cells}


def test_the_contents_of_a_config_file_are_settings() -> None:
    suite = parse_suite(yaml.safe_load(GRID), "toy.yaml")
    files = {name for _, part in suite.parts() for name in part.files}
    trees = {name: read_sources(["--config", name])[0].tree for name in files}
    before = expand(suite, trees)
    trees["conf/method/mage.yaml"] = {"model": {}}
    changed = [a.name for a, b in zip(before, expand(suite, trees), strict=True) if a.settings != b.settings]
    assert changed == [cell.name for cell in before if cell.method == "mage"]


def test_values_that_only_yaml_knows_reach_the_command(tmp_path: Path) -> None:
    options = "{trainer.max_steps: 100, model.init_args.divergence_margin: .inf, data.env_kwargs: {low: -.inf, 1: [2]}}"
    _, cells = read_suite(written(tmp_path, GRID.replace("{trainer.max_steps: 100}", options)))
    given = dict(word[2:].split("=", 1) for word in cells[0].arguments((0,)) if "=" in word)
    assert yaml.safe_load(given["model.init_args.divergence_margin"]) == float("inf")
    assert yaml.safe_load(given["data.env_kwargs"]) == {"low": -float("inf"), 1: [2]}
    assert given["trainer.max_steps"] == "100"


def test_a_config_file_may_have_keys_of_any_kind() -> None:
    suite = parse_suite(yaml.safe_load(GRID), "toy.yaml")
    trees = {name: {"data": {"env_kwargs": {1: 2, "b": 3}}} for _, part in suite.parts() for name in part.files}
    cells = expand(suite, trees)
    assert len({cell.settings for cell in cells}) == len(cells) == 8


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ([], 8),
        (["mage"], 4),
        (["summit_*/mage"], 4),
        (["summit_1/mage/none"], 1),
        (["summit_1/*/observation", "few"], 5),
        (["summit_1"], 4),
    ],
)
def test_cells_are_chosen_by_name(patterns: list[str], names: int, tmp_path: Path) -> None:
    _, cells = read_suite(written(tmp_path, GRID))
    assert len(select(cells, patterns)) == names


WRONG = {
    "an unknown key": ("methods:", "method:", "unknown key 'method'; did you mean 'methods'?"),
    "no tasks": (GRID[GRID.index("tasks") : GRID.index("methods")], "tasks: {}\n", "tasks: the grid is empty"),
    "no methods": (GRID[GRID.index("methods") : GRID.index("noise")], "", "methods: the grid is empty"),
    "an empty noise": ("noise: {none: [], observation: conf/noise/observation.yaml}", "noise: {}", "noise: the grid"),
    "no seeds": ("seeds: 0-2", "", "seeds: missing"),
    "seeds that are none": ("seeds: 0-2", "seeds: two", "seeds: 'two' is not a seed"),
    "a missing file": ("conf/method/mage.yaml", "conf/method/mag.yaml", "methods.mage: config file"),
    "its nearest": ("conf/method/mage.yaml", "conf/method/mag.yaml", "did you mean 'mage.yaml'?"),
    "a name with a slash": ("  mage:", "  a/b:", "methods: 'a/b' cannot be a name"),
    "a name twice": ("  few:", "  mage:", "'mage' is given twice"),
    "an option of the sweep": ("trainer.max_steps: 100", "seeds: 3", "'seeds' is set by the sweep itself"),
    "a logger": ("trainer.max_steps: 100", "trainer.logger: x", "'trainer.logger' is set by the sweep itself"),
    "a folder of checkpoints": (
        "{trainer.max_steps: 100}",
        "{checkpoint: {dirpath: ck}}",
        "options: 'checkpoint.dirpath' is set by the sweep itself",
    ),
    "a date": ("directions: 1", "day: 2024-01-01", "tasks.summit_1.data.env_kwargs.day: expected numbers, text, lists"),
    "options that are none": ("{trainer.max_steps: 100}", "5", "options: expected options of fit"),
    "a number for files": ("summit_5: conf/summit.yaml", "summit_5: 5", "tasks.summit_5: expected a config file"),
    "no YAML": ("name: toy", "name: [", "not valid YAML"),
    "a name that is a folder": ("name: toy", "name: ..", "name: '..' cannot be a name"),
    "an alias within itself": ("name: toy", "name: &x [*x]", "an alias (*name) stands within what it stands for"),
    "no score": ("name: toy", "score: []", "score: expected the name of a metric"),
    "unknown score": ("name: toy", "name: toy\nscore: eval/return_men", "did you mean 'eval/return_mean'?"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_in_a_suite_is_one_line_that_names_the_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    old, new, message = WRONG[name]
    assert old in GRID
    file = written(tmp_path, GRID.replace(old, new, 1))
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "--config", file]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("dsob_pl: error: ")
    assert message in line
    assert file in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conf", "toy.yaml"]


OPTIONS = {
    "no suite": (["--config", "conf/suite/quik.yaml"], "did you mean 'quick.yaml'?"),
    "no config": ([], "--config"),
    "an unknown option": (["--confg", "x"], "--confg"),
    "a method that is not there": (["--only", "mag"], "no task, method or noise is called 'mag'; did you mean 'mage'?"),
    "a task that is not there": (["--only", "sumit_5/mage"], "no task is called 'sumit_5'; did you mean 'summit_5'?"),
    "too many parts": (["--only", "a/b/c/d"], "expected task/method/noise"),
    "no jobs": (["--jobs", "0"], "jobs: expected an integer of at least 1, got '0'"),
    "jobs that are no number": (["--jobs", "two"], "jobs"),
    "a setting without a value": (["--set", "trainer.max_steps"], "set: expected key=value"),
    "a setting of the sweep": (["--set", "seeds=3"], "'seeds' is set by the sweep itself"),
    "an unknown place": (["--on", "cloud"], "on"),
    "seeds backwards": (["--seeds", "3-1"], "did you mean 1-3?"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_bad_options_get_one_line(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options, message = OPTIONS[name]
    if "config" not in name and name != "no suite":
        options = ["--config", written(tmp_path, GRID), *options]
    assert main(["sweep", *options]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("dsob_pl: error: ")
    assert message in line


SLIPS = {
    "key": (["trainer.max_stps=3"], "trainer.max_stps: unknown key; did you mean 'max_steps'?"),
    "class": (
        ["model.init_args.divergence=Huberr"],
        "unknown class 'Huberr'; did you mean 'dsob_pl.divergences.Huber'?",
    ),
    "argument": (
        ['model.init_args.divergence={"class_path": "dsob_pl.divergences.MMD", "init_args": {"kernl": 3}}'],
        "MMD has no argument 'kernl'; did you mean 'kernel'?",
    ),
    "environment": (["data.env_id=Sumit-v0"], "no environment 'Sumit-v0' is registered; did you mean"),
    "argument of the environment": (["data.env_kwargs.direction=3"], "did you mean 'directions'?"),
}


@pytest.mark.parametrize(("slip", "dry"), [*((name, True) for name in SLIPS), ("key", False)])
def test_what_is_wrong_in_a_cell_shows_before_anything_is_run(
    slip: str, dry: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings, said = SLIPS[slip]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    arguments = ["sweep", "--config", "conf/suite/summit.yaml", "--only", "summit_5/mage", "--set", *settings]
    assert main([*arguments, *(["--dry-run"] if dry else [])]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("dsob_pl: error: sweep: summit_5/mage/none: ")
    assert said in line
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("model.init_args.smples: 3", "model.init_args.smples"),
        ("data.env_kwargs.direction: 3", "did you mean 'directions'?"),
        ("print_config: ''", "expected options of a run"),
    ],
)
def test_a_part_that_is_wrong_shows_though_only_one_cell_has_it(
    option: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    (tmp_path / "own.yaml").write_text(
        "seeds: 0\ntasks: [conf/summit.yaml, conf/jack.yaml]\nmethods:\n  mage: conf/method/mage.yaml\n"
        f"  mmd: {{{option}}}\n"
    )
    assert main(["sweep", "--config", "own.yaml"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("dsob_pl: error: sweep: summit/mmd/none: ")
    assert said in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conf", "own.yaml"]


def test_a_sweep_itself_loads_nothing_of_a_run_and_knows_of_cells_all_the_same(tmp_path: Path) -> None:
    """It may wait for days."""
    code = (
        "import sys\nfrom dsob_pl.cli import main\n"
        "words = ['sweep', '--config', 'conf/suite/quick.yaml', '--dry-run']\n"
        "assert main(words) == 0\nassert main([*words, '--set', 'trainer.max_stps=3']) == 2\n"
        "assert 'torch' not in sys.modules"
    )
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert b"did you mean 'max_steps'?" in done.stderr
    assert b"# 4 cells, 0 of them ended" in done.stdout


def test_a_dry_run_lists_commands_that_can_be_copied_and_creates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, GRID)
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "--config", file, "--only", "mage", "--seeds", "4,5", "--dry-run"]) == 0
    lines = capfd.readouterr().out.splitlines()
    commands = [line for line in lines if not line.startswith("#")]
    assert len(commands) == 4
    assert all(shlex.split(line)[:4] == ["python", "-m", "dsob_pl", "fit"] for line in commands)
    assert all("--seeds=4-5" in shlex.split(line) for line in commands)
    assert lines[-1] == "# 4 cells, 0 of them ended"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conf", "toy.yaml"]


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_a_suite_here_begins_with_its_command_and_its_cells_are_configs_that_fit_takes(path: Path) -> None:
    from dsob_pl.cli.lightning_cli import CLI

    assert path.read_text().splitlines()[0] == f"# python -m dsob_pl sweep --config conf/suite/{path.name}"
    suite, cells = read_suite(str(path.relative_to(ROOT)))
    assert suite.name == path.stem
    # Files by themselves are run elsewhere: here each combination of files and options once, and one cell at least.
    parts = dict(suite.parts())
    new = {where for where, part in parts.items() if part.options or len(part.files) > 1}
    for i, cell in enumerate(cells):
        own = {f"tasks.{cell.task}", f"methods.{cell.method}", f"noise.{cell.noise}"} & new
        if i and not own:
            continue
        new -= own
        arguments = cell.arguments(cell.seeds)
        with pytest.raises(SystemExit) as leave:
            CLI("fit", [*arguments[1:], "--print_config"], read_sources(arguments[1:]))
        assert leave.value.code in (0, None), cell.name
    assert not new


def test_there_are_suites() -> None:
    assert {path.stem for path in SUITES} >= {"quick", "point_mass", "summit", "jack", "control"}


def test_an_option_without_a_value_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="key=value"):
        parse_settings(["=3"])
