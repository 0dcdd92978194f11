"""DuckDB in memory over the files of a data root: views to read, nothing to write.

The views are `cases`, `importance`, `importance_by_channel`, `agreement`, `ablation_agreement`, `runs`, `outliers` and
`lists`. The schema `store` holds what they are made of: a table of typed metadata for each cohort, a view of one run's
numbers for each run, the order of organs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import duckdb
import pandas as pd
import pyarrow as pa
from pyarrow import csv

from agg2exp_core.files import read_json
from agg2exp_core.organs import LabelSet, load_label_set
from agg2exp_core.records import InputError
from agg2exp_core.settings import ID
from agg2exp_core.store import parquet_cache, region_sets
from agg2exp_core.store.cohorts import COLUMNS, list_cohorts, read_cases
from agg2exp_core.store.held import Source
from agg2exp_core.store.lists import list_lists
from agg2exp_core.store.parquet_cache import Cache, Numbers

MOST_THREADS = 8
TAKEN = ("cohort", *COLUMNS, "dice", "explained", "rowid")
"""Columns of `queries.cases`, and what it orders them by; metadata of such a name gets a number behind it."""

PHI = {"abs": "({p} + {n})", "pos": "({p})", "neg": "({n})"}
"""φ of a sign in the positive sum {p} and the negative one {n}."""

SIGNED = """
    SELECT case_id, 'organs' AS region_set, target, region, '{sign}' AS sign,
        CASE WHEN voxels > 0 THEN {phi} / nullif({total}, 0) END AS mass,
        {phi} / nullif(voxels, 0) AS mean, voxels, absent,
        CASE WHEN voxels > 0 AND region <> 'background' THEN {phi} / nullif({organs}, 0) END AS organ_mass,
        CASE WHEN voxels > 0 AND '{sign}' = 'abs' THEN mass_se END AS mass_se,
        CASE WHEN voxels > 0 AND '{sign}' = 'abs' THEN organ_mass_se END AS organ_mass_se
    FROM {source}"""
SPLIT = """
    SELECT case_id, 'organs' AS region_set, target, region, '{sign}' AS sign,
        CASE WHEN voxels > 0 THEN {phi} / nullif({total}, 0) END AS mass,
        {phi} / nullif(voxels, 0) AS mean, voxels, absent,
        CASE WHEN voxels > 0 AND region <> 'background' THEN {phi} / nullif({organs}, 0) END AS organ_mass,
        CASE WHEN voxels > 0 AND '{sign}' = 'abs' THEN channel_mass_se END AS mass_se,
        NULL::DOUBLE AS organ_mass_se, coalesce(channel, '') AS channel
    FROM {source}"""
"""A row for each input channel. Shares are of the attribution on all regions and channels, so that they add up."""
WHOLE = "SELECT *, '' AS channel FROM {view}"
"""Attribution that is not split: all of it is that of one channel, which has no name."""
MASKED = """
    SELECT case_id, region_set, target, region, '{sign}' AS sign,
        CASE WHEN voxels > 0 THEN {phi} / nullif({total}, 0) END AS mass,
        {phi} / nullif(voxels, 0) AS mean, voxels, absent, NULL::DOUBLE AS organ_mass,
        NULL::DOUBLE AS mass_se, NULL::DOUBLE AS organ_mass_se
    FROM {source}"""
SHARED = """
    SELECT case_id, 'organs' AS region_set, target, region, 'abs' AS sign, mass, mean, NULL::BIGINT AS voxels, absent,
        CASE WHEN region <> 'background' THEN mass / nullif(organs, 0) END AS organ_mass,
        NULL::DOUBLE AS mass_se, NULL::DOUBLE AS organ_mass_se
    FROM {source}"""
NOTHING = """
    SELECT ''::VARCHAR AS case_id, '' AS region_set, '' AS target, '' AS region, 'abs' AS sign,
        0.0::DOUBLE AS mass, 0.0::DOUBLE AS mean, 0::BIGINT AS voxels, '' AS absent, 0.0::DOUBLE AS organ_mass,
        0.0::DOUBLE AS mass_se, 0.0::DOUBLE AS organ_mass_se
    WHERE false"""
RANK = """
            rank() OVER (PARTITION BY case_id, target ORDER BY {0}.mass)
            + (count(*) OVER (PARTITION BY case_id, target, {0}.mass) - 1) / 2 AS {0}"""
RANKED = f"""
    SELECT case_id, target, corr(own, taken) AS rho, count(*) AS regions FROM (
        SELECT case_id, target, {RANK.format("own")}, {RANK.format("taken")}
        FROM {{own}} AS own JOIN {{taken}} AS taken USING (case_id, target, region)
        WHERE own.sign = 'abs' AND taken.sign = 'abs' AND isfinite(own.mass) AND isfinite(taken.mass))
    GROUP BY case_id, target HAVING count(*) >= 5 AND isfinite(corr(own, taken))"""
"""Spearman's ρ: the correlation of ranks, of which equal values share the mean."""
NO_RANKS = "SELECT '' AS ablation, '' AS case_id, '' AS target, 0.0::DOUBLE AS rho, 0::BIGINT AS regions WHERE false"
NO_AGREEMENT = "SELECT '' AS case_id, '' AS target, 0.0::DOUBLE AS dice, 0.0::DOUBLE AS iou WHERE false"

RUN_COLUMNS = {
    **dict.fromkeys(("cohort", "run", "model", "method", "parameters", "label_set", "values"), pa.string()),
    "model_hash": pa.string(), "cases": pa.int64(), "listed": pa.int64(), "damaged": pa.int64(),
}  # fmt: skip
ORGAN_COLUMNS = {
    "cohort": pa.string(), "run": pa.string(), "name": pa.string(), "target": pa.bool_(), "position": pa.int64(),
    "joined": pa.string(),
}  # fmt: skip
CHANNEL_COLUMNS = {"cohort": pa.string(), "run": pa.string(), "channel": pa.string(), "position": pa.int64()}
LIST_COLUMNS = {"cohort": pa.string(), "list": pa.string(), "case_id": pa.string()}
OUTLIER_COLUMNS = {
    "case_id": pa.string(), "target": pa.string(), "detector": pa.string(), "score": pa.float64(),
    "flagged": pa.bool_(),
}  # fmt: skip


_read: WeakKeyDictionary[duckdb.DuckDBPyConnection, list[Source]] = WeakKeyDictionary()
"""The caches that a connection reads: a run that grows replaces them meanwhile."""


def refresh(root: Path) -> str:
    """A fingerprint that changes when cohorts, cases, runs, outliers or lists change.

    Stale Parquet caches are built first.
    """
    root = root.resolve()
    seen: list[Any] = [_status(path) for path in sorted((root / "label_sets").glob("*.csv"))]
    seen += [_status(path) for path in sorted((root / "lists").glob("*.json"))]
    seen += [(cohort, _status(root / "cohorts" / cohort / "cases.csv")) for cohort in list_cohorts(root)]
    for folder in _run_folders(root):
        cache = parquet_cache.current(folder)
        files = [_status(folder / name) for name in ("run.json", "outliers.csv")]
        files += [_status(path) for path in region_sets.folders(folder)]
        seen.append((folder.parent.name, folder.name, files, cache.content.fingerprint if cache else ""))
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def connect(root: Path) -> duckdb.DuckDBPyConnection:
    """A connection with the views, which reads caches of this root and no other file, and cannot be reconfigured.

    Keep it as long as its cursors: it holds what they read.
    """
    root = root.resolve()
    con = duckdb.connect()
    _set_limits(con)
    con.execute("CREATE SCHEMA store")
    caches = _add_runs(con, root, _add_cohorts(con, root))
    _add_outliers(con, root)
    _add_lists(con, root)
    _lock(con, [cache.path for cache in caches])
    _read[con] = caches
    return con


def finite_number(text: str) -> float | None:
    """The number that a text is, or None if it is none or not finite. Python's `1_000` is a text."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def cohort_table(cohort: str) -> str:
    """The table of one cohort's cases, in the order of its list: case_id, image, label and typed metadata."""
    return _internal("cases", cohort)


def run_view(cohort: str, run: str) -> str:
    """The view of one run's importance; `agreement_view` is that of its agreement."""
    return _internal("importance", cohort, run)


def channel_view(cohort: str, run: str) -> str:
    """The view of one run's importance on the organs, a row for each input channel that it is split among."""
    return _internal("channels", cohort, run)


def region_view(cohort: str, run: str) -> str:
    """The view of one run's importance on masked regions: its region sets but the organs."""
    return _internal("regions", cohort, run)


def agreement_view(cohort: str, run: str) -> str:
    """The view of one run's agreement: case_id, target, dice, iou."""
    return _internal("agreement", cohort, run)


def _internal(kind: str, *names: str) -> str:
    """What the store keeps under these names, in hexadecimal: SQL's own names know no case, folders' names do."""
    return f"store.{quoted('/'.join([kind, *(name.encode().hex() for name in names)]))}"


# ---- settings --------------------------------------------------------------------------------------


def _set_limits(con: duckdb.DuckDBPyConnection) -> None:
    threads = min(MOST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
    con.execute(f"SET threads = {threads}")
    con.execute("SET memory_limit = '50%'")
    con.execute("SET temp_directory = ''")  # nothing is written, not even what does not fit the memory


def _lock(con: duckdb.DuckDBPyConnection, caches: list[Path]) -> None:
    """Leave nothing but the views: no other file, no extension, no Python variable, no setting."""
    names = dict.fromkeys(name for path in caches for name in (str(path), _unglobbed(str(path))))
    con.execute(f"SET allowed_paths = [{', '.join(map(_literal, names))}]")
    con.execute("SET python_enable_replacements = false")
    con.execute("SET autoinstall_known_extensions = false")
    con.execute("SET autoload_known_extensions = false")
    con.execute("SET enable_external_access = false")
    con.execute("SET lock_configuration = true")


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _unglobbed(path: str) -> str:
    """The path with what DuckDB takes for wildcards in brackets, so that it names itself alone."""
    return "".join(f"[{sign}]" if sign in "[*?" else sign for sign in path)


def _insert(con: duckdb.DuckDBPyConnection, name: str, table: pa.Table) -> None:
    con.register("incoming", table)
    con.execute(f"CREATE TABLE {name} AS SELECT * FROM incoming")
    con.unregister("incoming")


def _status(path: Path) -> list[Any]:
    try:
        status = path.stat()
    except OSError:
        return [path.name]
    return [path.name, status.st_mtime_ns, status.st_size]


# ---- cohorts ---------------------------------------------------------------------------------------


def _add_cohorts(con: duckdb.DuckDBPyConnection, root: Path) -> dict[str, set[str]]:
    """The tables and the view of cases. Returns the ids in each cohort's list."""
    texts = {}
    for cohort in list_cohorts(root):
        try:
            texts[cohort] = _named(read_cases(root, cohort))
        except InputError as error:
            logging.warning("cohort %s left out: %s", cohort, error)
    for cohort, table in texts.items():
        _insert(con, cohort_table(cohort), _typed(table, [name for name in table if _is_numeric(table[name])]))
    counts = {"cohort": list(texts), "cases": [len(table) for table in texts.values()]}
    _insert(con, "store.cohorts", pa.table(counts, pa.schema({"cohort": pa.string(), "cases": pa.int64()})))
    _insert(con, "store.cases", _union(texts))
    con.execute("CREATE VIEW cases AS FROM store.cases")
    return {cohort: set(table["case_id"]) for cohort, table in texts.items()}


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """Metadata columns with names that SQL, which knows no case, can tell apart from each other and from TAKEN."""
    taken = set(TAKEN)
    names = {}
    for name in table.columns.drop(list(COLUMNS)):
        new, number = name or "column", 1
        while new.casefold() in taken:
            number += 1
            new = f"{name}_{number}"
        taken.add(new.casefold())
        names[name] = new
    return table[[*COLUMNS, *names]].rename(columns=names)


def _is_numeric(texts: pd.Series) -> bool:
    """Whether every text that is not empty is a finite number, and there is one."""
    given = [text for text in texts if text]
    return texts.name not in COLUMNS and bool(given) and all(finite_number(text) is not None for text in given)


def _typed(table: pd.DataFrame, numeric: list[Any]) -> pa.Table:
    """Text columns and numeric ones; empty is null."""
    columns = {}
    for name in table:
        values = [text if isinstance(text, str) and text else None for text in table[name]]
        numbers = [None if text is None else finite_number(text) for text in values] if name in numeric else None
        columns[str(name)] = pa.array(values, pa.string()) if numbers is None else pa.array(numbers, pa.float64())
    return pa.table(columns)


def _union(texts: dict[str, pd.DataFrame]) -> pa.Table:
    """All cohorts by column name. A column is numeric if it is so in every cohort that fills it."""
    first: dict[str, str] = {}
    spelled = []
    for cohort, table in texts.items():
        names = {name: first.setdefault(str(name).casefold(), str(name)) for name in table}
        spelled.append(table.rename(columns=names).assign(cohort=cohort))
    columns = ["cohort", *COLUMNS, *(name for name in first.values() if name not in COLUMNS)]
    joined = pd.concat([pd.DataFrame(columns=columns, dtype=object), *spelled]).reindex(columns=columns)
    numeric = [name for name in columns[4:] if _is_numeric(joined[name].dropna())]
    return _typed(joined, numeric)


# ---- runs ------------------------------------------------------------------------------------------


def _run_folders(root: Path) -> Iterator[Path]:
    """Folders of runs with a readable run.json, in order."""
    for path in sorted((root / "runs").glob("*/*/run.json")):
        folder = path.parent
        if not all(map(ID.fullmatch, folder.parts[-2:])):
            continue
        info = read_json(path)
        # One run must not cost the others their views.
        if info and isinstance(info.get("parameters") or {}, dict):
            yield folder
        else:
            _say_left_out(folder)


@lru_cache(maxsize=1000)
def _say_left_out(run: Path) -> None:
    """Once: a dashboard looks at the files every two seconds."""
    logging.warning("run %s of cohort %s left out: its run.json is damaged", run.name, run.parent.name)


def _add_runs(con: duckdb.DuckDBPyConnection, root: Path, listed: dict[str, set[str]]) -> list[Source]:
    """The views of all runs. Returns the files that they read."""
    rows, organs, places, masked, infos, files = [], [], [], [], [], []
    channels: list[dict[str, Any]] = []
    for folder in _run_folders(root):
        place, info = (folder.parent.name, folder.name), read_json(folder / "run.json")
        cache = parquet_cache.current(folder)
        _add_run(con, place, cache, info.get("values") == "shares")
        parts = (cache.importance, cache.agreement, cache.by_channel) if cache else ()
        files += [part for part in parts if isinstance(part, Source)]
        for position, name in enumerate(_named_channels(info, cache)):
            channels.append({"cohort": place[0], "run": place[1], "channel": name, "position": position})
        masked += [place] if _add_regions(con, place, folder) else []
        rows.append(_run_row(place, info, cache, listed.get(place[0], set())))
        organs += _organ_rows(place, info, cache, root)
        places.append(place)
        infos.append((place, info))
    _insert(con, "store.runs", pa.Table.from_pylist(rows, pa.schema(RUN_COLUMNS)))
    _insert(con, "store.organs", pa.Table.from_pylist(organs, pa.schema(ORGAN_COLUMNS)))
    _insert(con, "store.channels", pa.Table.from_pylist(channels, pa.schema(CHANNEL_COLUMNS)))
    con.execute("CREATE VIEW runs AS FROM store.runs")
    local = "case_id, region_set, target, region, sign, mass, mean, voxels, absent, organ_mass, mass_se, organ_mass_se"
    views = [(place, run_view(*place)) for place in places] + [(place, region_view(*place)) for place in masked]
    _add_view(con, "importance", local, views, NOTHING)
    split = [(place, channel_view(*place)) for place in places]
    split += [(place, f"({WHOLE.format(view=region_view(*place))})") for place in masked]
    _add_view(con, "importance_by_channel", f"{local}, channel", split, WHOLE.format(view=f"({NOTHING})"))
    scores = [(place, agreement_view(*place)) for place in places]
    _add_view(con, "agreement", "case_id, target, dice, iou", scores, NO_AGREEMENT)
    _add_ablations(con, infos)
    return files


def _named_channels(info: dict[str, Any], cache: Cache | None) -> list[str]:
    """Channels that a run's attribution is split among, in the model's order."""
    stored, told = cache.content.channels if cache else (), info.get("channels")
    ordered = [name for name in told if name in stored] if isinstance(told, list) else []
    return [*ordered, *(name for name in stored if name not in ordered)]


def _add_ablations(con: duckdb.DuckDBPyConnection, runs: list[tuple[tuple[str, str], dict[str, Any]]]) -> None:
    """The view that compares each run with those that took organs away from the same model under the same mask."""
    views = []
    for own, info in runs:
        for taken, other in runs:
            methods = info.get("method"), other.get("method")
            alike = all(_asked(info)) and (own[0], _asked(info)) == (taken[0], _asked(other))
            if alike and methods[0] not in (None, "ablation") and methods[1] == "ablation":
                ranks = RANKED.format(own=run_view(*own), taken=run_view(*taken))
                views.append((own, f"(SELECT {_literal(taken[1])} AS ablation, * FROM ({ranks}))"))
    _add_view(con, "ablation_agreement", "ablation, case_id, target, rho, regions", views, NO_RANKS)


def _asked(info: dict[str, Any]) -> tuple[str, str]:
    """Which network, and which of its voxels."""
    return str(info.get("model_hash") or ""), str((info.get("parameters") or {}).get("mask", "prediction"))


def _add_view(
    con: duckdb.DuckDBPyConnection, name: str, columns: str, runs: list[tuple[tuple[str, str], str]], empty: str
) -> None:
    """A public view: the runs one after the other, each row with its cohort and run."""
    parts = [
        f"SELECT {_literal(cohort)} AS cohort, {_literal(run)} AS run, {columns} FROM {view}"
        for (cohort, run), view in runs
    ]
    nothing = f"SELECT '' AS cohort, '' AS run, {columns} FROM ({empty})"
    con.execute(f"CREATE VIEW {name} AS {' UNION ALL '.join(parts or [nothing])}")


def _add_run(con: duckdb.DuckDBPyConnection, place: tuple[str, str], cache: Cache | None, shares: bool) -> None:
    if cache is None:
        con.execute(f"CREATE VIEW {run_view(*place)} AS {NOTHING}")
        con.execute(f"CREATE VIEW {channel_view(*place)} AS {WHOLE.format(view=run_view(*place))}")
        con.execute(f"CREATE VIEW {agreement_view(*place)} AS {NO_AGREEMENT}")
        return
    source = _source(con, _internal("rows/importance", *place), cache.importance)
    con.execute(
        f"CREATE VIEW {run_view(*place)} AS {SHARED.format(source=source) if shares else _signed(SIGNED, source)}"
    )
    split = WHOLE.format(view=run_view(*place))
    if cache.by_channel is not None:
        split = _signed(SPLIT, _source(con, _internal("rows/channels", *place), cache.by_channel))
    con.execute(f"CREATE VIEW {channel_view(*place)} AS {split}")
    source = _source(con, _internal("rows/agreement", *place), cache.agreement)
    con.execute(f"CREATE VIEW {agreement_view(*place)} AS SELECT case_id, target, dice, iou FROM {source}")


def _add_regions(con: duckdb.DuckDBPyConnection, place: tuple[str, str], folder: Path) -> bool:
    """The view of a run's masked regions, and whether there are any."""
    table = region_sets.read(folder)
    if len(table):
        source = _source(con, _internal("rows/regions", *place), table)
        con.execute(f"CREATE VIEW {region_view(*place)} AS {_signed(MASKED, source)}")
    else:
        con.execute(f"CREATE VIEW {region_view(*place)} AS {NOTHING}")
    return len(table) > 0


def _signed(template: str, source: str) -> str:
    """The three signs of a run's sums. Constant signs: a query for one leaves the others out before it reads."""
    parts = []
    for sign, phi in PHI.items():
        total, organs = (phi.format(p=f"positive_{over}", n=f"negative_{over}") for over in ("total", "organs"))
        own = phi.format(p="positive", n="negative")
        parts.append(template.format(sign=sign, phi=own, total=total, organs=organs, source=source))
    return " UNION ALL ".join(parts)


def _source(con: duckdb.DuckDBPyConnection, table: str, numbers: Numbers) -> str:
    """What to select from: the Parquet file, or the table, made of the rows in memory."""
    if isinstance(numbers, Source):
        return f"read_parquet({_literal(_unglobbed(str(numbers.path)))})"
    plain = [
        pa.field(column.name, pa.string() if pa.types.is_dictionary(column.type) else column.type)
        for column in numbers.schema
    ]
    _insert(con, table, numbers.cast(pa.schema(plain)))
    return table


def _run_row(place: tuple[str, str], info: dict[str, Any], cache: Cache | None, listed: set[str]) -> dict[str, Any]:
    sound = cache.content.seen.keys() - cache.content.damaged.keys() if cache else set()
    told = {name: None if info.get(name) is None else str(info[name]) for name in RUN_COLUMNS}
    return told | {
        "cohort": place[0],
        "run": place[1],
        "parameters": json.dumps(info.get("parameters") or {}),
        "values": "shares" if info.get("values") == "shares" else "sums",
        "cases": len(sound),
        "listed": len(sound & listed),
        "damaged": len(cache.content.damaged) if cache else 0,
    }


def _organ_rows(place: tuple[str, str], info: dict[str, Any], cache: Cache | None, root: Path) -> list[dict[str, Any]]:
    """Targets and regions of a run, in the order of its label set; names that it does not know come after.

    Those keep the order of the regions, which is that of the model's classes; one target alone would come before it.
    joined: what a region is a part of, or its own name.
    """
    if cache is None:
        return []
    try:
        labels = load_label_set(str(info.get("label_set") or ""), root)
    except InputError:
        labels = LabelSet("", ())
    content, ordered = cache.content, labels.names
    stored = dict.fromkeys((*content.regions, *content.targets))
    names = [*(name for name in ordered if name in stored), *(name for name in stored if name not in ordered)]
    return [
        {
            "cohort": place[0],
            "run": place[1],
            "name": name,
            "target": name in content.targets,
            "position": position,
            "joined": labels.joins.get(name, name),
        }
        for position, name in enumerate(names)
    ]


# ---- outliers --------------------------------------------------------------------------------------


def _add_outliers(con: duckdb.DuckDBPyConnection, root: Path) -> None:
    schema = pa.schema({"cohort": pa.string(), "run": pa.string(), **OUTLIER_COLUMNS})
    tables = [schema.empty_table()]
    for folder in _run_folders(root):
        path = folder / "outliers.csv"
        if path.is_file():
            try:
                rows = read_outliers(path)
            except (OSError, pa.ArrowException, InputError) as error:
                logging.warning("outliers of run %s left out: %s", folder.name, " ".join(str(error).split()))
                continue
            place = [pa.array([name] * len(rows), pa.string()) for name in (folder.parent.name, folder.name)]
            tables.append(pa.Table.from_arrays([*place, *rows.columns], schema=schema))
    _insert(con, "store.outliers", pa.concat_tables(tables))
    con.execute("CREATE VIEW outliers AS FROM store.outliers")


def read_outliers(path: Path) -> pa.Table:
    """Rows of an outliers.csv. OSError, ArrowException or InputError where it is none."""
    convert = csv.ConvertOptions(column_types=OUTLIER_COLUMNS, null_values=[""])
    table = csv.read_csv(path, convert_options=convert)
    if table.column_names != list(OUTLIER_COLUMNS):
        raise InputError("outliers.csv needs its columns", ",".join(table.column_names), ",".join(OUTLIER_COLUMNS))
    return table


# ---- lists -----------------------------------------------------------------------------------------


def _add_lists(con: duckdb.DuckDBPyConnection, root: Path) -> None:
    rows = [
        {"cohort": saved.cohort, "list": saved.name, "case_id": case_id}
        for saved in list_lists(root)
        for case_id in saved.cases
    ]
    _insert(con, "store.lists", pa.Table.from_pylist(rows, pa.schema(LIST_COLUMNS)))
    con.execute("CREATE VIEW lists AS FROM store.lists")
