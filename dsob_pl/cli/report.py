"""``report``: the runs of a suite as a page, figures and tables."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from dsob_pl.cli.options import Parser, check_folder
from dsob_pl.errors import UsageError

if TYPE_CHECKING:
    from dsob_pl.analysis import Results
    from dsob_pl.analysis.comparison import Comparison

_AGAINST = "mage"
_DOTS = 120  # per inch, of the PNG files


def parser() -> Parser:
    """The options of ``report``."""
    result = Parser(
        prog="python -m dsob_pl report",
        description="Compares the methods of a suite: a self-contained page, figures and CSV tables, from MLflow.",
        allow_abbrev=False,
    )
    result.add_argument("--suite", metavar="NAME", help="name of the suite, which is that of its MLflow experiment")
    result.add_argument(
        "--from_csv",
        metavar="DIR",
        nargs="+",
        action="extend",
        help="read the tables that report wrote to DIR, not MLflow; of several, each cell where it is most complete",
    )
    result.add_argument("--out", metavar="DIR", required=True, help="folder of report.html, the tables and figures/")
    result.add_argument("--tracking_uri", metavar="URI", help="MLflow's (sqlite:///mlflow.db)")
    result.add_argument("--score", metavar="METRIC", help="metric to compare by (that of the suite)")
    result.add_argument("--against", metavar="METHOD", help=f"method that the others are compared with ({_AGAINST})")
    return result


def report(arguments: list[str]) -> int:
    """Runs the subcommand and returns its exit code.

    Raises:
        UsageError: bad options, no such suite, metric, method or store, or a folder that cannot be written to.
    """
    options = parser().read(arguments)
    if options is None:
        return 0
    if options.suite is None and options.from_csv is None:
        raise UsageError("report: expected --suite NAME or --from_csv DIR")
    from dsob_pl.analysis.comparison import compare

    out = Path(options.out)
    check_folder(out)
    results = _read(options)
    there = _AGAINST if _AGAINST in set(results.cells["method"]) else None
    comparison = compare(results, options.against or there)
    _write(comparison, out)
    print(_table(comparison))
    print(f"page: {out / 'report.html'}, tables: {out}/*.csv, figures: {out / 'figures'}/*.png")
    return 0


def _read(options: argparse.Namespace) -> Results:
    from dsob_pl.analysis import read_csvs, read_suite

    if options.from_csv is None:
        return read_suite(options.suite, options.tracking_uri, options.score)
    results = read_csvs(options.from_csv)
    if options.suite not in (None, results.suite):
        raise UsageError(f"suite: '{options.from_csv[0]}' holds the suite '{results.suite}', not '{options.suite}'")
    return results.scored_by(options.score or results.score)


def _write(comparison: Comparison, out: Path) -> None:
    from dsob_pl.analysis import to_csv
    from dsob_pl.analysis.figures import all_figures
    from dsob_pl.analysis.html import svg
    from dsob_pl.analysis.page import page

    to_csv(comparison.results, out)
    (out / "figures").mkdir(exist_ok=True)
    pictures = {}
    for name, figure in all_figures(comparison):
        pictures[name] = svg(figure, name)
        file = re.sub(r"[^\w.+,-]+", "_", name)
        figure.savefig(out / "figures" / f"{file}.png", dpi=_DOTS, facecolor="white")
    (out / "report.html").write_text(page(comparison, pictures), encoding="utf-8")


def _table(comparison: Comparison) -> str:
    """IQM over all tasks by noise, and what is missing."""
    from dsob_pl.analysis.comparison import estimate_of
    from dsob_pl.analysis.text import interval

    results, rows = comparison.results, comparison.noises
    lines = [f"{results.suite}: {results.score}, IQM over tasks and seeds [95 % interval]"]
    width = max(len(name) for name in rows["method"]) + 2
    verdict = f"against {comparison.against}" if comparison.against else ""
    for noise in dict.fromkeys(rows["noise"]):
        lines.append(f"{f'noise: {noise}':{width}}  {'IQM':24}{'runs':>6}{'diverged':>10}  {verdict}".rstrip())
        for _, row in rows[rows["noise"] == noise].iterrows():
            text = interval(estimate_of(row, "IQM")) if not row["lacking"] else f"not on {row['lacking']}"
            end = f"{row['seeds']:>6}{row['failed']:>10}  {row['against']}".rstrip()
            lines.append(f"  {row['method']:{width}}{text:24}{end}")
    for state in ("missing", "incomplete"):
        cells = results.cells.loc[results.cells["state"] == state, "cell"].tolist()
        if cells:
            more = f" and {len(cells) - 5} more" if len(cells) > 5 else ""
            lines.append(f"{state}: {', '.join(cells[:5])}{more}")
    silent = results.without_score
    if silent:
        more = f" and {len(silent) - 5} more" if len(silent) > 5 else ""
        lines.append(f"finished without {results.score}, in no statistic: {', '.join(silent[:5])}{more}")
    return "\n".join(lines)
