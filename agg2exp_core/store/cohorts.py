"""Cohorts: `cohorts/<cohort>/cases.csv`, one row a case with its scan, its label map and metadata."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from agg2exp_core import volumes
from agg2exp_core.files import locked, write_text
from agg2exp_core.records import InputError
from agg2exp_core.settings import checked_id

COLUMNS = ("case_id", "image", "label")
SCANS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Case:
    """One scan of a cohort. image and label are paths; None where nothing is stored. metadata as text."""

    case_id: str
    image: Path | None
    label: Path | None
    metadata: dict[str, str]


def list_cohorts(root: Path) -> list[str]:
    """Names of the cohorts under `cohorts/`."""
    return sorted(path.parent.name for path in (root / "cohorts").glob("*/cases.csv"))


def read_cases(root: Path, cohort: str) -> pd.DataFrame:
    """Every row and column of the cohort's cases.csv, as text.

    InputError: no such cohort, a missing column, a row of another length, an id that is unsafe or there twice.
    """
    path = _cases_csv(root, cohort)
    if not path.is_file():
        raise InputError("cohort must exist", repr(cohort), ", ".join(list_cohorts(root)) or "none yet")
    table = read_table(path, COLUMNS)
    for case_id in table["case_id"]:
        checked_id("case", case_id)
    return table


def read_table(path: Path, needed: tuple[str, ...]) -> pd.DataFrame:
    """A CSV with a header as text columns, its first needed column without duplicates.

    Read by Python's csv, which drops and guesses nothing: a line of another length is refused, with its number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("a CSV must be a readable UTF-8 file", f"{path.name}: {error}") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
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


def list_cases(root: Path, cohort: str) -> list[Case]:
    """Every case of a cohort, in the order of its list. InputError: see `read_cases`."""
    base = _cases_csv(root, cohort).parent
    rows = read_cases(root, cohort).to_dict("records")
    return [_case(base, {str(name): value for name, value in row.items()}) for row in rows]


def find_case(root: Path, cohort: str, case_id: str) -> Case:
    """One case of a cohort. InputError if it is not in its list."""
    checked_id("case", case_id)
    known = {case.case_id: case for case in list_cases(root, cohort)}
    if case_id not in known:
        some = ", ".join(list(known)[:5]) + (", …" if len(known) > 5 else "")
        raise InputError(f"case must be one of cohort {cohort}", repr(case_id), some)
    return known[case_id]


def _case(base: Path, row: dict[str, str]) -> Case:
    """base: the folder that the row's paths are relative to."""
    image, label = (base / row[name] if row[name] else None for name in ("image", "label"))
    return Case(row["case_id"], image, label, {name: value for name, value in row.items() if name not in COLUMNS})


def add_cohort(root: Path, name: str, folder: Path, labels: Path | None = None, metadata: Path | None = None) -> int:
    """List a folder of NIfTI scans as a new cohort and return how many there are. The scans stay where they are.

    labels: a folder of label maps named as the scans. metadata: a CSV with a column case_id.
    """
    path = _cases_csv(root, name)
    if path.exists():
        raise InputError("a new cohort needs a name that is free", repr(name))
    scans = scans_of(folder)
    if not scans:
        raise InputError("a cohort needs scans", f"none in {folder}", ".nii, .nii.gz")
    extra, columns = _metadata(metadata, scans)
    maps = scans_of(labels) if labels else {}
    _check_known("label map", maps, scans)
    for case_id, labelled in maps.items():
        try:
            volumes.check_grid(labelled, scans[case_id])
        except InputError as error:
            raise InputError(
                "every label map must be sound and lie on its scan's grid", f"{case_id}: {error}"
            ) from None
    rows = [
        {"case_id": case_id, "image": _relative(scan, path.parent, root)}
        | {"label": _relative(maps[case_id], path.parent, root) if case_id in maps else ""}
        | extra.get(case_id, {})
        for case_id, scan in scans.items()
    ]
    _write_new(path, [*COLUMNS, *columns], rows)
    return len(rows)


def append_case(root: Path, cohort: str, row: dict[str, Any]) -> None:
    """Add a case to a cohort, which begins with it if it is new. A case that is listed already stays as it is."""
    path = _cases_csv(root, cohort)
    checked_id("case", str(row["case_id"]))
    with locked(path.parent / ".cases"):
        known = read_cases(root, cohort) if path.is_file() else pd.DataFrame(columns=pd.Index(COLUMNS))
        if row["case_id"] not in set(known["case_id"]):
            columns = list(dict.fromkeys([*known.columns, *row]))
            _write(path, columns, [*known.to_dict("records"), row])


def write_cases(root: Path, cohort: str, table: pd.DataFrame) -> None:
    """Write a new cohort's cases.csv at once. InputError: another process made one of that name meanwhile."""
    _write_new(_cases_csv(root, cohort), list(table.columns), table.to_dict("records"))


def _write_new(path: Path, columns: list[str], rows: list[dict[Any, Any]]) -> None:
    with locked(path.parent / ".cases"):
        if path.exists():
            raise InputError("a new cohort needs a name that is free", repr(path.parent.name))
        _write(path, columns, rows)


def _cases_csv(root: Path, cohort: str) -> Path:
    return root / "cohorts" / checked_id("cohort", cohort) / "cases.csv"


def _checked_row(row: list[str], header: list[str], name: str, line: int) -> list[str]:
    if len(row) != len(header):
        raise InputError(
            "every line of a CSV must have as many fields as its header",
            f"{name}, line {line}: {len(row)}",
            len(header),
        )
    return row


def scans_of(folder: Path) -> dict[str, Path]:
    """case_id → scan file of a folder, by name."""
    if not folder.is_dir():
        raise InputError("a folder must be there", str(folder))
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        ending = next((ending for ending in SCANS if path.name.lower().endswith(ending)), None)
        if ending is None or path.name.startswith(".") or not path.is_file():
            continue
        case_id = checked_id("a scan's name, without its ending,", path.name[: -len(ending)])
        if case_id in found:
            raise InputError("every case must have one file", f"{found[case_id].name} and {path.name}")
        found[case_id] = path.resolve()
    return found


def _metadata(path: Path | None, scans: dict[str, Path]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Metadata by case, and its columns."""
    if path is None:
        return {}, []
    table = read_table(path, ("case_id",))
    for name in COLUMNS[1:]:
        if name in table:
            raise InputError("metadata may not name the scans", f"a column {name}")
    rows = {str(row.pop("case_id")): row for row in table.to_dict("records")}
    _check_known("metadata row", rows, scans)
    return rows, [name for name in table.columns if name != "case_id"]  # type: ignore[return-value]


def _check_known(what: str, given: dict[str, Any], scans: dict[str, Path]) -> None:
    unknown = sorted(set(given) - set(scans))
    if unknown:
        raise InputError(
            f"every {what} must belong to a scan", ", ".join(unknown[:3]), f"{', '.join(list(scans)[:3])}, …"
        )


def _relative(path: Path, base: Path, root: Path) -> str:
    """Relative to the list while inside the root, so that a moved root still works; else the full path."""
    return os.path.relpath(path, base) if path.is_relative_to(root) else str(path)


def _write(path: Path, columns: list[str], rows: list[dict[Any, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
