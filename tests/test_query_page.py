"""The Query page: examples that run, guesses at charts, limits, its link; one journey through it in a browser."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import duckdb
import pandas as pd
import pytest
from pages import opened, texts
from playwright.sync_api import Browser, Page, expect
from streamlit.testing.v1 import AppTest

from agg2exp_core.organs import load_label_set
from agg2exp_core.records import InputError
from agg2exp_core.settings import SHIPPED
from agg2exp_core.store import asking, catalog, queries
from agg2exp_core.store.asking import Question
from dashboard import data, sql_guide
from dashboard.charts.answer import (
    MOST_NAMES,
    MOST_POINTS,
    Drawing,
    answer_chart,
    columns_of,
    drawable,
    suggested,
    titled,
)
from dashboard.sql_guide import EXAMPLES, Example
from dashboard.views import query

RUN = "thorax17_swinunetr-smoothgrad-pairs-4"
LABELS = load_label_set("thorax17")


@pytest.fixture(scope="module")
def con() -> duckdb.DuckDBPyConnection:
    """The demo as it is shipped."""
    return catalog.connect(SHIPPED)


# ---- the guide -------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.title)
def test_every_example_runs_on_the_demo_and_can_be_drawn(con: duckdb.DuckDBPyConnection, example: Example) -> None:
    for cohort in ("reference", "clinic"):
        table = queries.run_user_query(con, sql_guide.filled(example, cohort, RUN, "heart"))
        drawing = suggested(table)
        assert (drawing is None) == table.empty
        if drawing:
            answer_chart(table, drawing, LABELS).to_json()


def test_names_in_an_example_are_texts_and_nothing_else(con: duckdb.DuckDBPyConnection) -> None:
    sql = sql_guide.filled(EXAMPLES[0], "it's", "' OR 1=1 --", "{cohort}")
    assert queries.run_user_query(con, sql).empty


def test_examples_about_metadata_are_offered_where_it_is() -> None:
    assert {example.title for example in EXAMPLES} - {example.title for example in sql_guide.offered(["age"])} == {
        "Mean Dice by scanner"
    }


def test_every_view_and_column_is_described(con: duckdb.DuckDBPyConnection) -> None:
    table = queries.views(con)
    assert set(table["view"]) == set(sql_guide.VIEWS)
    metadata = set(queries.metadata_columns(con, "clinic")["column"])
    assert set(table["column"]) - metadata == set(sql_guide.COLUMNS)
    rows = table.groupby("view")["rows"].first()
    assert rows["cases"] == 40 and rows["importance"] == con.execute("SELECT count(*) FROM importance").fetchone()[0]


# ---- limits ----------------------------------------------------------------------------------------


def test_the_first_rows_come_without_the_rest_and_are_the_same(con: duckdb.DuckDBPyConnection) -> None:
    sql = "SELECT i, 'n' || i AS name, sum(i) OVER () AS total, [i] AS several FROM range(5000) t(i) ORDER BY i"
    pd.testing.assert_frame_equal(
        queries.run_user_query(con, sql, 4100), queries.run_user_query(con, sql).head(4100), check_dtype=False
    )
    assert len(queries.run_user_query(con, sql, 9999)) == 5000
    assert list(queries.run_user_query(con, "SELECT 1 AS a WHERE false", 5)) == ["a"]
    started = time.perf_counter()
    assert len(queries.run_user_query(con, "SELECT i FROM range(1000000000000) t(i)", 10)) == 10
    assert time.perf_counter() - started < 60


def test_a_query_that_takes_too_long_is_ended_and_the_next_one_answers(con: duckdb.DuckDBPyConnection) -> None:
    endless = "SELECT count(*) FROM range(10000000) a(x), range(10000000) b(y) WHERE (x * y) % 7 = 9"
    with pytest.raises(InputError, match=r"must end within 0\.2 s"):
        queries.run_user_query(con, endless, 10, 0.2)
    assert queries.run_user_query(con, "SELECT 1 AS a", 10, 20)["a"].tolist() == [1]


def test_what_cannot_be_interrupted_is_killed_and_the_next_one_answers() -> None:
    endless = "SELECT levenshtein(repeat('a', 150000), repeat('b', 150000)) AS n"
    question = Question(SHIPPED, "", endless, 10, 0.2)
    started = time.perf_counter()
    with pytest.raises(InputError, match=r"must end within 0\.2 s; got one that did not; allowed: fewer rows"):
        asking.ask(question)
    assert time.perf_counter() - started < 30
    table, _ = asking.ask(replace(question, sql="SELECT count(*) AS n FROM cases", seconds=20))
    assert table["n"].tolist() == [40]


def test_what_does_not_fit_the_memory_is_refused_and_the_next_one_answers() -> None:
    many = "SELECT list_sum(range(4000000000)) AS n"
    with pytest.raises(InputError, match="Out of Memory"):
        asking.ask(Question(SHIPPED, "", many, 10, 20))
    with pytest.raises(InputError, match="must be one SELECT on the views; got DELETE"):
        asking.ask(Question(SHIPPED, "", "DELETE FROM cases", 10, 20))
    assert asking.ask(Question(SHIPPED, "", "SELECT 1 AS n", 10, 20))[0]["n"].tolist() == [1]


def test_a_process_that_nobody_asked_for_long_is_gone_and_another_answers() -> None:
    question = Question(SHIPPED, "", "SELECT 1 AS n", 10, 20)
    asking.ask(question)
    for desk in asking._free:
        desk.process.kill()
        desk.process.wait()
    assert asking.ask(question)[0]["n"].tolist() == [1]


@pytest.mark.parametrize(("program", "told"), [("false", "ended at its start"), ("no-such-program", "did not start")])
def test_a_process_that_does_not_start_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, program: str, told: str
) -> None:
    while asking._free:
        asking._free.pop().close()
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(InputError, match=rf"in a process of its own; got one that {told}"):
        asking.ask(Question(SHIPPED, "", "SELECT 1 AS n", 10, 20))
    monkeypatch.undo()
    assert asking.ask(Question(SHIPPED, "", "SELECT 1 AS n", 10, 20))[0]["n"].tolist() == [1]


# ---- charts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "drawing"),
    [
        ({"region": ["heart", "aorta"], "share": [0.2, 0.1]}, Drawing("bar", "region", "share")),
        ({"scanner": ["A", "B"], "dice": [0.9, 0.8], "scans": [3, 4]}, Drawing("bar", "scanner", "dice")),
        ({"case_id": ["1", "2"], "share": [0.2, 0.1], "dice": [1, 0]}, Drawing("scatter", "share", "dice")),
        ({"a": [1, 2], "b": [3.0, 4.0]}, Drawing("scatter", "a", "b")),
        ({"case_id": list("1212"), "target": list("xxyy"), "v": [1, 2, 3, 4]}, Drawing("box", "target", "v")),
        ({"target": list("xxyy"), "run": list("abab"), "v": [1, 2, 3, 4]}, Drawing("bar", "run", "v", "target")),
        (
            {"target": list("abcde") * 5, "region": sorted(list("abcde") * 5), "v": range(25)},
            Drawing("heatmap", "region", "target", "v"),
        ),
        ({"target": list("xyz"), "absent": list("aab"), "scans": [1, 2, 3]}, Drawing("bar", "target", "scans")),
        ({"v": [1.0, 2.0]}, Drawing("histogram", "v")),
        ({"name": ["a", "b"], "flagged": [True, False]}, None), ({"region": [], "v": []}, None),
        ({"several": [[1], [2]], "v": [1, 2]}, Drawing("histogram", "v")),
    ],
    ids=str,
)  # fmt: skip
def test_a_chart_is_guessed_from_the_columns(table: dict, drawing: Drawing | None) -> None:
    frame = pd.DataFrame(table)
    assert suggested(frame) == drawing
    if drawing:
        answer_chart(frame, drawing, LABELS).to_json()


@pytest.mark.parametrize(
    "value",
    ["uuid()", "INTERVAL 3 DAY", "'1010'::BIT", "'a'::BLOB", "CASE WHEN range > 150 THEN [range] END"],
)
def test_every_type_of_duckdb_can_stand_beside_a_number(con: duckdb.DuckDBPyConnection, value: str) -> None:
    table = drawable(queries.run_user_query(con, f"SELECT {value} AS odd, range AS n FROM range(300)"))
    drawing = suggested(table)
    assert drawing is not None
    answer_chart(table, drawing, LABELS).to_json()


def test_organs_have_their_titles_and_colours() -> None:
    table = pd.DataFrame({"region": ["lung_lower_lobe_left", "heart"], "share": [0.3, 0.1]})
    bars = answer_chart(table, Drawing("bar", "region", "share"), LABELS).data[0]
    assert list(bars.x) == ["Left lower lobe", "Heart"] and len(set(bars.marker.color)) == 2
    cells = pd.DataFrame({"target": ["heart", "aorta"], "region": ["aorta", "heart"], "v": [1.0, 2.0]})
    heatmap = answer_chart(cells, Drawing("heatmap", "region", "target", "v"), LABELS).data[0]
    assert list(heatmap.x) == list(heatmap.y) == ["Aorta", "Heart"]  # in the label set's order
    assert heatmap.z[0][1] == 2 and heatmap.z[1][0] == 1


def test_organs_of_one_title_are_drawn_under_it() -> None:
    """As two label sets may spell them."""
    table = pd.DataFrame({"target": ["liver", "Liver", "heart"], "v": [1.0, 2.0, 3.0]})
    assert list(answer_chart(table, Drawing("bar", "target", "v"), LABELS).data[0].x) == ["Liver", "Liver", "Heart"]


def test_a_table_is_read_by_the_organs_titles() -> None:
    table = pd.DataFrame({"region": ["lung_lower_lobe_left", None, "left_out"], "case_id": "heart", "v": 1.0})
    shown = titled(table, LABELS)
    assert list(shown["region"].dropna()) == ["Left lower lobe", "Left out"] and shown["region"].isna()[1]
    assert set(shown["case_id"]) == {"heart"} and table["region"][0] == "lung_lower_lobe_left"


def test_a_large_answer_is_drawn_in_part() -> None:
    table = pd.DataFrame({"name": [f"n{row}" for row in range(50_000)], "a": range(50_000), "b": range(50_000)})
    points = answer_chart(table, Drawing("scatter", "a", "b"), LABELS).data[0]
    assert 0.4 * MOST_POINTS < len(points.x) <= MOST_POINTS and points.x[0] == 0
    assert len(answer_chart(table, Drawing("bar", "name", "a"), LABELS).data[0].y) == MOST_NAMES
    assert columns_of(table) == (["name"], ["a", "b"])


# ---- the page --------------------------------------------------------------------------------------


def _opened(monkeypatch: pytest.MonkeyPatch, root: Path = SHIPPED, **link: str) -> AppTest:
    return opened(monkeypatch, root, "query", link)


def test_a_link_runs_its_query_and_an_example_another(monkeypatch: pytest.MonkeyPatch) -> None:
    sql = "SELECT case_id, age FROM cases WHERE cohort = 'clinic' ORDER BY age DESC"
    app = _opened(monkeypatch, sql=sql, cohort="clinic", kind="histogram", x="age")
    assert app.text_area[0].value == sql and "##### 16 rows" in texts(app)
    assert app.dataframe[0].value["age"].is_monotonic_decreasing
    assert app.selectbox(key="query_kind").value == "histogram"
    written = {name: app.query_params[name] for name in ("sql", "kind", "x")}  # AppTest unpacks single ones
    assert written == {"sql": sql, "kind": "histogram", "x": "age"}
    next(button for button in app.button if button.label == "Model against model").click().run()
    assert not app.exception and "region = target" in app.text_area[0].value
    assert app.selectbox(key="query_kind").value == "bar" and "kind" not in app.query_params


def test_what_is_refused_is_told_in_one_line_and_stays_in_the_editor(monkeypatch: pytest.MonkeyPatch) -> None:
    app = _opened(monkeypatch, sql="DELETE FROM cases")
    assert [error.value for error in app.error] == [
        "a query must be one SELECT on the views; got DELETE; allowed\\: SELECT … or WITH … SELECT"
    ]
    assert app.text_area[0].value == "DELETE FROM cases" and not app.dataframe


def test_only_the_first_rows_are_shown_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MOST_ROWS", 6000)
    app = _opened(monkeypatch, sql="SELECT i FROM range(7000) t(i)")
    assert "More than 6,000 rows" in texts(app) and len(app.dataframe[0].value) == query.MOST_SHOWN
    assert any("The CSV has 6,000" in caption.value for caption in app.caption)


def test_a_long_query_is_no_link(monkeypatch: pytest.MonkeyPatch) -> None:
    app = _opened(monkeypatch, sql="SELECT 1 AS a --" + "x" * query.MOST_LINKED)
    assert "sql" not in app.query_params and any("this one is longer" in caption.value for caption in app.caption)


def test_an_empty_root_and_an_empty_answer_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "No row answers" in _opened(monkeypatch, tmp_path).info[0].value


def test_an_example_without_rows_says_what_that_means() -> None:
    example = next(one for one in sql_guide.EXAMPLES if one.title == "Most unusual organs")
    asked = sql_guide.filled(example, "c", "r", "heart")
    assert "agg2exp outliers" in sql_guide.on_nothing(asked, "c", "r", "heart")
    assert sql_guide.on_nothing(asked + " LIMIT 1", "c", "r", "heart") == sql_guide.NO_ROW


@pytest.mark.browser
def test_from_an_example_to_a_query_of_ones_own(chromium: Browser, server: Callable[[Path], str]) -> None:
    page = chromium.new_page(viewport={"width": 1440, "height": 900}, base_url=server(SHIPPED))
    page.set_default_timeout(60_000)
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto("/query?cohort=clinic&target=heart")
    page.get_by_role("button", name="The whole matrix").click()
    _drawn(page, "heatmap")
    editor = page.get_by_label("SQL", exact=True)
    editor.fill("SELECT scanner, count(*) AS scans FROM cases GROUP BY scanner ORDER BY scanner")
    editor.press("Control+Enter")
    _drawn(page, "bar")
    expect(page.get_by_text("4 rows", exact=True)).to_be_visible()
    with page.expect_download() as download:
        page.locator(".st-key-query_csv").get_by_role("button", name="CSV").click()
    assert download.value.path().read_text().splitlines()[0] == "scanner,scans"
    assert "scanner" in page.url
    page.get_by_role("button", name="About").click()
    expect(page.get_by_text("How the numbers are defined")).to_be_visible()
    assert [url for url in requests if "127.0.0.1" not in url and not url.startswith(("data:", "blob:"))] == []
    assert errors == []
    page.close()


def _drawn(page: Page, kind: str) -> None:
    """Wait until the chart is of this kind."""
    page.wait_for_function(
        f"() => document.querySelector('.st-key-query_chart .js-plotly-plot')?.data?.[0]?.type === '{kind}'"
    )
