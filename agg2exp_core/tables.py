"""CSV files of users, as text: nothing is guessed and nothing dropped."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas as pd

from agg2exp_core.records import InputError


def read_table(path: Path, needed: tuple[str, ...], delimiter: str = ",") -> pd.DataFrame:
    """A CSV with a header as text columns, its first needed column without duplicates.

    Read by Python's csv, which drops and guesses nothing: a line of another length is refused, with its number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("a CSV must be a readable UTF-8 file", f"{path.name}: {error}") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        header = next(reader, [])
        rows = [_checked_row(row, header, path.name, reader.line_num) for row in reader if row]
    except csv.Error as error:
        raise InputError("a CSV must be well formed", f"{path.name}, line {reader.line_num}: {error}") from None
    missing = [name for name in needed if name not in header]
    if missing or len(set(header)) < len(header):
        got = f"{path.name} without {', '.join(missing)}" if missing else f"{path.name} with a column twice"
        raise InputError(f"a CSV needs the columns {', '.join(needed)}, each once", got)
    table = pd.DataFrame(rows, columns=pd.Index(header), dtype=object)
    twice = table[needed[0]][table[needed[0]].duplicated()]
    if len(twice):
        raise InputError(f"every {needed[0]} must be there once", f"{path.name}: {twice.iloc[0]!r} twice")
    return table


def _checked_row(row: list[str], header: list[str], name: str, line: int) -> list[str]:
    if len(row) != len(header):
        raise InputError(
            "every line of a CSV must have as many fields as its header",
            f"{name}, line {line}: {len(row)}",
            len(header),
        )
    return row
