"""The Review page's main part: one item after the other, its scan, the question, and the evidence once it is due."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from agg2exp_core.analysis import raters
from agg2exp_core.organs import BACKGROUND
from agg2exp_core.records import Selection
from agg2exp_core.store import results, reviews
from agg2exp_core.store.reviews import Item, Place
from dashboard import data, words
from dashboard.charts import bars, common
from dashboard.views import review_desk as desks
from dashboard.views.review_desk import Desk, Question

LARGEST = 6
"""Regions in the small chart: a verdict is given on one screen, without scrolling."""

SMALL = 160
"""Height of the small chart in px. Its legend is told on hover."""

BARS_HELP = (
    "Share of the absolute attribution on each region, background included; the six largest of this case. "
    "Behind a bar, grey bands hold 90 % and half of the cohort; the mark is its median. Colours are those of groups."
)


def draw(desk: Desk) -> None:
    """Ask about the item where the reviewer is."""
    session, place = desk.session, desk.place
    items, done = session.items(desk.reviewer), desk.verdicts.of(desk.reviewer, "final")
    item = place.at if place.at in items else reviews.upcoming(items, done, place.skipped, None)
    if item is None:
        _all_done(desk, items)
        return
    question = _question(desk, item)
    _heading(desk, question, items, place)
    left, right = st.columns([8, 5], gap="medium")
    with left:
        desks.scan(desk, question)
    with right:
        asked = st.container()
        if question.evidence:
            _evidence(desk, item)
        desks.remarks(desk, question, placeholder="What should others know? It is stored with your verdict.")
        _steps(desk, question, items)
    desks.opened(question)
    with asked:  # last, so that nobody can answer what is not drawn yet
        _ask(desk, question)
    with st.container(key="review_next"):
        _prepare_next(desk, question, items, place)


def _question(desk: Desk, item: Item) -> Question:
    """Before the evidence in a blinded session; once that is answered, and in an open one, with it."""
    if desk.session.blinded and item not in desk.verdicts.of(desk.reviewer, "segmentation"):
        return desk.question(item, "segmentation")
    return desk.question(item, "final", desk.verdicts.of(desk.reviewer, "final").get(item))


def _heading(desk: Desk, question: Question, items: tuple[Item, ...], place: Place) -> None:
    done = desk.verdicts.of(desk.reviewer, "final")
    item, left = question.item, len(items) - len(done)
    seconds = raters.seconds_an_item(desk.verdicts, desk.reviewer)
    told = [f"{items.index(item) + 1} of {len(items)}", f"{len(done)} done, {left} left"]
    if seconds is not None and left:
        told += [f"{seconds:.0f} s each", f"about {_minutes(left * seconds)} to go"]
    if skipped := sum(one not in done for one in place.skipped):
        told.append(f"{skipped} skipped for later")
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        title = f"### {words.plain(item.case)}: {words.plain(desk.title(item.target))}"
        st.markdown(title, width="content")
        st.markdown("  ·  ".join(told), width="stretch")
    st.progress(len(done) / len(items))


def _minutes(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


# ---- the question ----------------------------------------------------------------------------------


def _ask(desk: Desk, question: Question) -> None:
    if question.phase == "segmentation":
        st.markdown("##### 1 · Is the segmentation right?")
        st.caption("Where the evidence lies stays hidden until your answer is stored.")
    else:
        st.markdown(f"##### {'2 · ' if desk.session.blinded else ''}Do you trust the evidence?")
        _said_before(desk, question)
    desks.verdict_buttons(desk, question)


def _said_before(desk: Desk, question: Question) -> None:
    """The verdict so far, and in a blinded session one key that keeps it."""
    first = desk.verdicts.of(desk.reviewer, "segmentation").get(question.item)
    if question.holding is not None:
        title = reviews.VERDICTS[question.holding.verdict]
        when = question.holding.given[:16].replace("T", " at ")
        st.caption(f"Your verdict is **{title}**, given on {when}. Another one replaces it; the first stays on record.")
    elif first is not None:
        title = reviews.VERDICTS[first.verdict]
        note = f" with the note “{words.plain(first.note)}”" if first.note else ""
        st.caption(f"Before the evidence you said **{title}**{note}.")
        st.button(
            f"Keep: {title}", key=question.key("review_keep"), shortcut="K", icon=":material/done_all:", type="primary",
            on_click=desks.say, args=(desk, question, first.verdict), width="stretch",
        )  # fmt: skip


def _steps(desk: Desk, question: Question, items: tuple[Item, ...]) -> None:
    """Back, skip and forward. The place is stored, so that a session goes on where it was left."""

    def go(by: int) -> None:
        to = items[(items.index(question.item) + by) % len(items)]
        desks.move(desk, lambda place: replace(place, at=to))

    def skip() -> None:
        done = desk.verdicts.of(desk.reviewer, "final")

        def skipped(place: Place) -> Place:
            waiting = (*(item for item in place.skipped if item != question.item), question.item)
            return replace(place, skipped=waiting, at=reviews.upcoming(items, done, waiting, question.item))

        desks.move(desk, skipped)

    with st.container(horizontal=True, gap="small", key="review_steps"):
        st.button("Back", key="review_back", shortcut="B", icon=":material/chevron_left:", on_click=go, args=(-1,))
        st.button("Skip", key="review_skip", shortcut="S", icon=":material/redo:", on_click=skip)
        st.button(
            "Forward", key="review_forward", shortcut="F", icon=":material/chevron_right:", on_click=go, args=(1,)
        )


def _all_done(desk: Desk, items: tuple[Item, ...]) -> None:
    st.success(
        f"All {len(items)} are reviewed. Thank you! The results show agreement and exports; "
        "step back to look at one again.",
        icon=":material/task_alt:",
    )
    to = items[-1]
    with st.container(horizontal=True, gap="small"):
        st.button(
            "Back to the last one", key="review_back", shortcut="B", icon=":material/chevron_left:",
            on_click=lambda: desks.move(desk, lambda place: replace(place, at=to)),
        )  # fmt: skip
        st.button(
            "Results", key="review_to_results", type="primary", icon=":material/query_stats:",
            on_click=lambda: st.session_state.update({desks.SECTION: "results"}),
        )  # fmt: skip


def _prepare_next(desk: Desk, question: Question, items: tuple[Item, ...], place: Place) -> None:
    """Read the scan that follows while this one is looked at."""
    done = {*desk.verdicts.of(desk.reviewer, "final"), question.item}
    following = reviews.upcoming(items, done, place.skipped, question.item)
    if following is not None and following != question.item:
        desks.prepare(desk, _question(desk, following))


# ---- the evidence ----------------------------------------------------------------------------------


def _evidence(desk: Desk, item: Item) -> None:
    """How the attribution is spread over the organs. Never called before the blinded verdict is stored."""
    session = desk.session
    if item.target not in data.targets(desk.root, session.cohort, session.run):
        st.info("Nothing is stored on the evidence for this organ.", icon=":material/info:")
        return
    table = data.case_importance(desk.root, Selection(session.cohort, session.run), item.case, item.target)
    shares = table.set_index("region")["value"].astype(float)
    own, off = (common.number(shares.get(name), "mass") for name in (item.target, BACKGROUND))
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.markdown("##### Evidence", width="content", help=BARS_HELP)
        st.markdown(f"{own} on it, {off} off all organs", width="content")
    if not shares.notna().any():
        st.info("The model did not draw this organ here, so there is nothing to explain.", icon=":material/info:")
        return
    if not (desk.result(item) / results.map_name(item.target)).is_file():
        st.caption("No map of the attribution is stored for this organ here; these are its sums, organ by organ.")
    largest = table.assign(value=table["value"].astype(float)).nlargest(LARGEST, "value")
    figure = bars.importance_bars(largest, desk.labels, common.group_colors(desk.labels), "mass")
    figure.update_layout(showlegend=False, height=SMALL, xaxis={"title": None, "ticksuffix": " %"}, margin_b=24)
    st.plotly_chart(figure, key="review_bars", config={"displayModeBar": False})
