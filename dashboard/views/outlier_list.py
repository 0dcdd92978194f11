"""Scans of the Outliers page as a list: what they have, what to do with them, and how they differ from the rest."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from agg2exp_core import spreadsheet
from agg2exp_core.analysis.metadata import compare_metadata
from agg2exp_core.organs import LabelSet
from agg2exp_core.records import InputError, Selection
from agg2exp_core.store.lists import CaseList, extend_list
from dashboard import access, data, filters, saved, tables, words
from dashboard.address import Address
from dashboard.charts.common import organ_of, rounded
from dashboard.charts.scatter import RIGHT_UNUSUAL
from dashboard.filters import in_words
from dashboard.views import case, unusual
from dashboard.views.scoring import ADDRESS, ALL, SELECTED, USUAL

WHICH = "outliers_which"
TOLD = "outliers_told"
HEIGHT = 318
OWN = ("cohort", "score", "flagged", "dice", "corner", "target", "unusual", "reading")
"""Columns of the list, and of its CSV, beside case_id."""

LIST_HELP = "Click a scan to open it where its evidence is strongest."
COMPARE_HELP = (
    "The listed scans against the others shown. Numbers: means, tested by ranks (Mann–Whitney) and, in brackets, by "
    "Welch’s t. Categories: shares of scans, tested by Fisher’s exact test. The interval is that of the difference "
    "(95 %; Welch, Newcombe). p is adjusted over all rows (Benjamini–Hochberg): below 0.05, chance alone is unlikely."
)


@dataclass(frozen=True, eq=False)
class Listed:
    """The scans shown. place: their cohort and run; usual: what they were compared with; organ: "" for all.

    table: case_id, score, flagged, dice, corner (words), target (the organ judged, or the most unusual one); cases:
    the same scans with their metadata. selected: case ids.
    """

    root: Path
    place: Selection
    usual: Selection
    labels: LabelSet
    organ: str
    table: pd.DataFrame
    cases: pd.DataFrame
    selected: list[str]

    def case(self, case_id: str) -> unusual.Place:
        return unusual.Place(self.root, self.place.cohort, self.place.run, case_id, self.labels)


def draw(listed: Listed) -> list[str]:
    """The list, its actions and why its scans are unusual; the case ids in it."""
    rows = _which(listed)
    if rows.empty:
        st.info("No scan is unusual at this limit. Lower it, or draw around points.", icon=":material/info:")
        return []
    _table(listed, rows)
    _actions(listed, rows)
    _why(listed, list(rows["case_id"]))
    return list(rows["case_id"])


def _which(listed: Listed) -> pd.DataFrame:
    """The scans chosen to be listed, the most unusual first."""
    table = listed.table.sort_values("score", ascending=False, kind="stable")
    choices = {
        "unusual": ("Unusual", table[table["flagged"]]),
        "right": (RIGHT_UNUSUAL, table[table["corner"] == RIGHT_UNUSUAL]),
        "selected": ("Selected", table[table["case_id"].isin(listed.selected)]),
        "all": ("All", table),
    }
    if not table["corner"].any():
        del choices["right"]
    if not listed.selected:
        del choices["selected"]
    if st.session_state.get(WHICH) not in choices:
        st.session_state[WHICH] = "selected" if listed.selected else "unusual"
    titles = {name: f"{title} · {len(rows)}" for name, (title, rows) in choices.items()}
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        st.markdown("##### Scans", help=LIST_HELP, width="content")
        chosen = st.segmented_control(
            "List", list(titles), format_func=titles.__getitem__, key=WHICH, required=True, label_visibility="collapsed"
        )
    return choices[chosen or "unusual"][1]


def _table(listed: Listed, rows: pd.DataFrame) -> None:
    number = st.column_config.NumberColumn
    config: dict[str, Any] = {
        "case_id": st.column_config.TextColumn("Scan", pinned=True),
        "score": number("Score", format="%.3f"),
        "dice": number("Dice", format="%.3f"),
        "corner": "Reading",
        "target": "Most unusual organ" if listed.organ == ALL else "Organ",
    }
    if not rows["corner"].any():
        config["flagged"] = st.column_config.CheckboxColumn("Unusual")
        del config["corner"], config["dice"]
    if listed.organ != ALL:
        del config["target"]
    metadata = _metadata(listed)
    shown = _with_metadata(listed, rows[list(config)])
    event = st.dataframe(
        shown, hide_index=True, column_config=config | tables.metadata(metadata, metadata.columns.drop("case_id")),
        key="outliers_table", on_select="rerun", selection_mode="single-cell", placeholder="–",
        height=tables.height(shown, HEIGHT),
    )  # fmt: skip
    if event["selection"]["cells"]:
        st.session_state[case.ORDER] = case.CaseOrder(
            listed.place.cohort, tuple(rows["case_id"]), "by unusual evidence"
        )
        row = rows.iloc[event["selection"]["cells"][0][0]]
        case.go_to(listed.place, str(row["case_id"]), str(row["target"]))


def _metadata(listed: Listed) -> pd.DataFrame:
    """case_id and the metadata; what is called as a column of the list is gets a number behind it."""
    known = list(data.metadata_columns(listed.root, listed.place.cohort)["column"])
    taken, names = {*OWN, *known}, {}
    for name in known:
        if name in OWN:
            names[name] = next(other for number in count(2) if (other := f"{name}_{number}") not in taken)
    return listed.cases[["case_id", *known]].rename(columns=names)


def _with_metadata(listed: Listed, rows: pd.DataFrame) -> pd.DataFrame:
    titled = rows
    if "target" in rows:
        titled = rows.assign(target=[organ_of(listed.labels, name).title for name in rows["target"]])
    return titled.merge(_metadata(listed), on="case_id", how="left")


# ---- actions -----------------------------------------------------------------------------------------


def _actions(listed: Listed, rows: pd.DataFrame) -> None:
    ids = tuple(rows["case_id"])
    count = "1 scan" if len(ids) == 1 else f"{len(ids)} scans"
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        saved.keep(listed.root, CaseList("", listed.place.cohort, ids), "outliers")
        if access.may("reviewer"):
            with st.popover(f"Leave out {count}", icon=":material/block:", type="tertiary", key="outliers_leave_out"):
                _leave_out_form(listed, ids)
        st.download_button(
            f"CSV of {count}", csv(listed, rows), f"outliers-{listed.place.cohort}.csv", "text/csv",
            icon=":material/download:", on_click="ignore", key="outliers_csv", type="tertiary",
        )  # fmt: skip
        if listed.selected:
            st.button("Let go of the selection", key="outliers_unselect", type="tertiary", on_click=_unselect)
    if told := st.session_state.pop(TOLD, None):
        words.refuse(told)


def _leave_out_form(listed: Listed, ids: tuple[str, ...]) -> None:
    choices = {"of this page": ADDRESS}
    if listed.usual.cohort == listed.place.cohort:
        choices["of what is learned"] = USUAL
    names = " or ".join(f"**{words.plain(_left_out(listed, side))}**" for side in choices.values())
    st.markdown(f"They join the list {names}, which can be changed under *Saved lists*.")
    with st.container(horizontal=True, gap="small"):
        for title, side in choices.items():
            key = f"outliers_leave_out_{side.side or 'here'}"
            st.button(f"Out {title}", key=key, on_click=_leave_out, args=(listed, ids, side))


def _left_out(listed: Listed, side: Address) -> str:
    """The list of those left out: one for each side, so that neither grows by what the other leaves out."""
    return f"{'not-learned' if side.side else 'left-out'}-{listed.place.cohort}"[:64]


def _leave_out(listed: Listed, ids: tuple[str, ...], side: Address) -> None:
    """Add the scans to the cohort's list of those left out, and let one side's filter leave that list out."""
    cohort, name = listed.place.cohort, _left_out(listed, side)
    try:
        access.require("reviewer")
        extend_list(listed.root, name, cohort, ids)
    except InputError as error:
        st.session_state[TOLD] = error
        return
    data.forget()
    filters.leave_out_list(side, cohort, name)
    _unselect()
    st.toast(f"Left out {len(ids)} of {words.plain(cohort)}", icon=":material/block:")


def _unselect() -> None:
    st.session_state[SELECTED] = ()
    st.session_state[WHICH] = "unusual"


def csv(listed: Listed, rows: pd.DataFrame) -> str:
    """The list with everything that is known of its scans."""
    table = rows.rename(columns={"flagged": "unusual", "corner": "reading"})
    table.insert(0, "cohort", listed.place.cohort)
    whole = table.merge(_metadata(listed), on="case_id", how="left")
    return spreadsheet.to_csv(whole)


# ---- why ---------------------------------------------------------------------------------------------


def _why(listed: Listed, ids: list[str]) -> None:
    key = "outliers_why"
    if st.session_state.get(key) not in ids:
        st.session_state[key] = ids[0]
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown("##### Why is it unusual?", help=unusual.SPREAD_HELP, width="content")
        chosen = st.selectbox("Scan", ids, key=key, label_visibility="collapsed", width=180)
    unusual.tell(listed.case(chosen or ids[0]), listed.usual, listed.organ or None)


# ---- who they are --------------------------------------------------------------------------------------


def compare(root: Path, cohort: str, cases: pd.DataFrame, listed: np.ndarray) -> None:
    """The metadata of the listed scans against the rest, as a table in words."""
    kinds = data.metadata_columns(root, cohort).set_index("column")["kind"]
    if kinds.empty or not 0 < listed.sum() < len(listed):
        return
    st.markdown("##### Who they are: the listed scans against the rest", help=COMPARE_HELP)
    table = cases[list(kinds.index)].copy()
    for name in kinds.index[kinds == "category"]:
        table[name] = [in_words(value) for value in table[name]]
    found = compare_metadata(table, listed)
    shown = pd.DataFrame([_in_words(row) for row in found.to_dict("records")])
    shown.columns = ["", f"Listed ({int(listed.sum())})", f"Rest ({int((~listed).sum())})", "Difference", "p, adjusted"]
    st.dataframe(shown, hide_index=True, key="outliers_metadata", height=tables.height(shown, 360))


def _in_words(row: dict[Any, Any]) -> tuple[str, ...]:
    """One row of `compare_metadata`: what, both sides, the difference with its interval, p."""
    name = words.column_title(row["column"])
    if row["value"] == "":
        values = [f"mean {rounded(row[side], 3)}" for side in ("outliers", "rest")]
        change, unit, title = [row["difference"], row["low"], row["high"]], "", name
    else:
        values = [f"{100 * row[side]:.0f} %" for side in ("outliers", "rest")]
        change, unit = [100 * row[part] for part in ("difference", "low", "high")], " points"
        title = f"{name}: {row['value']}"
    p = p_in_words(row["p_adjusted"])
    if np.isfinite(row["p_t"]):
        p += f" (t, unadjusted: {p_in_words(row['p_t'])})"
    return title, *values, _interval(change, unit), p


def p_in_words(p: float) -> str:
    """Two digits; what is below a thousandth says just that."""
    return "not tested" if np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.2g}"


def _interval(change: list[float], unit: str) -> str:
    difference, low, high = ((f"{part:+.0f}" if unit else f"{part:+.3g}").replace("-", "−") for part in change)
    return f"{difference}{unit}" + (f" ({low} to {high})" if np.isfinite(change[1]) else "")
