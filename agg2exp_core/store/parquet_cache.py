"""A run's numbers as Parquet beside it: importance.parquet and agreement.parquet, made again when its cases change.

Where attribution is split among input channels, importance.parquet holds the sums over them, which is what the view
`importance` tells, and importance_by_channel.parquet a row for each.
The CSV files of the cases are the truth. A cache that is missing, stale or not as its <name>.sha256 says is built from
them; where it cannot be written, the tables stay in memory. What is read is a copy in memory, made and verified once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from agg2exp_core.files import read_json, state, write_text
from agg2exp_core.organs import BACKGROUND
from agg2exp_core.records import InputError
from agg2exp_core.store import results
from agg2exp_core.store.held import Source, held
from agg2exp_core.volumes import sha256

LAYOUT = 4
"""Raised when the columns below change, so that older caches are built again."""

KEY = b"agg2exp"
ROW_GROUP = 1 << 20
SETTLED_NS = 1_000_000_000
"""Age of a folder's mtime from which a later change surely moves it; clocks of filesystems tick coarsely."""

NOT_PREDICTED, NO_REGION = "not predicted", "region not predicted"
NAMES = {"target": pa.string(), "region": pa.string()}
ERRORS = ("mass_se", "organ_mass_se")
"""Which older files do not have."""
CHANNELS = {"channel": pa.string(), "channel_mass_se": pa.float64()}
"""Which files have where attribution is split among input channels."""
SUMS = NAMES | {
    **dict.fromkeys(("positive", "negative"), pa.float64()),
    **{"voxels": pa.int64(), "absent": pa.string()},
    **dict.fromkeys(ERRORS, pa.float64()),
    **CHANNELS,
}
SHARES = NAMES | {"mass": pa.float64(), "mean": pa.float64()}
AGREEMENT = {"target": pa.string(), "dice": pa.float64(), "iou": pa.float64()}

UNREADABLE = (InputError, OSError, pa.ArrowException)

Numbers: TypeAlias = Source | pa.Table
"""A Parquet file, or its rows where none can be written."""


@dataclass(frozen=True)
class Content:
    """What a cache holds. targets, regions: in the order of the files. damaged: case → why it is left out.

    kind: layout and whether it holds shares. seen: finished case → modification time (ns) and size of its manifest.
    channels: of the input, where attribution is split among several.
    """

    kind: list[int]
    seen: dict[str, list[int]]
    targets: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    damaged: dict[str, str] = field(default_factory=dict)
    channels: tuple[str, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """Equal for equal sets of cases."""
        return hashlib.sha256(json.dumps([self.kind, self.seen, self.damaged]).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Cache:
    """One run's numbers, and what is in them. by_channel: importance with a row for each channel, if there are any."""

    content: Content
    importance: Numbers
    agreement: Numbers
    by_channel: Numbers | None = None


@dataclass(frozen=True, eq=False)
class Kept:
    """Rows of an older cache whose cases have not changed: columns of the CSV files, and case_id."""

    cases: frozenset[str]
    importance: pa.Table
    agreement: pa.Table


_known: dict[Path, tuple[tuple[int, ...], Cache | None]] = {}
_verified: dict[Path, tuple[tuple[int, ...], str, Source]] = {}
"""Parquet file → its state and SHA-256 when it was read, and what was: it is read once while these stay."""


def current(run: Path) -> Cache | None:
    """The cache of a run's folder, built first if its cases changed. None while no case is finished.

    Cheap when nothing changed: it looks at four modification times, and at those of cases that are left out.
    """
    known = _known.get(run)
    stamp = _stamp(run, known[1] if known else None)
    if known and known[0] == stamp:
        return known[1]
    cache = _looked_up(run)
    if time.time_ns() - max(stamp[:2]) > SETTLED_NS:
        _known[run] = (stamp[:2] + _stamp(run, cache)[2:], cache)
    else:
        _known.pop(run, None)
    return cache


def rebuild(run: Path) -> None:
    """Build a run's cache from its cases alone, in the place of the one that others may be reading."""
    _known.pop(run, None)
    if seen := _finished(run / "cases"):
        _stored(run, _built(run / "cases", seen, _holds_shares(run), None))


def _holds_shares(run: Path) -> bool:
    return read_json(run / "run.json").get("values") == "shares"


def _stamp(run: Path, cache: Cache | None) -> tuple[int, ...]:
    files = [run / name for name in ("run.json", "cases", *(path.name for path in _files(run)))]
    left_out = cache.content.damaged if cache is not None else ()
    perhaps_mended = [run / "cases" / case / name for case in left_out for name in ("importance.csv", "agreement.csv")]
    return (*map(_mtime, files), *map(_touched, perhaps_mended))


def _touched(path: Path) -> int:
    """When content or rights last changed."""
    try:
        return path.stat().st_ctime_ns
    except OSError:
        return 0


def _mtime(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _files(run: Path) -> tuple[Path, Path, Path]:
    """Of importance, agreement and importance by channel."""
    importance, agreement = run / "importance.parquet", run / "agreement.parquet"
    return importance, agreement, run / "importance_by_channel.parquet"


def _looked_up(run: Path) -> Cache | None:
    shares = _holds_shares(run)
    seen = _finished(run / "cases")
    if not seen:
        return None
    opened = [_opened(path) for path in _files(run)]
    old = [content for content, _ in opened]
    alike = old[0] == old[1] and (old[0] is None or not old[0].channels or old[0] == old[2])
    known = old[0] if alike and old[0] is not None and old[0].kind == [LAYOUT, shares] else None
    if known is not None and known.seen == seen and not _any_mended(run / "cases", known, shares):
        importance, agreement, by_channel = (source for _, source in opened)
        return Cache(known, importance, agreement, by_channel if known.channels else None)
    kept = _kept([source.path for _, source in opened], known, seen) if known is not None else None
    return _stored(run, _built(run / "cases", seen, shares, kept))


def _finished(folder: Path) -> dict[str, list[int]]:
    """`Content.seen` of the folder, sorted by name. Hidden folders are being written or removed."""
    found = {}
    if folder.is_dir():
        for entry in os.scandir(folder):
            if entry.name.startswith("."):
                continue
            try:
                status = (Path(entry.path) / "manifest.json").stat()
            except OSError:
                continue
            found[entry.name] = [status.st_mtime_ns, status.st_size]
    return dict(sorted(found.items()))


def _opened(path: Path) -> tuple[Content | None, Source]:
    """What a Parquet file says of itself, and where to read it; None if it is missing, damaged or another's."""
    try:
        now, told = state(path), _sum_file(path).read_text().split(maxsplit=1)[0]
        if _verified.get(path, ((), ""))[:2] != (now, told):
            source = held(path)
            if sha256(source.path) != told:
                return None, source
            _verified[path] = now, told, source
        source = _verified[path][2]
        stored = json.loads(pq.read_metadata(source.path).metadata[KEY])
        names = {name: tuple(stored.get(name, ())) for name in ("targets", "regions", "channels")}
        return Content(**stored | names), source
    except (OSError, ValueError, TypeError, LookupError, pa.ArrowException):
        return None, Source(path)


def _sum_file(path: Path) -> Path:
    """Where a cache's SHA-256 stands, as `sha256sum` writes it: no reader of Parquet here notices a flipped bit."""
    return path.with_name(f"{path.name}.sha256")


# ---- building --------------------------------------------------------------------------------------


def _kept(files: list[Path], known: Content, seen: dict[str, list[int]]) -> Kept | None:
    """What an older cache holds of cases that have not changed since: a growing run is not read again and again."""
    names = [name for name, status in known.seen.items() if seen.get(name) == status and name not in known.damaged]
    sources = (files[2] if known.channels else files[0], _columns(known.kind[1])), (files[1], AGREEMENT)
    try:
        importance, agreement = (_of_cases(_stored_rows(path, kinds), names, kinds) for path, kinds in sources)
    except (OSError, pa.ArrowException):
        return None
    return Kept(frozenset(names), importance, agreement)


def _stored_rows(path: Path, columns: dict[str, Any]) -> pa.Table:
    """The columns of the CSV files and case_id; empty ones for channels where attribution is not split."""
    there = [name for name in columns if name not in CHANNELS or name in pq.read_schema(path).names]
    return _completed(pq.read_table(path, columns=[*there, "case_id"]), columns).select([*columns, "case_id"])


def _completed(table: pa.Table, columns: dict[str, Any]) -> pa.Table:
    """With empty columns in the place of those that a file need not have."""
    for name, kind in columns.items():
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), kind))
    return table


def _of_cases(table: pa.Table, names: list[str], columns: dict[str, Any]) -> pa.Table:
    rows = table.filter(pc.is_in(table["case_id"], pa.array(names, pa.string())))
    return rows.cast(pa.schema({**columns, "case_id": pa.string()}))


def _built(folder: Path, seen: dict[str, list[int]], shares: bool, kept: Kept | None) -> Cache:
    """Both tables, from what is kept and from the CSV files of every other case that verifies."""
    columns = _columns(shares)
    kept = kept or Kept(frozenset(), _empty(columns), _empty(AGREEMENT))
    importance, agreement, damaged = [kept.importance], [kept.agreement], {}
    for name in seen:
        if name not in kept.cases:
            try:
                tables = _read_case(folder / name, columns)
            except UNREADABLE as error:
                damaged[name] = " ".join(str(error).split())
            else:
                importance.append(tables[0])
                agreement.append(tables[1])
    _tell(damaged, folder.parent.name)
    table, by_channel = pa.concat_tables(importance), None
    channels: tuple[str, ...] = ()
    if not shares and table["channel"].null_count < len(table):
        channels = tuple(name for name in pc.unique(table["channel"]).to_pylist() if name is not None)
        by_channel, table = _sorted_sums(table, shares)[0], _over_channels(table)
    rows, targets, regions = _sorted_sums(table.drop_columns([*CHANNELS]) if not shares else table, shares)
    content = Content([LAYOUT, shares], seen, targets, regions, damaged, channels)
    return Cache(content, rows, _sorted_agreement(pa.concat_tables(agreement)), by_channel)


def _tell(damaged: dict[str, str], run: str) -> None:
    if damaged:
        some = "; ".join(f"{name}: {reason}" for name, reason in list(damaged.items())[:3])
        logging.warning("run %s: damaged cases left out, %d of them: %s", run, len(damaged), some)


def _any_mended(folder: Path, known: Content, shares: bool) -> bool:
    """Whether a case that could not be read now can: its file is back, or what was wrong has passed."""
    for name in known.damaged:
        with suppress(*UNREADABLE):
            _read_case(folder / name, _columns(shares))
            return True
    return False


def _columns(shares: int) -> dict[str, Any]:
    return SHARES if shares else SUMS


def _read_case(folder: Path, columns: dict[str, Any]) -> tuple[pa.Table, pa.Table]:
    """Importance and agreement of one case. Errors say why it cannot be used."""
    problems = results.verify(folder, ("importance.csv", "agreement.csv"))
    files = (results.read_manifest(folder) or {}).get("files", {})
    if problems or "importance.csv" not in files:
        raise InputError("a finished case must be as its manifest says", ", ".join(problems) or "no importance.csv")
    importance = read_numbers(folder / "importance.csv", columns)
    scored = "agreement.csv" in files
    agreement = read_numbers(folder / "agreement.csv", AGREEMENT) if scored else pa.schema(AGREEMENT).empty_table()
    return _of_case(importance, folder.name), _of_case(agreement, folder.name)


def read_numbers(path: Path, columns: dict[str, Any]) -> pa.Table:
    """Rows of a CSV whose columns and types are known; empty fields are null."""
    content = path.read_bytes()
    header = content.partition(b"\n")[0].decode(errors="replace").split(",")
    there = [name for name in columns if name not in (*ERRORS, *CHANNELS) or name in header]
    convert = csv.ConvertOptions(
        column_types=columns, include_columns=there, null_values=[""], strings_can_be_null=True
    )
    # From memory: given a path, or told to use one thread, Arrow took ten times as long for a small file.
    table = _completed(csv.read_csv(pa.BufferReader(content), convert_options=convert), columns).select([*columns])
    for name, kind in columns.items():
        if kind == pa.float64() and not pc.all(pc.is_finite(table[name]), min_count=0).as_py():
            raise InputError("numbers must be finite", f"{path.name}, column {name}")
    if any(table[name].null_count for name in NAMES if name in columns):
        raise InputError("every row must name its organs", path.name)
    return table


def _empty(columns: dict[str, Any]) -> pa.Table:
    return pa.schema({**columns, "case_id": pa.string()}).empty_table()


def _of_case(table: pa.Table, name: str) -> pa.Table:
    return table.append_column("case_id", pa.array([name] * table.num_rows, pa.string()))


def _sorted_sums(table: pa.Table, shares: bool) -> tuple[pa.Table, tuple[str, ...], tuple[str, ...]]:
    """Rows sorted by target, region and case, with the totals that masses are shares of; then the organs' names."""
    target, region, case = _coded(table, "target"), _coded(table, "region"), _coded(table, "case_id", ordered=True)
    targets, regions = (tuple(codes.dictionary.to_pylist()) for codes in (target, region))
    owner = case.indices.to_numpy() * max(len(targets), 1) + target.indices.to_numpy()
    organ = pc.not_equal(table["region"], BACKGROUND).to_numpy()
    numbers = _share_columns(table, owner, organ) if shares else _sum_columns(table, owner, organ)
    keys = [case, region, target]
    if "channel" in table.column_names and not shares:
        channel = _coded(table, "channel")
        numbers |= {"channel": channel, "channel_mass_se": table["channel_mass_se"]}
        keys.insert(0, channel)
    order = np.lexsort([codes.indices.to_numpy() for codes in keys])
    rows = pa.table({"target": target, "region": region, "case_id": case, **numbers}).take(pa.array(order))
    return rows, targets, regions


def _over_channels(table: pa.Table) -> pa.Table:
    """One row for each case, target and region: sums over the channels; all else is the same in each of them."""
    keys = ["target", "region", "case_id"]
    summed = [(name, "sum", pc.ScalarAggregateOptions(min_count=1)) for name in ("positive", "negative")]
    alike = [(name, "first") for name in table.column_names if name not in (*keys, "positive", "negative")]
    # In one thread: rows keep their order, and sums their bits.
    found = table.group_by(keys, use_threads=False).aggregate([*summed, *alike])
    plain = found.rename_columns([re.sub("_(sum|first)$", "", name) for name in found.column_names])
    return plain.select(table.column_names)


def _coded(table: pa.Table, column: str, ordered: bool = False) -> pa.DictionaryArray:
    """A column of names as codes, in the order of appearance or of the names."""
    encoded = table[column].combine_chunks().dictionary_encode()
    if not ordered:
        return encoded
    order = pc.sort_indices(encoded.dictionary)
    places = np.argsort(order.to_numpy()).astype(np.int32)
    return pa.DictionaryArray.from_arrays(places[encoded.indices.to_numpy()], encoded.dictionary.take(order))


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
    return columns | {"voxels": voxels, "absent": reason, **{name: table[name] for name in ERRORS}}


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


def _sorted_agreement(table: pa.Table) -> pa.Table:
    target, case = _coded(table, "target"), _coded(table, "case_id", ordered=True)
    order = np.lexsort([codes.indices.to_numpy() for codes in (case, target)])
    rows = {"target": target, "case_id": case, "dice": table["dice"], "iou": table["iou"]}
    return pa.table(rows).take(pa.array(order))


# ---- storing ---------------------------------------------------------------------------------------


def _stored(run: Path, cache: Cache) -> Cache:
    """The cache as it can be read from the disk; as it is where the root cannot be written."""
    importance, agreement, by_channel = _files(run)
    try:
        if cache.by_channel is not None:
            _write(by_channel, cache.by_channel, cache.content)
        _write(importance, cache.importance, cache.content)
        _write(agreement, cache.agreement, cache.content)
    except OSError as error:
        logging.info("cache of run %s stays in memory: %s", run.name, error)
        return cache
    opened = [_opened(path) for path in _files(run)]
    if any(found != cache.content for found, _ in opened[: 2 if cache.by_channel is None else 3]):
        return cache  # another process has written meanwhile
    split = None if cache.by_channel is None else opened[2][1]
    return replace(cache, importance=opened[0][1], agreement=opened[1][1], by_channel=split)


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
        digest = sha256(new)
        new.replace(path)
        write_text(_sum_file(path), f"{digest}  {path.name}\n")
    finally:
        new.unlink(missing_ok=True)


def _by_target(table: pa.Table) -> list[pa.Table]:
    """The rows of each target: a row group holds one target, so that a query on one skips the others."""
    target = table["target"].combine_chunks().indices.to_numpy()
    edges = [0, *np.flatnonzero(np.diff(target)) + 1, len(target)]
    return [table.slice(start, end - start) for start, end in itertools.pairwise(edges)]
