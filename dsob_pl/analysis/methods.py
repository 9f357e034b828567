"""The order of methods in tables and figures: baselines left, distributional Sobolev methods right, one style each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

# Drawn text and lines of this colour follow the page's own text colour.
INK = "#222222"


class Style(NamedTuple):
    """Colour, dashes and marker of a method."""

    color: str
    dashes: str | tuple[int, tuple[float, ...]]
    marker: str


_DASHED, _DOTTED, _DASH_DOT = (0, (5, 2)), (0, (1.2, 1.4)), (0, (6, 1.6, 1.2, 1.6))
# Families share a hue of Okabe and Ito's palette, warm for baselines and cool for ours; within a family lightness,
# dashes and markers tell methods apart, since no eighteen hues can be told apart by everyone.
_STYLES = {
    "td3": Style(INK, "-", "o"),
    "mage": Style("#d55e00", "-", "s"),
    "mage_state_action": Style("#9c3f00", _DASHED, "D"),
    "mage_stochastic": Style("#f08a4b", _DASH_DOT, "v"),
    "mage_ensemble": Style("#c04a2b", _DOTTED, "<"),
    "iqn": Style("#8a8a8a", _DASHED, "^"),
    "mse_sobolev": Style("#e69f00", "-", "P"),
    "mse_sobolev_state_action": Style("#b07900", _DASHED, "X"),
    "huber_sobolev_state_action": Style("#8c6d1f", _DOTTED, "p"),
    "mmd": Style("#6cb6dd", _DOTTED, "^"),
    "mmd_sobolev": Style("#2fa0cf", "-", "s"),
    "mmd_sobolev_state_action": Style("#17829a", _DASHED, "D"),
    "msmmd_sobolev": Style("#0072b2", "-", "o"),
    "msmmd_sobolev_state_action": Style("#5560d8", _DASHED, "h"),
    "sliced_wasserstein_sobolev": Style("#009e73", "-", "v"),
    "sliced_cramer_sobolev": Style("#5aa832", _DASHED, "P"),
    "max_sliced_wasserstein_sobolev": Style("#cc79a7", "-", "X"),
    "max_sliced_cramer_sobolev": Style("#9b4f96", _DASHED, "p"),
}
_SPARE = tuple(
    Style(color, dashes, marker)
    for dashes, marker in ((_DASH_DOT, "*"), (_DOTTED, "d"), ("-", "<"), (_DASHED, ">"))
    for color in ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#2fa0cf", "#8a8a8a")
)
_OURS = ("mmd", "msmmd", "sliced", "max_sliced")


def is_ours(method: str) -> bool:
    """Whether the critic of ``method`` learns a law by comparing samples; all others are baselines."""
    return method.startswith(_OURS)


def in_order(methods: Iterable[str]) -> list[str]:
    """Each of ``methods`` once: baselines, then ours; methods of the reader's own behind those of their side."""
    known = list(_STYLES)
    return sorted(set(methods), key=lambda m: (is_ours(m), known.index(m) if m in known else len(known), m))


def styles(methods: Iterable[str]) -> dict[str, Style]:
    """One style for each method, the same in every figure; other methods than those of this project take spare ones."""
    names = in_order(methods)
    spare = iter(_SPARE * len(names))
    return {name: _STYLES.get(name) or next(spare) for name in names}
