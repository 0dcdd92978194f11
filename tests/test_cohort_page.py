"""The Cohort page on a small root and on the published table; one journey through it in a browser."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pages import APP, opened, texts
from playwright.sync_api import Browser, Page, expect
from streamlit.testing.v1 import AppTest

from agg2exp_core.organs import load_label_set
from agg2exp_core.records import Condition, InputError, Method, Selection, SumTable, Volume
from agg2exp_core.store import cohorts, lists, published_csv, region_sets, results
from agg2exp_core.volumes import write_volume
from dashboard import data, downloads, tables
from dashboard.views import case, cohort_charts

LABELS = load_label_set("thorax17")
RUN = "thorax17_swinunetr-smoothgrad-pairs-4"
CASES = pd.DataFrame(
    {
        "case_id": ["c1", "c2", "c3", "c4", "c5", "c6"],
        "image": [f"images/c{number}.nii.gz" for number in range(1, 7)],
        "label": "",
        "age": [30, 40, 50, 60, 70, 80],
        "sex": list("FMFMFM"),
        "planted": ["", "", "", "metal", "pleural effusion", ""],
    }
)
INFO = {
    "model": "thorax17_swinunetr", "model_hash": "0", "method": "smoothgrad", "versions": {},
    "parameters": Method("smoothgrad", 4, estimator="plain").parameters(), "label_set": "thorax17", "values": "sums",
}  # fmt: skip
ON_AORTA = {"c1": 0.3, "c2": 0.1, "c3": 0.5, "c4": 0.2, "c5": 0.4}
"""Share of the heart's attribution on the aorta; c6 is not explained."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, published_table: Path) -> Path:
    """Cohorts: `clinic` of six cases, five of them explained; the published table; one that nothing explained."""
    root = tmp_path_factory.mktemp("data")
    for name in ("clinic", "waiting"):
        (root / "cohorts" / name).mkdir(parents=True)
        CASES.to_csv(root / "cohorts" / name / "cases.csv", index=False)
    results.write_run(root, "clinic", RUN, INFO)
    for case_id, share in ON_AORTA.items():
        _explain(root, case_id, share)
    published_csv.import_csv(root, published_table, "published")
    return root


def _explain(root: Path, case_id: str, share: float, targets: tuple[str, ...] = ("aorta", "heart")) -> None:
    """Of the heart's attribution, `share` lies on the aorta and the rest on the heart; all of it is positive."""
    sums = np.zeros((2, 17))
    sums[0, 1] = 1
    sums[1, [1, 8]] = share, 1 - share
    sums = sums[-len(targets) :]
    table = SumTable(targets, LABELS.names, sums, np.zeros_like(sums), np.full(17, 50, np.int64))
    manifest = {"case_id": case_id, "targets": list(targets), "label_set": "thorax17"}
    with results.case_folder(root / "runs" / "clinic" / RUN / "cases" / case_id, manifest) as folder:
        results.write_importance(folder, table)
        results.write_agreement(folder, LABELS.names, np.full(17, 0.5 + share), np.full(17, 0.5))


def _open(monkeypatch: pytest.MonkeyPatch, root: Path, **link: str) -> AppTest:
    return opened(monkeypatch, root, APP, link)


# ---- the page's logic ------------------------------------------------------------------------------


def test_the_case_page_steps_through_the_scans_shown(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    app = _open(monkeypatch, root, cohort="clinic", **{"is.sex": "F"})
    order = app.session_state[case.ORDER]
    assert (order.cases, order.title) == (("c1", "c3", "c5"), "sex is F")
    app.button(key="cohort_clear").click().run()
    assert case.ORDER not in app.session_state


def test_a_run_stopped_before_its_first_case_is_not_offered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cohorts" / "clinic").mkdir(parents=True)
    CASES.to_csv(tmp_path / "cohorts" / "clinic" / "cases.csv", index=False)
    results.write_run(tmp_path, "clinic", "stopped", {"model": "m", "label_set": "thorax17", "values": "sums"})
    app = _open(monkeypatch, tmp_path, cohort="clinic")
    assert app.selectbox(key="cohort_run").options == ["stopped"] and "is finished yet" in texts(app)
    results.write_run(tmp_path, "clinic", RUN, INFO)
    _explain(tmp_path, "c1", 0.3)
    data.forget()
    app = _open(monkeypatch, tmp_path, cohort="clinic")
    assert len(app.selectbox(key="cohort_run").options) == 1 and "scans**" in texts(app)


def test_a_filter_narrows_every_part_and_says_so(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    app = _open(monkeypatch, root, cohort="clinic", target="heart")
    assert "**6 scans**" in texts(app)
    next(widget for widget in app.multiselect if widget.label == "Sex").select("F").run()
    assert "**3 of 6 scans**" in texts(app) and "sex is F" in texts(app)
    assert list(app.dataframe[0].value["case_id"]) == ["c1", "c3", "c5"]
    next(button for button in app.button if button.label == "Clear all filters").click().run()
    assert "**6 scans**" in texts(app)


def test_an_empty_metadata_value_can_be_chosen(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    app = _open(monkeypatch, root, cohort="clinic")
    planted = next(widget for widget in app.multiselect if widget.label == "Planted")
    planted.set_value([planted.options.index("none")] if "" not in planted.options else [""])
    assert "none" in planted.options


def test_masked_regions_are_shown_where_there_are_any(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cohorts.write_cases(tmp_path, "clinic", CASES.astype(str))
    results.write_run(tmp_path, "clinic", RUN, INFO)
    for case_id, share in ON_AORTA.items():
        _explain(tmp_path, case_id, share)
    assert "On masked regions" not in texts(_open(monkeypatch, tmp_path, cohort="clinic", target="heart"))
    folder = tmp_path / "runs" / "clinic" / RUN
    for case_id in ("c4", "c5"):
        _draw_map(folder / "cases" / case_id)
        digest = results.read_manifest(folder / "cases" / case_id)["files"]["saliency/heart.nii.gz"]["sha256"]
        row = region_sets.MaskedSum("heart", "effusion", 1.0, 1.0, 8, 4.0, 4.0, "", "0", digest)
        region_sets.write_case(folder, "pathology", case_id, [row])
    data.forget()
    assert "On masked regions: 2 scans" in texts(_open(monkeypatch, tmp_path, cohort="clinic", target="heart"))
    app = _open(monkeypatch, tmp_path, **{"cohort": "clinic", "target": "heart", "in.age": "65~80"})
    assert "On masked regions: 1 scan" in texts(app)
    assert "On masked regions" not in texts(_open(monkeypatch, tmp_path, cohort="clinic", target="aorta"))


def _draw_map(folder: Path) -> None:
    with results.case_folder(folder, results.read_manifest(folder)) as new:
        shutil.copy(folder / "importance.csv", new)
        shutil.copy(folder / "agreement.csv", new)
        (new / "saliency").mkdir()
        write_volume(new / "saliency" / "heart.nii.gz", Volume(np.ones((2, 2, 2), np.float32), np.eye(4)))


def test_a_picked_cell_lists_its_cases_highest_first(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    app = _open(monkeypatch, root, cohort="clinic", target="heart", pick="heart~aorta")
    listed = app.dataframe[0].value
    order = sorted(ON_AORTA, key=lambda name: -ON_AORTA[name])
    assert list(listed["case_id"]) == order
    assert list(listed["value"]) == pytest.approx([100 * ON_AORTA[name] for name in order])
    assert list(listed["target_dice"]) == pytest.approx([0.5 + ON_AORTA[name] for name in order])
    assert "Heart’s attribution on Aorta, highest first" in texts(app)


def test_filters_hold_for_the_list_too(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    app = _open(monkeypatch, root, **{"cohort": "clinic", "pick": "heart~aorta", "in.age": "45~65", "dice": "0.8~1.0"})
    assert list(app.dataframe[0].value["case_id"]) == ["c3"]
    assert "mean Dice 0.8 to 1" in texts(app)


def test_tables_cut_no_word_and_have_no_empty_rows() -> None:
    table = pd.DataFrame({"planted": ["cropped field of view", None], "age": [61, 62]})
    config = tables.metadata(table, table)
    assert config["planted"]["label"] == "Planted" and config["planted"]["width"] > 7 * len("cropped field of view")
    assert config["age"]["width"] is None
    heights = [tables.height(table.iloc[:rows], 90) for rows in (0, 1, 2)]
    assert heights == [tables.ROW + 3, 2 * tables.ROW + 3, 90]


def test_filters_that_no_case_passes_say_what_to_do(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    app = _open(monkeypatch, root, **{"cohort": "clinic", "in.age": "30~35", "is.sex": "M"})
    assert "clear all" in app.info[0].value and not app.dataframe


def test_the_published_table_has_no_images_and_says_so(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    app = _open(monkeypatch, root, cohort="published", target="lung_lower_lobe_left", background="on",
                pick="lung_lower_lobe_left~lung_lower_lobe_left")  # fmt: skip
    listed = app.dataframe[0].value
    assert set(listed["image"]) == {"no image stored"} and len(listed) == 32
    assert listed["value"].median() == pytest.approx(9.69, abs=0.005)
    assert "Attribution counted" not in [group.label for group in app.segmented_control]


@pytest.mark.parametrize(("cohort", "words"), [("waiting", "is explained yet"), (None, "No cohort is here yet")])
def test_where_nothing_is_to_be_seen_the_page_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, root: Path, tmp_path: Path, cohort: str | None, words: str
) -> None:
    app = _open(monkeypatch, root, cohort=cohort) if cohort else _open(monkeypatch, tmp_path)
    assert words in app.info[0].value and "agg2exp" in app.info[0].value


def test_a_link_to_what_is_not_here_is_told(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    app = _open(monkeypatch, root, cohort="clinic", run="gone")
    assert "Run of the link is not here" in app.warning[0].value and app.dataframe


def test_a_run_whose_label_set_is_not_here_opens_all_the_same(
    monkeypatch: pytest.MonkeyPatch, root: Path, tmp_path: Path
) -> None:
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    record = tmp_path / "runs" / "clinic" / RUN / "run.json"
    record.write_text(record.read_text().replace("thorax17", "a_bundle"))
    app = _open(monkeypatch, tmp_path, cohort="clinic", target="heart")
    assert not app.error and "Heart: what the model looks at" in texts(app)


@pytest.mark.parametrize("view", ["overview", "histograms"])
def test_a_target_that_only_cases_off_the_list_have_is_drawn_empty(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, view: str
) -> None:
    (tmp_path / "cohorts" / "clinic").mkdir(parents=True)
    CASES.to_csv(tmp_path / "cohorts" / "clinic" / "cases.csv", index=False)
    results.write_run(tmp_path, "clinic", RUN, INFO)
    _explain(tmp_path, "c1", 0.3, ("heart",))
    _explain(tmp_path, "left", 0.3)
    app = _open(monkeypatch, tmp_path, cohort="clinic", target="aorta", view=view)
    assert "Aorta: what the model looks at" in texts(app)
    assert data.values(tmp_path, Selection("clinic", RUN), "aorta", "heart").size == 0


def test_a_run_without_a_finished_case_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cohorts" / "clinic").mkdir(parents=True)
    CASES.to_csv(tmp_path / "cohorts" / "clinic" / "cases.csv", index=False)
    results.write_run(tmp_path, "clinic", RUN, {"label_set": "thorax17", "method": "gradient", "values": "sums"})
    app = _open(monkeypatch, tmp_path, cohort="clinic")
    assert "is finished yet" in app.info[0].value and "agg2exp explain" in app.info[0].value


@pytest.mark.parametrize("pick", ["foo~bar", "heart~bar", "foo~heart", "heart"])
def test_a_pick_that_the_run_does_not_have_is_told_and_dropped(
    monkeypatch: pytest.MonkeyPatch, root: Path, pick: str
) -> None:
    app = _open(monkeypatch, root, cohort="clinic", target="heart", pick=pick)
    assert "of the link is not here" in app.warning[0].value and len(app.dataframe[0].value) == 6
    assert "pick" not in app.query_params


def test_a_pick_ends_with_the_run_that_has_it(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    app = _open(monkeypatch, root, cohort="published", pick="lung_lower_lobe_left~aorta")
    app.selectbox(key="cohort_cohort").select("clinic").run()
    assert not app.exception and not app.warning and len(app.dataframe[0].value) == 6
    assert "pick" not in app.query_params


def test_what_a_fragment_refuses_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    def refuse(*_: object) -> None:
        raise InputError("cohort must be known", "![x](https://example.org/p.png)")

    monkeypatch.setattr(data, "cases", refuse)
    app = _open(monkeypatch, root, cohort="clinic")
    told = "cohort must be known; got \\!\\[x\\]\\(https\\:\N{WORD JOINER}//example.org/p.png\\)"
    assert app.error[0].value == told


# ---- saved lists -----------------------------------------------------------------------------------


@pytest.fixture
def own(root: Path, tmp_path: Path) -> Path:
    """A copy of the root, to write into."""
    return Path(shutil.copytree(root, tmp_path / "data"))


def _press(app: AppTest, label: str) -> None:
    next(button for button in app.button if button.label == label).click().run()
    assert not app.exception


def _save(app: AppTest, name: str) -> None:
    next(field for field in app.text_input if field.label == "Name").set_value(name)
    _press(app, f"Save {len(app.dataframe[0].value)} scans")


def test_scans_are_saved_as_a_list_which_filters_and_opens_its_view(monkeypatch: pytest.MonkeyPatch, own: Path) -> None:
    app = _open(monkeypatch, own, **{"cohort": "clinic", "target": "heart", "is.sex": "F", "pick": "heart~aorta"})
    _save(app, "women")
    saved = lists.list_lists(own)[0]
    assert (saved.name, saved.cases) == ("women", ("c1", "c3", "c5")) and saved.link is not None
    _press(app, "Clear all filters")
    _press(app, "Show all scans")
    app.selectbox(key="cohort_target").select("aorta").run()
    _press(app, "Show scans")
    assert list(app.dataframe[0].value["case_id"]) == ["c1", "c3", "c5"]
    assert app.query_params["list"] in ("women", ["women"]) and "in list women" in texts(app)
    next(widget for widget in app.multiselect if widget.label == "Not in list").select("women").run()
    assert "clear all" in app.info[0].value
    _press(app, "Open view")
    assert {name: app.query_params.get(name) for name in saved.link} == {
        name: values[0] if len(values) == 1 else values for name, values in saved.link.items()
    }
    assert "sex is F" in texts(app) and "in list" not in texts(app) and "Heart’s attribution on Aorta" in texts(app)
    _press(app, "Remove")
    assert lists.list_lists(own) == [] and not any(button.label == "Open view" for button in app.button)


def test_a_list_that_is_refused_is_told_and_its_words_stay(monkeypatch: pytest.MonkeyPatch, own: Path) -> None:
    lists.save_list(own, lists.CaseList("taken", "clinic", ("c1",)))
    app = _open(monkeypatch, own, cohort="clinic")
    _save(app, "taken")
    assert "a name that is free" in app.error[0].value and lists.list_lists(own)[0].cases == ("c1",)
    field = next(field for field in app.text_input if field.label == "Name")
    assert field.value == "taken"
    next(box for box in app.checkbox if box.label.startswith("Replace")).check()
    _save(app, "taken")
    assert not app.error and len(lists.list_lists(own)[0].cases) == 6


# ---- views -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", cohort_charts.VIEWS)
@pytest.mark.parametrize("cohort", ["clinic", "published"])
def test_every_view_opens_from_its_link_and_lists_scans(
    monkeypatch: pytest.MonkeyPatch, root: Path, view: str, cohort: str
) -> None:
    app = _open(monkeypatch, root, cohort=cohort, target="heart", view=view, pick="heart~heart", joined="on")
    assert not app.error and not app.warning and app.query_params["view"] == view
    assert "Heart’s attribution on Heart, highest first" in texts(app)
    labels = [widget.label for widget in (*app.segmented_control, *app.toggle)]
    assert ("Attribution counted" in labels) == (cohort == "clinic")
    assert ("Measure" in labels, "With background" in labels, "Join lobes and muscles" in labels) == {
        "overview": (True, True, True), "histograms": (True, True, True), "context": (False, True, True),
        "graph": (False, False, True), "dendrogram": (False, False, False),
    }[view]  # fmt: skip


def test_the_published_graph_and_tree(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    app = _open(monkeypatch, root, cohort="published", view="graph")
    assert "**80 edges**, 9 of them self-loops" in texts(app) and app.query_params["edges"] == "top~5"
    app = _open(monkeypatch, root, cohort="published", view="graph", edges="cut~0.35")
    kept = int(texts(app).split(" edges**")[0].split("**")[-1])
    assert 0 < kept < 32  # not 240, as among the shares that the background takes part in
    app = _open(monkeypatch, root, cohort="published", view="dendrogram", linkage="ward")
    linkage = next(group for group in app.segmented_control if group.label.startswith("Linkage"))
    assert "Average (0.734)" in linkage.options and linkage.value == "ward"


def test_a_joined_region_lists_the_sum_of_its_parts(
    monkeypatch: pytest.MonkeyPatch, root: Path, published_table: Path
) -> None:
    app = _open(monkeypatch, root, cohort="published", target="heart", background="on", joined="on",
                pick="heart~lung_upper_lobe_left")  # fmt: skip
    assert "Heart’s attribution on Lung, highest first" in texts(app) and app.query_params["joined"] == "on"
    table = pd.read_csv(published_table)
    lobes = [name for name in LABELS.names if LABELS.joins.get(name) == "lung"]
    sums = table[[f"heart_explanation_in_{lobe}_mass" for lobe in lobes]].sum(axis=1)
    assert len(lobes) == 5
    assert list(app.dataframe[0].value["value"]) == pytest.approx(sorted(100 * sums, reverse=True))


def test_a_pick_that_was_joined_ends_with_the_joining(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    app = _open(monkeypatch, root, cohort="clinic", target="heart", joined="on", pick="heart~lung")
    app.toggle(key="cohort_joined").set_value(False).run()
    assert not app.exception and not app.warning and len(app.dataframe[0].value) == 6


def test_histograms_are_of_the_organs_that_the_link_names(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    app = _open(monkeypatch, root, cohort="published", target="heart", view="histograms")
    usual = app.query_params["organs"]
    assert usual[0] == "heart" and len(usual) == 4
    app = _open(monkeypatch, root, cohort="published", view="histograms", organs="ribs")
    assert app.query_params["organs"] == "ribs"
    next(widget for widget in app.multiselect if widget.label == "Organs").set_value([]).run()
    assert not app.exception and "Choose organs" in app.info[0].value


def test_histograms_without_background_have_none_as_a_target_either(
    monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    link = {"cohort": "published", "target": "background", "view": "histograms", "organs": "background"}
    app = _open(monkeypatch, root, **link, background="on")
    assert app.query_params["organs"] == "background"
    app.toggle(key="cohort_background").set_value(False).run()
    assert not app.exception and "Choose organs" in app.info[0].value
    app = _open(monkeypatch, root, **link | {"organs": "heart", "background": "off"})
    assert not app.exception and app.query_params["organs"] == "heart"


@pytest.mark.parametrize("edges", ["top~nan", "top~", "cut~7", "rings~3", "top~-2"])
def test_a_link_to_edges_that_make_no_sense_opens_what_is_nearest(
    monkeypatch: pytest.MonkeyPatch, root: Path, edges: str
) -> None:
    app = _open(monkeypatch, root, cohort="published", view="graph", edges=edges)
    assert not app.error and app.query_params["edges"] in ("top~5", "cut~1", "top~1")


def test_files_are_named_after_what_they_show() -> None:
    name = downloads.file_name("clinic", "r", "boxes", "heart", "abs-mass", "age 40 to 60", "planted is a/b")
    assert name == "clinic_r_boxes_heart_abs-mass_age-40-to-60_planted-is-a-b"
    assert len(downloads.file_name("x" * 500)) == downloads.MOST_IN_A_NAME


def test_a_run_too_large_to_be_kept_is_summarised_in_sql(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    selection = Selection("clinic", RUN, where=(Condition("sex", ("F",)),))

    def answers() -> list[pd.DataFrame]:
        values = pd.DataFrame({"value": np.sort(data.values(root, selection, "heart", "aorta"))})
        return [data.box_stats(root, selection, "heart"), data.matrix(root, selection), values]

    kept = answers()
    monkeypatch.setattr(data, "MOST_CELLS", 0)
    monkeypatch.setattr(data, "_everything", lambda *_: pytest.fail("kept what is too large"))
    for one, other in zip(kept, answers(), strict=True):
        pd.testing.assert_frame_equal(one, other, check_dtype=False)


# ---- the journey -----------------------------------------------------------------------------------


@pytest.mark.browser
def test_from_the_cohort_to_a_case_and_back(chromium: Browser, server: Callable[[Path], str], root: Path) -> None:
    page = chromium.new_page(viewport={"width": 1440, "height": 900}, base_url=server(root))
    page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: told.append(str(error)))
    page.goto("/?cohort=clinic&target=heart")
    page.locator(".st-key-cohort_boxes .boxlayer path.box").first.wait_for()
    _lists_a_clicked_cell(page)
    _lists_a_clicked_box(page)
    _filters(page)
    _takes_a_chart_away(page)
    _opens_a_case_and_comes_back(page)
    _lists_a_clicked_edge(page)
    assert told == []


@pytest.mark.browser
def test_the_published_table_is_drawn_as_published(
    chromium: Browser, server: Callable[[Path], str], root: Path
) -> None:
    page = chromium.new_page(viewport={"width": 1440, "height": 900}, base_url=server(root))
    page.set_default_timeout(60_000)
    page.goto("/?cohort=published&target=heart&view=graph")
    expect(page.get_by_text("9 of them self-loops")).to_be_visible()
    traces = page.locator(".st-key-cohort_graph .js-plotly-plot")
    picks = traces.evaluate("chart => chart.data.at(-1).customdata.map((pair) => pair.join('~'))")
    edges = {tuple(pick.split("~")) for pick in picks}
    assert len(edges) == 80 and sum(target == region for target, region in edges) == 9
    page.get_by_role("radio", name="Dendrogram").click()
    page.locator(".st-key-cohort_tree .scatterlayer path.js-line").first.wait_for()
    page.wait_for_url("**view=dendrogram**")
    _click(page, "cohort_tree", 0.5, 0.5 / 16)
    page.wait_for_url("**pick=**")
    expect(page.get_by_text("highest first")).to_be_visible()


def _click(page: Page, chart: str, right: float, down: float) -> None:
    area = page.locator(f".st-key-{chart} .nsewdrag").first
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * right, box["y"] + box["height"] * down)
    expect(page.locator(f".st-key-{chart} .hovertext")).to_contain_text("click to list")
    page.mouse.click(box["x"] + box["width"] * right, box["y"] + box["height"] * down)


def _lists_a_clicked_cell(page: Page) -> None:
    """Targets are aorta and heart, in rows; the first two columns are aorta and heart. The page turns to the row's."""
    _click(page, "cohort_matrix", 0.5 / 16, 0.25)
    expect(page.get_by_text("Scans by share of Aorta’s attribution on Aorta, highest first")).to_be_visible()
    expect(page.get_by_role("heading", name="Aorta: what the model looks at")).to_be_visible()
    page.wait_for_url("**target=aorta**")
    _click(page, "cohort_matrix", 0.5 / 16, 0.75)
    expect(page.get_by_text("Scans by share of Heart’s attribution on Aorta, highest first")).to_be_visible()
    page.wait_for_url("**pick=heart~aorta**")
    expect(page.get_by_role("heading", name="Heart: what the model looks at")).to_be_visible()


def _lists_a_clicked_box(page: Page) -> None:
    """The heart's largest median is on the heart itself: 0.7, the top row."""
    _click(page, "cohort_boxes", 0.4, 0.5 / 16)
    expect(page.get_by_text("Scans by share of Heart’s attribution on Heart, highest first")).to_be_visible()


def _filters(page: Page) -> None:
    page.get_by_role("combobox", name="Sex").click()
    page.get_by_role("option", name="F", exact=True).click()
    expect(page.get_by_text("3 of 6 scans")).to_be_visible()
    page.wait_for_url("**is.sex=F**")
    page.keyboard.press("Escape")


def _takes_a_chart_away(page: Page) -> None:
    """The pictures are made of what is drawn, the table holds its numbers, and names say what they show."""
    for name in ("SVG", "PNG", "CSV"):
        page.locator(".st-key-cohort_boxes_get button").first.click()
        button = page.get_by_role("button", name=name, exact=True)
        with page.expect_download() as download:
            button.click()
        file = download.value
        assert (
            file.suggested_filename == f"clinic_{RUN}_boxes_heart_abs-mass-without-background_sex-is-F.{name.lower()}"
        )
        content = Path(file.path()).read_bytes()
        if name == "CSV":
            table = pd.read_csv(io.BytesIO(content)).set_index("region")
            assert table.at["heart", "median"] == pytest.approx(0.6) and table.at["heart", "region_title"] == "Heart"
            page.keyboard.press("Escape")
        else:
            assert content.startswith({"SVG": b"<svg", "PNG": b"\x89PNG"}[name])
        expect(button).to_be_hidden()  # a picture closes the menu


def _lists_a_clicked_edge(page: Page) -> None:
    """Of two targets the edges are known: the heart's largest region is itself, then the aorta."""
    page.get_by_role("radio", name="Graph").click()
    chart = page.locator(".st-key-cohort_graph .js-plotly-plot")
    chart.locator(".scatterlayer").first.wait_for()
    spot = chart.evaluate(
        """chart => {
            const clicks = chart.data.at(-1), { xaxis, yaxis } = chart._fullLayout, box = chart.getBoundingClientRect();
            const at = clicks.customdata.findIndex((pair) => pair.join("~") === "heart~aorta");
            return [box.x + xaxis._offset + xaxis.d2p(clicks.x[at]), box.y + yaxis._offset + yaxis.d2p(clicks.y[at])];
        }"""
    )
    page.mouse.move(*spot)
    expect(page.locator(".st-key-cohort_graph .hovertext")).to_contain_text("Aorta → Heart")
    page.mouse.click(*spot)
    page.wait_for_url("**pick=heart~aorta**")
    expect(page.get_by_text("Scans by share of Heart’s attribution on Aorta, highest first")).to_be_visible()


def _opens_a_case_and_comes_back(page: Page) -> None:
    """By share of the heart on itself c1 (0.7) comes first."""
    link = page.url
    page.locator("[data-testid=stDataFrame]").scroll_into_view_if_needed()
    table = page.locator("[data-testid=stDataFrame]").bounding_box()
    assert table is not None
    # As a hand does it: the grid loses a press of no duration from nowhere.
    page.mouse.move(table["x"] + 140, table["y"] + 50)
    page.mouse.click(table["x"] + 150, table["y"] + 53, delay=100)
    page.wait_for_url("**/case?**case=c1**")
    assert f"run={RUN}" in page.url and "target=heart" in page.url
    page.go_back()
    page.wait_for_url("**is.sex=F**")
    expect(page.get_by_text("3 of 6 scans")).to_be_visible()
    page.goto(link)
    expect(page.get_by_text("Scans by share of Heart’s attribution on Heart, highest first")).to_be_visible()
    expect(page.get_by_text("3 of 6 scans")).to_be_visible()
