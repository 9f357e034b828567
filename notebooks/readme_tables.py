"""Puts the tables of the studies into README.md and RESULTS.md, between their marks; nothing is run.

python notebooks/readme_tables.py

Every table is made from files of results/ (and the glossary from the package), so that no number in it is typed.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]

import calibration_study  # noqa: E402
import cliff_study  # noqa: E402
import compare_tables  # noqa: E402
import ground_truth_study  # noqa: E402
import jack_study  # noqa: E402
import many_seeds_study  # noqa: E402
import sb3_check  # noqa: E402
import slope_study  # noqa: E402
from seed_runs import read  # noqa: E402

from dsob_pl.tracking.glossary import glossary_table  # noqa: E402

PAGES = (ROOT / "README.md", ROOT / "notebooks" / "RESULTS.md")


def tables() -> dict[str, str]:
    """By the name in their marks."""
    return {
        **ground_truth_study.tables(),
        **compare_tables.tables(),
        "many seeds": many_seeds_study.table(),
        "sb3": sb3_check.table().strip(),
        "jack study": jack_study.table(read(jack_study.RESULTS)),
        "slopes": slope_study.table(read(slope_study.RESULTS)),
        "cliff": cliff_study.table(read(cliff_study.RESULTS)),
        "calibration": calibration_study.table(read(calibration_study.RESULTS)),
        "glossary": glossary_table(),
    }


def filled(texts: list[str], found: dict[str, str]) -> list[str]:
    """The texts with every table in its place.

    Raises:
        ValueError: a table has no place in the texts, or more than one.
    """
    texts = list(texts)
    for name, table in found.items():
        begin, end = f"<!-- {name}: begin -->\n", f"\n<!-- {name}: end -->"
        places = [i for i, text in enumerate(texts) for _ in range(text.count(begin))]
        if len(places) != 1 or texts[places[0]].count(end) != 1:
            raise ValueError(f"README.md, notebooks/RESULTS.md: expected the marks of '{name}' once")
        before, rest = texts[places[0]].split(begin)
        texts[places[0]] = before + begin + table + end + rest.split(end)[1]
    return texts


if __name__ == "__main__":
    for page, text in zip(PAGES, filled([page.read_text(encoding="utf-8") for page in PAGES], tables()), strict=True):
        page.write_text(text, encoding="utf-8")
