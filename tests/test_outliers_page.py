"""The Outliers page: its chart, its words, its logic on the demo and the published table; one journey in a browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pages import opened, texts
from playwright.sync_api import Browser, Page
from streamlit.testing.v1 import AppTest

from agg2exp_core.analysis import outliers
from agg2exp_core.analysis.outliers import overall
from agg2exp_core.organs import load_label_set
from agg2exp_core.records import Selection, SumTable, Volume
from agg2exp_core.settings import SHIPPED
from agg2exp_core.store import published_csv, results
from agg2exp_core.store.lists import list_lists
from dashboard import data
from dashboard.charts.scatter import (
    CORNER,
    NOTHING,
    RIGHT_UNUSUAL,
    RIGHT_USUAL,
    WRONG_UNUSUAL,
    WRONG_USUAL,
    Lines,
    Words,
    evidence_scatter,
    stretched,
)
from dashboard.viewer.stage import Attribution, Scene
from dashboard.viewer.thumbnail import drawn
from dashboard.views import outlier_list, unusual
from dashboard.views.scoring import ALL, Scores

LABELS = load_label_set("thorax17")
RUN = "thorax17_swinunetr-smoothgrad-pairs-4"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, published_table: Path) -> Path:
    """The demo without its scans and maps, and the published table."""
    root = tmp_path_factory.mktemp("data") / "root"
    left_out = shutil.ignore_patterns("models", "lists", "jobs", "images", "labels", "pathology", "*.nii.gz")
    shutil.copytree(SHIPPED, root, ignore=left_out)
    published_csv.import_csv(root, published_table, "published")
    return root


def _open(monkeypatch: pytest.MonkeyPatch, root: Path, page: str = "outliers", **link: str) -> AppTest:
    return opened(monkeypatch, root, page, link)


def _linked(app: AppTest, *names: str) -> list[str]:
    """The values of the page's address."""
    values = [app.query_params[name] for name in names]
    return [value[0] if isinstance(value, list) else value for value in values]


def _table(app: AppTest, column: str) -> pd.DataFrame:
    return next(table.value for table in app.dataframe if column in table.value)


# ---- the chart -------------------------------------------------------------------------------------


def _points(**columns: list) -> pd.DataFrame:
    rows = {
        "case_id": ["a", "b", "c", "d"], "x": [0.95, 0.5, 0.6, 0.9], "score": [5.0, 4.0, 1.0, 2.0],
        "told": list("abcd"), "color": ["metal", NOTHING, NOTHING, "metal"], "selected": [False] * 4,
    }  # fmt: skip
    return pd.DataFrame(rows | columns)


def test_corners_by_hand() -> None:
    lines = Lines(3, 0.9)
    corners = [lines.quadrant(score, dice) for score, dice in ((5, 0.95), (4, 0.5), (1, 0.6), (2, 0.9))]
    assert corners == [RIGHT_UNUSUAL, WRONG_UNUSUAL, WRONG_USUAL, RIGHT_USUAL]
    # What reaches the good Dice is good; what only reaches the limit is not yet unusual.
    assert lines.quadrant(3, 0.9) == RIGHT_USUAL
    assert lines.quadrant(np.nan, 0.9) == lines.quadrant(5, np.nan) == Lines(3, None).quadrant(5, 0.9) == ""


def test_without_a_limit_no_scan_is_said_to_be_usual() -> None:
    """As of an organ that just enough usual scans have to learn from, and too few to score these themselves."""
    lines = Lines(np.nan, 0.9)
    assert lines.quadrant(5, 0.95) == ""
    assert not evidence_scatter(_points(), lines, Words("x", "y")).layout.annotations


def test_dice_is_stretched_towards_one() -> None:
    np.testing.assert_allclose(stretched(np.array([0, 0.9, 0.99, 0.999, 1])), [0, 1, 2, 3, 3])


def test_every_point_lies_where_it_should_and_answers_with_its_case() -> None:
    figure = evidence_scatter(_points(selected=[False, True, False, False]), Lines(3, 0.9), Words("x", "y", "Planted"))
    found = {
        case: (x, y) for trace in figure.data for x, y, (case,) in zip(trace.x, trace.y, trace.customdata, strict=True)
    }
    expected = {"a": (0.95, 5), "b": (0.5, 4), "c": (0.6, 1), "d": (0.9, 2)}
    assert found == {case: (stretched(np.array(dice)), score) for case, (dice, score) in expected.items()}
    assert [trace.name for trace in figure.data] == [NOTHING, "metal"]
    assert [list(trace.selectedpoints) for trace in figure.data] == [[0], []]
    assert {re.sub("</?b>", "", note.text).replace("<br>", " ") for note in figure.layout.annotations} == {
        f"{corner} 1 scan" for corner in (RIGHT_UNUSUAL, WRONG_UNUSUAL, RIGHT_USUAL, WRONG_USUAL)
    }


def test_a_scan_that_scores_nothing_stands_at_the_charts_foot() -> None:
    """As one that is twice among those it is compared with; a logarithmic axis has no place for 0."""
    figure = evidence_scatter(_points(score=[5.0, 0.0, 1.0, 2.0]), Lines(3, 0.9), Words("x", "y"))
    low, high = figure.layout.yaxis.range
    drawn = np.log10(np.array(figure.data[0].y, float))
    assert low < drawn[1] < low + 0.1 * (high - low) and drawn[1] < drawn[[0, 2, 3]].min()


@pytest.mark.parametrize("good", [0.3, 0.6, 0.949, 0.9999])
def test_a_corners_words_do_not_cross_the_line(good: float) -> None:
    left, right = evidence_scatter(_points(), Lines(3, good), Words("x", "y")).layout.xaxis.range
    line, drawn = stretched(np.array(good)), stretched(np.array(_points()["x"]))
    assert min(line - left, right - line) >= 0.999 * CORNER * (right - left)
    assert left < drawn.min() and drawn.max() < right


def test_axes_have_round_ticks_however_narrow_they_are() -> None:
    points = _points().assign(x=[0.871, 0.9, 0.88, 0.91], score=[1.35, 2.3, 1.7, 2.0])
    layout = evidence_scatter(points, Lines(2.2, 0.88), Words("x", "y", "Planted")).layout
    assert list(layout.xaxis.ticktext) == ["0.87", "0.88", "0.89", "0.9", "0.91"]
    assert pytest.approx(layout.yaxis.tickvals) == [1.4, 1.6, 1.8, 2.0, 2.2, 2.4]


def test_without_dice_a_strip_of_scores_is_drawn() -> None:
    figure = evidence_scatter(_points(color=[1.0, 2.0, 3.0, 4.0]), Lines(3, None), Words("x", "y", "Age"))
    assert [note.text for note in figure.layout.annotations] == ["Unusual: 2 scans"]
    assert len(figure.layout.shapes) == 1 and len(figure.data) == 1 and figure.data[0].selectedpoints is None


# ---- words and pictures ----------------------------------------------------------------------------


def test_a_deviation_in_words() -> None:
    row = {"target": "lung_lower_lobe_left", "region": "heart", "value": 0.118, "median": 0.041, "z": 5.12}
    assert unusual.sentence(row, LABELS) == (
        "Segmenting **the left lower lobe**, it looks at **the heart** for **12 %** "
        "(usually 4.1 %; 5.1 times the usual spread above)"
    )
    own = row | {"region": "lung_lower_lobe_left", "value": 0.0012, "z": -12.3}
    told = unusual.sentence(own, LABELS)
    assert "at **the organ itself** for **0.12 %** (usually 4.1 %; 12 times the usual spread below)" in told


def test_p_in_words() -> None:
    assert [outlier_list.p_in_words(p) for p in (0.04321, 1.0, 6e-7, np.nan)] == ["0.043", "1", "< 0.001", "not tested"]


def test_the_most_unusual_organ_is_no_background() -> None:
    values = np.array([[9.0, 1, 2], [np.nan, 3, np.nan], [np.nan] * 3])
    scores = Scores(("a", "b", "c"), ("background", "heart", "aorta"), values, values)
    assert scores.most_unusual == ["aorta", "heart", "background"]
    wide = np.array([[5.0, 40]] * 19 + [[9.0, 41]])  # the second organ's distances are larger in every scan
    assert Scores(("a",) * 20, ("heart", "aorta"), wide, wide).most_unusual[-1] == "heart"
    np.testing.assert_array_equal(scores.of(ALL), overall(values))
    assert scores.limit("heart", 0.5) == 2 and np.isnan(Scores(("a",), ("heart",), values, None).limit(ALL, 0.95))


def test_a_picture_goes_through_the_peak_else_the_organ_else_the_middle() -> None:
    affine = np.diag([2.0, 2, 3, 1])
    scan = Volume(np.zeros((8, 9, 10), np.int16), affine)
    organ, map_ = np.zeros((8, 9, 10), np.uint8), np.zeros((8, 9, 10), np.float32)
    organ[2:5, 2:5, 6], map_[1, 1, 8] = 8, -1
    prediction = Volume(organ, affine)
    attribution = Attribution(Volume(map_, affine), 1.0, np.array([2.0, 2, 24]))
    places = [
        drawn(Scene("a", scan, LABELS, 8, prediction, attribution)),
        drawn(Scene("b", scan, LABELS, 8, prediction)),
        drawn(Scene("c", scan, LABELS, 3, prediction)),
    ]
    assert [place.at for place in places] == [(1, 1, 8), (3, 3, 6), (4, 4, 5)]
    assert all(place.png.startswith(b"\x89PNG") for place in places)


# ---- the page on the demo --------------------------------------------------------------------------


def test_every_detector_finds_what_was_planted(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    app = _open(monkeypatch, root, cohort="clinic", run=RUN)
    assert "by what a detector learned from 24 scans of reference" in texts(app)
    worth = _table(app, "auc").set_index("detector")["auc"]
    assert len(worth) == 4 and worth.min() > 0.85 and worth.max() >= 0.95
    listed = _table(app, "corner")
    assert listed["score"].is_monotonic_decreasing and "cli-10" in set(listed["case_id"])
    assert f"**{len(listed)} of 16 scans** of clinic are unusual" in texts(app)
    assert _linked(app, "detector") == ["robust_z"] and not app.error and not app.warning
    who = _table(app, "p, adjusted")
    assert "Planted: pleural effusion" in set(who[""])


def test_a_link_opens_the_same_view(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    view = {"detector": "neighbours", "organ": "heart", "limit": "0.7", "good": "0.5", "color": "age", "abnormal": ""}
    app = _open(monkeypatch, root, cohort="clinic", run=RUN, usual=f"clinic:{RUN}", pick="cli-03", **view)
    assert "each scored by a detector that learned from all others" in texts(app)
    assert list(_table(app, "case_id")["case_id"]) == ["cli-03"]
    assert _linked(app, "organ", "limit", "good", "color", "pick") == ["heart", "0.7", "0.5", "age", "cli-03"]
    assert "auc" not in _table(app, "rho")
    app.button(key="outliers_unselect").click().run()
    assert "pick" not in app.query_params and len(_table(app, "case_id")) > 1


def test_scans_left_out_are_learned_from_no_more(monkeypatch: pytest.MonkeyPatch, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "own")
    app = _open(
        monkeypatch, tmp_path / "own", cohort="clinic", run=RUN, usual=f"clinic:{RUN}", pick="cli-10", limit="0.8"
    )
    app.button(key="outliers_leave_out_usual").click().run()
    assert not app.exception and not app.error
    (kept,) = list_lists(tmp_path / "own", "clinic")
    assert (kept.name, kept.cases) == ("not-learned-clinic", ("cli-10",))
    assert "learned from: not in list" in texts(app)
    assert _linked(app, "usual.not_list") == ["not-learned-clinic"]
    assert "of 16 scans" in texts(app)  # it is judged still
    app.button(key="outliers_leave_out_here").click().run()
    assert "of 16 scans" not in texts(app) and _linked(app, "not_list") == ["left-out-clinic"]


def test_a_case_finished_while_others_are_scored_comes_with_the_next_drawing(
    monkeypatch: pytest.MonkeyPatch, root: Path, tmp_path: Path
) -> None:
    shutil.copytree(root, tmp_path / "own")
    cases = tmp_path / "own" / "runs" / "clinic" / RUN / "cases"
    (cases / "cli-08").rename(cases / ".cli-08")
    score_fold = outliers.score_fold

    def finish(name: str, values: np.ndarray, number: int, folds: int) -> np.ndarray:
        if (cases / ".cli-08").exists():
            (cases / ".cli-08").rename(cases / "cli-08")
            data.forget()
        return score_fold(name, values, number, folds)

    monkeypatch.setattr(outliers, "score_fold", finish)
    app = _open(monkeypatch, tmp_path / "own", cohort="clinic", run=RUN, usual=f"clinic:{RUN}")
    assert (cases / "cli-08").exists() and "of 15 scans" in texts(app)
    app.run()
    assert not app.exception and "of 16 scans" in texts(app)


def test_metadata_of_the_lists_own_names_stands_beside_them(
    monkeypatch: pytest.MonkeyPatch, root: Path, tmp_path: Path
) -> None:
    shutil.copytree(root, tmp_path / "own")
    path = tmp_path / "own" / "cohorts" / "clinic" / "cases.csv"
    cases = pd.read_csv(path, dtype=str)
    cases.assign(score="7", target="left", unusual=cases["sex"]).to_csv(path, index=False)
    app = _open(monkeypatch, tmp_path / "own", cohort="clinic", run=RUN)
    listed = _table(app, "corner")
    assert (
        listed["score"].is_monotonic_decreasing
        and set(listed["score_2"]) == {7}
        and set(listed["target_2"]) == {"left"}
    )
    assert {"score", "target", "unusual_2"} <= set(listed) and not {"score_x", "score_y"} & set(listed)


def test_too_few_to_learn_from_is_told(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    app = _open(
        monkeypatch, root, **{"cohort": "clinic", "run": RUN, "usual": f"clinic:{RUN}", "usual.is.scanner": "Scanner B"}
    )
    assert "outliers need more than 8 cases to fit on" in app.error[0].value
    assert {"detector", "usual.is.scanner"} <= set(app.query_params)  # the address is a link to this too


def test_a_link_to_an_unknown_organ_is_told(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    app = _open(monkeypatch, root, cohort="clinic", run=RUN, organ="spleen")
    assert "of the link is not here" in app.warning[0].value and app.dataframe


def test_only_organs_that_listed_scans_have_are_offered(
    monkeypatch: pytest.MonkeyPatch, root: Path, tmp_path: Path
) -> None:
    """A run may hold targets of cases that have left the cohort's list."""
    shutil.copytree(root, tmp_path / "own")
    run = tmp_path / "own" / "runs" / "clinic" / RUN
    table = SumTable(("spleen",), LABELS.names, *np.ones((2, 1, 17)), np.full(17, 50, np.int64))
    with results.case_folder(run / "cases" / "left", {"case_id": "left", "targets": ["spleen"]}) as folder:
        results.write_importance(folder, table)
    app = _open(monkeypatch, tmp_path / "own", cohort="clinic", run=RUN, usual=f"clinic:{RUN}", organ="spleen")
    assert "spleen" in data.targets(tmp_path / "own", "clinic", RUN)
    assert "of the link is not here" in app.warning[0].value and app.dataframe


def test_without_cohorts_the_page_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    app = _open(monkeypatch, tmp_path)
    assert "agg2exp demo" in app.info[0].value


def test_sentences_are_of_what_was_asked_for(root: Path) -> None:
    place = unusual.Place(root, "clinic", RUN, "cli-10", LABELS)
    told = unusual.why_unusual(place, Selection("reference", RUN), n=3)
    assert len(told) == 3 and all(line.startswith("Segmenting **the ") for line in told)
    of_heart = unusual.why_unusual(place, Selection("clinic", RUN), "heart", 2)
    assert all("Segmenting **the heart**" in line for line in of_heart)


def test_the_case_page_says_why_once_it_is_opened(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    app = _open(monkeypatch, root, "case", cohort="published", case="s0802")
    assert "Segmenting" not in texts(app)
    app.session_state["case_why"] = True
    app.run()
    assert not app.exception and texts(app).count("Segmenting **the ") == unusual.SENTENCES


# ---- the published table ---------------------------------------------------------------------------


def test_unusual_evidence_goes_with_lower_dice_on_the_published_table(
    monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    """Leave one out, the mean over targets; −0.52 when this was written. The core tests the forest, which is slow."""
    app = _open(monkeypatch, root, cohort="published", detector="robust_z")
    assert "each scored by a detector that learned from all others" in texts(app)
    worth = _table(app, "rho").set_index("detector")
    assert worth.loc["Robust z", "rho"] <= -0.5
    assert len(worth) >= 3 and all(float(p.lstrip("< ")) < 0.05 for p in worth["p"])
    assert any("No image is stored" in caption.value for caption in app.caption)


# ---- the journey -----------------------------------------------------------------------------------


@pytest.mark.browser
def test_from_points_to_a_list(chromium: Browser, server: Callable[[Path], str], root: Path) -> None:
    page = chromium.new_page(viewport={"width": 1440, "height": 900}, base_url=server(root))
    page.set_default_timeout(120_000)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    elsewhere: list[str] = []
    page.on("request", lambda sent: elsewhere.append(sent.url) if "127.0.0.1" not in sent.url else None)
    page.goto(f"/?cohort=clinic&run={RUN}")
    page.locator(".st-key-cohort_boxes .boxlayer path.box").first.wait_for()
    page.get_by_role("link", name="Outliers").click(no_wait_after=True)
    page.locator("[class*=st-key-outliers_chart] .scatterlayer .point").nth(15).wait_for(state="attached")
    page.get_by_text("Who they are").wait_for()
    _lasso(page)
    page.get_by_text("Selected · ").wait_for()
    page.wait_for_url("**pick=cli-**")
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV of").click()
    rows = pd.read_csv(download.value.path())
    assert set(rows["reading"]) <= {RIGHT_UNUSUAL, WRONG_UNUSUAL} and rows["unusual"].all() and len(rows) >= 1
    page.get_by_role("button", name="Save as list").click()
    page.get_by_label("Name", exact=True).fill("odd-ones")
    page.get_by_role("button", name=re.compile(r"Save \d+ scan")).click()
    page.get_by_text("Saved lists (1)").wait_for()
    (kept,) = list_lists(root, "clinic")
    assert kept.name == "odd-ones" and set(kept.cases) == set(rows["case_id"])
    assert not errors and not [url for url in elsewhere if not url.startswith(("data:", "blob:"))]


@pytest.mark.browser
def test_the_published_table_shows_its_outliers(chromium: Browser, server: Callable[[Path], str], root: Path) -> None:
    page = chromium.new_page(viewport={"width": 1440, "height": 900}, base_url=server(root))
    page.set_default_timeout(120_000)
    page.goto("/outliers?cohort=published&detector=robust_z")
    points = page.locator("[class*=st-key-outliers_chart] .scatterlayer .point")
    points.nth(31).wait_for(state="attached")
    drawn = page.locator("[class*=st-key-outliers_chart] .js-plotly-plot").evaluate(
        "chart => chart._fullData.filter((trace) => trace.customdata).flatMap((trace) => Array.from(trace.y))"
    )
    assert len(drawn) == points.count() == 32
    _lasso(page)
    page.get_by_text("Selected · ").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV of").click()
    rows = pd.read_csv(download.value.path())
    assert 1 <= len(rows) < 32 and rows["score"].min() >= np.sort(drawn)[-len(rows)] - 1e-6
    page.get_by_text("No image is stored").first.wait_for()


def _lasso(page: Page) -> None:
    """Around the chart's upper half, all of which is above the limit."""
    area = page.locator("[class*=st-key-outliers_chart] .nsewdrag").first.bounding_box()
    assert area is not None
    x, y, width, height = (area[name] for name in ("x", "y", "width", "height"))
    corners = [(0.01, 0.01), (0.99, 0.01), (0.99, 0.5), (0.01, 0.5), (0.01, 0.02)]
    page.mouse.move(x + corners[0][0] * width, y + corners[0][1] * height)
    page.mouse.down()
    for right, down in corners[1:]:
        page.mouse.move(x + right * width, y + down * height, steps=8)
    page.mouse.up()
