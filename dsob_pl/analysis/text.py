"""Numbers of a report as text, and as cells of its tables."""

from __future__ import annotations

import math
from html import escape

import pandas as pd

from dsob_pl.analysis.html import Number, Raw
from dsob_pl.analysis.statistics import Estimate


def number(value: float, like: float | None = None) -> str:
    """A number with three or four digits that count; as many decimals as ``like`` would have."""
    if not math.isfinite(value):
        return "-"
    size = abs(value if like is None else like)
    decimals = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3
    if 0 < size < 0.01:
        decimals = min(2 - math.floor(math.log10(size)), 12)
    return f"{value:,.{decimals}f}"


def interval(part: Estimate) -> str:
    """``0.742 [0.724, 0.760]``; without brackets where the interval is not known."""
    value, low, high = (float(x) for x in part)
    if not math.isfinite(low):
        return number(value)
    like = max(abs(value), abs(low), abs(high))
    return f"{number(value, like)} [{number(low, like)}, {number(high, like)}]"


def interval_cell(part: Estimate, bold: bool = False) -> Number:
    """An estimate with its interval, sorted by its value."""
    return Number(interval(part), float(part.value), bold)


def range_cell(values: pd.Series) -> Number:
    """One number where all are the same, else the smallest and the largest."""
    low, high = values.min(), values.max()
    if not math.isfinite(low):
        return Number("-", math.nan)
    return Number(f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}", float(high))


def plain_cell(value: object) -> str | Number:
    """A number with its digits that count, or any other thing as text."""
    return Number(number(value) if value % 1 else f"{value:,.0f}", value) if isinstance(value, float) else str(value)


def verdict_cell(text: str) -> Raw:
    """Ahead or behind, in colour."""
    return Raw(f'<span class="{escape(text.split()[0])}">{escape(text)}</span>' if text else "")
