"""The parts of a self-contained HTML page: its frame, tables that can be sorted, figures as inline SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl

from dsob_pl.analysis.methods import INK
from dsob_pl.analysis.panels import LOOK

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --dim: #5d6670; --paper: #ffffff; --line: #dfe3e8; --soft: #f4f6f8;
  --good: #00724f; --bad: #b23a00; --link: #0062a3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --dim: #98a2ad; --paper: #14171b; --line: #2f363e;
  --soft: #1d2228; --good: #4cc79b; --bad: #f08a4b; --link: #6cb6dd; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.2rem 1.4rem 5rem; max-width: 86rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.3rem; margin: 3rem 0 .6rem; padding-top: .8rem;
  border-top: 1px solid var(--line); } h3 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; }
p, ul { max-width: 48rem; } .dim, figcaption { color: var(--dim); font-size: .88rem; }
nav { margin: 1rem 0 0; font-size: .92rem; } nav a { margin-right: 1.1rem; } a { color: var(--link); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; font-size: .93rem; }
dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .7rem 0 1.2rem; }
table { border-collapse: collapse; font-size: .84rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
td.n { white-space: nowrap; } td.s { color: var(--dim); min-width: 13rem; }
td.c { min-width: 34rem; }
thead th { cursor: pointer; font-weight: 600; vertical-align: bottom; border-bottom: 2px solid var(--line); }
thead th:hover { color: var(--link); } tr.first td { border-top: 2px solid var(--line); }
tr:hover td { background: var(--soft); } b { font-weight: 650; }
.ahead { color: var(--good); } .behind { color: var(--bad); }
code { font: .82rem/1.4 ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
figure { margin: 1rem 0 1.4rem; overflow-x: auto; } figure svg { display: block; max-width: 100%; height: auto; }
summary { cursor: pointer; color: var(--link); } .warn { border-left: 3px solid var(--bad); padding-left: .8rem; }
@media print { details > * { display: block; } }
"""

_SCRIPT = """
for (const head of document.querySelectorAll('thead th')) head.addEventListener('click', () => {
  const body = head.closest('table').tBodies[0], place = head.cellIndex, up = head.dataset.up !== 'true';
  const key = row => { const c = row.cells[place], v = c.dataset.v; return v === undefined ? c.innerText : +v; };
  const rows = [...body.rows].sort((a, b) => { const x = key(a), y = key(b);
    if (x !== x || y !== y) return (x !== x) - (y !== y);
    return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1); });
  head.dataset.up = up; body.append(...rows); for (const row of rows) row.classList.remove('first');
});
"""


def document(title: str, body: Iterable[str]) -> str:
    """A page that needs no network."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style>\n</head>\n'
        f"<body>\n{chr(10).join(body)}\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


class Raw(str):
    """Text that is HTML already."""


class Number(NamedTuple):
    """Text of a number, sorted by its value."""

    text: str
    value: float
    bold: bool = False


Cell = str | int | float | Number


def table(heads: Sequence[str], rows: Iterable[Sequence[Cell]], groups: Sequence[int] = ()) -> str:
    """A table sorted by a click on a head.

    Args:
        heads: of the columns.
        rows: their cells; strings are escaped unless ``Raw``; numbers and ``Number`` are sorted by value.
        groups: numbers of rows above which a line is drawn.
    """
    lines = [f"<tr>{''.join(f'<th>{escape(head)}</th>' for head in heads)}</tr>"]
    body = []
    for i, row in enumerate(rows):
        mark = ' class="first"' if i in groups else ""
        body.append(f"<tr{mark}>{''.join(_cell(head, value) for head, value in zip(heads, row))}</tr>")
    return (
        f'<div class="scroll"><table><thead>{"".join(lines)}</thead>\n<tbody>{chr(10).join(body)}</tbody></table></div>'
    )


def _cell(head: str, value: Cell) -> str:
    if isinstance(value, Number):
        text = f"<b>{escape(value.text)}</b>" if value.bold else escape(value.text)
        return f'<td class="n" data-v="{float(value.value)!r}">{text}</td>'
    if isinstance(value, Raw):
        return f'<td class="c">{value}</td>' if head == "command" else f"<td>{value}</td>"
    if isinstance(value, int | float):
        return f'<td class="n" data-v="{value!r}">{value:,}</td>'
    return f'<td class="s">{escape(value)}</td>' if head == "data setting" else f"<td>{escape(value)}</td>"


def svg(figure: Figure, name: str) -> str:
    """A figure as inline SVG whose ink takes the colour of the page's text.

    Args:
        figure: of ``analysis.figures``.
        name: what it shows, for readers who do not see it.
    """
    target = io.StringIO()
    look: Any = {**LOOK, "svg.hashsalt": name}
    with mpl.rc_context(look):
        figure.savefig(target, format="svg", metadata={"Date": None}, transparent=True)
    text = target.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = text.replace(INK, "currentColor")
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(name, quote=True)}" ', 1)


def captioned(picture: str, caption: str) -> str:
    """An SVG with a caption."""
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"
