"""One row of a comparison in words: its size, its interval, whether chance could explain it. No streamlit."""

from __future__ import annotations

import math
from typing import Any

from dashboard.charts.common import number, rounded

FALSE_DISCOVERIES = 0.05
"""Largest share of false discoveries among the pairs that are said to differ."""

Row = dict[Any, Any]
"""A row of `compare.Comparison.table`. What it measures: "mass" (percentage points), "mean" or "dice"."""


def differs(row: Row) -> bool:
    """Whether the row is among the discoveries."""
    return bool(row["p_adjusted"] <= FALSE_DISCOVERIES)


def excludes_zero(row: Row) -> bool:
    return bool(row["low"] > 0 or row["high"] < 0)


def points(difference: float) -> str:
    """A difference of shares in percentage points, without its sign: `5.2`, `0.03`."""
    size = abs(100 * difference)
    return f"{size:.1f}" if size >= 0.95 else rounded(size, 1)


def signed(value: float, measure: str) -> str:
    """A difference with its sign, without a unit."""
    if not math.isfinite(value):
        return "–"
    size = {"mass": points, "dice": lambda size: f"{abs(size):.3f}"}.get(measure, lambda size: rounded(abs(size), 3))
    return ("−" if value < 0 else "+" if value > 0 else "±") + size(value)


def level(value: float, measure: str) -> str:
    """A value itself."""
    return f"{value:.3f}" if measure == "dice" and math.isfinite(value) else number(value, measure)


def interval(row: Row, measure: str) -> str:
    if not math.isfinite(row["low"]):
        return "too few scans for an interval"
    return f"95 % {signed(row['low'], measure)} to {signed(row['high'], measure)}"


def chance(row: Row) -> str:
    """The adjusted p."""
    if not math.isfinite(row["p_adjusted"]):
        return "too few scans for a test"
    return "adjusted p < 0.001" if row["p_adjusted"] < 0.001 else f"adjusted p {row['p_adjusted']:.3f}"


def from_to(row: Row, measure: str) -> str:
    first, second = (level(row[side], measure) for side in ("first", "second"))
    return f"{first.removesuffix(' %')} → {second}"
