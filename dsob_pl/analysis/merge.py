"""One suite from the tables of several reports: cells that were run elsewhere, or later."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dsob_pl.analysis.tables import FACTORS, Results, read_csv
from dsob_pl.errors import UsageError

# Which of two accounts of a cell is taken; between equals the later one.
_STATES = ("missing", "incomplete", "complete")


def read_csvs(folders: Sequence[str | Path]) -> Results:
    """The tables of one or more folders as one; see ``read_csv`` and ``merge``.

    Raises:
        UsageError: a folder without such tables, or of another suite than the first.
    """
    found = [read_csv(folder) for folder in folders]
    for folder, results in zip(folders, found):
        if results.suite != found[0].suite:
            ours = f"'{folders[0]}' the suite '{found[0].suite}'"
            raise UsageError(f"from_csv: '{folder}' holds the suite '{results.suite}' and {ours}; expected one suite")
    return merge(found)


def merge(parts: Sequence[Results]) -> Results:
    """The results of one suite: each cell from the part that has it most complete, of equals from the last.

    The runs of a cell come from one part only. Two parts may have trained it with other settings or at other commits,
    and their seeds are then no sample of one thing. The score is that of the first part.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    parts = [first, *(part if part.score == first.score else part.scored_by(first.score) for part in parts[1:])]
    cells = pd.concat([part.cells.assign(part=i) for i, part in enumerate(parts)], ignore_index=True)
    cells["rank"] = (
        cells["state"].map({state: rank for rank, state in enumerate(_STATES)}).fillna(-1)
    )  # one unknown counts least
    cells["place"] = cells.groupby(FACTORS, sort=False).ngroup()  # in which order the cells come first
    chosen = cells.sort_values(["place", "rank", "part"]).drop_duplicates(FACTORS, keep="last")
    of = chosen[[*FACTORS, "part"]]

    def kept(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
        rows = pd.concat([table.assign(part=i) for i, table in enumerate(tables)], ignore_index=True)
        return rows.merge(of, on=[*FACTORS, "part"]).drop(columns="part")

    curves, finals = kept([part.curves for part in parts]), kept([part.finals for part in parts])
    cells = chosen.drop(columns=["part", "rank", "place"]).fillna("").reset_index(drop=True)
    return Results(first.suite, first.score, curves, finals, cells)
