"""Tables for people: as CSV that a spreadsheet may open without running what somebody wrote into a cell."""

from __future__ import annotations

import csv
import re
from typing import Any

import pandas as pd

NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")


def to_csv(table: pd.DataFrame) -> str:
    """The table as CSV. A text that a spreadsheet would take for a formula gets an apostrophe before it.

    Tables that come back to this project are written elsewhere, as they are: see `store`.
    """
    safe = table.apply(lambda column: column if pd.api.types.is_numeric_dtype(column) else column.map(_no_formula))
    safe = safe.rename(columns=_no_formula)
    written = safe.to_csv(index=False, lineterminator="\n")
    # A carriage return ends a line for many readers; the writer quotes only what ends its own.
    return safe.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC) if "\r" in written else written


def _no_formula(value: Any) -> Any:
    """A text that begins as a formula does with an apostrophe before it; a negative number stays one."""
    begins = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if begins and not NUMBER.fullmatch(value) else value
