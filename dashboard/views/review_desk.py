"""What all parts of the Review page share: who sits there, the scan, the note, and a verdict that is given."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import streamlit as st

from agg2exp_core.organs import LabelSet
from agg2exp_core.records import InputError
from agg2exp_core.store import cohorts, results, reviews
from agg2exp_core.store.reviews import Draft, Item, Place, Seen, Session, Verdict, Verdicts
from dashboard import access, data, filters, words
from dashboard.charts.common import organ_of
from dashboard.note import note
from dashboard.viewer import slices, still
from dashboard.viewer.scene import Sources, load_scene
from dashboard.viewer.slices import Voxel
from dashboard.viewer.stage import Look, Scene, moved_to, stage, stage_data
from dashboard.views import window
from dashboard.views.legend import legend, summed

NOTE, STAGE, SINCE, REFUSED = "review_note", "review_stage", "review_since", "review_refused"
SECTION = "review_section"
WINDOW, MAP = "review_window", "review_map"
PICTURE = 240
"""Height in px of a report's picture."""

MAPS = {"signed": "Signed", "absolute": "Absolute", "off": "Off"}
KEYS = {"accept": "1", "correct": "2", "reject": "3", "unsure": "4"}
ICONS = {"accept": "check_circle", "correct": "edit", "reject": "cancel", "unsure": "help"}
MEANINGS = {
    "accept": "Use it as it is.",
    "correct": "The right organ in the right place, but it must be corrected before use.",
    "reject": "Not usable, not even after a correction.",
    "unsure": "Cannot be told from what is shown.",
}
TAG_KEYS = dict(zip((*reviews.TAGS, *reviews.EVIDENCE_TAGS), "LTPGEIOV", strict=True))


@dataclass(frozen=True, eq=False)
class Desk:
    """One reviewer at one session. method: the id of the run's, "" where it is not known."""

    root: Path
    session: Session
    labels: LabelSet
    verdicts: Verdicts
    reviewer: str
    method: str

    def title(self, target: str) -> str:
        return organ_of(self.labels, target).title

    def about(self, item: Item) -> str:
        """The item in words, as plain text."""
        return f"{item.case}, {self.title(item.target)}"

    def result(self, item: Item) -> Path:
        """The case's results."""
        return results.case_path(self.root, self.session.cohort, self.session.run, item.case)

    @property
    def place(self) -> Place:
        return reviews.read_place(self.root, self.session.name, self.reviewer)

    def question(self, item: Item, phase: str, holding: Verdict | None = None) -> Question:
        """Asked of this reviewer in this session: what one writes here must not turn up elsewhere."""
        return Question(f"{self.session.name}/{reviews.reviewer_id(self.reviewer)}", item, phase, holding)


@dataclass(frozen=True, eq=False)
class Question:
    """An item in one phase, asked of somebody in a session. holding: the verdict that would be replaced."""

    whose: str
    item: Item
    phase: str
    holding: Verdict | None = None

    @property
    def evidence(self) -> bool:
        """Whether the evidence may be shown."""
        return self.phase != "segmentation"

    @property
    def of(self) -> str:
        """Names the question for the browser; a verdict makes it another one."""
        return "/".join((self.whose, *self.item, self.phase, self.holding.file if self.holding else ""))

    def key(self, name: str) -> str:
        """A button's key: a press that comes late, as the next question is drawn, must not answer that one."""
        return f"{name}_{hashlib.sha256(self.of.encode()).hexdigest()[:12]}"

    @property
    def draft(self) -> Draft:
        """What a draft begins with: the note that holds."""
        return Draft(self.holding.note, self.holding.tags) if self.holding else Draft()


# ---- the scan ------------------------------------------------------------------------------------


def scene_of(desk: Desk, item: Item, evidence: bool) -> Scene:
    """What the slices show. Without evidence it holds no attribution, and pictures of its own."""
    case = cohorts.find_case(desk.root, desk.session.cohort, item.case)
    if case.image is None:
        raise InputError("a case under review needs its scan", item.case)
    scene = load_scene(Sources(case.image, desk.result(item), item.target), desk.labels)
    return scene if evidence else replace(scene, key=f"{scene.key} without evidence", attribution=None)


def scan(desk: Desk, question: Question) -> None:
    """Draw the scan: a fragment, so that a step through it draws nothing else."""
    access.fragment(_scan)(desk, question)


@words.told
def _scan(desk: Desk, question: Question) -> None:
    scene = scene_of(desk, question.item, question.evidence)
    place = f"review_at_{desk.session.name}_{'_'.join(question.item)}"
    cursor = st.session_state.setdefault(place, _start(scene))

    def moved() -> None:
        st.session_state[place] = moved_to(STAGE, scene.shape) or st.session_state[place]

    def step(by: int) -> None:
        i, j, k = st.session_state[place]
        st.session_state[place] = (i, j, min(max(k + by, 0), scene.shape[2] - 1))

    with st.container(horizontal=True, vertical_alignment="bottom", gap="xsmall", key="review_view"):
        taken = window.choose(scene, WINDOW)
        _turn(WINDOW, list(scene.windows), "W", "Next HU window")
        shown = "off"
        if scene.attribution is not None:
            shown = filters.segments("Attribution map", MAP, MAPS, "signed")
            _turn(MAP, list(MAPS), "M", "Next way to show the attribution map")
    with st.container(key="review_slices"):  # keys only: the stage itself says what ↑ and ↓ do
        for by, key, side in ((1, "Up", "upward"), (-1, "Down", "downward")):
            st.button(
                "", key=f"review_{key}", icon=f":material/arrow_{side}:", shortcut=key, on_click=step, args=(by,),
                help=f"Axial slice {key.lower()}",
            )  # fmt: skip
    look = Look(taken, signed=shown == "signed")
    told = None
    if scene.attribution is not None and shown != "off":
        told = legend(desk.title(question.item.target), desk.method, scene.attribution, look.signed, scene.brighter)
    stage(stage_data(scene, look, cursor, told), STAGE, moved)
    if told and (channels := data.channels(desk.root, desk.session.cohort, desk.session.run)):
        st.caption(summed(channels))


def _turn(key: str, options: list[str], shortcut: str, text: str) -> None:
    """A button for a key that takes the next choice of a row."""

    def turn() -> None:
        st.session_state[key] = options[(options.index(st.session_state[key]) + 1) % len(options)]

    st.button("", key=f"{key}_next", icon=":material/sync:", shortcut=shortcut, on_click=turn, help=text)


def _start(scene: Scene) -> Voxel:
    """Where a reviewer begins: in the middle of the organ as predicted, which tells nothing of the attribution."""
    return scene.centre or scene.middle


def key_picture(desk: Desk, item: Item) -> bytes:
    """A PNG of the axial slice where a reviewer begins, with the organ's outline and without the evidence."""
    scene = scene_of(desk, item, evidence=False)
    return still.png(still.still(scene, slices.PLANES[0], _start(scene), Look(scene.window), height=PICTURE))


def prepare(desk: Desk, question: Question) -> None:
    """Read and cut what comes next, so that it is there when it is asked for."""
    try:
        scene = scene_of(desk, question.item, question.evidence)
        signed = question.evidence and st.session_state.get(MAP, "signed") == "signed"
        stage_data(scene, Look(window.current(scene, WINDOW), signed=signed), _start(scene), None)
        seen(desk, question)
    except InputError:
        return  # told when its turn comes


def seen(desk: Desk, question: Question) -> Seen:
    """Hashes of what the question shows. InputError if the case is not as its manifest says."""
    case = cohorts.find_case(desk.root, desk.session.cohort, question.item.case)
    files = [*case.images, *sorted(desk.result(question.item).rglob("*.*"))]
    stamps = str([(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.is_file()])
    all_of_it = _hashes(str(desk.root), desk.session, question.item, stamps)
    return all_of_it if question.evidence else reviews.before_evidence(all_of_it)


@st.cache_data(max_entries=200, show_spinner=False)
def _hashes(root: str, _session: Session, item: Item, stamps: str) -> Seen:
    return reviews.seen_files(Path(root), _session, item)


# ---- note and tags -------------------------------------------------------------------------------


def remarks(desk: Desk, question: Question, label: str = "Note", placeholder: str = "") -> None:
    """The note and the tags: a fragment, so that writing draws nothing else."""
    access.fragment(_remarks)(desk, question, label, placeholder)


@words.told
def _remarks(desk: Desk, question: Question, label: str, placeholder: str) -> None:
    kept = desk.place.draft(question.item, question.phase)
    draft = kept or question.draft
    with st.container(horizontal=True, gap="small", key="review_tags"):
        for tag in reviews.TAGS + (reviews.EVIDENCE_TAGS if question.evidence else ()):
            st.button(
                tag.capitalize(), key=f"review_tag_{TAG_KEYS[tag]}", shortcut=TAG_KEYS[tag], on_click=_toggle,
                args=(desk, question, tag), type="primary" if tag in draft.tags else "secondary",
            )  # fmt: skip
    field = note.Note(question.of, draft.note, kept is not None, label, placeholder, reviews.LONGEST_NOTE)
    note.note(field, NOTE, lambda: _keep(desk, question))


def _keep(desk: Desk, question: Question) -> None:
    text = note.written(NOTE, question.of)
    if text is not None:
        _change(desk, question, lambda draft: replace(draft, note=text))


def _toggle(desk: Desk, question: Question, tag: str) -> None:
    _change(
        desk,
        question,
        lambda draft: replace(draft, tags=tuple(one for one in TAG_KEYS if (one in draft.tags) != (one == tag))),
    )


def _change(desk: Desk, question: Question, change: Callable[[Draft], Draft]) -> None:
    def changed(place: Place) -> Place:
        draft = change(place.draft(question.item, question.phase) or question.draft)
        return place.with_draft(question.item, question.phase, draft)

    move(desk, changed)


def move(desk: Desk, change: Callable[[Place], Place]) -> None:
    """A button's answer: change the reviewer's place, or say at the next drawing why that cannot be stored."""
    try:
        access.require("reviewer")
        reviews.change_place(desk.root, desk.session.name, desk.reviewer, change)
    except InputError as error:
        st.session_state[REFUSED] = str(error)


# ---- a verdict -----------------------------------------------------------------------------------


def opened(question: Question) -> None:
    """Note when a question was first in view, once all of it is drawn: from then on it can be answered."""
    if st.session_state.get(SINCE, ("",))[0] != question.of:
        st.session_state[SINCE] = (question.of, time.monotonic())


def verdict_buttons(desk: Desk, question: Question) -> None:
    """The four verdicts, each with its key."""
    with st.container(horizontal=True, gap="small", key="review_verdicts"):
        for name, title in reviews.VERDICTS.items():
            holds = question.holding is not None and question.holding.verdict == name
            st.button(
                title, key=question.key(f"review_say_{name}"), shortcut=KEYS[name], icon=f":material/{ICONS[name]}:",
                help=MEANINGS[name], on_click=say, args=(desk, question, name), width="stretch",
                type="primary" if holds else "secondary",
            )  # fmt: skip


def say(desk: Desk, question: Question, verdict: str) -> None:
    """A button's answer: store the verdict with its note and tags; where that fails, all of it stays as a draft.

    Nobody answers what is not in view: a press on a button of the question just answered, or on one of the next
    question while that is drawn, is none.
    """
    since = st.session_state.get(SINCE)
    if since is None or since[0] != question.of:
        return
    _keep(desk, question)
    place = desk.place
    draft = place.draft(question.item, question.phase) or question.draft
    seconds = round(time.monotonic() - since[1], 1)
    session = desk.session
    try:
        access.require("reviewer")
        hashes = seen(desk, question)
        hashes = replace(hashes, settings=_settings(hashes))
        given = Verdict(
            session.name, session.cohort, session.run, *question.item, question.phase, desk.reviewer, verdict, hashes,
            draft.note, draft.tags, seconds, question.holding.file if question.holding else None,
            independent=not place.saw_others,
        )  # fmt: skip
        reviews.give(desk.root, given)
    except InputError as error:
        st.session_state[REFUSED] = str(error)
        return
    del st.session_state[SINCE]
    st.toast(
        f"{words.plain(desk.about(question.item))}: **{reviews.VERDICTS[verdict]}** is stored", icon=":material/check:"
    )
    move(desk, lambda place: _after(desk, place, question))


def _settings(hashes: Seen) -> dict[str, str]:
    """How it was shown: the HU window, and the attribution map where there was one."""
    shown = {"window": str(st.session_state.get(WINDOW, "soft"))}
    return shown | ({"map": str(st.session_state.get(MAP, "signed"))} if hashes.saliency else {})


def _after(desk: Desk, place: Place, question: Question) -> Place:
    """Where a verdict leads: the draft is spent, and a final one opens the next item."""
    place = place.with_draft(question.item, question.phase, None)
    if question.phase != "final":
        return place
    skipped = tuple(item for item in place.skipped if item != question.item)
    done = {*desk.verdicts.of(desk.reviewer, "final"), question.item}
    items = desk.session.items(desk.reviewer)
    return replace(place, at=reviews.upcoming(items, done, skipped, question.item), skipped=skipped)


def refused() -> None:
    """Say what the last press could not do."""
    if reason := st.session_state.pop(REFUSED, None):
        words.refuse(reason)
