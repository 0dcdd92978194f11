"""Why a scan's evidence is unusual, in words: on the Case page and on the Outliers page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from agg2exp_core.organs import LabelSet
from agg2exp_core.records import InputError, Selection
from dashboard import data, words
from dashboard.charts.common import organ_of

SENTENCES = 6
SPREAD_HELP = (
    "Every target’s shares are compared with the usual ones, and the most deviating are told. The usual spread is "
    "1.48 times the median absolute deviation from the median: where values are normal, one standard deviation."
)


@dataclass(frozen=True)
class Place:
    """A case in a run, and the label set that names its organs."""

    root: Path
    cohort: str
    run: str
    case_id: str
    labels: LabelSet


def why_unusual(place: Place, usual: Selection, target: str | None = None, n: int = SENTENCES) -> list[str]:
    """The n pairs of target and region in which a case is most unlike the usual ones, as Markdown sentences.

    target: only this one's. InputError: see `case_deviations`.
    """
    judged = Selection(place.cohort, place.run)
    table = data.deviations(place.root, usual, judged, place.case_id, target, n)
    return [sentence(row, place.labels) for row in table.to_dict("records")]


def sentence(row: dict, labels: LabelSet) -> str:
    """One row of `deviations` in words."""
    target, region = _name(labels, row["target"]), _name(labels, row["region"])
    where = "the organ itself" if row["target"] == row["region"] else region
    side = "above" if row["z"] > 0 else "below"
    return (
        f"Segmenting **{target}**, it looks at **{where}** for **{percent(row['value'])}** "
        f"(usually {percent(row['median'])}; {_spreads(abs(row['z']))} {side})"
    )


def percent(share: float) -> str:
    """Two digits, and none behind the point from 10 % on."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 else f"{value:.1f} %" if value >= 1 else f"{value:.2f} %"


def _spreads(count: float) -> str:
    return f"{count:.0f} times the usual spread" if count >= 10 else f"{count:.1f} times the usual spread"


def _name(labels: LabelSet, organ: str) -> str:
    title = organ_of(labels, organ).title
    return words.plain(f"the {title[:1].lower()}{title[1:]}")


def tell(place: Place, usual: Selection, target: str | None = None) -> None:
    """The sentences as a list on the page, or why there are none."""
    try:
        told = why_unusual(place, usual, target)
    except InputError as error:
        st.info(words.plain(error), icon=":material/info:")
        return
    st.markdown("\n".join(f"- {line}." for line in told) or "No share of this scan can be compared.")


def expander(place: Place) -> None:
    """The Case page's part: nothing is read before somebody opens it."""
    opened = st.expander("Why is this scan unusual?", icon=":material/troubleshoot:", key="case_why", on_change="rerun")
    if not opened.open:
        return
    with opened:
        _compared(place)


def _compared(place: Place) -> None:
    others = [name for name in data.cohorts(place.root)["cohort"] if place.run in data.run_records(place.root, name)]
    names = [place.cohort, *(name for name in others if name != place.cohort)]
    chosen = st.selectbox(
        "Compared with", names, key=f"case_why_with_{place.cohort}", help=SPREAD_HELP,
        format_func=lambda name: f"{name}, its own cohort" if name == place.cohort else name,
    )  # fmt: skip
    tell(place, Selection(chosen, place.run))
