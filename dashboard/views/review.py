"""The Review page: sessions in which people judge segmentations, first without and then with the evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from agg2exp_core.records import InputError
from agg2exp_core.settings import data_root
from agg2exp_core.store import reviews
from agg2exp_core.store.reviews import Session
from dashboard import access, data, filters, words
from dashboard.address import Address, Link
from dashboard.filters import Choice
from dashboard.views import review_item, review_new, review_results
from dashboard.views.review_desk import MAP, SECTION, WINDOW, Desk, refused

ADDRESS = Address("review")
REVIEWER, NEW, MADE = "review_reviewer", "review_is_new", "review_made"
SECTIONS = {"judge": "Judge", "adjudicate": "Adjudicate", "results": "Results"}
ON_TRUST = "It stands on every verdict. There is no login: names are taken on trust."


@words.told
def page() -> None:
    """Draw the page."""
    ADDRESS.follow()
    root = data_root()
    if review_new.take_link(ADDRESS.asked("case"), ADDRESS.asked("cohort")) and access.may("reviewer"):
        st.session_state[NEW] = True
    known = reviews.list_sessions(root)
    with st.sidebar:
        name = _choose(known)
    if name is None and access.keeps_from("No review session is here yet. To begin one", "reviewer"):
        return
    if name is None or st.session_state.get(NEW):
        made = review_new.draw(root, name)
        if made:
            st.session_state[MADE] = made
            st.session_state[NEW] = False
            st.rerun()
        return
    session = reviews.read_session(root, name)
    reviewer = _who(session)
    if reviewer is None:
        return  # the address stays as it is: what a link asks for waits for the name
    with st.sidebar:
        section = _section(reviewer)
    desk = _desk(root, session, reviewer)
    _warn(desk)
    if section == "judge" and not reviews.may_judge(session, reviewer):
        told = " and ".join(map(words.plain, session.reviewers))
        st.info(f"This session is judged by {told}. Under **{SECTIONS['adjudicate']}** you can settle what differs.")
        ADDRESS.write(_link(desk, section))
        return
    {"judge": review_item.draw, "adjudicate": review_results.adjudicate, "results": review_results.results}[section](
        desk
    )
    ADDRESS.write(_link(desk, section))


def _choose(known: list[str]) -> str | None:
    if made := st.session_state.pop(MADE, None):
        st.session_state[ADDRESS.key("session")] = made
    name = filters.pick_one(ADDRESS, Choice("Session", "session"), known) if known else None
    if name is not None and access.may("reviewer"):
        new = bool(st.session_state.get(NEW))
        label, icon = ("Back to the session", "undo") if new else ("New session", "add")
        st.button(
            label, key="review_new", icon=f":material/{icon}:", on_click=lambda: st.session_state.update({NEW: not new})
        )
    return name


def _link(desk: Desk, section: str) -> Link:
    """The parameters that open this view again, after a reload with one key: a name on trust must be confirmed."""
    link = {"session": [desk.session.name], "view": [section]}
    return link if access.person() else link | {"reviewer": [desk.reviewer]}


def _who(session: Session) -> str | None:
    """The reviewer's name, asked once; None until it is given."""
    asked = ADDRESS.asked("reviewer")
    if person := access.person():
        return reviews.as_listed(session, reviews.checked_reviewer(person))
    if reviewer := st.session_state.get(REVIEWER):
        return str(reviewer)
    _about(session)
    st.markdown("##### Who reviews?")
    with st.form("review_who", border=False, width=460):
        name = st.text_input(
            "Your name", value=asked[0] if asked else "", key="review_name", help=ON_TRUST,
            placeholder=", ".join(session.reviewers), max_chars=reviews.LONGEST_NAME,
        )  # fmt: skip
        started = st.form_submit_button("Start", type="primary", icon=":material/play_arrow:")
    st.caption(f"{ON_TRUST} A session goes on where you left it.")
    if started:
        try:
            st.session_state[REVIEWER] = reviews.as_listed(session, reviews.checked_reviewer(name))
        except InputError as error:
            words.refuse(error)
        else:
            st.rerun()
    return None


def _about(session: Session) -> None:
    st.markdown(f"### {words.plain(session.name)}")
    count = len(session.cases) * len(session.targets)
    how = (
        "First you judge the segmentation alone, then you see where the evidence lies and judge again."
        if session.blinded
        else "The evidence is in view from the start."
    )
    source = (
        f"list **{words.plain(session.list_name)}**"
        if session.list_name
        else f"cohort **{words.plain(session.cohort)}**"
    )
    st.markdown(f"{len(session.cases)} cases of {source}, {count} to judge. {how}")


def _section(reviewer: str) -> str:
    wish = ADDRESS.asked("view")
    if wish and wish[0] in SECTIONS:
        st.session_state[SECTION] = wish[0]
    if not access.may("reviewer"):
        return "results"
    section = filters.segments("Part", SECTION, SECTIONS, "judge")
    if access.person():
        return section
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f"Reviewing as **{words.plain(reviewer)}**", width="content", help=ON_TRUST)
        leave = "Another name, or the next reviewer. What you gave is stored."
        st.button("", key="review_leave", icon=":material/logout:", type="tertiary", help=leave,
                  on_click=_leave)  # fmt: skip
    return section


def _leave() -> None:
    """The next reviewer begins with their own verdicts and the usual window, not where others left off."""
    for key in (REVIEWER, WINDOW, MAP):
        st.session_state.pop(key, None)
    st.session_state[SECTION] = "judge"


def _desk(root: Path, session: Session, reviewer: str) -> Desk:
    records = data.run_records(root, session.cohort)
    record: dict[str, Any] = records.get(session.run, {})
    if not record:
        raise InputError("the session's run must be there", session.run, ", ".join(records) or "none")
    labels = data.labels(root, session.cohort, record)
    verdicts = reviews.read_verdicts(root, session)
    return Desk(root, session, labels, verdicts, reviewer, record.get("method") or "")


def _warn(desk: Desk) -> None:
    refused()
    if count := len(desk.verdicts.damaged):
        st.warning(
            f"{count} {'file' if count == 1 else 'files'} of this session cannot be used; **Results** names them.",
            icon=":material/report:",
        )
