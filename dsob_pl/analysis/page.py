"""The page of a report: what was run, who wins where, what it cost, and how to run it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

import pandas as pd

from dsob_pl.analysis.comparison import AHEAD, BEHIND, OVERLAP, Comparison, estimate_of, in_noise_order
from dsob_pl.analysis.html import Cell, Number, Raw, captioned, document, table
from dsob_pl.analysis.methods import in_order, is_ours
from dsob_pl.analysis.settings import COLUMNS, in_words
from dsob_pl.analysis.statistics import MOST_EXACT, RESAMPLES
from dsob_pl.analysis.tables import ENDED, FACTORS, Results
from dsob_pl.analysis.text import interval_cell, number, plain_cell, range_cell, verdict_cell

_SECTIONS = {
    "run": "What was run",
    "all": "All tasks together",
    "ranks": "Ranks and improvement",
    "tasks": "Task by task",
    "cost": "Cost",
    "diverged": "Diverged runs",
    "cells": "Every cell and its command",
}


def page(comparison: Comparison, pictures: Mapping[str, str]) -> str:
    """The report as one HTML file.

    Args:
        comparison: its numbers.
        pictures: SVG of the figures, by the names of ``all_figures``.
    """
    title = f"Comparison: {comparison.results.suite}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>Methods are compared by <code>{escape(comparison.results.score)}</code>. Baselines stand left and first, "
        "methods that learn a distribution from samples right and below.</p>",
        f"<nav>{' '.join(f'<a href=#{key}>{escape(name)}</a>' for key, name in _SECTIONS.items())}</nav>",
    ]
    sections = {
        "run": _run(comparison),
        "all": _together(comparison, pictures),
        "ranks": _ranks(comparison, pictures),
        "tasks": _tasks(comparison, pictures),
        "cost": _cost(comparison),
        "diverged": _diverged(comparison),
        "cells": _cells(comparison),
    }
    for key, section in sections.items():
        parts.append(f'<section id="{key}"><h2>{escape(_SECTIONS[key])}</h2>')
        parts += section
        parts.append("</section>")
    return document(title, parts)


def _run(comparison: Comparison) -> Iterator[str]:
    results = comparison.results
    cells, finals = results.cells, results.finals
    states = cells["state"].value_counts()
    ended = finals["status"].isin(ENDED)
    dirty = sorted(set(finals.loc[finals["dirty"] == "true", "commit"]))
    facts = {
        "suite": results.suite,
        "tasks": ", ".join(sorted(set(cells["task"]))),
        "methods": ", ".join(in_order(cells["method"])),
        "noise": ", ".join(in_noise_order(cells["noise"])),
        "seeds": ", ".join(sorted(set(cells["seeds"]))),
        "cells": f"{len(cells)}: " + ", ".join(f"{n} {state}" for state, n in states.items()),
        "runs": f"{len(finals)} seeds, {int(ended.sum())} ended, {int((finals['status'] == 'FAILED').sum())} diverged",
        "commits": ", ".join(sorted(set(finals["commit"]) - {""})) or "not recorded",
        "uncommitted changes": f"yes, on top of {', '.join(c or 'an unknown commit' for c in dirty)}"
        if dirty
        else "no",
        "versions": " | ".join(sorted(set(cells["versions"]) - {""})) or "not recorded",
        "intervals": f"95 %, percentiles of a stratified bootstrap with {RESAMPLES:,} resamples: seeds are drawn anew "
        f"within each task; of one number of one task with up to {MOST_EXACT} seeds over all that there are. "
        "None is given where a task has one seed. IQM is the mean of the middle half of the runs.",
    }
    yield f"<dl>{''.join(f'<dt>{escape(key)}</dt><dd>{escape(value)}</dd>' for key, value in facts.items())}</dl>"
    yield from _lacking(results)


def _lacking(results: Results) -> Iterator[str]:
    """Names what is not there."""
    cells = results.cells
    if not cells["in_grid"].any():
        yield '<p class="warn">The grid of this suite is not recorded, so missing cells cannot be named.</p>'
        return
    for state, words in (("missing", "no run of these cells has ended"), ("incomplete", "these cells lack seeds")):
        rows = cells[cells["state"] == state]
        if len(rows):
            names = (f"{row['cell']} ({row['missing_seeds']})" for _, row in rows.iterrows())
            items = "".join(f"<li><code>{escape(name)}</code></li>" for name in names)
            yield f'<div class="warn"><p>{len(rows)} {state}: {words} (seeds).</p><ul>{items}</ul></div>'
    if (cells["state"] == "complete").all():
        yield "<p>No cell is missing.</p>"
    silent = results.without_score
    if silent:
        them = escape(", ".join(silent))
        yield f'<p class="warn">Finished without {escape(results.score)}, in no statistic: {them}.</p>'
    extra = cells.loc[~cells["in_grid"], "cell"]
    if len(extra):
        yield f"<p>Run without being in the grid: {escape(', '.join(extra))}.</p>"


def _together(comparison: Comparison, pictures: Mapping[str, str]) -> Iterator[str]:
    if comparison.scaled:
        yield f'<p class="warn">{escape(comparison.scaled)}</p>'
    for noise in in_noise_order(comparison.noises["noise"]):
        rows = comparison.noises[comparison.noises["noise"] == noise]
        yield f"<h3>Noise: {escape(noise)}</h3>"
        yield from _claims(comparison, rows)
        columns = ["IQM", "median", "mean", "optimality gap"]
        best = {name: rows[name].min() if name == "optimality gap" else rows[name].max() for name in columns}
        body = [
            [
                row["method"],
                *(interval_cell(estimate_of(row, name), bold=row[name] == best[name]) for name in columns),
                verdict_cell(row["against"]),
                Number(f"{row['seeds']} on {row['tasks']}", row["seeds"]),
                row["setting"],
            ]
            for _, row in rows.iterrows()
        ]
        heads = ["method", *columns, _against(comparison), "runs on tasks", "data setting"]
        yield table(heads, body, _border(rows))
        lacking = rows[rows["lacking"] != ""]
        if len(lacking):
            named = "; ".join(f"{row['method']}: {row['lacking']}" for _, row in lacking.iterrows())
            yield f'<p class="warn">Without aggregate, since tasks are lacking: {escape(named)}.</p>'
        yield captioned(pictures[f"aggregates_{noise}"], "Aggregates over all tasks and seeds with 95 % intervals.")
        yield captioned(
            pictures[f"profiles_{noise}"],
            "Performance profiles: the part of all runs with a score above the threshold; higher is better.",
        )


def _claims(comparison: Comparison, rows: pd.DataFrame) -> Iterator[str]:
    """Who is separated from the compared method, in a sentence."""
    if comparison.against is None:
        return
    words = []
    for verdict in (AHEAD, OVERLAP, BEHIND):
        names = ", ".join(rows.loc[rows["against"] == verdict, "method"])
        if names:
            words.append(f"{verdict}: {names}")
    if words:
        text = f"Against {comparison.against} by IQM (ahead and behind: the 95 % intervals do not overlap). "
        yield f"<p>{escape(text + '; '.join(words))}.</p>"


def _ranks(comparison: Comparison, pictures: Mapping[str, str]) -> Iterator[str]:
    noises = in_noise_order(comparison.noises["noise"])
    for column, caption in (
        ("rank", "Mean rank over tasks, 1 is best. Tasks are ranked by the IQM of the final score."),
        ("improvement", f"Probability that a run is better than one of {comparison.against} on the same task."),
    ):
        picture = pictures.get("ranks" if column == "rank" else "improvement")
        if picture is None:
            continue
        body = []
        methods = in_order(comparison.noises["method"])
        for method in methods:
            own = comparison.noises[comparison.noises["method"] == method].set_index("noise")
            cells = [interval_cell(estimate_of(own.loc[n], column)) if n in own.index else "" for n in noises]
            settings = dict.fromkeys(own["setting"])
            body.append([method, *cells, " | ".join(text for text in settings if text)])
        yield f"<h3>{escape(caption)}</h3>"
        border = [sum(not is_ours(name) for name in methods)]
        yield table(["method", *(f"noise: {noise}" for noise in noises), "data setting"], body, border)
        yield captioned(picture, caption)


def _tasks(comparison: Comparison, pictures: Mapping[str, str]) -> Iterator[str]:
    names = comparison.tasks[["noise", "task"]].drop_duplicates().itertuples(index=False)
    places = {(noise, task): f"task{i}" for i, (noise, task) in enumerate(names)}
    links = (f"<a href=#{place}>{escape(f'{task}, {noise}')}</a>" for (noise, task), place in places.items())
    yield f"<nav>{' '.join(links)}</nav>"
    for noise in in_noise_order(comparison.tasks["noise"]):
        yield f"<h3>Noise: {escape(noise)}</h3>"
        yield captioned(pictures[f"finals_{noise}"], "Final scores: dots are seeds, bars IQM with 95 % interval.")
        there = comparison.tasks[comparison.tasks["noise"] == noise]
        clean = there["clean"].notna().any()
        for task in sorted(set(there["task"])):
            rows = there[there["task"] == task]
            best = rows["score"].max()
            body = []
            for _, row in rows.iterrows():
                cells = [row["method"], interval_cell(estimate_of(row, "score"), bold=row["score"] == best)]
                cells += [interval_cell(estimate_of(row, "area")), verdict_cell(row["against"])]
                cells += [interval_cell(estimate_of(row, "clean"))] if clean else []
                body.append([*cells, int(row["seeds"]), int(row["failed"]), row["setting"]])
            heads = ["method", "final score, IQM", "area under the curve, IQM", _against(comparison)]
            heads += ["return without noise, IQM"] if clean else []
            yield f'<h3 id="{places[noise, task]}">{escape(task)}, noise {escape(noise)}</h3>'
            yield table([*heads, "seeds", "diverged", "data setting"], body, _border(rows))
            yield captioned(
                pictures[f"curves_{task},{noise}"],
                "IQM over seeds with 95 % band; the area is the mean over the evaluations that all runs have.",
            )


def _cost(comparison: Comparison) -> Iterator[str]:
    finals, cells = comparison.results.finals, comparison.results.cells
    yield (
        '<p class="dim">Steps and updates are those of one run. The seeds of a cell share a process where they were '
        "trained together, so the time of a cell is that of its longest run.</p>"
    )
    methods = in_order(finals["method"])
    body = []
    for method in methods:
        own = finals[finals["method"] == method]
        longest = own.groupby(FACTORS)["wall_clock_seconds"].max()
        settings = dict.fromkeys(_setting_of(row) for _, row in cells[cells["method"] == method].iterrows())
        minutes, hours, kappa = longest.median() / 60, longest.sum() / 3600, own["gamma_kappa"].max()
        cost: list[Cell] = [method, range_cell(own["steps"]), range_cell(own["updates"])]
        cost += [Number(number(value), value) for value in (minutes, hours, kappa)]
        body.append([*cost, " | ".join(text for text in settings if text)])
    heads = ["method", "steps", "updates", "minutes a cell, median", "hours in all", "largest γκ", "data setting"]
    yield table(heads, body, [sum(not is_ours(name) for name in methods)])


def _diverged(comparison: Comparison) -> Iterator[str]:
    finals = comparison.results.finals
    failed = finals[finals["status"] == "FAILED"]
    if failed.empty:
        yield "<p>No run has failed.</p>"
    else:
        yield (
            "<p>These runs ended as FAILED. Their last evaluation counts as their final score, and is carried on in "
            "curves; a run that failed before its first evaluation has no score and is in no statistic.</p>"
        )
        score = comparison.results.score
        columns = [*FACTORS, "seed", "steps", "gamma_kappa", score, "run"]
        heads = [*FACTORS, "seed", "steps", "largest γκ", "last score", "run", "data setting"]
        settings = comparison.results.cells.set_index(FACTORS)
        rows: list[list[Cell]] = []
        for _, row in failed.iterrows():
            cell = settings.loc[tuple(row[name] for name in FACTORS)]
            rows.append([*(plain_cell(row[name]) for name in columns), _setting_of(cell)])
        yield table(heads, rows)
    unended = finals[~finals["status"].isin(ENDED)]
    if len(unended):
        cells = unended[FACTORS].agg("/".join, axis=1)
        names = [f"{cell} seed {s} ({state})" for cell, s, state in zip(cells, unended["seed"], unended["status"])]
        yield f"<p>Not ended, in no statistic: {escape(', '.join(names))}.</p>"


def _cells(comparison: Comparison) -> Iterator[str]:
    finals, rows = comparison.results.finals, []
    groups = dict(list(finals.groupby(FACTORS)))
    for _, cell in comparison.results.cells.iterrows():
        own = groups.get(tuple(cell[name] for name in FACTORS))
        commits = sorted(set(own["commit"]) - {""}) if own is not None else []
        marks = " (changed)" if own is not None and (own["dirty"] == "true").any() else ""
        commands = sorted(set(own["command"]) - {""}) if own is not None else []
        rows.append(
            [
                cell["cell"],
                cell["seeds"],
                cell["state"],
                range_cell(own["steps"]) if own is not None else "",
                range_cell(own["updates"]) if own is not None else "",
                ", ".join(commit[:8] for commit in commits) + marks,
                _setting_of(cell),
                cell["gradients"],
                cell["divergence"],
                Raw("<br>".join(f"<code>{escape(c)}</code>" for c in commands or [cell["command"]])),
            ]
        )
    heads = [
        "cell",
        "seeds",
        "state",
        "steps",
        "updates",
        "commit",
        "data setting",
        "gradients",
        "divergence",
        "command",
    ]
    yield table(heads, rows)


def _against(comparison: Comparison) -> str:
    return f"against {comparison.against}" if comparison.against else "against"


def _border(rows: pd.DataFrame) -> Sequence[int]:
    return [sum(not is_ours(name) for name in rows["method"])]


def _setting_of(cell: pd.Series) -> str:
    return in_words({name: str(cell[name]) for name in COLUMNS})
