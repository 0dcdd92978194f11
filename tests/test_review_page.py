"""The Review page: blinded until the verdict is in, independent, resumed where it was left, and all of it by keys."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pages import opened, texts
from playwright.sync_api import Browser, Page, expect
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Button

from agg2exp_core.organs import load_label_set
from agg2exp_core.records import Method, SumTable, Volume
from agg2exp_core.store import results, reviews
from agg2exp_core.store.reviews import Draft, Item, Session, Verdict
from agg2exp_core.volumes import write_volume
from dashboard import words
from dashboard.views import review_desk
from dashboard.views.review_desk import Desk

LABELS = load_label_set("thorax17")
RUN, SHAPE = "m-smoothgrad-4", (24, 20, 16)
CASES = ("c1", "c2", "c3")
SESSION = Session("round-1", "tiny", RUN, ("heart",), CASES)
EVIL = "![x](https://example.org/p.png) <b>"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three explained scans with a heart, and a fourth without an image; a blinded session over the three."""
    affine = np.diag([4.0, 4, 5, 1])
    (tmp_path / "cohorts" / "tiny").mkdir(parents=True)
    info = {
        "model": "m", "model_hash": "0", "method": "smoothgrad", "versions": {}, "values": "sums",
        "parameters": Method("smoothgrad", 4, estimator="plain").parameters(), "label_set": "thorax17",
    }  # fmt: skip
    results.write_run(tmp_path, "tiny", RUN, info)
    rows = ["case_id,image,label,planted"]
    for number, name in enumerate((*CASES, "c4")):
        image = f"{name}.nii.gz" if name in CASES else ""
        rows.append(f"{name},{image},,secret")
        heart, saliency = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.float32)
        heart[4:10, 5:12, 6:11], saliency[20, 3, 2] = LABELS["heart"].id, 1
        if image:
            scan = np.where(heart > 0, 60, -400).astype(np.int16)
            write_volume(tmp_path / "cohorts" / "tiny" / image, Volume(scan, affine))
        sums = np.random.default_rng(number).random((2, 1, 17))
        with results.case_folder(tmp_path / "runs" / "tiny" / RUN / "cases" / name, {"targets": ["heart"]}) as folder:
            table = SumTable(("heart",), LABELS.names, sums[0], sums[1], np.full(17, 50, np.int64))
            results.write_importance(folder, table)
            write_volume(folder / "prediction.nii.gz", Volume(heart, affine))
            (folder / "saliency").mkdir()
            write_volume(folder / "saliency" / "heart.nii.gz", Volume(saliency, affine))
    (tmp_path / "cohorts" / "tiny" / "cases.csv").write_text("\n".join(rows) + "\n")
    reviews.create_session(tmp_path, SESSION)
    return tmp_path


def _open(monkeypatch: pytest.MonkeyPatch, root: Path, reviewer: str | None = "Ada", **link: str) -> AppTest:
    """The page with the name already given."""
    return opened(monkeypatch, root, "review", link, reviewer)


def _press(app: AppTest, *keys: str) -> AppTest:
    for key in keys:
        _button(app, key).click().run()
        assert not app.exception
    return app


def _button(app: AppTest, name: str) -> Button:
    """Those of a question carry its name behind theirs."""
    return next(button for button in app.button if re.fullmatch(rf"review_{name}(_[0-9a-f]{{12}})?", str(button.key)))


def _asked(app: AppTest) -> bool:
    return any(str(button.key).startswith("review_say_") for button in app.button)


def _given(root: Path) -> tuple[Verdict, ...]:
    verdicts = reviews.read_verdicts(root, SESSION)
    assert verdicts.damaged == ()
    return verdicts.given


def _said(root: Path, reviewer: str, case: str, verdict: str, note: str = "") -> None:
    """Both verdicts of one reviewer on the heart of one case."""
    item = Item(case, "heart")
    seen = reviews.seen_files(root, SESSION, item)
    for phase in reviews.PHASES[:2]:
        shown = seen if phase == "final" else reviews.before_evidence(seen)
        reviews.give(root, Verdict("round-1", "tiny", RUN, *item, phase, reviewer, verdict, shown, note))


# ---- blinded -----------------------------------------------------------------------------------------


def test_nothing_of_the_evidence_is_sent_before_the_verdict(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    sent: list[dict] = []
    monkeypatch.setattr(review_desk, "stage", lambda data, key, on_move: sent.append(data))
    app = _open(monkeypatch, root)
    for data in sent:
        assert data["peak"] is None and data["legend"] is None
        assert all(plane["color"] is plane["attribution"] is None for plane in data["planes"].values())
        assert data["planes"]["axial"]["labels"]
    assert sent and sent[0]["cursor"] == [6, 8, 8]  # in the organ, not at the peak of its attribution
    assert "off all organs" not in texts(app) and "secret" not in texts(app) and not app.get("plotly_chart")
    sent.clear()
    _press(app, "say_accept")
    assert sent[-1]["legend"] and sent[-1]["peak"] == (20, 3, 2) and sent[-1]["planes"]["axial"]["attribution"]
    assert "off all organs" in texts(app) and app.get("plotly_chart")


def test_a_verdict_names_all_that_was_seen(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    _press(_open(monkeypatch, root), "say_correct", "keep")
    first, second = _given(root)
    manifest = results.read_manifest(root / "runs" / "tiny" / RUN / "cases" / "c1")
    assert manifest is not None
    hashes = {name: file["sha256"] for name, file in manifest["files"].items()}
    assert (first.verdict, second.verdict, first.phase, second.phase) == ("correct", "correct", "segmentation", "final")
    assert (first.seen.prediction, first.seen.saliency) == (hashes["prediction.nii.gz"], None)
    assert (
        second.seen.saliency == hashes["saliency/heart.nii.gz"] and second.seen.importance == hashes["importance.csv"]
    )
    assert (first.seen.settings, second.seen.settings["map"]) == ({"window": "soft"}, "signed")
    assert first.seconds is not None and first.seconds >= 0


@pytest.mark.parametrize(
    ("file", "told"), [("prediction.nii.gz", "prediction.nii.gz is damaged"), ("scan", "that was explained")]
)
def test_what_is_not_what_was_explained_is_not_judged(
    monkeypatch: pytest.MonkeyPatch, root: Path, file: str, told: str
) -> None:
    folder = root / "runs" / "tiny" / RUN / "cases" / "c1"
    if file == "scan":
        manifest = json.loads((folder / "manifest.json").read_text()) | {"input_sha256": "0"}
        del manifest["files"]["manifest.json"]  # as older ones are
        (folder / "manifest.json").write_text(json.dumps(manifest))
    else:
        write_volume(folder / file, Volume(np.zeros(SHAPE, np.uint8), np.diag([4.0, 4, 5, 1])))
    app = _press(_open(monkeypatch, root), "say_accept")
    assert told in app.error[0].value and _given(root) == ()


# ---- nothing is lost ---------------------------------------------------------------------------------


def test_a_session_goes_on_where_it_was_left(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    app = _press(_open(monkeypatch, root), "say_accept", "keep", "skip", "tag_T")
    assert "c3" in app.markdown[0].value
    again = _open(monkeypatch, root, "ada", session="round-1")
    assert "c3: Heart" in again.markdown[0].value
    assert reviews.read_place(root, "round-1", "Ada").draft(Item("c3", "heart"), "segmentation") == Draft(
        "", ("too small",)
    )
    _press(again, "say_unsure", "say_reject")
    assert "c2: Heart" in again.markdown[0].value  # skipped before, and the last one left
    _press(again, "say_accept", "keep")
    assert "All 3 are reviewed" in again.success[0].value
    assert [(one.case, one.verdict, one.tags) for one in _given(root) if one.phase == "segmentation"] == [
        ("c1", "accept", ()), ("c3", "unsure", ("too small",)), ("c2", "accept", ()),
    ]  # fmt: skip


def test_undo_is_a_new_verdict(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    app = _press(_open(monkeypatch, root), "say_accept", "say_reject", "back", "say_accept")
    first = next(one for one in _given(root) if one.verdict == "reject")
    assert _given(root)[-1].replaces == first.file and len(_given(root)) == 3
    assert "c2" in app.markdown[0].value


def test_a_verdict_that_cannot_be_stored_is_told_and_its_note_stays(
    monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    item = Item("c1", "heart")
    app = _open(monkeypatch, root)
    reviews.change_place(root, "round-1", "Ada", lambda place: place.with_draft(item, "segmentation", Draft("keep me")))
    with monkeypatch.context() as full:
        full.setattr(reviews, "write_new", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        _press(app, "say_accept")
    assert "No space left on device" in app.error[0].value and _given(root) == ()
    assert reviews.read_place(root, "round-1", "Ada").draft(item, "segmentation") == Draft("keep me")
    _press(app, "say_accept")
    assert [one.note for one in _given(root)] == ["keep me"]


# ---- others ------------------------------------------------------------------------------------------


def test_verdicts_of_others_stay_closed_until_ones_own_are_given(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    _said(root, "Grace", "c1", "reject", "grace's note")
    app = _press(_open(monkeypatch, root), "say_accept")
    for part in ("adjudicate", "results"):
        app.segmented_control(key="review_section").set_value(part).run()
        assert "3 are left" in app.info[0].value and "grace" not in texts(app) and not app.dataframe
    for case in CASES[1:]:
        _said(root, "Ada", case, "accept")
    app.segmented_control(key="review_section").set_value("judge").run()
    _press(app, "keep")
    app.segmented_control(key="review_section").set_value("results").run()
    assert app.dataframe and reviews.read_place(root, "round-1", "Ada").saw_others
    app.segmented_control(key="review_section").set_value("judge").run()
    _press(app, "back", "say_reject")
    assert not _given(root)[-1].independent


def test_an_adjudication_takes_a_reason_and_settles(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    _said(root, "Ada", "c2", "accept", "fine")
    _said(root, "Grace", "c2", "reject", EVIL)
    app = _open(monkeypatch, root, "Chair", view="adjudicate", session="round-1")
    assert "yours count no more" in app.info[0].value and "fine" not in texts(app)
    assert not reviews.read_place(root, "round-1", "Chair").saw_others
    shown = texts(_press(app, "show_others"))
    assert "c2: Heart" in shown and "fine" in shown and EVIL not in shown
    _press(app, "say_reject")
    assert "needs its reason" in app.error[0].value
    item = Item("c2", "heart")
    reviews.change_place(
        root, "round-1", "Chair", lambda place: place.with_draft(item, "adjudication", Draft("agreed"))
    )
    _press(app, "say_reject")
    settled = _given(root)[-1]
    assert (settled.phase, settled.reviewer, settled.note) == ("adjudication", "Chair", "agreed")
    assert "0 open" in app.markdown[0].value or "0 open" in texts(app)


# ---- sessions ----------------------------------------------------------------------------------------


def test_a_link_brings_cases_and_a_session_takes_those_that_can_be_seen(
    monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    app = _open(monkeypatch, root, None, cohort="tiny", case=["c4", "c2", "gone"])
    assert app.selectbox(key="review_new_source").value == "The cases of the link (2)"
    assert "**1 case** has" in texts(app)
    name = next(field for field in app.text_input if field.label.startswith("Name"))
    name.set_value("../x").run()
    _press(app, "create")
    assert "session must be" in app.error[0].value
    next(field for field in app.text_input if field.label.startswith("Name")).set_value("mine").run()
    _press(app, "create")
    session = reviews.read_session(root, "mine")
    assert (session.cases, session.targets, session.mode) == (("c2",), ("heart",), "blinded")


def test_an_open_session_shows_the_evidence_at_once(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    reviews.create_session(root, replace(SESSION, name="open", mode="open"))
    app = _open(monkeypatch, root, session="open")
    assert "off all organs" in texts(app)
    _press(app, "say_accept")
    assert "c2" in app.markdown[0].value


def test_a_verdict_is_stored_even_where_the_place_cannot_be(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    app = _open(monkeypatch, root)
    with monkeypatch.context() as full:
        full.setattr(reviews, "write_json", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        _press(app, "say_accept", "keep")
    assert [one.phase for one in _given(root)] == ["segmentation", "final"]
    assert "the place in a session must be stored" in app.error[0].value


def test_each_question_has_buttons_of_its_own(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Else a second press, sent while the next one is drawn, would answer that unseen."""
    app = _open(monkeypatch, root)
    before = _button(app, "say_accept").key
    assert _button(_press(app, "say_accept"), "say_accept").key != before


def test_nobody_answers_what_is_not_in_view(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    desk = Desk(root, SESSION, LABELS, reviews.read_verdicts(root, SESSION), "Ada", "smoothgrad")
    first, then = (desk.question(Item("c1", "heart"), phase) for phase in ("segmentation", "final"))
    monkeypatch.setattr(review_desk.st, "session_state", {})
    review_desk.say(desk, first, "accept")
    assert not _given(root)  # not drawn to its end yet
    review_desk.opened(first)
    for question in (first, first, then):  # once more, late, and on the next one, early
        review_desk.say(desk, question, "accept")
    assert [one.phase for one in _given(root)] == ["segmentation"]
    review_desk.opened(then)
    review_desk.say(desk, then, "reject")
    assert [one.verdict for one in _given(root)] == ["accept", "reject"]


def test_a_question_is_one_persons_in_one_session(root: Path) -> None:
    """Else a note begun in one would turn up in another."""
    verdicts = reviews.read_verdicts(root, SESSION)
    desks = [
        Desk(root, session, LABELS, verdicts, who, "smoothgrad")
        for session in (SESSION, replace(SESSION, name="round-2"))
        for who in ("Ada", "Grace")
    ]
    assert len({desk.question(Item("c1", "heart"), "final").of for desk in desks}) == 4


def test_blanks_in_a_name_become_dashes() -> None:
    assert words.as_name("  wet  lungs ") == "wet-lungs" and words.as_name("") == ""


def test_only_those_of_the_session_judge_and_others_may_settle(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    named = replace(SESSION, name="round-2", reviewers=("Ada", "Grace"))
    reviews.create_session(root, named)
    assert reviews.as_listed(named, "ada") == "Ada" and reviews.as_listed(named, "Mallory") == "Mallory"
    app = _open(monkeypatch, root, reviewer="Mallory", session="round-2")
    assert "is judged by Ada and Grace" in texts(app) and not _asked(app)
    app = _open(monkeypatch, root, reviewer="Grace", session="round-2")
    assert _asked(app)


def test_who_settles_sees_the_first_notes(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    _said(root, "Ada", "c1", "accept", "arms in the way")
    _said(root, "Grace", "c1", "reject")
    said = texts(_press(_open(monkeypatch, root, reviewer="Zoe", view="adjudicate"), "show_others"))
    assert "Before the evidence: Accept: arms in the way" in said


def test_what_a_link_opens_waits_for_the_name(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    app = _open(monkeypatch, root, None, session="round-1", view="results")
    app.text_input(key="review_name").set_value(" ")
    app.button(key="FormSubmitter:review_who-Start").click().run()
    assert "name must have" in app.error[0].value
    app.text_input(key="review_name").set_value("Ada")
    app.button(key="FormSubmitter:review_who-Start").click().run()
    assert "round-1: results" in texts(app)


def test_damage_and_what_is_not_here_are_told(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    _said(root, "Grace", "c1", "accept")
    path = next(iter((root / "reviews").glob("*/verdicts/*/*.json")))
    path.chmod(0o644)
    path.write_text("{}")
    app = _press(_open(monkeypatch, root, "Chair", session="round-1", view="results"), "show_others")
    assert "1 file of this session cannot be used" in app.warning[0].value and path.name[:20] in app.error[0].value
    app = _open(monkeypatch, root, session=EVIL)
    assert "Session of the link is not here" in texts(app) and EVIL not in texts(app)


# ---- the journey -------------------------------------------------------------------------------------

PATIENCE = 120_000  # ms, for a machine that does other things as well
EVIDENCE = re.compile(rb'"color": ?"data:|"attribution": ?"|on it, ')


@pytest.mark.browser
def test_a_case_is_reviewed_by_keys_alone(chromium: Browser, server: Callable[[Path], str], root: Path) -> None:
    page = chromium.new_page(viewport={"width": 1440, "height": 900}, base_url=server(root))
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    frames: list[bytes] = []
    errors: list[str] = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: frames.append(_bytes(frame))))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto("/review?session=round-1&reviewer=Ada")
    name = page.get_by_role("textbox", name="Your name")
    expect(name).to_have_value("Ada")
    name.press("Enter")
    page.locator(".pane canvas").first.wait_for()
    _writes_a_note_and_judges(page)
    assert frames and not any(EVIDENCE.search(frame) for frame in frames[: _answered(frames)])
    expect(page.get_by_text("Before the evidence you said")).to_be_visible()
    page.locator(".st-key-review_bars .barlayer path").first.wait_for(state="attached")
    page.get_by_role("button", name="Keep: ").wait_for()
    page.keyboard.press("k")
    expect(page.get_by_role("heading", name="c2: Heart")).to_be_visible()
    first, second = _given(root)
    assert (first.note, first.tags, first.verdict) == ("1 2 k: low edge", ("too small",), "correct")
    # Streamlit looks for its own files under the page's path first, and finds none there.
    assert second.verdict == "correct" and errors == []
    page.reload()
    page.get_by_role("textbox", name="Your name").press("Enter")
    expect(page.get_by_role("heading", name="c2: Heart")).to_be_visible()
    page.close()


def _bytes(frame: str | bytes) -> bytes:
    return frame if isinstance(frame, bytes) else frame.encode()


def _writes_a_note_and_judges(page: Page) -> None:
    """Keys typed into the note are text: none of them is a verdict."""
    area = page.locator(".note textarea")
    area.wait_for()
    page.keyboard.press("n")
    expect(area).to_be_focused()
    page.keyboard.type("1 2 k: low edge")
    expect(page.locator(".note .kept")).to_have_text("kept as a draft")
    page.keyboard.press("Escape")
    page.keyboard.press("t")
    expect(page.locator(".st-key-review_tag_T button[kind=primary]")).to_be_visible()
    page.keyboard.press("2")
    page.locator('[data-stale="true"][class*=st-key-review_say_]').first.wait_for()  # is seen not to be ready
    expect(page.get_by_text("do you trust")).to_be_visible()


def _answered(frames: list[bytes]) -> int:
    """The first frame after the blinded verdict."""
    return next(n for n, frame in enumerate(frames) if b"do you trust" in frame or b"is stored" in frame)
