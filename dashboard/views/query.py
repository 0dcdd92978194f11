"""The Query page: SQL on the views, its answer as table, chart and CSV."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from agg2exp_core import spreadsheet
from agg2exp_core.organs import LabelSet, load_label_set
from agg2exp_core.records import InputError
from agg2exp_core.settings import data_root
from dashboard import access, data, filters, sql_guide, tables, words
from dashboard.address import Address, Link
from dashboard.charts import common
from dashboard.charts.answer import (
    KINDS,
    MOST_POINTS,
    Drawing,
    answer_chart,
    columns_of,
    drawable,
    points_left_out,
    suggested,
    titled,
)
from dashboard.filters import Choice
from dashboard.views import choosing

ADDRESS = Address("query")
SQL, EDITED, CHARTED = "query_sql", "query_edited", "query_charted"
MOST_SHOWN = 5_000
"""Rows of the table on the page; the CSV has more."""

MOST_LINKED = 2_000
"""Characters of a query that a link can carry: longer addresses are cut by some proxies."""

NONE = "–"
EDITOR_HEIGHT = 176
TABLE_HEIGHT = 460

SQL_HELP = (
    "One SELECT, or WITH … SELECT, in DuckDB’s SQL. It reads the views described here and changes nothing. "
    f"It ends after {data.MOST_SECONDS:g} seconds; {data.MOST_ROWS:,} rows are read at most. **Ctrl+Enter** runs it."
)
CHART_HELP = (
    "The first guess follows the columns: a category and a number are bars (of one name, on each other), or boxes "
    "where a category has many numbers; two categories and a number a heatmap (the mean, where a cell has several); "
    "two numbers a scatter. "
    f"At most {MOST_POINTS:,} rows are drawn, an even spread of the answer."
)
CSV_HELP = f"All rows, up to {data.MOST_ROWS:,}, with organs by the names that a query uses."
EXAMPLES_HELP = "A click puts the query into the editor, filled with what is chosen here, and runs it."


@dataclass(frozen=True, eq=False)
class About:
    """What the examples are about, and how organs are called. Empty names where nothing is explained yet."""

    cohort: str
    run: str
    target: str
    labels: LabelSet


@words.told
def page() -> None:
    """Draw the page."""
    ADDRESS.follow()
    root = data_root()
    with st.sidebar:
        about = _about(root)
        _examples(root, about)
    access.fragment(_ask)(root, about)


def _about(root: Path) -> About:
    """The choosers that fill the examples."""
    cohorts = list(data.cohorts(root)["cohort"])
    cohort = filters.pick_one(ADDRESS, Choice("Cohort", "cohort"), cohorts) if cohorts else None
    records = data.run_records(root, cohort) if cohort else {}
    run = choosing.run_box(ADDRESS, records)
    if not cohort or not run:
        return About(cohort or "", "", "", load_label_set(data.DEFAULT_LABELS, root))
    labels = data.labels(root, cohort, records[run])
    stored = common.in_group_order(pd.Series(data.targets(root, cohort, run), dtype=object), labels)
    titles = {name: common.organ_of(labels, name).title for name in stored}
    target = filters.pick_one(ADDRESS, Choice("Target organ", "target", titles), stored) if stored else None
    return About(cohort, run, target or "", labels)


def _examples(root: Path, about: About) -> None:
    st.markdown("##### Examples", help=EXAMPLES_HELP)
    known = data.views(root)
    columns = set(known[known["view"] == "cases"]["column"])
    with st.container(gap="small", key="query_examples"):
        for number, example in enumerate(sql_guide.offered(columns)):
            sql = sql_guide.filled(example, about.cohort, about.run, about.target)
            st.button(
                example.title, key=f"query_example_{number}", help=example.lesson, type="tertiary", on_click=_take,
                args=(sql,), width="stretch",
            )  # fmt: skip


def _take(sql: str) -> None:
    """Let a query be the one that is shown."""
    st.session_state[SQL] = st.session_state[EDITED] = sql


# ---- the question ----------------------------------------------------------------------------------


@words.told
def _ask(root: Path, about: About) -> None:
    if wish := ADDRESS.asked("sql"):
        _take(wish[0])
    elif SQL not in st.session_state:
        _take(sql_guide.filled(sql_guide.EXAMPLES[0], about.cohort, about.run, about.target))
    # Streamlit forgets a widget's text while another page is open.
    st.session_state.setdefault(EDITED, st.session_state[SQL])
    left, right = st.columns([3, 2], gap="medium")
    with left:
        st.markdown("### Ask in SQL", help=SQL_HELP)
        _editor()
    with right:
        st.markdown("##### What can be asked for")
        _views(data.views(root))
    sql = st.session_state[SQL]
    try:
        answer = data.user_query(root, sql)
    except InputError as error:
        words.refuse(error)
        ADDRESS.write(_link(about, sql))
        return
    drawing = _answer(answer, about, sql)
    ADDRESS.write(_link(about, sql) | drawing)


def _editor() -> None:
    with st.form("query_form", border=False):
        st.text_area("SQL", key=EDITED, height=EDITOR_HEIGHT, label_visibility="collapsed")
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.form_submit_button("Run", type="primary", icon=":material/play_arrow:", on_click=_run)
            st.caption(f"Ctrl+Enter · reads only · ends after {data.MOST_SECONDS:g} s", width="content")


def _run() -> None:
    st.session_state[SQL] = st.session_state[EDITED]


def _views(table: pd.DataFrame) -> None:
    """Every view with its columns, in plain words."""
    with st.container(height=EDITOR_HEIGHT + 70, border=False, gap="small", key="query_views"):
        for view, told in sql_guide.VIEWS.items():
            columns = table[table["view"] == view]
            if columns.empty:
                continue
            with st.expander(f"**{view}** · {int(columns['rows'].iloc[0]):,} rows"):
                st.caption(told)
                lines = [f"| {_code(name)} | {_meaning(name)} |" for name in columns["column"]]
                st.markdown("\n".join(["| column | what it says |", "|---|---|", *lines]))


def _code(column: str) -> str:
    """A name as code; one that would break out of it, which only metadata can have, as plain text."""
    return f"`{column}`" if column.replace("_", "a").replace(" ", "a").isalnum() else words.plain(column)


def _meaning(column: str) -> str:
    return sql_guide.COLUMNS.get(column, "metadata of the scan")


def _link(about: About, sql: str) -> Link:
    shared = {"cohort": about.cohort, "run": about.run, "target": about.target}
    link = {name: [value] for name, value in shared.items() if value}
    return link | ({"sql": [sql]} if len(sql) <= MOST_LINKED else {})


# ---- the answer ------------------------------------------------------------------------------------


def _answer(answer: data.Answer, about: About, sql: str) -> Link:
    """Show the answer; gives what the link says of its chart."""
    table = answer.table
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f"##### {_count(answer)}", width="content")
        st.caption(f"in {answer.seconds:.2f} s", width="content")
        if len(sql) > MOST_LINKED:
            st.caption(f"A link carries queries up to {MOST_LINKED:,} characters; this one is longer.", width="content")
        st.download_button(
            "CSV", lambda: spreadsheet.to_csv(table), "answer.csv", "text/csv", icon=":material/download:",
            key="query_csv", on_click="ignore", disabled=table.empty, help=CSV_HELP,
        )  # fmt: skip
    if table.empty:
        st.info(sql_guide.on_nothing(sql, about.cohort, about.run, about.target), icon=":material/info:")
        return {}
    left, right = st.columns([2, 3], gap="medium")
    with left:
        shown = titled(table.head(MOST_SHOWN), about.labels)
        height = tables.height(shown, TABLE_HEIGHT)
        st.dataframe(shown, hide_index=True, height=height, placeholder="–", key="query_table")
        if len(table) > MOST_SHOWN:
            st.caption(f"The first {MOST_SHOWN:,} rows. The CSV has {len(table):,}.")
    with right:
        return _chart(table, about.labels, sql)


def _count(answer: data.Answer) -> str:
    count = len(answer.table)
    if answer.more:
        return f"More than {count:,} rows: only the first are read. Group them, or add a LIMIT"
    return f"{count:,} row{'' if count == 1 else 's'}"


def _chart(answer: pd.DataFrame, labels: LabelSet, sql: str) -> Link:
    table = drawable(answer)
    guess = suggested(table)
    if guess is None:
        st.info("A chart needs a column of numbers.", icon=":material/bar_chart_off:")
        return {}
    if st.session_state.get(CHARTED) != sql:  # another answer: guess anew
        for name in ("kind", "x", "y", "color"):
            st.session_state.pop(ADDRESS.key(name), None)
        st.session_state[CHARTED] = sql
    drawing = _choose(table, guess)
    figure = answer_chart(table, drawing, labels)
    alt = f"{KINDS[drawing.kind]} of the answer"
    st.plotly_chart(figure, key="query_chart", config={"displayModeBar": False}, alt=alt)
    if points_left_out(table):
        st.caption(f"Drawn: an even spread of at most {MOST_POINTS:,} of {len(table):,} rows.")
    shown = {"kind": drawing.kind, "x": drawing.x, "y": drawing.y, "color": drawing.color}
    return {name: [value or NONE] for name, value in shown.items()} if drawing != guess else {}


def _choose(table: pd.DataFrame, guess: Drawing) -> Drawing:
    """What to draw: the guess, or what the user chose instead. Its options come first, so that they are taken."""
    names, numbers = columns_of(table)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="query_choosers"):
        kinds = list(dict.fromkeys([guess.kind, *(kind for kind in KINDS if _can(kind, names, numbers))]))
        kind = filters.pick_one(ADDRESS, Choice("Chart", "kind", KINDS, CHART_HELP), kinds) or guess.kind
        told = guess if kind == guess.kind else _fitting(kind, names, numbers)
        x = _pick("Across", "x", [told.x, *(names if kind == "heatmap" else [*names, *numbers])])
        if kind == "histogram":
            return Drawing(kind, x, None, _pick("Colour", "color", [None, *names]))
        y = _pick("Down" if kind == "heatmap" else "Up", "y", [told.y, *(names if kind == "heatmap" else numbers)])
        color = _pick("Colour", "color", [told.color, *(numbers if kind == "heatmap" else [None, *names, *numbers])])
    return Drawing(kind, x, y, color)


def _can(kind: str, names: list[str], numbers: list[str]) -> bool:
    """Whether the answer has the columns that a kind of chart needs."""
    needs = {"bar": 1, "box": 0, "histogram": 0, "scatter": 0, "heatmap": 2}[kind]
    return len(names) >= needs and len(numbers) >= (2 if kind == "scatter" and not names else 1)


def _fitting(kind: str, names: list[str], numbers: list[str]) -> Drawing:
    """The first columns that a kind of chart can show."""
    if kind == "heatmap":
        return Drawing(kind, names[1], names[0], numbers[0])
    if kind == "scatter" and len(numbers) > 1:
        return Drawing(kind, numbers[0], numbers[1])
    return Drawing(kind, numbers[0]) if kind == "histogram" else Drawing(kind, names[0] if names else None, numbers[0])


def _pick(label: str, name: str, options: list[Any]) -> str | None:
    """A column of the answer, or none."""
    titles = {NONE: "none"}
    chosen = filters.pick_one(ADDRESS, Choice(label, name, titles), list(dict.fromkeys(one or NONE for one in options)))
    return None if chosen == NONE else chosen
