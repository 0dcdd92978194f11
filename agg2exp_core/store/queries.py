"""Every SELECT of the dashboard: small functions of a connection of `catalog.connect`.

Values are bound parameters. Names of columns and tables come from what is there: an unknown cohort, run, target,
organ or column is refused.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import duckdb
import numpy as np
import pandas as pd

from agg2exp_core.organs import BACKGROUND
from agg2exp_core.records import Condition, InputError, Selection
from agg2exp_core.store.catalog import (
    agreement_view,
    channel_view,
    cohort_table,
    finite_number,
    quoted,
    region_view,
    run_view,
)

Connection = duckdb.DuckDBPyConnection

SIGNS, VALUES = ("abs", "pos", "neg"), ("mass", "mean")
NO_METADATA = ("case_id", "image", "label", "pathology_mask")
"""Columns of cases.csv that name a case or a file: nothing that a reader filters by."""

NOT_EXPLAINED = "not explained"
"""Why a case that lies in no cache of the run has no value."""

NOTHING_TO_SHARE = "no attribution to share"

READING_NODES = ("SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE")
TABLE_FUNCTIONS = (
    "generate_series", "histogram", "histogram_values", "json_each", "json_tree", "range", "repeat", "unnest",
)  # fmt: skip
"""What a user's query may be made of, in DuckDB's terms: these touch neither files nor settings."""

TELLING_FUNCTIONS = ("current_setting", "getenv", "getvariable", "pg_get_viewdef", "write_log")
TELLING_TABLES = ("duckdb_", "pg_", "sqlite_", "information_schema.views")
"""What would tell of the machine, such as folders of its users, or write into its log; tables by their beginnings."""

MOST_DIFFERENT = 12
"""A category in which more values than these are there, all different, is free text or an id."""

MEAN_DICE = """
    SELECT case_id, avg(dice) FILTER (isfinite(dice) AND target <> 'background') AS dice
    FROM {agreement} GROUP BY case_id"""
BOXES = """
    WITH local AS ({local}),
    quartiles AS (
        SELECT region, count(value) AS n, quantile_cont(value, [0.25, 0.5, 0.75]) AS q FROM local GROUP BY region
    ),
    fenced AS (
        SELECT region, n, q, value, value BETWEEN 2.5 * q[1] - 1.5 * q[3] AND 2.5 * q[3] - 1.5 * q[1] AS inside
        FROM local JOIN quartiles USING (region)
    )
    SELECT region, any_value(n) AS n, min(value) FILTER (inside) AS low, any_value(q)[1] AS q1,
        any_value(q)[2] AS median, any_value(q)[3] AS q3, max(value) FILTER (inside) AS high,
        list(value ORDER BY value) FILTER (NOT inside) AS outliers
    FROM fenced GROUP BY region ORDER BY median DESC NULLS LAST, region"""
MATRIX = """
    WITH local AS ({local}),
    cells AS (
        SELECT target, region, median(value) AS value, avg(value) AS mean, count(value) AS n FROM local
        GROUP BY target, region
    )
    SELECT target, region, value, mean, n FROM cells
    JOIN (SELECT name AS target, position AS row FROM store.organs WHERE cohort = $cohort AND run = $run) USING (target)
    JOIN ({places}) USING (region)
    ORDER BY row, position"""
RANKED = """
    WITH local AS ({local})
    SELECT case_id, value, dice FROM local
    LEFT JOIN (SELECT case_id, dice FROM {agreement} WHERE target = $target) USING (case_id)
    WHERE region = $region AND value IS NOT NULL ORDER BY value DESC, case_id"""
CASE = """
    WITH local AS ({local}),
    own AS (SELECT region, value, absent FROM local WHERE case_id = $case),
    spread AS (
        SELECT local.region, quantile_cont(local.value, [0.05, 0.25, 0.5, 0.75, 0.95]) AS q,
            any_value(own.value) AS value,
            CASE WHEN count(own.region) = 0 THEN '{unexplained}' ELSE any_value(own.absent) END AS absent,
            count(local.value) FILTER (case_id <> $case) AS others,
            count(*) FILTER (case_id <> $case AND local.value < own.value) AS lower
        FROM local LEFT JOIN own USING (region) GROUP BY local.region
    )
    SELECT region, value, CASE WHEN value IS NULL THEN coalesce(absent, '{nothing}') END AS absent,
        q[1] AS q05, q[2] AS q25, q[3] AS median, q[4] AS q75, q[5] AS q95,
        CASE WHEN value IS NOT NULL THEN 100.0 * lower / nullif(others, 0) END AS percentile
    FROM spread JOIN ({places}) USING (region) ORDER BY position"""
LOCAL = """
    WITH local AS ({local}),
    listed AS (SELECT case_id, row_number() OVER (ORDER BY rowid) - 1 AS code FROM {table}),
    organs AS (
        SELECT name, row_number() OVER (ORDER BY position) - 1 AS code FROM store.organs
        WHERE cohort = $cohort AND run = $run
    ),
    regions AS (SELECT region, row_number() OVER (ORDER BY position) - 1 AS code FROM ({places}))
    SELECT listed.code AS case_id, organs.code AS target, regions.code AS region, value
    FROM local JOIN listed USING (case_id) JOIN organs ON target = organs.name JOIN regions USING (region)
    WHERE case_id IN ({passing})"""
PLACES = """
    SELECT {name} AS region, min(position) AS position FROM store.organs WHERE cohort = $cohort AND run = $run
    GROUP BY region"""
JOINED = """
    SELECT case_id, target, joined AS region, {value} AS value,
        CASE WHEN count(value) = 0 THEN any_value(absent) WHEN {value} IS NULL THEN '{unknown}' END AS absent
    FROM (SELECT *, coalesce(voxels, mass / nullif(mean, 0)) AS weight FROM ({parts}))
    JOIN (SELECT name AS region, joined FROM store.organs WHERE cohort = $cohort AND run = $run) USING (region)
    GROUP BY case_id, target, joined"""
JOINED_MASS = "sum(value)"
JOINED_MEAN = """
    CASE WHEN count(value) = 1 THEN any_value(value)
        WHEN count(value) = count(value * weight)
        THEN sum(value * weight) / sum(weight) FILTER (value IS NOT NULL) END"""
"""Of parts: Σ mean · voxels ÷ Σ voxels. A table without voxels has their proportions, mass ÷ mean."""

UNKNOWN_VOXELS = "size of a part not stored"
"""Why a joined region has no mean in a table without voxels: a part without attribution hides its size."""

CASE_MASKED = """
    WITH local AS ({local}),
    own AS (SELECT region_set, region, value, absent FROM local WHERE case_id = $case),
    spread AS (
        SELECT local.region_set, local.region, quantile_cont(local.value, [0.05, 0.25, 0.5, 0.75, 0.95]) AS q,
            any_value(own.value) AS value, any_value(own.absent) AS absent,
            count(local.value) FILTER (case_id <> $case) AS others,
            count(*) FILTER (case_id <> $case AND local.value < own.value) AS lower
        FROM local JOIN own USING (region_set, region) GROUP BY local.region_set, local.region
    )
    SELECT region_set, region, value, CASE WHEN value IS NULL THEN coalesce(absent, '{nothing}') END AS absent,
        q[1] AS q05, q[2] AS q25, q[3] AS median, q[4] AS q75, q[5] AS q95,
        CASE WHEN value IS NOT NULL THEN 100.0 * lower / nullif(others, 0) END AS percentile
    FROM spread ORDER BY region_set, region"""


# ---- what is there ---------------------------------------------------------------------------------


def cohorts(con: Connection) -> pd.DataFrame:
    """cohort, cases (their number), the largest first."""
    return con.execute("SELECT cohort, cases FROM store.cohorts ORDER BY cases DESC, cohort").df()


def runs(con: Connection, cohort: str) -> pd.DataFrame:
    """The view `runs` of one cohort: model, method, parameters (JSON), label_set, values … None where unknown.

    Those with most cases come first: a run of one case, tried on the Case page, is not what a cohort opens with.
    """
    _check("cohort", cohort, _cohorts(con))
    table = con.execute("SELECT * FROM runs WHERE cohort = $cohort ORDER BY cases DESC, run", {"cohort": cohort}).df()
    return table.astype(object).where(table.notna(), None).astype(dict.fromkeys(("cases", "listed", "damaged"), int))


def targets(con: Connection, cohort: str, run: str) -> pd.DataFrame:
    """target: those that the run explains, in the order of its label set."""
    _check_run(con, cohort, run)
    return pd.DataFrame({"target": _organs(con, cohort, run, only_targets=True)}, dtype=object)


def channels(con: Connection, cohort: str, run: str) -> list[str]:
    """Input channels that a run's attribution is split among, in the model's order; none where it is not."""
    _check_run(con, cohort, run)
    sql = "SELECT channel FROM store.channels WHERE cohort = $1 AND run = $2 ORDER BY position"
    return _column(con, sql, [cohort, run])


def channel_shares(con: Connection, selection: Selection) -> pd.DataFrame:
    """target, channel, value, n: the mean over passing cases of each channel's share of a target's attribution.

    Means of shares add up to 1 over the channels; medians would not. Of the regions that the selection counts.
    """
    _check_selection(con, selection)
    passing, values = _passing(con, selection)
    value = "mass" if selection.background else "organ_mass"
    sql = f"""
        WITH shares AS (
            SELECT case_id, target, channel, sum({value}) AS share FROM {channel_view(*_place(selection))}
            WHERE sign = '{selection.sign}' AND case_id IN ({passing}) GROUP BY case_id, target, channel)
        SELECT target, channel, avg(share) AS value, count(share) AS n FROM shares
        JOIN (SELECT name AS target, position AS row FROM store.organs WHERE cohort = $cohort AND run = $run)
            USING (target)
        JOIN (SELECT channel, position FROM store.channels WHERE cohort = $cohort AND run = $run) USING (channel)
        WHERE isfinite(share) GROUP BY target, channel, row, position ORDER BY row, position"""
    return con.execute(sql, values | {"cohort": selection.cohort, "run": selection.run}).df()


def metadata_columns(con: Connection, cohort: str) -> pd.DataFrame:
    """column, kind (number | category), values (sorted; "" for empty), low, high: what cases can be filtered by.

    Columns in which more than twelve cases are named and no two alike are free text, and left out.
    """
    _check("cohort", cohort, _cohorts(con))
    table = con.execute(f"FROM {cohort_table(cohort)}").df()
    kinds = _column_kinds(con, cohort)
    rows = []
    for name in kinds:
        if name.casefold() not in NO_METADATA:
            rows += _described(name, kinds[name], table[name])
    return pd.DataFrame(rows, columns=["column", "kind", "values", "low", "high"])


def passing(con: Connection, selection: Selection) -> list[str]:
    """The case_id of each listed case that passes the filters, in the order of the cohort's list."""
    _check_selection(con, selection)
    chosen, values = _passing(con, selection)
    table = cohort_table(selection.cohort)
    sql = f"SELECT case_id FROM {table} AS listed WHERE case_id IN ({chosen}) ORDER BY listed.rowid"
    return [row[0] for row in con.execute(sql, values).fetchall()]


def cases(con: Connection, selection: Selection) -> pd.DataFrame:
    """A row for each case that passes: cohort, case_id, image, label, metadata, dice (mean of organs), explained.

    In the order of the cohort's list. Cases that are not explained pass while no filter asks for results.
    """
    _check_selection(con, selection)
    passing, values = _passing(con, selection)
    place = selection.cohort, selection.run
    metadata = ", ".join(quoted(name) for name in _column_kinds(con, selection.cohort))
    sql = f"""
        SELECT $cohort AS cohort, {metadata}, scores.dice, explained.case_id IS NOT NULL AS explained
        FROM {cohort_table(selection.cohort)} AS listed
        LEFT JOIN ({MEAN_DICE.format(agreement=agreement_view(*place))}) AS scores USING (case_id)
        LEFT JOIN (SELECT DISTINCT case_id FROM {run_view(*place)} WHERE sign = 'abs') AS explained USING (case_id)
        WHERE case_id IN ({passing}) ORDER BY listed.rowid"""
    return con.execute(sql, {"cohort": selection.cohort, **values}).df()


# ---- charts ----------------------------------------------------------------------------------------


def box_stats(con: Connection, selection: Selection, target: str) -> pd.DataFrame:
    """region, n, low, q1, median, q3, high, outliers: one box a region, largest median first.

    Quartiles by linear interpolation; whiskers at the last values within 1.5 IQR of the box, outliers beyond.
    Regions without a value have n 0.
    """
    _check_target(con, selection, target)
    local, values = _local(con, selection, target)
    table = con.execute(BOXES.format(local=local), values).df()
    beyond = [list(map(float, found)) if hasattr(found, "__len__") else [] for found in table["outliers"]]
    return table.assign(outliers=pd.Series(beyond, index=table.index, dtype=object))


def matrix(con: Connection, selection: Selection) -> pd.DataFrame:
    """target, region, value (median), mean, n: every cell of the run, in the order of its label set."""
    _check_selection(con, selection)
    local, values = _local(con, selection)
    values |= {"cohort": selection.cohort, "run": selection.run}
    return con.execute(MATRIX.format(local=local, places=_places(selection)), values).df()


def ranked(con: Connection, selection: Selection, target: str, region: str) -> pd.DataFrame:
    """case_id, value, dice (of the target): highest first, without the cases in which it is absent."""
    _check_target(con, selection, target)
    _check("region", region, _regions(con, selection))
    local, values = _local(con, selection, target)
    sql = RANKED.format(local=local, agreement=agreement_view(selection.cohort, selection.run))
    return con.execute(sql, {**values, "target": target, "region": region}).df()


def case_importance(con: Connection, selection: Selection, case_id: str, target: str) -> pd.DataFrame:
    """region, value, absent (why there is none), q05, q25, median, q75, q95 and percentile in the whole cohort's run.

    percentile: share of the other cases with a lower value, in %; null without others. Filters do not count here.
    error: standard error of the value, where it is a share of |a| and its error is known.
    """
    _check_target(con, selection, target)
    _check_case(con, selection.cohort, case_id)
    whole = selection.unfiltered()
    local, values = _local(con, whole, target)
    values |= {"case": case_id, "cohort": selection.cohort, "run": selection.run}
    sql = CASE.format(local=local, unexplained=NOT_EXPLAINED, nothing=NOTHING_TO_SHARE, places=_places(selection))
    table = con.execute(sql, values).df()
    shares = (selection.sign, selection.value, selection.joined) == ("abs", "mass", False)
    known = _errors(con, selection, case_id, target) if shares else {}
    return table.assign(error=table["region"].map(known).astype(float))


def ablation_agreement(
    con: Connection, place: tuple[str, str], case_id: str, target: str
) -> tuple[float, int, str] | None:
    """Spearman's ρ of one case's shares in a run (cohort, run) with its ablation, over how many regions, and its run.

    None where no ablation of the same model was computed, or too few regions have both.
    """
    sql = """
        SELECT rho, regions, ablation FROM ablation_agreement
        WHERE cohort = $cohort AND run = $run AND case_id = $case AND target = $target ORDER BY ablation LIMIT 1"""
    found = con.execute(sql, {"cohort": place[0], "run": place[1], "case": case_id, "target": target}).fetchone()
    return None if found is None else (float(found[0]), int(found[1]), str(found[2]))


def _place(selection: Selection) -> tuple[str, str]:
    return selection.cohort, selection.run


def _errors(con: Connection, selection: Selection, case_id: str, target: str) -> dict[str, float]:
    """Region → standard error of its mass in one case."""
    error = "mass_se" if selection.background else "organ_mass_se"
    view, values = run_view(*_place(selection)), {"case": case_id, "target": target}
    if selection.channel:
        view, values = channel_view(*_place(selection)), values | {"channel": selection.channel}
    sql = f"""
        SELECT region, {error} FROM {view} WHERE sign = 'abs' AND case_id = $case AND target = $target
            AND {error} IS NOT NULL {"AND channel = $channel" if selection.channel else ""}"""
    return dict(con.execute(sql, values).fetchall())


def agreement(con: Connection, cohort: str, run: str, case_id: str) -> pd.DataFrame:
    """target, dice, iou of one case, in the order of the label set; no rows without a label map."""
    _check_run(con, cohort, run)
    _check_case(con, cohort, case_id)
    sql = f"""
        SELECT target, dice, iou FROM {agreement_view(cohort, run)}
        LEFT JOIN (SELECT name AS target, position FROM store.organs WHERE cohort = $cohort AND run = $run)
            USING (target)
        WHERE case_id = $case ORDER BY position NULLS LAST, target"""
    return con.execute(sql, {"cohort": cohort, "run": run, "case": case_id}).df()


# ---- masked regions --------------------------------------------------------------------------------


def region_sets(con: Connection, cohort: str, run: str) -> pd.DataFrame:
    """region_set, regions (their names), cases (with a value on one of them): what masks were summed over, by name."""
    _check_run(con, cohort, run)
    sql = f"""
        SELECT region_set, list(DISTINCT region ORDER BY region) AS regions,
            count(DISTINCT case_id) FILTER (mean IS NOT NULL) AS cases
        FROM {region_view(cohort, run)} WHERE sign = 'abs' GROUP BY region_set ORDER BY region_set"""
    table = con.execute(sql).df()
    return table.assign(regions=pd.Series([list(names) for names in table["regions"]], table.index, dtype=object))


def case_masked(con: Connection, selection: Selection, case_id: str, target: str) -> pd.DataFrame:
    """As `case_importance`, with region_set, of the masked regions of a case; no rows where nothing was summed.

    The spread is over the cases that have the region. Shares are of the target's whole attribution, background
    included, whatever the selection says: masks are no part of the organs' partition.
    """
    _check_target(con, selection, target)
    _check_case(con, selection.cohort, case_id)
    whole = Selection(selection.cohort, selection.run, selection.sign, selection.value)
    local, values = _masked(con, whole, target)
    sql = CASE_MASKED.format(local=local, nothing=NOTHING_TO_SHARE)
    return con.execute(sql, {**values, "case": case_id}).df()


def masked_values(con: Connection, selection: Selection, target: str) -> pd.DataFrame:
    """case_id, region_set, region, value (null where absent) of the cases that pass, in the order of their list."""
    _check_target(con, selection, target)
    local, values = _masked(con, selection, target)
    passing, _ = _passing(con, selection)
    sql = f"""
        SELECT case_id, region_set, region, value FROM ({local})
        JOIN (SELECT case_id, rowid AS place FROM {cohort_table(selection.cohort)}) USING (case_id)
        WHERE case_id IN ({passing}) ORDER BY region_set, region, place"""
    return con.execute(sql, values).df()


# ---- analysis --------------------------------------------------------------------------------------


def find_run(con: Connection, name: str) -> tuple[str, str]:
    """Cohort and run of `COHORT:RUN`, or of `COHORT` if it has one run only."""
    cohort, _, run = name.partition(":")
    _check("cohort", cohort, _cohorts(con))
    known = list(runs(con, cohort)["run"])
    if not run and len(known) != 1:
        some = ", ".join(f"{cohort}:{one}" for one in known[:20])
        raise InputError("a cohort without exactly one run needs COHORT:RUN", repr(name), some or "none explained yet")
    _check_run(con, cohort, run or known[0])
    return cohort, run or known[0]


def local_explanations(con: Connection, selection: Selection) -> pd.DataFrame:
    """case_id, target, region, value (null where absent) of the cases that pass, in no order of rows.

    The names are categories in the order of the cohort's list and of the label set: codes, as there may be millions.
    """
    _check_selection(con, selection)
    local, values = _local(con, selection)
    passing, _ = _passing(con, selection)
    values |= {"cohort": selection.cohort, "run": selection.run}
    table = cohort_table(selection.cohort)
    found = con.execute(
        LOCAL.format(local=local, passing=passing, table=table, places=_places(selection)), values
    ).fetchnumpy()
    listed = _column(con, f"SELECT case_id FROM {table} ORDER BY rowid", [])
    organs = _organs(con, selection.cohort, selection.run)
    names = {"case_id": listed, "target": organs, "region": _regions(con, selection)}
    columns: dict[str, Any] = {name: _coded(np.asarray(found[name]), known) for name, known in names.items()}
    return pd.DataFrame(columns | {"value": np.ma.filled(found["value"], np.nan)})


def _coded(codes: Any, names: list[str]) -> pd.Categorical:
    """A column of codes, an array of integers from 0, as the names that they stand for."""
    return pd.Categorical.from_codes(codes.astype(np.int32), pd.Index(names, dtype=object), ordered=True)


def dice(con: Connection, selection: Selection) -> pd.DataFrame:
    """case_id, target, dice of the organs of cases that pass; no rows without label maps."""
    _check_selection(con, selection)
    passing, values = _passing(con, selection)
    sql = f"""
        SELECT case_id, target, dice FROM {agreement_view(selection.cohort, selection.run)}
        JOIN (SELECT case_id, rowid AS place FROM {cohort_table(selection.cohort)}) USING (case_id)
        WHERE target <> '{BACKGROUND}' AND isfinite(dice) AND case_id IN ({passing}) ORDER BY place"""
    return con.execute(sql, values).df()


# ---- export ----------------------------------------------------------------------------------------


def exported_importance(con: Connection, cohort: str, run: str) -> pd.DataFrame:
    """case_id, target, region, mass, mean of every listed case, φ = abs."""
    _check_run(con, cohort, run)
    sql = f"""
        SELECT case_id, target, region, mass, mean FROM {run_view(cohort, run)}
        JOIN (SELECT case_id, rowid AS place FROM {cohort_table(cohort)}) USING (case_id)
        WHERE sign = 'abs' ORDER BY place"""
    return con.execute(sql).df()


def organ_names(con: Connection, cohort: str, run: str) -> list[str]:
    """Targets and regions of a run, in the order of its label set."""
    _check_run(con, cohort, run)
    return _organs(con, cohort, run)


def region_names(con: Connection, selection: Selection) -> list[str]:
    """Regions of a selection, background included, in the order of the label set."""
    _check_selection(con, selection)
    return _regions(con, selection)


def exported_agreement(con: Connection, cohort: str, run: str) -> pd.DataFrame:
    """case_id, target, dice, iou of every case."""
    _check_run(con, cohort, run)
    return con.execute(f"FROM {agreement_view(cohort, run)}").df()


# ---- a user's own ----------------------------------------------------------------------------------


def run_user_query(con: Connection, sql: str, rows: int | None = None, seconds: float | None = None) -> pd.DataFrame:
    """The answer to one SELECT of a user: all of it, or its first rows, which are read without computing the rest.

    InputError, in one line, for anything else, for what DuckDB refuses, and for what takes longer than so many seconds.
    """
    rule = "a query must be one SELECT on the views"
    try:
        statements = con.extract_statements(sql)
    except duckdb.Error as error:
        raise InputError(rule, _one_line(error)) from None
    except TypeError:
        raise InputError(rule, "a text with half a character, which has no UTF-8") from None
    kinds = [str(statement.type).rsplit(".", 1)[-1] for statement in statements]
    if kinds != ["SELECT"]:
        raise InputError(rule, ", ".join(kinds) or "nothing", "SELECT … or WITH … SELECT")
    reading = con.cursor()
    try:
        _check_reads_only(reading, sql, rule)
        reading.execute("BEGIN TRANSACTION READ ONLY")
        with _interrupted(reading, seconds):
            answer = reading.execute(statements[0])
            return answer.df() if rows is None else _first(answer, rows)
    except duckdb.InterruptException:
        raise too_long(seconds or 0) from None
    except duckdb.Error as error:
        raise InputError(rule, _one_line(error)) from None
    finally:
        reading.close()


def too_long(seconds: float) -> InputError:
    """What is told of a query that had to be ended."""
    return InputError(f"a query must end within {seconds:g} s", "one that did not", "fewer rows or a LIMIT")


def _check_reads_only(con: Connection, sql: str, rule: str) -> None:
    """InputError for a SELECT that does more than to read tables.

    `WITH x AS (COPY …)` writes files and `FROM enable_logging()` changes settings: DuckDB calls both SELECT, and a
    transaction that only reads stops neither. So what a query is made of comes from a list of what is harmless.
    """
    (tree,) = con.execute("SELECT json_serialize_sql(?)", [sql]).fetchone() or ("{}",)
    found: set[str] = set()

    def note(part: dict[str, Any]) -> dict[str, Any]:
        kind = str(part.get("type"))
        if kind == "TABLE_FUNCTION":
            found.add(str(part["function"].get("function_name")).lower())
        elif kind == "FUNCTION" and str(part.get("function_name")).lower() in TELLING_FUNCTIONS:
            found.add(str(part["function_name"]).lower())
        elif kind == "BASE_TABLE":
            named = f"{part.get('schema_name')}.{part.get('table_name')}".lower()
            if named.removeprefix("main.").removeprefix(".").startswith(TELLING_TABLES):
                found.add(named.removeprefix("."))
        elif kind.endswith("_NODE"):
            found.add(kind)
        return part

    try:
        json.loads(tree, object_hook=note)
    except RecursionError:
        raise InputError(rule, "one that is nested too deeply") from None
    if refused := found - {*READING_NODES, *TABLE_FUNCTIONS}:
        what = ", ".join(sorted(name.removesuffix("_QUERY_NODE") for name in refused))
        raise InputError(rule, what, f"SELECT on views and {', '.join(TABLE_FUNCTIONS)}")


def views(con: Connection) -> pd.DataFrame:
    """view, rows, column, type: what a user's query can name, in order."""
    sql = """
        SELECT table_name AS view, column_name AS column, data_type AS type FROM information_schema.columns
        WHERE table_schema = 'main' ORDER BY view, ordinal_position"""
    table = con.execute(sql).df()
    rows = {view: _column(con, f"SELECT count(*) FROM {quoted(view)}", [])[0] for view in table["view"].unique()}
    table.insert(1, "rows", table["view"].map(rows))
    return table


@contextmanager
def _interrupted(con: Connection, seconds: float | None) -> Iterator[None]:
    """Let what the connection does end after so many seconds."""
    timer = threading.Timer(seconds, con.interrupt) if seconds is not None else None
    if timer:
        timer.start()
    try:
        yield
    finally:
        if timer:
            timer.cancel()


def _first(answer: Connection, rows: int) -> pd.DataFrame:
    """The first rows of an answer that is still being computed, which comes in chunks of 2,048 rows at most."""
    chunks = [answer.fetch_df_chunk()]
    found = len(chunks[0])
    while found < rows and len(chunks[-1]):
        chunks.append(answer.fetch_df_chunk())
        found += len(chunks[-1])
    # The last one is empty: it would cost the others their types.
    given = [chunk for chunk in chunks if len(chunk)] or chunks[:1]
    return pd.concat(given, ignore_index=True).head(rows)


def _one_line(error: Exception) -> str:
    """What was wrong, without the echo of the query."""
    return " ".join(str(error).split("\n\nLINE")[0].split())[:500]


# ---- selections in SQL -----------------------------------------------------------------------------


def _local(con: Connection, selection: Selection, target: str | None = None) -> tuple[str, dict[str, Any]]:
    """A SELECT of case_id, target, region, value, absent of listed cases; null where a filter stops the case.

    Stopped cases keep their rows, so that a region without values is still there.
    """
    passing, values = _passing(con, selection)
    value = selection.value if selection.background or selection.value == "mean" else "organ_mass"
    conditions = [f"sign = '{selection.sign}'"]
    if target is not None:
        conditions.append("target = $target")
        values["target"] = target
    if not selection.background:
        conditions.append(f"region <> '{BACKGROUND}'")
    if not selection.joined:
        columns = "case_id, target, region, absent"
    else:
        columns = "case_id, target, region, absent, voxels, mass, mean"
        values |= {"cohort": selection.cohort, "run": selection.run}
    view = run_view(*_place(selection))
    if selection.channel:
        view = channel_view(*_place(selection))
        conditions.append("channel = $channel")
        values["channel"] = selection.channel
    sql = f"""
        SELECT {columns}, CASE WHEN case_id IN ({passing}) THEN {value} END AS value
        FROM {view} WHERE {" AND ".join(conditions)}"""
    return (_joined(sql, selection.value) if selection.joined else sql), values


def _joined(parts: str, value: str) -> str:
    amount = JOINED_MEAN if value == "mean" else JOINED_MASS
    return JOINED.format(value=amount, unknown=UNKNOWN_VOXELS, parts=parts)


def _places(selection: Selection) -> str:
    """A SELECT of region and position, in the order of the label set; a joined one stands where its first part does."""
    return PLACES.format(name="joined" if selection.joined else "name")


def _masked(con: Connection, selection: Selection, target: str) -> tuple[str, dict[str, Any]]:
    """As `_local`, of masked regions: case_id, region_set, region, value, absent."""
    passing, values = _passing(con, selection)
    sql = f"""
        SELECT case_id, region_set, region, absent,
            CASE WHEN case_id IN ({passing}) THEN {selection.value} END AS value
        FROM {region_view(selection.cohort, selection.run)} WHERE sign = '{selection.sign}' AND target = $target"""
    return sql, values | {"target": target}


def _passing(con: Connection, selection: Selection) -> tuple[str, dict[str, Any]]:
    """A SELECT of the case_id of every listed case that passes the filters, and its bound values."""
    bound: dict[str, Any] = {}
    place = selection.cohort, selection.run
    kinds = _column_kinds(con, selection.cohort)
    wheres = [_where(condition, kinds, bound) for condition in selection.where]
    if selection.dice:
        organ, low, high = selection.dice
        if organ:
            _check("organ", organ, _scored(con, *place))
        of = "SELECT case_id, dice FROM {agreement} WHERE target = $dice_of" if organ else MEAN_DICE
        bound |= {"dice_low": _end(low), "dice_high": _end(high)} | ({"dice_of": organ} if organ else {})
        scores = of.format(agreement=agreement_view(*place))
        inside = "isfinite(dice) AND dice BETWEEN $dice_low AND $dice_high"
        wheres.append(f"case_id IN (SELECT case_id FROM ({scores}) WHERE {inside})")
    if selection.present:
        organs = dict.fromkeys(selection.present)
        for organ in organs:
            _check("organ", organ, _organs(con, *place))
        bound |= {"present": list(organs), "present_count": len(organs)}
        wheres.append(f"""case_id IN (
            SELECT case_id FROM {run_view(*place)}
            WHERE sign = 'abs' AND list_contains($present, region) AND coalesce(voxels > 0, mass IS NOT NULL)
            GROUP BY case_id HAVING count(DISTINCT region) = $present_count)""")
    wheres += _listed(con, selection, bound)
    return f"SELECT case_id FROM {cohort_table(selection.cohort)} WHERE {' AND '.join(wheres) or 'true'}", bound


def _listed(con: Connection, selection: Selection, bound: dict[str, Any]) -> list[str]:
    """Conditions of the saved lists in SQL; their names, each that of one cohort's list, are added to `bound`."""
    known = _column(con, "SELECT DISTINCT list FROM store.lists WHERE cohort = $1 ORDER BY list", [selection.cohort])
    wheres = []
    for key, names, sign in (("within", selection.within, "IN"), ("without", selection.without, "NOT IN")):
        for name in names:
            _check("list", name, known)
        if names:
            bound[key] = list(names)
            wheres.append(f"case_id {sign} (SELECT case_id FROM store.lists WHERE list_contains(${key}, list))")
    return wheres


def _where(condition: Condition, kinds: dict[str, str], bound: dict[str, Any]) -> str:
    """One condition in SQL; its values are added to `bound`."""
    _check("column", condition.column, kinds)
    column, key = quoted(condition.column), f"where_{len(bound)}"
    numeric = kinds[condition.column] == "number"
    if condition.values is not None:
        texts = [_text(value) for value in condition.values]
        bound[key] = [finite_number(text) for text in texts] if numeric else texts
        chosen = "coalesce(list_contains($" + key + f", {column}), false)"
        return f"({chosen} OR {column} IS NULL)" if "" in texts else chosen
    if not numeric:
        raise InputError("a range needs a column of numbers", repr(condition.column))
    parts = [f"isfinite({column})"]
    for name, sign, end in (("low", ">=", condition.low), ("high", "<=", condition.high)):
        if end is not None:
            bound[f"{key}_{name}"] = _end(end)
            parts.append(f"{column} {sign} ${key}_{name}")
    return f"coalesce({' AND '.join(parts)}, false)"


def _end(value: float) -> float:
    """An end of a range, which may be infinite. InputError: NaN, than which DuckDB takes every number to be less."""
    if math.isnan(value):
        raise InputError("a range must end at a number", value)
    return value


def _text(value: Any) -> str:
    """A chosen value as cases.csv spells it; nothing and NaN are the empty text. InputError: no UTF-8 spells it."""
    text = "" if value is None or value != value else str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("a chosen value must be whole text", f"{text!r}, with half a character") from None
    return text


# ---- what may be named -----------------------------------------------------------------------------


def _check(kind: str, name: object, known: Iterable[str]) -> None:
    known = list(known)
    if name not in known:
        some = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
        raise InputError(f"{kind} must be known", repr(name), some or "none yet")


def _check_run(con: Connection, cohort: str, run: str) -> None:
    _check("cohort", cohort, _cohorts(con))
    _check("run", run, _column(con, "SELECT run FROM store.runs WHERE cohort = $1 ORDER BY run", [cohort]))


def _check_selection(con: Connection, selection: Selection) -> None:
    _check("sign", selection.sign, SIGNS)
    _check("value", selection.value, VALUES)
    _check_run(con, selection.cohort, selection.run)
    if selection.channel:
        _check("channel", selection.channel, channels(con, selection.cohort, selection.run))


def _check_target(con: Connection, selection: Selection, target: str) -> None:
    _check_selection(con, selection)
    _check("target", target, _organs(con, selection.cohort, selection.run, only_targets=True))


def _check_case(con: Connection, cohort: str, case_id: str) -> None:
    _check("case", case_id, _column(con, f"SELECT case_id FROM {cohort_table(cohort)}", []))


def _cohorts(con: Connection) -> list[str]:
    return _column(con, "SELECT cohort FROM store.cohorts ORDER BY cohort", [])


def _organs(con: Connection, cohort: str, run: str, only_targets: bool = False) -> list[str]:
    sql = "SELECT name FROM store.organs WHERE cohort = $1 AND run = $2 AND (target OR NOT $3) ORDER BY position"
    return _column(con, sql, [cohort, run, only_targets])


def _regions(con: Connection, selection: Selection) -> list[str]:
    sql = f"SELECT region FROM ({_places(selection)}) ORDER BY position"
    found = con.execute(sql, {"cohort": selection.cohort, "run": selection.run}).fetchall()
    return [row[0] for row in found]


def _scored(con: Connection, cohort: str, run: str) -> list[str]:
    """Organs that have Dice, or could have."""
    scored = _column(con, f"SELECT DISTINCT target FROM {agreement_view(cohort, run)} ORDER BY target", [])
    return list(dict.fromkeys([*_organs(con, cohort, run), *scored]))


def _column(con: Connection, sql: str, values: list[Any]) -> list[Any]:
    return [row[0] for row in con.execute(sql, values).fetchall()]


def _column_kinds(con: Connection, cohort: str) -> dict[str, str]:
    """Column → number | category, of the cohort's list."""
    described = con.execute(f"DESCRIBE {cohort_table(cohort)}").fetchall()
    return {row[0]: "number" if row[1] == "DOUBLE" else "category" for row in described}


def _described(name: str, kind: str, values: pd.Series) -> list[dict[str, Any]]:
    """One row of `metadata_columns`, or none for free text."""
    given = values.dropna()
    if kind == "number":
        return [{"column": name, "kind": kind, "values": [], "low": float(given.min()), "high": float(given.max())}]
    different = sorted(set(given))
    if len(different) == len(given) > MOST_DIFFERENT:
        return []
    texts = ([""] if len(given) < len(values) else []) + different
    return [{"column": name, "kind": kind, "values": texts, "low": math.nan, "high": math.nan}] if different else []
