"""A run's numbers as Parquet beside it: importance.parquet and agreement.parquet, made again when its cases change.

The CSV files of the cases are the truth. A cache that is missing, stale or unreadable is built from them; where it
cannot be written, the tables stay in memory.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from agg2exp_core.files import read_json
from agg2exp_core.organs import BACKGROUND
from agg2exp_core.records import InputError
from agg2exp_core.store import results

LAYOUT = 1
"""Raised when the columns below change, so that older caches are built again."""

KEY = b"agg2exp"
ROW_GROUP = 1 << 20
SETTLED_NS = 1_000_000_000
"""Age of a folder's mtime from which a later change surely moves it; clocks of filesystems tick coarsely."""

NOT_PREDICTED, NO_REGION = "not predicted", "region not predicted"
NAMES = {"target": pa.string(), "region": pa.string()}
SUMS = NAMES | {"positive": pa.float64(), "negative": pa.float64(), "voxels": pa.int64(), "absent": pa.string()}
SHARES = NAMES | {"mass": pa.float64(), "mean": pa.float64()}
AGREEMENT = {"target": pa.string(), "dice": pa.float64(), "iou": pa.float64()}

Numbers: TypeAlias = Path | pa.Table
"""A Parquet file, or its rows in memory."""


@dataclass(frozen=True)
class Content:
    """What a cache holds. targets, regions: in the order of the files. damaged: case → why it is left out."""

    fingerprint: str
    cases: int = 0
    targets: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    damaged: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Cache:
    """One run's numbers, and what is in them."""

    content: Content
    importance: Numbers
    agreement: Numbers


_known: dict[Path, tuple[tuple[int, ...], Cache | None]] = {}


def current(run: Path) -> Cache | None:
    """The cache of a run's folder, built first if its cases changed. None while no case is finished.

    Cheap when nothing changed: it looks at four modification times.
    """
    stamp = _stamp(run)
    known = _known.get(run)
    if known and known[0] == stamp:
        return known[1]
    cache = _looked_up(run)
    if time.time_ns() - max(stamp[:2]) > SETTLED_NS:
        _known[run] = (stamp[:2] + _stamp(run)[2:], cache)
    else:
        _known.pop(run, None)
    return cache


def _stamp(run: Path) -> tuple[int, ...]:
    return tuple(_mtime(run / name) for name in ("run.json", "cases", "importance.parquet", "agreement.parquet"))


def _mtime(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _looked_up(run: Path) -> Cache | None:
    shares = read_json(run / "run.json").get("values") == "shares"
    fingerprint, names = _case_set(run / "cases", shares)
    if not names:
        return None
    files = run / "importance.parquet", run / "agreement.parquet"
    contents = [_content(path) for path in files]
    if contents[0] is not None and contents[0] == contents[1] and contents[0].fingerprint == fingerprint:
        return Cache(contents[0], *files)
    cache = _built(run / "cases", names, shares, fingerprint)
    return _stored(run, cache)


def _case_set(folder: Path, shares: bool) -> tuple[str, list[str]]:
    """A fingerprint of the finished cases, and their names, sorted. Hidden folders are being written or removed."""
    found = []
    if folder.is_dir():
        for entry in os.scandir(folder):
            if entry.name.startswith("."):
                continue
            try:
                status = (Path(entry.path) / "manifest.json").stat()
            except OSError:
                continue
            found.append((entry.name, status.st_mtime_ns, status.st_size))
    text = json.dumps([LAYOUT, shares, sorted(found)])
    return hashlib.sha256(text.encode()).hexdigest(), sorted(name for name, *_ in found)


def _content(path: Path) -> Content | None:
    """What a Parquet file says of itself, or None if it is missing, cut or another's."""
    try:
        stored = json.loads(pq.read_metadata(path).metadata[KEY])
        return Content(**stored | {name: tuple(stored[name]) for name in ("targets", "regions")})
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException):
        return None


# ---- building --------------------------------------------------------------------------------------


def _built(folder: Path, names: Iterable[str], shares: bool, fingerprint: str) -> Cache:
    """Both tables from the CSV files of every case that verifies."""
    importance, agreement, damaged = {}, {}, {}
    for name in names:
        try:
            importance[name], agreement[name] = _read_case(folder / name, SHARES if shares else SUMS)
        except (InputError, OSError, pa.ArrowException) as error:
            damaged[name] = " ".join(str(error).split())
    if damaged:
        told = "; ".join(f"{name}: {reason}" for name, reason in list(damaged.items())[:3])
        logging.warning("%s of run %s left out: %s", f"{len(damaged)} cases", folder.parent.name, told)
    table, cases = _joined(importance, SHARES if shares else SUMS)
    local, targets, regions = _sorted_sums(table, cases, shares)
    content = Content(fingerprint, len(importance), targets, regions, damaged)
    return Cache(content, local, _sorted_agreement(*_joined(agreement, AGREEMENT)))


def _read_case(folder: Path, columns: dict[str, Any]) -> tuple[pa.Table, pa.Table]:
    """Importance and agreement of one case. Errors say why it cannot be used."""
    problems = results.verify(folder, ("importance.csv", "agreement.csv"))
    files = (results.read_manifest(folder) or {}).get("files", {})
    if problems or "importance.csv" not in files:
        raise InputError("a finished case must be as its manifest says", ", ".join(problems) or "no importance.csv")
    importance = _read_csv(folder / "importance.csv", columns)
    scored = "agreement.csv" in files
    agreement = _read_csv(folder / "agreement.csv", AGREEMENT) if scored else _empty(AGREEMENT)
    return importance, agreement


def _read_csv(path: Path, columns: dict[str, Any]) -> pa.Table:
    """Rows of a CSV whose columns and types are known; empty fields are null."""
    convert = csv.ConvertOptions(
        column_types=columns, include_columns=list(columns), null_values=[""], strings_can_be_null=True
    )
    table = csv.read_csv(path, csv.ReadOptions(use_threads=False), convert_options=convert)
    for name, kind in columns.items():
        if kind == pa.float64() and not pc.all(pc.is_finite(table[name]), min_count=0).as_py():
            raise InputError("numbers must be finite", f"{path.name}, column {name}")
    if any(table[name].null_count for name in NAMES if name in columns):
        raise InputError("every row must name its organs", path.name)
    return table


def _empty(columns: dict[str, Any]) -> pa.Table:
    return pa.schema(columns).empty_table()


def _joined(tables: dict[str, pa.Table], columns: dict[str, Any]) -> tuple[pa.Table, pa.DictionaryArray]:
    """The cases' rows one after the other, and the case of each row."""
    counts = [table.num_rows for table in tables.values()]
    codes = np.repeat(np.arange(len(tables), dtype=np.int32), counts)
    cases = pa.DictionaryArray.from_arrays(codes, pa.array(list(tables), pa.string()))
    return pa.concat_tables([_empty(columns), *tables.values()]), cases


def _sorted_sums(
    table: pa.Table, cases: pa.DictionaryArray, shares: bool
) -> tuple[pa.Table, tuple[str, ...], tuple[str, ...]]:
    """Rows sorted by target, region and case, with the totals that masses are shares of; then the organs' names."""
    target, targets = pd.factorize(table["target"].to_numpy())
    region, regions = pd.factorize(table["region"].to_numpy())
    owner = cases.indices.to_numpy() * max(len(targets), 1) + target
    organ = table["region"].to_numpy() != BACKGROUND
    numbers = _share_columns(table, owner, organ) if shares else _sum_columns(table, owner, organ)
    named = {"target": (target, targets), "region": (region, regions)}
    columns = {
        name: pa.DictionaryArray.from_arrays(codes.astype(np.int32), pa.array(names, pa.string()))
        for name, (codes, names) in named.items()
    }
    order = np.lexsort((cases.indices.to_numpy(), region, target))
    rows = pa.table(columns | {"case_id": cases} | numbers).take(pa.array(order))
    return rows, tuple(map(str, targets)), tuple(map(str, regions))


def _sum_columns(table: pa.Table, owner: np.ndarray, organ: np.ndarray) -> dict[str, Any]:
    """Sums with, for each case and target, their totals over all regions and over all but the background."""
    columns: dict[str, Any] = {}
    for sign in ("positive", "negative"):
        sums = table[sign].to_numpy()
        columns[sign] = table[sign]
        columns[f"{sign}_total"] = _nullable(np.bincount(owner, sums)[owner])
        columns[f"{sign}_organs"] = _nullable(np.bincount(owner, np.where(organ, sums, 0))[owner])
    voxels = pc.fill_null(table["voxels"], 0)
    no_sums = pc.or_(pc.is_null(table["positive"]), pc.is_null(table["negative"]))
    reason = pc.if_else(pc.equal(voxels, 0), NO_REGION, pa.scalar(None, pa.string()))
    reason = pc.coalesce(table["absent"], pc.if_else(no_sums, NOT_PREDICTED, reason))
    return columns | {"voxels": voxels, "absent": reason}


def _share_columns(table: pa.Table, owner: np.ndarray, organ: np.ndarray) -> dict[str, Any]:
    """Imported shares with, for each case and target, their total over all regions but the background."""
    mass = table["mass"].to_numpy()
    stored = np.isfinite(mass)
    organs = np.bincount(owner, np.where(organ & stored, mass, 0))[owner]
    nothing = np.bincount(owner, stored)[owner] == 0
    reason = np.where(nothing, NOT_PREDICTED, NO_REGION)
    return {
        "mass": table["mass"],
        "mean": table["mean"],
        "organs": _nullable(organs),
        "absent": pa.array(reason, pa.string(), mask=stored),
    }


def _nullable(numbers: np.ndarray) -> pa.Array:
    return pa.array(numbers, pa.float64(), from_pandas=True)


def _sorted_agreement(table: pa.Table, cases: pa.DictionaryArray) -> pa.Table:
    order = np.lexsort((cases.indices.to_numpy(), pd.factorize(table["target"].to_numpy())[0]))
    return table.append_column("case_id", cases).take(pa.array(order))


# ---- storing ---------------------------------------------------------------------------------------


def _stored(run: Path, cache: Cache) -> Cache:
    """The cache on disk; as it is where the root cannot be written."""
    importance, agreement = run / "importance.parquet", run / "agreement.parquet"
    try:
        _write(importance, cache.importance, cache.content)
        _write(agreement, cache.agreement, cache.content)
    except OSError as error:
        logging.info("cache of run %s stays in memory: %s", run.name, error)
        return cache
    return replace(cache, importance=importance, agreement=agreement)


def _write(path: Path, table: pa.Table, content: Content) -> None:
    """Replace the file at once; of two processes that build, the last one wins with the same rows."""
    new = path.with_name(f".{path.name}.cache.{uuid.uuid4().hex}")
    schema = table.schema.with_metadata({KEY: json.dumps(asdict(content)).encode()})
    try:
        with new.open("wb") as file:
            with pq.ParquetWriter(file, schema) as writer:
                for part in _by_target(table):
                    writer.write_table(part, row_group_size=ROW_GROUP)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _by_target(table: pa.Table) -> list[pa.Table]:
    """The rows of each target: a row group holds one target, so that a query on one skips the others."""
    target = pd.factorize(table["target"].to_numpy())[0]
    edges = [0, *np.flatnonzero(np.diff(target)) + 1, len(target)]
    return [table.slice(start, end - start) for start, end in itertools.pairwise(edges)]
