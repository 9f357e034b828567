"""The README says what is there: its metric table is the glossary's, its commands and paths exist."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from dsob_pl.tracking.glossary import glossary_table

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "notebooks" / "RESULTS.md").read_text()
PAGES = [README, RESULTS]
BOTH = README + RESULTS


def test_the_metric_table_is_rendered_from_the_glossary():
    table = README.split("<!-- glossary: begin -->\n")[1].split("\n<!-- glossary: end -->")[0]
    assert table == glossary_table()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\b(?:conf|notebooks|tests)/[\w/.-]*\w", BOTH))))
def test_a_path_in_the_readme_exists(path):
    assert (ROOT / path).exists()


def commands(page):
    """Words behind the program's name, of every line of the page's blocks that calls it."""
    for block in page.split("```")[1::2]:
        for line in block.splitlines():
            call = line.split("#")[0].split(" && ")[-1]
            if call.startswith("python -m dsob_pl "):
                yield shlex.split(call)[3:]


COMMANDS = [*commands(README), *commands(RESULTS)]


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "fit"], ids=" ".join)
def test_a_fit_of_the_readme_is_one_that_the_program_takes(words, tmp_path, monkeypatch, capsys):
    from dsob_pl.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as python -m does
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    (tmp_path / "mine.py").write_text(README.split("```python\n")[2].split("```")[0])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    code = main([*words, *([] if "--print_config" in words else ["--print_config"])])
    sys.modules.pop("mine", None)  # other tests have a file of that name
    assert code == 0
    assert "model:" in capsys.readouterr().out


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "sweep"], ids=" ".join)
def test_a_sweep_of_the_readme_has_cells(words, tmp_path, monkeypatch, capsys):
    from dsob_pl.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    assert main([*words, *([] if "--dry-run" in words else ["--dry-run"])]) == 0
    assert "python -m dsob_pl fit" in capsys.readouterr().out


def test_the_readme_has_a_command_of_every_kind():
    assert {words[0] for words in COMMANDS} >= {"fit", "evaluate", "explain", "doctor", "sweep", "report"}
    assert sum(words[0] == "fit" for words in COMMANDS) > 15


def test_every_method_that_is_here_has_its_config():
    rows = [line for line in README.splitlines() if line.startswith("|") and line.endswith(".yaml` |")]
    assert rows
    configs = {re.search(r"`(conf/method/\w+\.yaml)`", row).group(1) for row in rows}
    assert configs == {str(p.relative_to(ROOT)) for p in (ROOT / "conf" / "method").glob("*.yaml")}


def test_nothing_is_left_to_fill_in():
    assert "@@" not in BOTH


def test_the_python_example_runs(tmp_path, monkeypatch):
    from dsob_pl.cli import main

    monkeypatch.chdir(tmp_path)
    files = [f"--config={ROOT / 'conf' / name}" for name in ("pendulum.yaml", "debug.yaml")]
    assert main(["fit", *files, "--trainer.max_steps=30", "--trainer.logger=false"]) == 0
    code = README.split("```python\n")[1].split("```")[0].replace("RUN_ID", "checkpoints/last.ckpt")
    names = {}
    exec(code, names)
    assert names["samples"].shape == (2, 1, 100)
    assert names["env"].action_space.contains(names["action"].numpy())


def test_the_divergence_of_ones_own_is_as_long_as_said_and_works():
    import torch

    code = README.split("```python\n")[2].split("```")[0]
    assert "MeanDifference" in code
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    names = {}
    exec(code, names)
    x, y = torch.ones(4, 3, 2), torch.zeros(4, 5, 2)
    assert torch.equal(names["MeanDifference"](2.0)(x, y), torch.full((4,), 4.0))


def study_of(name):
    import importlib.util

    spec = importlib.util.spec_from_file_location(name, ROOT / "notebooks" / f"{name}.py")
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    return study


def test_all_tables_are_in_their_places():
    module = study_of("readme_tables")
    assert module.filled(PAGES, module.tables()) == PAGES
    assert set(module.tables()) == set(re.findall(r"<!-- (.+): begin -->", BOTH))
    for pages in (PAGES, [README, README]):
        with pytest.raises(ValueError, match=r"'(none|glossary)'"):
            module.filled(pages, {"none": ""} if pages is PAGES else {"glossary": ""})


def shown(name):
    return BOTH.split(f"<!-- {name}: begin -->\n")[1].split(f"<!-- {name}: end -->")[0].strip()


@pytest.mark.parametrize("name", ["ground truth", "critics", "tails"])
def test_the_tables_of_results_are_those_of_the_recorded_runs(name):
    study = study_of("ground_truth_study")
    assert shown(name) == study.tables()[name]
    assert {row["cell"] for row in study.read()} <= set(study.cells())
    assert all(row["command"].startswith("fit --config conf/") and row["commit"] for row in study.read())


def test_the_table_of_many_seeds_is_that_of_the_recorded_turns():
    study = study_of("many_seeds_study")
    assert study.read()
    assert shown("many seeds") == study.table()
    assert {row["cell"] for row in study.read()} <= set(study.cells())


def test_the_tables_of_the_comparison_are_those_of_the_recorded_runs():
    tables = study_of("compare_tables").tables()
    assert {name: shown(name) for name in tables} == tables


def test_the_figures_of_learning_are_of_the_recorded_runs():
    from PIL import Image

    study = study_of("learning_curves")
    for name, (suite, _, _) in study.FIGURES.items():
        with Image.open(ROOT / "notebooks" / "figures" / name) as image:
            assert image.info[study.SOURCE] == study.digest(suite), f"{name}: python notebooks/learning_curves.py"


def test_the_table_of_td3_is_that_of_the_recorded_runs():
    study = study_of("sb3_check")
    assert study.read()
    assert shown("sb3") == study.table().strip()


def test_intervals_in_the_claims_are_those_of_the_tables():
    cliff = README.split("<!-- cliff: begin -->")[1].split("<!-- cliff: end -->")[0]
    tables = "\n".join(line for line in (RESULTS + cliff).splitlines() if line.startswith("|"))
    for head in ("| claim | paper |", "| aim | reached |"):
        found = re.findall(r"-?[\d.]+ \[-?[\d., -]+\]", README.split(head)[1].split("\n\n")[0])
        assert len(found) >= 3
        assert [text for text in found if text not in tables] == []


def test_intervals_in_the_text_of_the_results_are_those_of_a_table():
    number = r"-?[\d,]+(?:\.\d+)?"
    parts = re.split(r"(<!-- .+?: begin -->.+?<!-- .+?: end -->)", BOTH, flags=re.S)
    tables, text = "".join(parts[1::2]), "".join(re.split(r"<!-- .+?: begin -->.+?: end -->", RESULTS, flags=re.S))
    found = re.findall(rf"{number} \[{number}, {number}\]", text)
    assert len(found) > 100
    assert [interval for interval in found if interval not in tables] == []


def test_links_between_the_pages_lead_somewhere():
    for page, folder in ((README, ROOT), (RESULTS, ROOT / "notebooks")):
        for place in re.findall(r"\]\((?!https:)([^)]+)\)", page):
            file, _, part = place.partition("#")
            text = (folder / file).read_text() if part and file else page
            heads = [re.sub(r"[^\w\s-]", "", head).strip().lower() for head in re.findall(r"^#+ (.+)$", text, re.M)]
            assert (folder / file).exists(), place
            assert not part or part in [head.replace(" ", "-") for head in heads], place


@pytest.mark.parametrize(
    ("name", "study"),
    [
        ("cliff", "cliff_study"),
        ("calibration", "calibration_study"),
        ("jack study", "jack_study"),
        ("slopes", "slope_study"),
    ],
)
def test_tables_of_studies_are_those_of_their_files(name, study):
    module = study_of(study)
    assert shown(name) == module.table(study_of("seed_runs").read(module.RESULTS))


def test_the_long_resume_study_found_no_difference_and_its_numbers_are_in_the_readme():
    (row,) = study_of("cliff_study").read(ROOT / "notebooks" / "results" / "resume.csv")
    assert (row["differences"], row["environment"]) == ("0", "Walker2d-v5")
    text = README.split("is the long version:")[1].split("\n\n")[0]
    for name in ("steps", "kills", "kills_while_writing", "points_of_metrics"):
        assert f"{int(row[name]):,}" in text


def test_the_soak_s_numbers_are_those_of_its_file():
    study = study_of("soak_study")
    rows = study_of("cliff_study").read(ROOT / "notebooks" / "results" / "soak.csv")
    samples = [(float(r["minutes"]), int(r["environment_step"]), float(r["resident_mb"])) for r in rows]
    (per_steps, error), (minutes, steps, size) = study.slope(samples), samples[-1]
    assert minutes >= 60
    assert per_steps < study.LIMIT
    text = README.split("Memory does not grow:")[1].split("\n\n")[0]
    for number in (f"{steps:,} environment steps", f"{size:.0f} MB", f"{per_steps:+.2f} MB", f"error {error:.2f}"):
        assert number in text


def test_results_name_no_folder_of_the_machine_they_were_made_on():
    files = sorted((ROOT / "notebooks" / "results").rglob("*.csv"))
    assert files
    found = [f"{path.name}: {word}" for path in files for word in re.findall(r"[\s=\"'](/\w+/\S*)", path.read_text())]
    assert not found
