"""Tables for people: as CSV that a spreadsheet may open without running what somebody wrote into a cell."""

from __future__ import annotations

from typing import Any

import pandas as pd


def to_csv(table: pd.DataFrame) -> str:
    """The table as CSV. A text that a spreadsheet would take for a formula gets an apostrophe before it.

    Tables that come back to this project are written elsewhere, as they are: see `store`.
    """
    safe = table.apply(lambda column: column if pd.api.types.is_numeric_dtype(column) else column.map(_no_formula))
    return safe.rename(columns=_no_formula).to_csv(index=False, lineterminator="\n")


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
