"""The Runs page: a cohort asked for, jobs in their order, what can be done about them, and the runs that are there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import streamlit as st
from pages import texts
from playwright.sync_api import Browser, expect
from streamlit.testing.v1 import AppTest

from agg2exp_core.jobs import estimate, queue
from agg2exp_core.jobs.queue import JobState, Request
from agg2exp_core.records import Method, SumTable
from agg2exp_core.settings import SHIPPED
from agg2exp_core.store import cohorts, results
from dashboard.views import compute

RUN = "net-gradient"
INFO = {"model": "net", "method": "gradient", "parameters": {}, "model_hash": "0", "values": "sums"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A cohort of three cases, one of them without an image, and a run that was begun."""
    for name, image in (("one", "one.nii.gz"), ("two", "two.nii.gz"), ("three", "")):
        cohorts.append_case(tmp_path, "c", {"case_id": name, "image": image, "label": ""})
    results.write_run(tmp_path, "c", RUN, INFO)
    configs = tmp_path / "models" / "net" / "configs"
    configs.mkdir(parents=True)
    (configs / "inference.json").write_text("{}")
    outputs = {"pred": {"channel_def": {"0": "background", "1": "heart"}}}
    (configs / "metadata.json").write_text(json.dumps({"network_data_format": {"outputs": outputs}}))
    return tmp_path


def drawn(monkeypatch: pytest.MonkeyPatch, root: Path, *jobs: JobState) -> AppTest:
    def script() -> None:
        from dashboard.views import runs

        runs.page()

    monkeypatch.setenv("AGG2EXP_DATA", str(root))
    monkeypatch.setattr(queue, "list_jobs", lambda root, limit=100: list(jobs))
    monkeypatch.setattr(queue, "start_worker", lambda root, device: None)
    app = AppTest.from_function(script, default_timeout=60).run()
    assert not app.exception
    return app


def job(name: str, status: str, **more) -> JobState:
    return JobState(name, Request("c", more.pop("case", ""), "net", Method("gradient")), 0.0, status, **more)


def test_a_cohort_is_asked_for_without_the_cases_that_have_no_image(monkeypatch, root) -> None:
    asked = []
    monkeypatch.setattr(queue, "submit", lambda root, request: asked.append(request))
    app = drawn(monkeypatch, root)
    assert "Nothing is being computed" in texts(app)
    next(box for box in app.selectbox if box.label == "Method").select("gradient").run()
    next(button for button in app.button if button.label == "Explain 2 scans").click().run()
    (request,) = asked
    assert (request.cohort, request.case_id, request.model) == ("c", "", "net") and request.method.name == "gradient"
    words = queue.asked(request)
    assert "--case" not in words and words[words.index("--cohort") + 1] == "c"


def test_a_model_of_more_channels_than_the_scans_have_is_told_in_place_of_the_button(monkeypatch, root) -> None:
    path = root / "models" / "net" / "configs" / "metadata.json"
    about = json.loads(path.read_text())
    about["network_data_format"]["inputs"] = {"image": {"channel_def": {"0": "T1", "1": "T2"}}}
    path.write_text(json.dumps(about))
    app = drawn(monkeypatch, root)
    assert "takes 2 images a scan, one for each channel; one has one image" in texts(app)
    assert not [button for button in app.button if button.label.startswith("Explain")]
    cohorts.append_case(root, "c", {"case_id": "pair", "image": "a.nii.gz;b.nii.gz", "label": ""})
    assert [button for button in drawn(monkeypatch, root).button if button.label.startswith("Explain")]


@pytest.mark.parametrize(("seconds", "known"), [(None, False), (60.0, True)])
def test_an_unknown_time_is_told_to_be_unknown(monkeypatch, root, seconds: float | None, known: bool) -> None:
    room = estimate.Estimate(2, 8, 3, seconds=seconds)
    monkeypatch.setattr(estimate, "estimate", lambda root, request: room)
    said = texts(drawn(monkeypatch, root))
    assert ("2 scans × 8 passes × 3 organs, at most about 60 s." in said) == known
    assert ("is known once this model has explained a scan on this machine." in said) != known


def test_jobs_stand_in_their_order_with_what_can_be_done(monkeypatch, root) -> None:
    stopped, asked = [], []
    monkeypatch.setattr(queue, "cancel", lambda root, job_id: stopped.append(job_id))
    monkeypatch.setattr(queue, "submit", lambda root, request: asked.append(request))
    jobs = [  # newest first, as the queue lists them
        job("j4", "queued", note="waiting for its turn"),
        job("j3", "running", done=5, total=20, note="two, attributing", seconds_left=300.0),
        job("j2", "failed", reason="no room on the disk", case="two"),
        job("j1", "cancelled"),
    ]
    app = drawn(monkeypatch, root, *jobs)
    said = texts(app)
    assert said.index("running") < said.index("waiting") and "c, all scans" in said
    assert "Ended: 1 failed, 1 stopped" in [expander.label for expander in app.expander]
    assert [error.value for error in app.error] == ["no room on the disk"]
    app.button(key="again_j2").click().run()
    app.button(key="again_j1").click().run()
    app.button(key="stop_j3").click().run()
    assert [request.case_id for request in asked] == ["two", ""] and stopped == ["j3"]


def test_of_a_cohort_only_what_failed_is_tried_again(monkeypatch, root) -> None:
    asked = []
    monkeypatch.setattr(queue, "submit", lambda root, request: asked.append(request))
    failed = {f"case_{number}": "a scan must be sound" for number in range(7)}
    app = drawn(monkeypatch, root, job("j1", "failed", reason="7 of 1200 refused", failed=failed))
    assert sum("a scan must be sound" in caption.value for caption in app.caption) == compute.SHOWN_FAILED
    next(button for button in app.button if button.label == "Try these again").click().run()
    assert [request.only for request in asked] == [tuple(failed)]


def test_a_stopped_run_goes_on_with_all_that_it_lacks(monkeypatch, root) -> None:
    asked = []
    monkeypatch.setattr(queue, "submit", lambda root, request: asked.append(request))
    stopped = job("j1", "cancelled", failed={"one": "a scan must be sound"})
    drawn(monkeypatch, root, stopped).button(key="again_j1").click().run()
    assert asked == [stopped.request]


def test_a_result_opens_on_the_page_of_its_case(monkeypatch, root) -> None:
    went = []
    monkeypatch.setattr(st, "switch_page", lambda page, query_params: went.append((page.url_path, query_params)))
    result = {"cohort": "c", "run": RUN, "case_id": "two"}
    one = JobState("j1", Request("c", "two", "net", Method("gradient"), ("heart",)), 0.0, "done", result=result)
    drawn(monkeypatch, root, one).button(key="open_j1").click().run()
    assert went == [("case", {"cohort": "c", "run": RUN, "case": "two", "target": "heart"})]


@pytest.mark.parametrize(("waiting", "ended"), [(0, 20), (3, 17), (19, 1), (25, 1)])
def test_what_ended_leaves_room_for_what_waits(monkeypatch, root, waiting, ended) -> None:
    jobs = [job(f"q{number}", "queued") for number in range(waiting)]
    app = drawn(monkeypatch, root, *jobs, *(job(f"e{number}", "cancelled") for number in range(60)))
    assert f"Ended: {ended} stopped" in [expander.label for expander in app.expander]


def test_only_listed_cases_count_as_explained(monkeypatch, root) -> None:
    for name in ("one", "gone", "two.bak"):
        with results.case_folder(results.case_path(root, "c", RUN, name), {"case_id": name}) as new:
            ones = np.ones((1, 2))
            results.write_importance(new, SumTable(("heart",), ("background", "heart"), ones, ones, np.array([1, 1])))
    (table,) = drawn(monkeypatch, root).dataframe
    assert table.value[["scans", "done"]].to_numpy().tolist() == [["1 of 3", pytest.approx(100 / 3)]]


def test_a_root_without_anything_says_what_to_do(monkeypatch, tmp_path) -> None:
    assert "agg2exp demo" in texts(drawn(monkeypatch, tmp_path))


@pytest.mark.browser
def test_the_demos_runs_open_at_a_click(chromium: Browser, server: Callable[[Path], str]) -> None:
    page = chromium.new_page(viewport={"width": 1440, "height": 900}, base_url=server(SHIPPED))
    page.set_default_timeout(60_000)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto("/")
    page.get_by_role("link", name="Runs").click()
    page.get_by_text("Explained so far").wait_for()
    expect(page.get_by_role("button", name="Explain 24 scans")).to_be_enabled()
    page.wait_for_timeout(1000)
    at = page.locator(".st-key-runs_table").bounding_box()
    assert at is not None
    page.mouse.click(at["x"] + 60, at["y"] + 53, delay=100)
    page.get_by_text("what the model looks at").wait_for()
    assert "cohort=reference" in page.url and not errors
    page.wait_for_url("**view=overview**")  # the page has written its own address
    page.go_back()
    page.get_by_text("Explained so far").wait_for()
