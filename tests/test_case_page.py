"""The Case page: its parts on their own, and the page itself in a browser."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import streamlit as st
from pages import texts
from playwright.sync_api import Browser, Page
from scipy.stats import spearmanr
from streamlit.testing.v1 import AppTest

from agg2exp_core import volumes
from agg2exp_core.jobs import queue, worker
from agg2exp_core.jobs.queue import Request
from agg2exp_core.organs import load_label_set
from agg2exp_core.records import InputError, Method, Selection, SumTable, Volume
from agg2exp_core.store import cohorts, published_csv, results
from agg2exp_core.volumes import read_volume, write_volume
from dashboard import data
from dashboard.charts.bars import importance_bars
from dashboard.viewer.stage import Scene
from dashboard.views import case, choosing, compute, effort, methods

LABELS = load_label_set("thorax17")
RUN = "thorax17_swinunetr-smoothgrad-pairs-4"
SHAPE = (40, 32, 24)
AFFINE = np.array([[-4.0, 0, 0, 80], [0, -4, 0, 70], [0, 0, 6, -50], [0, 0, 0, 1]])  # stored LPS


def _nifti(shape: tuple[int, ...] = SHAPE) -> bytes:
    return nib.Nifti1Image(np.zeros(shape, np.int16), np.eye(4)).to_bytes()


# ---- bringing a scan --------------------------------------------------------------------------


def test_an_uploaded_scan_becomes_a_case(tmp_path: Path) -> None:
    case_id = compute.take_in(tmp_path, "Müller chest/CT 1.nii", io.BytesIO(_nifti()))
    stored = cohorts.find_case(tmp_path, compute.UPLOADS, case_id)
    assert stored.image is not None and read_volume(stored.image).array.shape == SHAPE
    assert case_id.startswith("scan-") and "ller" not in str(stored)


def test_the_same_scan_twice_is_one_case(tmp_path: Path) -> None:
    first = compute.take_in(tmp_path, "a.nii", io.BytesIO(_nifti()))
    assert compute.take_in(tmp_path, "a.nii", io.BytesIO(_nifti())) == first
    compute.take_in(tmp_path, "b.nii", io.BytesIO(_nifti((3, 4, 5))))
    assert len(cohorts.read_cases(tmp_path, compute.UPLOADS)) == 2


def test_scans_whose_hashes_begin_alike_are_two_cases(tmp_path: Path) -> None:
    """Of some ten thousand scans two have the same first eight digits: one took the place of the other."""
    seen: dict[str, bytes] = {}
    whole = _nifti((4, 1, 1))
    for number in itertools.count():
        scan = whole[:-4] + number.to_bytes(4)
        begins = hashlib.sha256(scan).hexdigest()[:8]
        if begins in seen:
            break
        seen[begins] = scan
    first, second = (compute.take_in(tmp_path, "a.nii", io.BytesIO(one)) for one in (seen[begins], scan))
    assert first != second and len(cohorts.read_cases(tmp_path, compute.UPLOADS)) == 2


def test_what_a_kill_leaves_of_an_upload_does_not_tell_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(volumes, "check_scan", lambda path: written.extend(map(str, tmp_path.rglob("*"))))
    compute.take_in(tmp_path, "DOE_JANE.nii.gz", io.BytesIO(_nifti()))
    assert written and "JANE" not in "".join(written)


def test_an_uploaded_scan_is_on_the_disk_before_it_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, fsync = [], os.fsync

    def noted(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    compute.take_in(tmp_path, "a.nii", io.BytesIO(_nifti()))
    listed = next(name for name in synced if name.startswith(".cases.csv"))
    assert synced.index("scan.nii") < synced.index("images") < synced.index(listed) and synced[-1] == compute.UPLOADS


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.nii", b"no scan"), ("a.nii.gz", _nifti()), ("a.png", _nifti()), ("a.nii", _nifti((4, 4, 4, 2)))],
    ids=["not a NIfTI", "not gzip", "another type", "4D"],
)
def test_a_refused_upload_leaves_nothing(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(InputError):
        compute.take_in(tmp_path, name, io.BytesIO(content))
    assert list(tmp_path.iterdir()) == []


# ---- words and charts -------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "1 s"), (42, "42 s"), (200, "3 min"), (7500, "2 h 5 min")])
def test_time_left_in_words(seconds: float, words: str) -> None:
    assert compute.duration(seconds) == words


def test_bars_are_sorted_and_stand_before_their_cohort() -> None:
    table = pd.DataFrame(
        {
            "region": ["aorta", "heart", "ribs"],
            "value": [0.2, 0.5, np.nan],
            "absent": [None, None, "region not predicted"],
            **{name: [0.1, 0.2, 0.3] for name in ("q05", "q25", "median")},
            **{name: [0.3, 0.4, 0.5] for name in ("q75", "q95")},
            "percentile": [40.0, 99.0, np.nan],
            "error": [0.01, np.nan, np.nan],
        }
    )
    figure = importance_bars(table, LABELS, {"cardiovascular system": "#123456"}, "mass")
    bars = next(trace for trace in figure.data if trace.name == "this case")
    assert list(bars.y) == ["Ribs", "Aorta", "Heart"] and list(bars.x[1:]) == [20.0, 50.0]
    assert bars.marker.color[2] == "#123456"
    assert "region not predicted" in bars.customdata[0] and "higher than in 99 %" in bars.customdata[2]
    assert bars.error_x.array[1] == pytest.approx(1.96) and "20.00 % ± 1.96 %" in bars.customdata[1]
    assert np.isnan(bars.error_x.array[2]) and "±" not in bars.customdata[2]
    outer = figure.data[0]
    assert list(outer.base) == pytest.approx([30, 10, 20]) and list(outer.x) == pytest.approx([20, 20, 20])


def test_a_case_alone_has_no_cohort_behind_it() -> None:
    numbers = dict.fromkeys(("value", "q05", "q25", "median", "q75", "q95"), 0.1)
    table = pd.DataFrame(
        [{"region": name, "absent": None, "percentile": np.nan} | numbers for name in ("aorta", "heart")]
    )
    names = {trace.name for trace in importance_bars(table, LABELS, {}, "mass").data}
    assert "this case" in names and not {name for name in names if "cohort" in name}


def test_a_damaged_completeness_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(st, "caption", told.append)
    monkeypatch.setattr(st, "warning", lambda text, **_: told.append(text))
    with results.case_folder(tmp_path / "one", {}) as new:
        results.write_completeness(new, {"heart": (1.5, 1.5, 0.0)})
    chosen = SimpleNamespace(folder=tmp_path / "one", target="heart")
    case._completeness(chosen)
    path = tmp_path / "one" / "completeness.csv"
    path.write_text(path.read_text().replace("1.5", "3.5"))
    case._completeness(chosen)
    assert len(told) == 2 and "accounts for the output" in told[0] and "is damaged" in told[1]


def test_a_run_of_unknown_parameters_keeps_its_id() -> None:
    record = {"run": "r", "method": "smoothgrad", "model": "m", "parameters": {"samples": 4, "newer": 1}}
    assert choosing.method_of(record) is None and choosing.run_title(record) == "r"
    with pytest.raises(InputError, match="a method's parameters must be known; got samples, newer"):
        Method.of("smoothgrad", record["parameters"])


@pytest.mark.parametrize("parameters", [{"samples": "4"}, {"samples": 4.0}, {"sigma": True}, {"estimator": None}])
def test_a_run_whose_parameters_were_edited_keeps_its_id(parameters: dict) -> None:
    record = {"run": "r", "method": "smoothgrad", "model": "m", "parameters": parameters}
    assert choosing.method_of(record) is None and choosing.run_title(record) == "r"
    with pytest.raises(InputError, match="must be of its kind"):
        Method.of("smoothgrad", parameters)
    assert Method.of("smoothgrad", {"sigma": 1}).sigma == 1


def test_masks_are_hatched_bars_above_the_organs() -> None:
    spread = dict.fromkeys(("q05", "q25", "median", "q75", "q95"), 0.1) | {"percentile": 50.0}
    organs = pd.DataFrame([{"region": name, "value": 0.5, "absent": None} | spread for name in ("aorta", "heart")])
    lesion = {"region_set": "pathology", "region": "pleural effusion", "value": 0.04, "absent": None} | spread
    lacking = {"region_set": "pathology", "region": "metal", "value": np.nan, "absent": "not in the mask"} | spread
    other = lesion | {"region_set": "second_reader"}
    figure = importance_bars(organs, LABELS, {}, "mass", pd.DataFrame([lesion, lacking]))
    bars = next(trace for trace in figure.data if trace.name == "this case")
    assert list(bars.y) == ["Aorta", "Heart", "Pleural effusion (mask)"] and bars.x[-1] == 4.0
    assert list(bars.marker.pattern.shape) == ["", "", "/"] and "may overlap organs" in bars.customdata[-1]
    assert figure.layout.shapes[0].y0 == 1.5
    figure = importance_bars(organs, LABELS, {}, "mass", pd.DataFrame([lesion, other]))
    bars = next(trace for trace in figure.data if trace.name == "this case")
    assert set(bars.y[2:]) == {"Pleural effusion (pathology)", "Pleural effusion (second reader)"}
    plain = importance_bars(organs, LABELS, {}, "mass", pd.DataFrame([lacking]))
    assert len(plain.data[0].y) == 2 and not plain.layout.shapes


def test_run_titles_name_the_method() -> None:
    record = {"run": "r", "method": "smoothgrad", "model": "m", "parameters": {"samples": 4}}
    assert choosing.run_title(record) == "m, SmoothGrad × 4"
    parameters = Method(samples=4, seed=7, mask="fp", estimator="plain").parameters()
    assert choosing.run_title(record | {"parameters": parameters}) == "m, SmoothGrad × 4, false positives, seed 7"
    drawn = record | {"parameters": parameters | {"mask": "file-cyst_1"}}
    assert "in mask cyst_1" in choosing.run_title(drawn)  # select boxes, tables and reports show no Markdown
    assert choosing.run_title({"run": "published", "method": None, "parameters": None}) == "published"
    quick = record | {"parameters": effort.EFFORTS["Quick look"].parameters()}
    assert choosing.run_title(quick) == "m, SmoothGrad, quick look"


def test_runs_side_by_side_are_named_by_what_tells_them_apart() -> None:
    old, new, seeded = "m old, SmoothGrad, quick look", "m new, SmoothGrad, quick look", "m old, SmoothGrad, seed 7"
    assert choosing.told_apart([old, new]) == ["m old", "m new"]
    assert choosing.told_apart([old, new, seeded]) == ["m old, quick look", "m new, quick look", "m old, seed 7"]
    assert choosing.told_apart([old]) == [old] and choosing.told_apart([old, old]) == [old, old]


def test_a_report_says_what_was_joined() -> None:
    joined = Selection("tiny", RUN, joined=True)
    assert case.counted(joined, LABELS) == "Share of the absolute attribution; lobes and muscles joined."
    assert "; parts of one organ joined." in case.counted(joined, load_label_set("totalsegmentator"))


# ---- a data root ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _built(tmp_path_factory.mktemp("data"), "thorax17")


def _built(root: Path, label_set: str, targets: tuple[str, ...] = ("aorta", "heart")) -> Path:
    """A cohort of one explained scan with a bright mark at the patient's left, and one case without an image."""
    folder = root / "cohorts" / "tiny"
    (folder / "images").mkdir(parents=True)
    hu = np.full(SHAPE, -160, np.int16)
    hu[30:36, 4:10, 16:20] = 240  # stored LPS: high i is left, low j is anterior
    write_volume(folder / "images" / "one.nii.gz", Volume(hu, AFFINE))
    (folder / "cases.csv").write_text("case_id,image,label,age\none,images/one.nii.gz,,63\ntwo,,,70\n")
    info = {
        "model": "thorax17_swinunetr", "model_hash": "0", "method": "smoothgrad", "versions": {},
        "parameters": Method("smoothgrad", 4, estimator="plain").parameters(), "label_set": label_set, "values": "sums",
    }  # fmt: skip
    results.write_run(root, "tiny", RUN, info)
    for name in ("one", "two"):
        _explained(root, name, targets)
    model = root / "models" / "thorax17_swinunetr" / "configs"
    model.mkdir(parents=True)
    (model / "inference.json").write_text("{}")
    return root


def _explained(root: Path, case_id: str, targets: tuple[str, ...]) -> None:
    sums = np.random.default_rng(0).random((2, len(targets), 17))
    voxels = np.full(17, 50, np.int64)
    table = SumTable(targets, LABELS.names, sums[0], sums[1], voxels)
    prediction = np.zeros(SHAPE, np.uint8)
    prediction[30:36, 4:10, 16:20] = 8
    saliency = np.zeros(SHAPE, np.float32)
    saliency[33, 6, 18] = -2
    manifest = {"case_id": case_id, "targets": list(targets)}
    with results.case_folder(root / "runs" / "tiny" / RUN / "cases" / case_id, manifest) as folder:
        results.write_importance(folder, table)
        results.write_agreement(folder, LABELS.names, np.full(17, 0.9), np.full(17, 0.8))
        write_volume(folder / "prediction.nii.gz", Volume(prediction, AFFINE))
        (folder / "saliency").mkdir(exist_ok=True)
        write_volume(folder / "saliency" / "heart.nii.gz", Volume(saliency, AFFINE))


# ---- the page's logic ---------------------------------------------------------------------------


def test_agreement_with_ablation_is_told_where_it_was_computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = _built(tmp_path, "thorax17")
    data.forget()
    said = texts(_drawn(monkeypatch, root, case="one", target="heart"))
    assert "Agreement with ablation" not in said and "**Explain** this scan by **Ablation**" in said
    own = results.read_importance(results.case_path(root, "tiny", RUN, "one"))
    info = {"model": "thorax17_swinunetr", "model_hash": "0", "method": "ablation", "parameters": {"value": "dice"}}
    results.write_run(root, "tiny", "ablated", info | {"label_set": "thorax17", "values": "sums"})
    manifest = {"case_id": "one", "targets": list(own.targets)}
    with results.case_folder(results.case_path(root, "tiny", "ablated", "one"), manifest) as folder:
        results.write_importance(folder, replace(own, positive=own.positive**2, negative=0 * own.negative))
    data.forget()
    said = texts(_drawn(monkeypatch, root, case="one", target="heart", run=RUN))
    amounts = [own.positive[1] + own.negative[1], own.positive[1] ** 2]
    rho = spearmanr(*amounts).statistic
    assert f"Agreement with ablation, effect on overlap (soft Dice): **ρ = {rho:.2f}** over 17 regions" in said
    assert "by **Ablation**" not in said
    said = texts(_drawn(monkeypatch, root, case="one", target="heart", run="ablated"))
    assert "Agreement with" not in said and "by **Ablation**" not in said


def test_what_did_not_settle_and_what_is_zero_everywhere_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root, parameters = _built(tmp_path, "thorax17"), Method(samples=20).parameters()
    own = results.read_importance(results.case_path(root, "tiny", RUN, "one"))
    info = {"model": "thorax17_swinunetr", "model_hash": "0", "method": "smoothgrad", "parameters": parameters}
    results.write_run(root, "tiny", "sure", info | {"label_set": "thorax17", "values": "sums"})

    def said(table: SumTable, **asked: str) -> str:
        manifest = {"case_id": "one", "targets": list(own.targets)}
        with results.case_folder(results.case_path(root, "tiny", "sure", "one"), manifest) as folder:
            results.write_importance(folder, table)
            write_volume(folder / "prediction.nii.gz", Volume(np.zeros(SHAPE, np.uint8), AFFINE))
        data.forget()
        return texts(_drawn(monkeypatch, root, case="one", target="heart", run="sure", **asked))

    for error, told in ((0.002, False), (0.004, True)):
        errors = np.full_like(own.positive, error)
        page = said(replace(own, mass_se=errors, organ_mass_se=errors))
        assert "Whiskers hold 95 %" in page
        assert ("It did not settle: 20 pairs leave the least sure one at ± 0.8 %." in page) == told
    assert "to share out" not in page
    nothing = np.zeros_like(own.negative)
    told = "Heart has no negative attribution to share out: it is 0 in every voxel of every organ."
    assert told in said(replace(own, negative=nothing), sign="neg")
    assert "Heart has no attribution to share out" in said(replace(own, positive=nothing, negative=nothing))


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (Method(), "the noisy copies that were averaged."),
        (Method(skip=0.01), "the noisy copies that were averaged and what windows left out may hold."),
        (Method("gradient", skip=0.01), "what windows left out may hold."),
        (Method(estimator="plain", skip=0.01), "what windows left out may hold."),
    ],
)  # fmt: skip
def test_whiskers_tell_what_they_are_made_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: Method, told: str
) -> None:
    root = _built(tmp_path, "thorax17")
    own = results.read_importance(results.case_path(root, "tiny", RUN, "one"))
    info = {"model": "thorax17_swinunetr", "method": method.name, "parameters": method.parameters()}
    results.write_run(root, "tiny", "sure", info | {"label_set": "thorax17", "values": "sums"})
    errors = np.full_like(own.positive, 0.01)
    manifest = {"case_id": "one", "targets": list(own.targets)}
    with results.case_folder(results.case_path(root, "tiny", "sure", "one"), manifest) as folder:
        results.write_importance(folder, replace(own, mass_se=errors, organ_mass_se=errors))
        write_volume(folder / "prediction.nii.gz", Volume(np.zeros(SHAPE, np.uint8), AFFINE))
    said = texts(_drawn(monkeypatch, root, case="one", target="heart", run="sure"))
    assert f"how sure each share is, judged from {told}" in said


@pytest.mark.parametrize(
    ("case_id", "age", "told"), [("one", 1e6, True), ("two", 60, True), ("two", 1e6, False)]
)  # fmt: skip
def test_jobs_that_ended_long_ago_are_told_at_their_own_case(
    monkeypatch: pytest.MonkeyPatch, root: Path, case_id: str, age: float, told: bool
) -> None:
    request = Request("tiny", case_id, "thorax17_swinunetr", Method(samples=4))
    job = queue.JobState("j", request, time.time() - age, "failed", reason="no room on the disk")
    monkeypatch.setattr(queue, "list_jobs", lambda root: [job])
    app = _drawn(monkeypatch, root, case="one")
    assert [error.value for error in app.error] == (["no room on the disk"] if told else [])


def _drawn(monkeypatch: pytest.MonkeyPatch, root: Path, **asked: str | list[str]) -> AppTest:
    """The page without a browser."""

    def script() -> None:
        from dashboard.views import case

        case.page()

    monkeypatch.setenv("AGG2EXP_DATA", str(root))
    app = AppTest.from_function(script, default_timeout=60)
    for name, value in ({"cohort": "tiny", "run": RUN, "case": "one", "target": "heart"} | asked).items():
        app.query_params[name] = value
    app.run()
    assert not app.exception
    return app


@pytest.mark.parametrize("case_id", ["one", "two"])
def test_a_run_whose_label_set_is_not_here_opens_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case_id: str
) -> None:
    app = _drawn(monkeypatch, _built(tmp_path, "a_bundle"), case=case_id)
    assert not app.error and any("Attribution of Heart" in element.value for element in app.markdown)


def test_a_link_to_a_place_opens_it_in_a_scan_that_was_seen_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    app = _drawn(monkeypatch, _built(tmp_path, "thorax17"), at="1.2.3")
    assert app.session_state["case_at_tiny_one"] == (1, 2, 3)
    app.query_params["at"] = "4.5.6"
    app.run()
    assert app.session_state["case_at_tiny_one"] == (4, 5, 6)
    # NiiVue, in the browser, is told as well: it remembers a place of its own for every scan.
    assert app.session_state["case_viewer_at"]["serial"] == 2


def test_a_link_keeps_the_list_that_one_steps_through(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    link = {"cohort": "tiny", "case": "two", "among": ["two", "one", "gone"], "as": "sex is F"}
    app = _drawn(monkeypatch, root, **link)
    assert any("1 of 2, sex is F" in caption.value for caption in app.caption)
    assert app.query_params["among"] == ["two", "one"]
    app.button(key="case_next").click().run()
    assert "one" in app.query_params["case"] and any("2 of 2, sex is F" in one.value for one in app.caption)
    app.button(key="case_whole_cohort").click().run()
    assert "among" not in app.query_params


def test_a_target_that_the_label_set_does_not_know_is_drawn_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = _built(tmp_path, "thorax17", ("gall_bladder", "heart"))
    app = _drawn(monkeypatch, root, target="gall_bladder")
    assert not app.error and any("Attribution of Gall bladder" in element.value for element in app.markdown)


@pytest.mark.parametrize(
    ("shares", "words"), [("", "Aorta is not predicted in this case"), ("0.5", "No attribution map of Aorta is stored")]
)
def test_a_table_of_shares_beside_images_says_why_nothing_is_coloured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shares: str, words: str
) -> None:
    root, table = _built(tmp_path, "thorax17"), tmp_path / "table.csv"
    header = ",".join(
        f"aorta_explanation_in_{region}_{value}" for region in ("aorta", "heart") for value in ("mass", "mean")
    )
    table.write_text(f"patient,{header}\n" + "".join(f"{name}{f',{shares}' * 4}\n" for name in ("one", "two")))
    published_csv.import_csv(root, table, "tiny")
    app = _drawn(monkeypatch, root, run="published", target="aorta")
    assert not app.error and any(words in element.value for element in app.info)


def test_a_switch_keeps_its_place_while_it_is_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    app = _drawn(monkeypatch, _built(tmp_path, "thorax17"))
    app.segmented_control(key="case_map").set_value("absolute").run()
    app.selectbox(key="case_target").select("aorta").run()  # has no map
    assert "Attribution map" not in [switch.label for switch in app.segmented_control]
    app.selectbox(key="case_target").select("heart").run()
    assert app.segmented_control(key="case_map").value == "absolute"


def test_a_link_carries_what_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = _built(tmp_path, "thorax17")
    for case_id in ("one", "two"):  # with an image and without
        link = {"sign": "neg", "value": "mean", "background": "on", "joined": "on"}
        app = _drawn(monkeypatch, root, case=case_id, **link)
        chosen = {switch.label: switch.value for switch in app.segmented_control}
        assert chosen.items() >= {"Attribution counted": "neg", "Measure": "mean"}.items()
        assert {name: app.query_params[name] for name in link} == link


def test_runs_beside_follow_the_link_and_those_that_are_not_here_are_told() -> None:
    def script() -> None:
        import streamlit as st

        from dashboard.views import case

        case.ADDRESS.follow()
        st.session_state["found"] = case._beside({})

    app = AppTest.from_function(script)
    app.query_params["beside"] = "gone"
    app.run()
    assert app.session_state["found"] == [] and "Run of the link is not here" in app.warning[0].value


def test_the_window_of_plain_slices_follows_the_organ_until_one_is_chosen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = _built(tmp_path, "thorax17", ("heart", "lung_upper_lobe_left"))
    lobe = LABELS.by_name["lung_upper_lobe_left"].id
    monkeypatch.setattr(Scene, "window", property(lambda scene: "lung" if scene.target == lobe else "soft"))
    app = _drawn(monkeypatch, root)
    assert app.segmented_control(key="case_window").value == "soft"
    app.selectbox(key="case_target").select("lung_upper_lobe_left").run()
    assert app.segmented_control(key="case_window").value == "lung"
    app.segmented_control(key="case_window").set_value("bone").run()
    app.selectbox(key="case_target").select("heart").run()
    assert app.segmented_control(key="case_window").value == "bone"


def test_voxels_to_explain_are_asked_for_where_there_is_a_label(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root, submitted = _built(tmp_path, "thorax17"), []
    monkeypatch.setattr(queue, "submit", lambda root, request: submitted.append(request))
    app = _drawn(monkeypatch, root)
    assert "Explained voxels" not in [box.label for box in app.selectbox]
    write_volume(root / "cohorts" / "tiny" / "images" / "label.nii.gz", Volume(np.zeros(SHAPE, np.uint8), AFFINE))
    listed = cohorts.read_cases(root, "tiny").assign(label="images/label.nii.gz")
    (root / "cohorts" / "tiny" / "cases.csv").unlink()
    cohorts.write_cases(root, "tiny", listed)
    app = _drawn(monkeypatch, root)
    box = next(box for box in app.selectbox if box.label == "Explained voxels")
    assert box.options == list(methods.MASKS.values()) and box.value == "prediction"
    box.select("fn").run()
    next(button for button in app.button if button.label == "Explain").click().run()
    assert [request.method.mask for request in submitted] == ["fn"] and not app.exception


def test_metadata_of_the_pages_own_names_stands_beside_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = _built(tmp_path, "thorax17")
    listed = cohorts.read_cases(root, "tiny").assign(cohort="elsewhere", age="")
    (root / "cohorts" / "tiny" / "cases.csv").unlink()
    cohorts.write_cases(root, "tiny", listed)
    app = _drawn(monkeypatch, root)
    assert "cohort **tiny**  ·  cohort\\_2 **elsewhere**" in [element.value for element in app.markdown]


PICTURE = "![x](https://example.org/p.png)"


def test_foreign_text_is_shown_and_never_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = _built(tmp_path, "thorax17")
    listed = cohorts.read_cases(root, "tiny").drop(columns="age").assign(**{PICTURE: PICTURE})
    (root / "cohorts" / "tiny" / "cases.csv").unlink()
    cohorts.write_cases(root, "tiny", listed)
    app = _drawn(monkeypatch, root, target=PICTURE)
    shown = [element.value for element in (*app.markdown, *app.warning)]
    told = "\\!\\[x\\]\\(https\\:\N{WORD JOINER}//example.org/p.png\\)"
    assert sum(text.count(told) for text in shown) == 3
    assert not any(PICTURE in text for text in shown)


# ---- the page in a browser --------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(chromium: Browser, server: Callable[[Path], str], root: Path) -> Page:
    page = chromium.new_page(viewport={"width": 1440, "height": 900}, base_url=server(root))
    page.set_default_timeout(20_000)
    return page


def _open(page: Page, **asked: str) -> None:
    link = {"cohort": "tiny", "run": RUN, "case": "one", "target": "heart"} | asked
    page.goto("/case?" + "&".join(f"{name}={value}" for name, value in link.items()))


def _light(page: Page, plane: str, right: float, down: float) -> int:
    """Red of the canvas at a share of its width and height; smoothed, so look inside even areas."""
    return page.locator(f'[data-plane="{plane}"] canvas').evaluate(
        "(c, [x, y]) => c.getContext('2d').getImageData(c.width * x, c.height * y, 1, 1).data[0]", [right, down]
    )


def _titles(page: Page) -> dict[str, str]:
    return {
        name: page.locator(f'[data-plane="{name}"] .title').inner_text() for name in ("axial", "coronal", "sagittal")
    }


def _until(seen: Callable[[], object], expected: object) -> None:
    for _ in range(100):
        if seen() == expected:
            return
        time.sleep(0.1)
    assert seen() == expected


@pytest.mark.browser
def test_link_opens_the_case_at_its_peak_left_on_the_right(page: Page) -> None:
    _open(page)
    # RAS indices of the peak: i = 39 − 33, j = 31 − 6, k = 18; titles count from 1.
    expected = {"axial": "Axial 19/24", "coronal": "Coronal 26/32", "sagittal": "Sagittal 7/40"}
    page.locator(".pane canvas").first.wait_for()
    _until(lambda: _titles(page), expected)
    page.locator(".opacity input").fill("0")
    _until(lambda: _light(page, "axial", 31 / 40, 5 / 32) > 200, True)
    assert _light(page, "axial", 9 / 40, 5 / 32) < 30
    assert _light(page, "coronal", 31 / 40, 5 / 24) > 200 and _light(page, "coronal", 31 / 40, 18 / 24) < 30
    assert _light(page, "sagittal", 5 / 32, 5 / 24) > 200 and _light(page, "sagittal", 27 / 32, 5 / 24) < 30
    marks = page.locator('[data-plane="sagittal"] .mark').all_inner_texts()
    assert marks == ["A", "P", "S", "I"]
    assert "right is on your left" in page.locator(".convention").inner_text()


@pytest.mark.browser
def test_without_webgl_the_slices_serve_and_say_so(page: Page) -> None:
    _open(page)
    page.get_by_text("This browser offers no WebGL, which the 3D viewer needs. These slices serve instead.").wait_for()
    page.locator(".stage .pane canvas").first.wait_for()


@pytest.mark.browser
def test_pictures_are_true_to_the_millimetre(page: Page) -> None:
    _open(page)
    sizes = {}
    for plane, (across, down) in {"axial": (160, 128), "coronal": (160, 144), "sagittal": (128, 144)}.items():
        page.locator(f'[data-plane="{plane}"] canvas').wait_for()
        _until(lambda plane=plane: page.locator(f'[data-plane="{plane}"] canvas').bounding_box()["width"] > 60, True)
        box = page.locator(f'[data-plane="{plane}"] canvas').bounding_box()
        sizes[plane] = (box["width"] / across, box["height"] / down)
    scales = [scale for pair in sizes.values() for scale in pair]
    assert max(scales) / min(scales) < 1.01


@pytest.mark.browser
def test_a_click_moves_the_other_slices_and_the_link(page: Page) -> None:
    _open(page)
    canvas = page.locator('[data-plane="axial"] canvas')
    canvas.wait_for()
    _until(lambda: _titles(page)["axial"], "Axial 19/24")
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 10.5 / 40, "y": box["height"] * 20.5 / 32})
    _until(lambda: _titles(page), {"axial": "Axial 19/24", "coronal": "Coronal 12/32", "sagittal": "Sagittal 30/40"})
    page.wait_for_url("**at=29.11.18**")
    page.reload()
    canvas.wait_for()
    _until(lambda: _titles(page)["sagittal"], "Sagittal 30/40")
    page.get_by_role("button", name="Jump to the peak").click()
    _until(lambda: _titles(page)["sagittal"], "Sagittal 7/40")
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.wheel(0, -120)
    _until(lambda: _titles(page)["axial"], "Axial 21/24")


@pytest.mark.browser
def test_a_case_without_an_image_says_so_and_keeps_its_bars(page: Page) -> None:
    _open(page, case="two")
    page.get_by_text("No image is stored for this case").wait_for()
    page.locator(".js-plotly-plot").first.wait_for()


@pytest.mark.browser
def test_a_link_to_an_unknown_case_is_told(page: Page) -> None:
    _open(page, case="nobody")
    page.get_by_text("Case of the link is not here").wait_for()


@pytest.mark.browser
def test_a_job_is_found_again_after_a_reload_and_stopped(
    page: Page, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import sys, time, pathlib\nfrom agg2exp_core.jobs.progress import Reporter\n"
        "with Reporter(pathlib.Path(sys.argv[1]), sys.argv[2]) as report:\n"
        "    report.turn('cpu')\n"
        "    for n in range(1, 600):\n        report.progress(n, 600, 'window')\n        time.sleep(0.1)\n"
    )
    _computes_by(monkeypatch, script)
    job = queue.submit(root, Request("tiny", "one", "thorax17_swinunetr", Method("gradient"), ("heart",)))
    Thread(target=worker.work, args=(root, "cpu"), daemon=True).start()
    try:
        for _ in range(2):
            _open(page)
            page.get_by_text("left", exact=False).filter(has_text="window").first.wait_for()
        page.get_by_test_id("stSidebarUserContent").get_by_role("button", name="Stop").click()
        page.get_by_text("stopped").wait_for()
        assert queue.state(root, job).status == "cancelled"
    finally:
        queue.cancel(root, job)


def _computes_by(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A worker of this process, not one of its own, lets jobs be computed by a script."""
    monkeypatch.setattr(queue, "start_worker", lambda *_: None)
    words = [sys.executable, "-c", script]
    monkeypatch.setattr(queue, "command", lambda root, job, request, device: [*words, str(root), job])


@pytest.mark.browser
def test_a_failed_job_gives_its_reason(page: Page, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "model must exist; got nothing"
    script = f"import sys; sys.exit({reason!r})"
    _computes_by(monkeypatch, script)
    queue.submit(root, Request("tiny", "two", "gone", Method("gradient")))
    worker.work(root, "cpu")
    _open(page)
    page.get_by_text(reason).wait_for()
