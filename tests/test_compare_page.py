"""The Compare page on a small root: two models of one cohort, another cohort; one journey through it in a browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from explanations import published
from pages import opened, texts
from playwright.sync_api import Browser, Page, expect
from streamlit.testing.v1 import AppTest

from agg2exp_core.analysis.compare import Comparison
from agg2exp_core.organs import load_label_set
from agg2exp_core.records import Condition, Method, Selection, SumTable
from agg2exp_core.store import catalog, published_csv, queries, results
from dashboard import contrast, data

LABELS = load_label_set("thorax17")
OLD, NEW = "old-smoothgrad-4", "new-smoothgrad-4"
CASES = [f"c{number}" for number in range(1, 13)]
TARGETS = ("aorta", "heart")
SAME_COHORT = {"a.cohort": "clinic", "b.cohort": "clinic"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cohorts with the same case names.

    `clinic`: the model `new` has 20 points of the heart's attribution less on the aorta than `old`, and Dice lower by
    0.1 for the heart alone; the run of `new` lacks the last case. `elsewhere`: `old` alone, as in `clinic`.
    """
    root = tmp_path_factory.mktemp("data")
    for cohort in ("clinic", "elsewhere"):
        (root / "cohorts" / cohort).mkdir(parents=True)
        sex = ["F", "M"] * 6
        table = pd.DataFrame({"case_id": CASES, "image": "", "label": "", "sex": sex})
        table.to_csv(root / "cohorts" / cohort / "cases.csv", index=False)
    _run(root, "clinic", OLD, 0.4, 0.9, CASES)
    _run(root, "clinic", NEW, 0.2, 0.8, CASES[:-1])
    _run(root, "elsewhere", OLD, 0.4, 0.9, CASES)
    return root


def _run(root: Path, cohort: str, run: str, on_aorta: float, dice: float, cases: list[str]) -> None:
    """A run in which so much of the heart's attribution lies on the aorta; a little more from case to case."""
    info = {
        "model": run.split("-")[0], "model_hash": run, "method": "smoothgrad", "versions": {},
        "parameters": Method("smoothgrad", 4, estimator="plain").parameters(),
        "label_set": "thorax17", "values": "sums",
    }  # fmt: skip
    results.write_run(root, cohort, run, info)
    for place, case_id in enumerate(cases):
        # Changes differ from scan to scan, around what `root` says.
        wiggle = 0.001 * (place - 5) if run == NEW else 0
        share = on_aorta + 0.01 * place + wiggle
        sums = np.zeros((2, 17))
        sums[0, 1], sums[1, [1, 8]] = 1, (share, 1 - share)
        table = SumTable(TARGETS, LABELS.names, sums, np.zeros((2, 17)), np.full(17, 50, np.int64))
        with results.case_folder(root / "runs" / cohort / run / "cases" / case_id, {"case_id": case_id}) as folder:
            results.write_importance(folder, table)
            scores = np.where(np.array(LABELS.names) == "heart", dice + wiggle, 0.9)
            results.write_agreement(folder, LABELS.names, scores, scores / (2 - scores))


def _open(monkeypatch: pytest.MonkeyPatch, root: Path, **link: str) -> AppTest:
    return opened(monkeypatch, root, "compare", link)


# ---- the page's logic ------------------------------------------------------------------------------


def test_it_opens_with_model_against_model_scan_by_scan(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    app = _open(monkeypatch, root)
    # `old` has explained more cases, so it is the first.
    assert app.query_params["a.run"] == OLD and app.query_params["b.run"] == NEW
    told = texts(app)
    assert "new looks 20.0 points less at Aorta than old when it segments Heart" in told
    assert "2 of 32 pairs" in told and "each of 11 scans with itself; 1 scan in only one of the sets left out" in told
    assert "lower for Heart (−0.100)" in told and "no clear change for 15 organs" in told
    listed = app.dataframe[0].value
    assert listed["change"].median() == pytest.approx(-20) and len(listed) == 11


def test_the_largest_changes_are_sentences_that_pick_their_pair(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    app = _open(monkeypatch, root)
    sentences = [button.label.replace(contrast.NO_BREAK, " ") for button in app.button if "points" in button.label]
    assert sentences[0].startswith("**Heart**: **20.0 points less** on **Aorta** :gray[45.0 → 25.0 %, 95 % −20.")
    next(button for button in app.button if "points more** on **Heart" in button.label).click().run()
    assert "Share of Heart’s attribution on Heart, scan by scan" in texts(app)
    assert app.query_params["pick"] == "heart~heart" and not app.exception


def test_one_set_twice_says_what_to_change(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    app = _open(monkeypatch, root, **SAME_COHORT, **{"a.run": OLD, "b.run": OLD})
    assert (
        "Both sets are the same" in app.info[0].value and "filter one of them, for example by sex" in app.info[0].value
    )
    assert not app.dataframe


def test_names_that_two_cohorts_share_are_not_pairs_unless_the_user_says_so(
    monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    app = _open(monkeypatch, root, **{"a.cohort": "clinic", "b.cohort": "elsewhere", "a.run": OLD})
    assert "12 names in both cohorts, which need not mean the same scans" in texts(app)
    assert "Chance could explain every difference between clinic and elsewhere" in texts(app)
    app.toggle(key="compare_pairs_unusual").set_value(True).run()
    assert "each of 12 scans with itself" in texts(app) and app.query_params["pairs"] == "on"


def test_filters_of_the_two_sets_are_apart(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    link = {**SAME_COHORT, "a.run": OLD, "b.run": OLD, "a.is.sex": "F", "b.is.sex": "M", "background": "on"}
    app = _open(monkeypatch, root, **link)
    assert "6 against 6 other scans" in texts(app) and "sex is M" in texts(app)
    assert link.items() <= dict(app.query_params).items()
    assert set(app.dataframe[0].value["set"]) == {"sex is F", "sex is M"}
    app.button(key="compare_swap").click().run()
    assert (app.query_params["a.is.sex"], app.query_params["b.is.sex"]) == ("M", "F")


def test_a_set_that_filters_leave_empty_says_so(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    app = _open(monkeypatch, root, **SAME_COHORT, **{"a.run": OLD, "b.run": NEW, "b.dice": "0.0~0.1"})
    assert "Second set: no explained scan passes its filters" in app.info[0].value


def test_where_nothing_is_explained_the_page_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "agg2exp demo" in _open(monkeypatch, tmp_path).info[0].value
    (tmp_path / "cohorts" / "clinic").mkdir(parents=True)
    pd.DataFrame({"case_id": CASES, "image": "", "label": ""}).to_csv(
        tmp_path / "cohorts" / "clinic" / "cases.csv", index=False
    )
    data.forget()
    assert "nothing to compare" in _open(monkeypatch, tmp_path).info[0].value


def test_a_link_to_a_pair_that_is_not_here_is_told(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    app = _open(monkeypatch, root, pick="heart~gone")
    assert "Cell of the link is not here" in app.warning[0].value and "pick" not in app.query_params


def test_a_link_finds_what_was_written_a_moment_ago(
    monkeypatch: pytest.MonkeyPatch, root: Path, published_table: Path
) -> None:
    _open(monkeypatch, root)
    published_csv.import_csv(root, published_table, "published")
    app = _open(monkeypatch, root, **{"a.cohort": "published", "b.cohort": "published"})
    assert app.query_params["a.cohort"] == "published" and not app.warning


# ---- what it opens with, and names -----------------------------------------------------------------


def _record(run: str, model: str, cases: int) -> dict[str, object]:
    return {"run": run, "model": model, "cases": cases}


def _side(cohort: str = "clinic", model: str = "old", **asked: object) -> contrast.Side:
    run = f"{model}-smoothgrad-4"
    return contrast.Side(Selection(cohort, run, **asked), {"model": model}, f"SmoothGrad × 4, {model}", LABELS)


def test_what_it_opens_with() -> None:
    two = {"a": _record("a", "m", 9), "b": _record("b", "m", 9), "c": _record("c", "other", 9)}
    assert contrast.usual_pair({"clinic": two}) == (("clinic", "a"), ("clinic", "c"))
    tried = {"a": _record("a", "m", 9), "b": _record("b", "m", 1)}
    assert contrast.usual_pair({"clinic": tried, "reference": {"a": _record("a", "m", 20)}}) == (
        ("reference", "a"), ("clinic", "a"),
    )  # fmt: skip
    assert contrast.usual_pair({"clinic": tried}) == (("clinic", "a"), ("clinic", "a"))
    assert contrast.usual_pair({"x": two, "clinic": two}, "clinic")[0] == ("clinic", "a")


def test_two_cohorts_open_in_one_run_and_two_changes_at_once_are_told() -> None:
    both = {"a": _record("a", "m", 9), "c": _record("c", "other", 9)}
    known = {"clinic": both, "reference": dict(reversed(both.items())), "lone": {"x": _record("x", "m", 3)}}
    assert contrast.by_one_run(known, ["reference", "clinic"]) == (("reference", "c"), ("clinic", "c"))
    assert contrast.by_one_run(known, ["clinic", "clinic"]) is contrast.by_one_run(known, ["clinic", "lone"]) is None
    assert contrast.by_one_run(known, ["gone", "clinic"]) is None
    assert "cohort **and** in model" in contrast.both_differ(_side(), _side("reference", model="new"))
    assert contrast.both_differ(_side(), _side("reference")) == contrast.both_differ(_side(), _side(model="new")) == ""


def test_sets_are_named_by_what_tells_them_apart() -> None:
    women = _side(where=(Condition("sex", values=("F",)),))
    assert contrast.names(_side(), _side(model="new")) == ("old", "new")
    assert contrast.names(_side(), _side("reference")) == ("clinic", "reference")
    assert contrast.names(_side(), women) == ("all scans", "sex is F")
    assert contrast.names(_side("reference"), women) == ("reference, all scans", "clinic, sex is F")


def _compared(*rows: tuple[str, str, float, float]) -> Comparison:
    """target, region, difference and adjusted p of each pair; the interval is narrow."""
    table = pd.DataFrame(rows, columns=["target", "region", "difference", "p_adjusted"])
    return Comparison(True, (9, 9), (), table.assign(low=table["difference"] - 1e-4, high=table["difference"] + 1e-4))


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([("heart", "heart", 0.3, 0.001), ("heart", "aorta", -0.05, 0.01), ("aorta", "ribs", 0.4, 0.2)],
         "new looks 5.0 points less at Aorta than old when it segments Heart"),
        ([("heart", "heart", -0.3, 0.001), ("heart", "aorta", 0.005, 0.01)],
         "new looks 30.0 points less at Heart itself than old when it segments Heart"),
        ([("heart", "heart", 0.002, 0.001), ("heart", "aorta", 0.004, 0.01)],
         "Chance aside, new hardly differs from old: at most 0.4 points more of Heart on Aorta"),
        ([("heart", "aorta", 0.2, 0.06)], "Chance could explain every difference between old and new"),
        ([("heart", "aorta", 0.2, np.nan)], "Too few scans to tell old and new apart"),
    ],
)  # fmt: skip
def test_a_headline_is_of_a_difference_that_matters_and_that_chance_does_not_explain(rows: list, told: str) -> None:
    assert contrast.headline(_compared(*rows), (_side(), _side(model="new")), "mass") == told


def test_the_verdict_counts_organs_that_look_at_themselves() -> None:
    found = _compared(("heart", "heart", 0.3, 0.01), ("aorta", "aorta", -0.1, 0.01), ("ribs", "ribs", -0.1, 0.9))
    assert contrast.verdict(found).endswith(" 5 %. On the organ itself: more for 1 organ, less for 1 organ")


def test_scans_are_paired_where_only_the_run_differs() -> None:
    women = Selection("clinic", NEW, where=(Condition("sex", values=("F",)),))
    assert contrast.usually_paired(Selection("clinic", OLD), Selection("clinic", NEW))
    assert not contrast.usually_paired(Selection("clinic", OLD), women)
    assert not contrast.usually_paired(Selection("clinic", OLD), Selection("elsewhere", NEW))
    assert not contrast.usually_paired(Selection("clinic", OLD), Selection("clinic", NEW, within=("odd",)))


def test_dice_of_the_cases_that_pass(root: Path) -> None:
    con = catalog.connect(root)
    table = queries.dice(con, Selection("clinic", NEW, where=(Condition("sex", values=("F",)),)))
    assert set(table["case_id"]) == set(CASES[::2]) and "background" not in set(table["target"])
    assert table[table["target"] == "heart"]["dice"].mean() == pytest.approx(0.8)


# ---- the journey -----------------------------------------------------------------------------------


@pytest.mark.browser
def test_from_two_models_to_a_case_of_the_right_run(
    chromium: Browser, server: Callable[[Path], str], root: Path
) -> None:
    url = server(root)
    page = chromium.new_page(viewport={"width": 1440, "height": 900}, base_url=url)
    page.set_default_timeout(60_000)
    outside: list[str] = []
    page.on("request", lambda made: outside.append(made.url) if made.url.startswith("http") else None)
    page.goto("/")
    page.get_by_role("link", name="Compare").click()
    expect(page.get_by_role("heading", name="new looks 20.0 points less at Aorta than old")).to_be_visible()
    _draws_the_numbers(page)
    _picks_a_cell(page)
    _opens_the_case(page)
    assert all(made.startswith(url) for made in outside)


@pytest.mark.browser
def test_well_and_less_well_segmented_patients_of_the_published_table(
    chromium: Browser, server: Callable[[Path], str], root: Path, published_table: Path
) -> None:
    published_csv.import_csv(root, published_table, "published")
    masses, dice = published(published_table)
    organs = np.flatnonzero([name != "background" for name in masses.targets])
    shares = masses.values[:, organs][:, :, organs]
    shares = shares / shares.sum(axis=2, keepdims=True)
    well = dice[:, organs].mean(axis=1) >= 0.955
    medians = [np.median(shares[of], axis=0) for of in (~well, well)]
    largest = np.abs(medians[1] - medians[0]).max()
    page = chromium.new_page(viewport={"width": 1440, "height": 900}, base_url=server(root))
    page.set_default_timeout(60_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto("/compare?a.cohort=published&b.cohort=published&a.dice=0.0~0.9549&b.dice=0.955~1.0")
    page.locator(".st-key-compare_matrix .heatmaplayer image").first.wait_for()
    drawn = page.evaluate("""() => document.querySelector(".st-key-compare_matrix .js-plotly-plot")._fullData
        .slice(0, 2).flatMap((layer) => Array.from(layer.z).flatMap((row) => Array.from(row)))""")
    shown = np.abs([value for value in drawn if value is not None and np.isfinite(value)])
    assert len(shown) == 16 * 16 and shown.max() ** 2 == pytest.approx(largest, abs=1e-6)
    for count in (int((~well).sum()), int(well.sum())):
        expect(page.get_by_text(f"{count} scans").first).to_be_visible()
    page.locator("[class*=st-key-compare_0], [class*=st-key-compare_more]").first.wait_for(state="attached")
    assert not errors


def _draws_the_numbers(page: Page) -> None:
    """The heart's row is the second of two, the aorta's column the first: −20 points, of which the root is drawn."""
    page.locator(".st-key-compare_matrix .heatmaplayer image").first.wait_for()
    drawn = page.evaluate("""() => document.querySelector(".st-key-compare_matrix .js-plotly-plot")._fullData
        .slice(0, 2).map((layer) => Number.isFinite(layer.z[1][0]) ? layer.z[1][0] : null)""")
    assert drawn[0] == pytest.approx(-np.sqrt(0.2)) and drawn[1] is None


def _picks_a_cell(page: Page) -> None:
    area = page.locator(".st-key-compare_matrix .nsewdrag").first.bounding_box()
    assert area is not None
    at = area["x"] + area["width"] * 1.5 / 16, area["y"] + area["height"] * 0.75
    page.mouse.move(*at)
    expect(page.locator(".st-key-compare_matrix .hovertext")).to_contain_text("+20.0 points")
    page.mouse.click(*at)
    page.wait_for_url("**pick=heart~heart**")
    expect(page.get_by_text("Share of Heart’s attribution on Heart, scan by scan")).to_be_visible()


def _opens_the_case(page: Page) -> None:
    """A cell of the first set's column opens the first set's run."""
    grid = page.locator("[data-testid=stDataFrame]").last
    grid.scroll_into_view_if_needed()
    table = grid.bounding_box()
    assert table is not None
    page.mouse.move(table["x"] + 90, table["y"] + 50)
    page.mouse.click(table["x"] + 100, table["y"] + 53, delay=100)
    page.wait_for_url("**/case?**case=c**")
    assert f"run={OLD}" in page.url and "target=heart" in page.url
