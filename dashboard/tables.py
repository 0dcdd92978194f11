"""What the pages' tables of scans share: how high they are, and columns that cut no word."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import words
from dashboard.charts.common import room

ROW = 35
"""Height in px of a row, the heading too."""

FONT = 15
"""Size in px of the text."""

WIDEST = 320
"""px of a column of long texts, which may be cut: the whole text is there at a double-click."""


def height(table: pd.DataFrame, most: int) -> int:
    """px for all rows, without empty ones below them; of more than fit, as many as fit."""
    return min(ROW * (len(table) + 1) + 3, most)


def metadata(table: pd.DataFrame, columns: Iterable[str]) -> dict[str, Any]:
    """Column configuration of metadata: headings, and for text the room that its longest value takes."""
    return {name: st.column_config.Column(words.column_title(name), width=_width(table, name)) for name in columns}


def _width(table: pd.DataFrame, name: str) -> int | None:
    if name not in table or pd.api.types.is_numeric_dtype(table[name]):
        return None
    known = [str(value) for value in table[name].dropna().unique()]
    return min(room([*known, words.column_title(name)], FONT), WIDEST)
