"""The wide CSV that Agg²Exp publishes: one row a patient, one column for each number; in and out again bit for bit.

Columns: `patient`; for each target `{target}_explanation_in_{region}_mass` and `_mean` for each region, then
`{target}_explanation_var` and `_mean`; then `{organ}_iou` of all organs, then `{organ}_dice`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from agg2exp_core.files import read_json, write_text
from agg2exp_core.organs import load_label_set
from agg2exp_core.records import InputError
from agg2exp_core.settings import checked_id
from agg2exp_core.store import catalog, queries, results
from agg2exp_core.store.catalog import finite_number
from agg2exp_core.store.cohorts import list_cohorts, read_cases, write_cases

LOCAL = re.compile(r"(?P<target>.+)_explanation_in_(?P<region>.+)_(?:mass|mean)")
SPREAD = re.compile(r"(?P<target>.+)_explanation_(?:mean|var)")
SCORE = re.compile(r"(?P<organ>.+)_(?:iou|dice)")
SHARE = re.compile(r".+_mass|.+_iou|.+_dice")
TOLERANCE = 1e-6
"""How far a share may leave 0 … 1 by rounding."""

LABEL_SET = "thorax17"
STATISTICS = ("target", "mean", "var")

Row = dict[str, float | None]
"""Column → number, None where the cell is empty."""


@dataclass(frozen=True)
class Layout:
    """Whose numbers a wide table holds, each in class order. spread: var and mean are there."""

    targets: tuple[str, ...]
    regions: tuple[str, ...]
    spread: bool
    scored: tuple[str, ...]

    def columns(self) -> list[str]:
        """All columns in the published order."""
        names = ["patient"]
        for target in self.targets:
            names += [local_column(target, region, value) for region in self.regions for value in ("mass", "mean")]
            names += [f"{target}_explanation_{value}" for value in ("var", "mean") if self.spread]
        return names + [f"{organ}_{score}" for score in ("iou", "dice") for organ in self.scored]


def local_column(target: str, region: str, value: str) -> str:
    """The column of a target's mass or mean on a region."""
    return f"{target}_explanation_in_{region}_{value}"


def import_csv(root: Path, file: Path, cohort: str, run: str = "published") -> int:
    """Write the table as a cohort (if it is new) and a run of shares; the number of cases.

    The same file twice is harmless. InputError, with nothing written: a file that is not such a table, a cohort of
    this name with other cases, a run of this name with other content.
    """
    checked_id("cohort", cohort)
    checked_id("run", run)
    layout, rows = read_wide(file)
    info = _run_info(layout, root)
    folder = root / "runs" / cohort / run
    _check_cohort(root, cohort, rows)
    missing = _missing_cases(folder, info, layout, rows)
    if cohort not in list_cohorts(root):
        write_cases(root, cohort, pd.DataFrame({"case_id": list(rows), "image": "", "label": ""}, dtype=object))
    results.write_run(root, cohort, run, info)
    source = hashlib.sha256(file.read_bytes()).hexdigest()
    for case_id in missing:
        manifest = {"case_id": case_id, "targets": list(layout.targets), **info, "source_sha256": source}
        with (
            results.publishing(folder / "cases" / case_id),
            results.case_folder(folder / "cases" / case_id, manifest) as new,
        ):
            _write_case(new, layout, rows[case_id])
    return len(rows)


def export_csv(root: Path, cohort: str, run: str, file: Path, named: Callable[[str], str] | None = None) -> None:
    """Write a run as the wide table: φ = abs, empty cells where a target or region is absent.

    Cases in the order of the cohort's list; where they are to be `named` otherwise, in the order of these names.
    What no case stores (var and mean, Dice and IoU) has no columns.
    InputError: unknown cohort or run, no case in it, or a damaged case.
    """
    if not file.parent.is_dir() or file.is_dir():
        raise InputError("the table must be a file in a folder that is there", str(file))
    con = catalog.connect(root)
    record = queries.runs(con, cohort).set_index("run").to_dict("index").get(run)
    local = queries.exported_importance(con, cohort, run)
    if record is None or local.empty:
        raise InputError("a run needs finished cases to be exported", f"none in {run}")
    if record["damaged"]:
        raise InputError("every case must be sound to be exported", f"{record['damaged']} damaged in {run}")
    folder = root / "runs" / cohort / run / "cases"
    spread = {case_id: _read_statistics(folder / case_id) for case_id in dict.fromkeys(local["case_id"])}
    scores = queries.exported_agreement(con, cohort, run)
    layout = _stored_layout(root / "runs" / cohort / run / "run.json")
    layout = layout or _layout_of(queries.organ_names(con, cohort, run), local, scores)
    rows = _wide_rows(local, spread, scores)
    if named is not None:
        rows = dict(sorted((named(case_id), row) for case_id, row in rows.items()))
    try:
        write_text(file, _wide_text(layout, rows))
    except OSError as error:
        raise InputError("the table must be a file that can be written", f"{file}: {error.strerror}") from None


# ---- reading ---------------------------------------------------------------------------------------


def read_wide(file: Path) -> tuple[Layout, dict[str, Row]]:
    """What a wide table holds, and its rows by patient. Every cell is checked; InputError names column and line."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("a table must be a readable UTF-8 file", f"{file.name}: {error}") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: dict[str, Row] = {}
    try:
        header = next(reader, [])
        layout = _layout(header)
        for cells in reader:
            if cells:
                case_id, row = _row(header, cells, reader.line_num)
                if case_id in rows:
                    raise InputError("every patient must be there once", f"{case_id!r} again in line {reader.line_num}")
                rows[case_id] = row
    except csv.Error as error:
        raise InputError("a table must be well formed", f"{file.name}, line {reader.line_num}: {error}") from None
    if not rows:
        raise InputError("a table needs patients", f"none in {file.name}")
    return layout, rows


def _layout(header: list[str]) -> Layout:
    """The targets, regions and scored organs of a header, which must name every column of theirs, once."""
    local = [match for name in header if (match := LOCAL.fullmatch(name))]
    others = [name for name in header if not LOCAL.fullmatch(name)]
    layout = Layout(
        tuple(dict.fromkeys(match["target"] for match in local)),
        tuple(dict.fromkeys(match["region"] for match in local)),
        any(SPREAD.fullmatch(name) for name in others),
        tuple(dict.fromkeys(match["organ"] for name in others if (match := SCORE.fullmatch(name)))),
    )
    if "patient" not in header or not local:
        rule = "a published table needs the columns patient and {target}_explanation_in_{region}_mass and _mean"
        raise InputError(rule, ", ".join(header[:3])[:200] or "an empty file")
    counts, expected = Counter(header), dict.fromkeys(layout.columns())
    _refuse("columns are missing", [name for name in expected if name not in counts])
    _refuse("a column is no part of a published table", [name for name in header if name not in expected])
    _refuse("a column may be there only once", [name for name, count in counts.items() if count > 1])
    organs = {*layout.targets, *layout.regions}
    _refuse("Dice and IoU must be of a target or region", [name for name in layout.scored if name not in organs])
    return layout


def _refuse(rule: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise InputError(rule, ", ".join(names[:3])[:300] + more)


def _row(header: list[str], cells: list[str], line: int) -> tuple[str, Row]:
    if len(cells) != len(header):
        raise InputError("every line must have a field for each column", f"{len(cells)} in line {line}", len(header))
    texts = dict(zip(header, cells, strict=True))
    case_id = checked_id(f"patient in line {line}", texts.pop("patient"))
    return case_id, {name: _number(name, text, line) for name, text in texts.items()}


def _number(column: str, text: str, line: int) -> float | None:
    """The cell's number; None when it is empty."""
    if text == "":
        return None
    number = finite_number(text)
    if number is None:
        raise InputError("a cell must be a finite number or empty", f"{text[:40]!r} in column {column}, line {line}")
    if SHARE.fullmatch(column) and not -TOLERANCE <= number <= 1 + TOLERANCE:
        raise InputError("mass, IoU and Dice lie between 0 and 1", f"{text[:40]} in column {column}, line {line}")
    return number


# ---- importing -------------------------------------------------------------------------------------


def _run_info(layout: Layout, root: Path) -> dict[str, Any]:
    known = load_label_set(LABEL_SET, root).names
    same = {*layout.targets, *layout.regions} <= set(known)
    return {
        "model": "imported",
        "model_hash": "",
        "method": "imported",
        "parameters": {},
        "label_set": LABEL_SET if same else "",
        "values": "shares",
        "versions": {},
        "table": json.loads(json.dumps(asdict(layout))),
    }


def _check_cohort(root: Path, cohort: str, rows: dict[str, Row]) -> None:
    if cohort not in list_cohorts(root):
        return
    different = sorted(set(read_cases(root, cohort)["case_id"]) ^ set(rows))
    if different:
        rule = f"cohort {cohort} is there and must have the table's cases"
        raise InputError(rule, f"{len(different)} in one of both only, as {different[0]}", "a new name for the cohort")


def _missing_cases(folder: Path, info: dict[str, Any], layout: Layout, rows: dict[str, Row]) -> list[str]:
    """Cases that have yet to be written. InputError if the run holds anything else."""
    rule, allowed = f"run {folder.name} is there with other content", "a new name for the run"
    known = read_json(folder / "run.json")
    if (folder / "run.json").exists() and any(known.get(key) != value for key, value in info.items()):
        raise InputError(rule, "another model, method or label set", allowed)
    cases = folder / "cases"
    finished = {path.parent.name for path in cases.glob("*/manifest.json") if not path.parent.name.startswith(".")}
    other = sorted(finished - set(rows))
    other += [name for name in sorted(finished & set(rows)) if _differs(cases / name, layout, rows[name])]
    if other:
        raise InputError(rule, f"{len(other)} other cases, as {other[0]}", allowed)
    return [name for name in rows if name not in finished or results.verify(cases / name)]


def _differs(folder: Path, layout: Layout, row: Row) -> bool:
    """Whether a sound case holds other numbers than the row. A damaged one does not count: it is written again."""
    if results.verify(folder):
        return False
    stored = {name: path.read_text(encoding="utf-8") for name, path in _files(folder).items() if path.is_file()}
    return stored != _texts(layout, row)


def _files(folder: Path) -> dict[str, Path]:
    return {name: folder / name for name in ("importance.csv", "agreement.csv", "statistics.csv")}


def _write_case(folder: Path, layout: Layout, row: Row) -> None:
    for name, text in _texts(layout, row).items():
        write_text(folder / name, text)


def _texts(layout: Layout, row: Row) -> dict[str, str]:
    """The files of one case, as text."""
    texts = {
        "importance.csv": _text(results.SHARES, _local_rows(layout, row)),
        "agreement.csv": _text(
            results.AGREEMENT, [(organ, row[f"{organ}_dice"], row[f"{organ}_iou"]) for organ in layout.scored]
        ),
    }
    if layout.spread:
        spread = [(t, row[f"{t}_explanation_mean"], row[f"{t}_explanation_var"]) for t in layout.targets]
        texts["statistics.csv"] = _text(STATISTICS, spread)
    return texts


def _local_rows(layout: Layout, row: Row) -> list[tuple[Any, ...]]:
    return [
        (target, region, *(row[local_column(target, region, value)] for value in ("mass", "mean")))
        for target in layout.targets
        for region in layout.regions
    ]


def _text(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A CSV of names and numbers, each number as the shortest text that reads back as the same float64."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([[_cell(value) for value in row] for row in rows])
    return text.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None or np.isnan(value) else repr(float(value))


# ---- exporting -------------------------------------------------------------------------------------


def _read_statistics(folder: Path) -> dict[str, tuple[float | None, float | None]]:
    """target → (var, mean) of an imported case; empty for a computed one, which stores none. InputError: damage."""
    path = folder / "statistics.csv"
    if problems := results.verify(folder, [path.name]):
        raise InputError("every case must be sound to be exported", f"{folder.name}: {', '.join(problems)}")
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {row["target"]: (finite_number(row["var"]), finite_number(row["mean"])) for row in rows}


def _stored_layout(path: Path) -> Layout | None:
    """The layout of the table that was imported, as it was there; None for a computed run."""
    table = read_json(path).get("table")
    if not isinstance(table, dict):
        return None
    return Layout(tuple(table["targets"]), tuple(table["regions"]), bool(table["spread"]), tuple(table["scored"]))


def _layout_of(names: list[str], local: pd.DataFrame, scores: pd.DataFrame) -> Layout:
    """What the cases of a computed run hold together, in class order; no case stores var and mean."""
    ordered = list(dict.fromkeys([*names, *scores["target"]]))
    targets, regions, scored = set(local["target"]), set(local["region"]), set(scores["target"])
    return Layout(
        tuple(name for name in ordered if name in targets),
        tuple(name for name in ordered if name in regions),
        False,
        tuple(name for name in ordered if name in scored),
    )


def _wide_rows(
    local: pd.DataFrame, spread: dict[str, dict[str, Any]], scores: pd.DataFrame
) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {case_id: {} for case_id in spread}
    for case_id, target, region, mass, mean in local.itertuples(index=False):
        rows[case_id][local_column(target, region, "mass")] = mass
        rows[case_id][local_column(target, region, "mean")] = mean
    for case_id, statistics in spread.items():
        for target, (var, mean) in statistics.items():
            rows[case_id] |= {f"{target}_explanation_var": var, f"{target}_explanation_mean": mean}
    for case_id, organ, dice, iou in scores[["case_id", "target", "dice", "iou"]].itertuples(index=False):
        if case_id in rows:
            rows[case_id] |= {f"{organ}_dice": dice, f"{organ}_iou": iou}
    return rows


def _wide_text(layout: Layout, rows: dict[str, dict[str, Any]]) -> str:
    columns = layout.columns()
    return _text(tuple(columns), [(name, *(row.get(column) for column in columns[1:])) for name, row in rows.items()])
