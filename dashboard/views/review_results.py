"""The Review page's other parts: verdicts that differ are settled, and what came of it all is counted and exported."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

from agg2exp_core import spreadsheet
from agg2exp_core.analysis import raters, review_report
from agg2exp_core.analysis.raters import Outcome
from agg2exp_core.records import InputError
from agg2exp_core.store import reviews
from agg2exp_core.store.reviews import Item, Place
from dashboard import access, words
from dashboard.charts.confusion import confusion
from dashboard.views import review_desk as desks
from dashboard.views.review_desk import Desk, Question

AT = "review_split_at"
KAPPA_HELP = (
    "Cohen’s κ = (p_o − p_e) ÷ (1 − p_e), unweighted: p_o is the share of items with the same verdict, p_e the share "
    "that chance would give. 1 is full agreement, 0 that of chance. Only verdicts count that were given without "
    "knowing the other’s. Undefined where both gave one and the same verdict to all."
)


def _opened(desk: Desk) -> bool:
    """Whether the verdicts of others may be shown; whoever sees them is noted as independent no more."""
    if not access.may("reviewer"):
        return True
    session, verdicts, me = desk.session, desk.verdicts, desk.reviewer
    others = [name for name in verdicts.reviewers if reviews.reviewer_id(name) != reviews.reviewer_id(me)]
    if not others:
        return True
    if raters.takes_part(session, verdicts, me) and not raters.finished(session, verdicts, me):
        left = len(session.items()) - len(verdicts.of(me, "final"))
        st.info(
            f"Reviewers are independent: the verdicts of others open here once you have given yours. {left} are left.",
            icon=":material/visibility_off:",
        )
        return False
    if reviews.may_judge(session, me) and not desk.place.saw_others and not raters.finished(session, verdicts, me):
        st.info(
            "You may still review in this session. Once you have seen the verdicts of others, yours count no more for "
            "the agreement between independent reviewers.",
            icon=":material/visibility_off:",
        )
        st.button(
            "Show them to me", key="review_show_others", icon=":material/visibility:",
            on_click=lambda: desks.move(desk, _seeing_others),
        )  # fmt: skip
        return False
    reviews.change_place(desk.root, session.name, me, _seeing_others)
    return True


def _seeing_others(place: Place) -> Place:
    return replace(place, saw_others=True)


# ---- adjudication ----------------------------------------------------------------------------------


def adjudicate(desk: Desk) -> None:
    """Verdicts that differ, side by side, and the one that settles them."""
    if not _opened(desk):
        return
    split = [one for one in raters.outcomes(desk.session, desk.verdicts) if one.split]
    if not split:
        st.info(
            "No verdicts differ so far. Once two reviewers gave different ones on the same item, it is settled here.",
            icon=":material/handshake:",
        )
        return
    open_ = [one.item for one in split if one.adjudication is None]
    items = [one.item for one in split]
    at = st.session_state.get(AT)
    if at not in items:
        at = open_[0] if open_ else items[0]
    outcome = split[items.index(at)]
    question = desk.question(at, "adjudication", outcome.adjudication)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.markdown(f"### {words.plain(at.case)}: {words.plain(desk.title(at.target))}", width="content")
        st.markdown(f"{items.index(at) + 1} of {len(items)} that differ  ·  {len(open_)} open", width="stretch")
    left, right = st.columns([8, 5], gap="medium")
    with left:
        desks.scan(desk, question)
    with right:
        _sides(desk, outcome)
        desks.opened(question)
        _settle(desk, question, items, outcome.finals)


def _sides(desk: Desk, outcome: Outcome) -> None:
    """What each reviewer said, and what they had said before they saw the evidence."""
    for column, (name, verdict) in zip(
        st.columns(len(outcome.finals), border=True), outcome.finals.items(), strict=True
    ):
        with column:
            st.markdown(f"{words.plain(name)}: **{reviews.VERDICTS[verdict.verdict]}**")
            if verdict.tags:
                st.caption(", ".join(verdict.tags))
            st.markdown(words.plain(verdict.note) if verdict.note else ":gray[no note]")
            first = desk.verdicts.of(name, "segmentation").get(outcome.item)
            if first is not None:
                note = f": {words.plain(first.note)}" if first.note else ""
                st.caption(f"Before the evidence: {reviews.VERDICTS[first.verdict]}{note}")


def _settle(desk: Desk, question: Question, items: list[Item], finals: Collection[str]) -> None:
    st.markdown("##### The verdict that holds", help="It settles the item; those of the reviewers stay on record.")
    if (holding := question.holding) is not None:
        party = (
            ", one of those who differ"
            if any(reviews.reviewer_id(name) == reviews.reviewer_id(holding.reviewer) for name in finals)
            else ""
        )
        st.caption(f"{words.plain(holding.reviewer)}{party}, settled it: **{reviews.VERDICTS[holding.verdict]}**.")
    desks.verdict_buttons(desk, question)
    desks.remarks(desk, question, "Reason (needed)", "Why this verdict holds")

    def go(by: int) -> None:
        st.session_state[AT] = items[(items.index(question.item) + by) % len(items)]

    with st.container(horizontal=True, gap="small"):
        st.button("Back", key="review_back", shortcut="B", icon=":material/chevron_left:", on_click=go, args=(-1,))
        st.button(
            "Forward", key="review_forward", shortcut="F", icon=":material/chevron_right:", on_click=go, args=(1,)
        )


# ---- results ---------------------------------------------------------------------------------------


def results(desk: Desk) -> None:
    """Who is how far, how well they agree, what each organ got, and all of it to take away."""
    st.markdown(f"### {words.plain(desk.session.name)}: results")
    if not _opened(desk):
        return
    if not desk.verdicts.given:
        st.info("No verdict is given yet. **Judge** at the left begins.", icon=":material/hourglass_empty:")
    left, right = st.columns([5, 7], gap="large")
    with left:
        _progress(desk)
        _export(desk)
    with right:
        _agreement(desk)
        _organs(desk)
    _confusions(desk)
    for line in desk.verdicts.damaged:
        st.error(words.plain(line), icon=":material/report:")


def _progress(desk: Desk) -> None:
    st.markdown("##### Reviewers")
    table = raters.progress(desk.session, desk.verdicts)
    config: dict[str, Any] = {
        "reviewer": "Reviewer",
        "share": st.column_config.ProgressColumn("Done", format="percent", min_value=0, max_value=1, width=110),
        "seconds": st.column_config.NumberColumn("s each", format="%.0f", help="Median time of an item, in seconds."),
    }
    table = table.assign(share=table["done"] / table["total"])[["reviewer", "share", "seconds"]]
    if desk.session.blinded:
        table = table.merge(
            raters.changed_by_evidence(desk.verdicts)[["reviewer", "changed"]], how="left", on="reviewer"
        )
        config["changed"] = st.column_config.NumberColumn(
            "Changed", help="Verdicts that seeing the evidence turned into another one."
        )
    st.dataframe(table, hide_index=True, column_config=config, key="review_progress", placeholder="–")


def _organs(desk: Desk) -> None:
    table = raters.counts(desk.session, desk.verdicts)
    if table.empty:
        return
    st.markdown("##### Organ by organ")
    shown = table.assign(target=[desk.title(name) for name in table["target"]]).sort_values(["target", "reviewer"])
    config: dict[str, Any] = {"reviewer": "Reviewer", "target": "Organ", **reviews.VERDICTS}
    st.dataframe(
        shown[["target", "reviewer", *reviews.VERDICTS]], hide_index=True, column_config=config, key="review_organs"
    )


def _agreement(desk: Desk) -> None:
    st.markdown("##### Agreement", help=KAPPA_HELP)
    rows = [row for target, title in _organ_choices(desk) for row in _pair_rows(desk, target, title)]
    if not rows:
        st.info("Agreement needs two reviewers with verdicts on the same items.", icon=":material/group:")
        return
    config = {"κ first": st.column_config.TextColumn(help="Of the verdicts before the evidence was shown.")}
    st.dataframe(pd.DataFrame(rows), hide_index=True, key="review_agreement", column_config=config)


def _pair_rows(desk: Desk, target: str | None, title: str) -> list[dict[str, Any]]:
    """Every two reviewers on one organ, or on all."""
    first = {(one.first, one.second): one for one in raters.pairs(desk.verdicts, "segmentation", target)}
    rows = []
    for pair in raters.pairs(desk.verdicts, "final", target):
        row = {"Reviewers": f"{pair.first}, {pair.second}", "Organ": title, "κ": review_report.kappa(pair)}
        if desk.session.blinded:
            before = first.get((pair.first, pair.second))
            row["κ first"] = review_report.kappa(before) if before else "–"
        rows.append(row | {"Same": review_report.percent(pair.same), "Items": pair.items})
    return rows


def _confusions(desk: Desk) -> None:
    """Final verdicts of every two reviewers against each other."""
    shown = [pair for pair in raters.pairs(desk.verdicts, "final") if pair.items]
    if not shown:
        return
    st.markdown("##### Who said what", help="Items by the verdicts of two reviewers; they agree on the diagonal.")
    columns = st.columns(max(3, min(len(shown), 4)))
    for number, pair in enumerate(shown):
        with columns[number % len(columns)]:
            st.plotly_chart(confusion(pair), key=f"review_confusion_{number}", config={"displayModeBar": False})


def _organ_choices(desk: Desk) -> list[tuple[str | None, str]]:
    """All together, and each on its own where there are several."""
    each: list[tuple[str | None, str]] = [(name, desk.title(name)) for name in desk.session.targets]
    return [(None, "All"), *each] if len(each) > 1 else each


def _export(desk: Desk) -> None:
    st.markdown("##### Take away")
    session, verdicts = desk.session, desk.verdicts
    tables = {
        "Verdicts": (review_report.verdict_table(verdicts), "A row a verdict, replaced ones as well."),
        "Outcomes": (review_report.summary_table(session, verdicts), "What each reviewer said of an item, what holds."),
    }
    with st.container(horizontal=True, gap="small"):
        for name, (table, told) in tables.items():
            st.download_button(
                f"{name} (CSV)", spreadsheet.to_csv(table), f"{session.name}-{name.lower()}.csv", "text/csv",
                key=f"review_{name}", icon=":material/table:", on_click="ignore", help=told,
            )  # fmt: skip
        st.download_button(
            "Report (HTML)", lambda: _html(desk), f"{session.name}.html", "text/html", key="review_report",
            icon=":material/article:", on_click="ignore",
            help="One file with pictures, verdicts, notes and agreement; it needs no network.",
        )  # fmt: skip


def _html(desk: Desk) -> str:
    return review_report.html(desk.session, desk.verdicts, desk.labels, lambda item: _picture(desk, item))


def _picture(desk: Desk, item: Item) -> bytes | None:
    """The axial slice through the middle of the organ as predicted; None where its files cannot be read any more."""
    try:
        return desks.key_picture(desk, item)
    except InputError:
        return None
