"""The Cohort page: what a model looks at for one organ over all scans, all organs at once, and the scans behind it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from agg2exp_core.organs import BACKGROUND, LabelSet
from agg2exp_core.records import Selection
from agg2exp_core.settings import data_root
from agg2exp_core.store.lists import CaseList
from agg2exp_core.store.queries import NO_METADATA
from dashboard import access, data, filters, saved, tables, words
from dashboard.address import Link
from dashboard.charts import common
from dashboard.charts.common import Pick
from dashboard.filters import Choice, Filters
from dashboard.views import case, choosing, cohort_charts
from dashboard.views.choosing import ChosenRun
from dashboard.views.cohort_charts import ADDRESS, PICKED, Shown
from dashboard.views.masked import on_masked_regions

RANKED = ["value", "target_dice"]
TABLE_HEIGHT = 420
NOT_SHOWN = ("cohort", "dice", "explained", *NO_METADATA)
HANDED = "cohort_handed_on"
"""The session's key of the scans that the Case page was given to step through."""

TABLE_HELP = (
    "Dice is the overlap of prediction and label, 0 to 1; mean Dice averages the organs. Click a scan to open it."
)


@dataclass(frozen=True, eq=False)
class Chosen(ChosenRun):
    """What the page is about."""

    target: str


@words.told
def page() -> None:
    """Draw the page."""
    ADDRESS.follow()
    with st.sidebar:
        chosen = _choose(data_root())
    if isinstance(chosen, str):
        st.info(chosen)
    else:
        # A fragment: a filter or a click draws this again and leaves choosers and navigation alone.
        access.fragment(_explore)(chosen)


def _choose(root: Path) -> Chosen | str:
    """The choosers at the left; where there is nothing to choose, what to do about it."""
    place = choosing.pick_run(ADDRESS, root)
    if isinstance(place, str):
        return place
    stored = pd.Series(data.targets(root, place.cohort, place.run), dtype=object)
    names = common.in_group_order(stored, place.labels)
    titles = {name: _grouped_title(place.labels, name) for name in names}
    choice = Choice("Target organ", "target", titles, "The organ whose segmentation is explained.")
    target = filters.pick_one(ADDRESS, choice, names)
    return Chosen(root, place.cohort, place.record, place.labels, target or names[0])


def _grouped_title(labels: LabelSet, name: str) -> str:
    organ = common.organ_of(labels, name)
    return organ.title if name == BACKGROUND else f"{organ.title} ({organ.group})"


# ---- the page's main part --------------------------------------------------------------------------


@words.told
def _explore(chosen: Chosen) -> None:
    if st.session_state[ADDRESS.key("target")] != chosen.target:
        st.rerun()  # a click took another target, which its chooser, outside this fragment, should say too
    heading = st.container()
    view = cohort_charts.choose(chosen.labels)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="cohort_measures"):
        sign, value, background = filters.measures(ADDRESS, chosen.shares_only, cohort_charts.fixed(view))
        # A joined region is no target, and a tree is of organs that are both.
        joined = view != "dendrogram" and filters.joining(ADDRESS, chosen.labels)
    everything = Selection(chosen.cohort, chosen.run, sign, value, background, joined=joined)
    with st.sidebar, st.expander("Filter scans", icon=":material/filter_alt:", expanded=True):
        selection = Filters(ADDRESS, chosen.cohort).narrow(chosen.root, everything, chosen.labels)
    with st.sidebar:
        saved.shelf(ADDRESS, chosen.root, chosen.cohort)
    cases, total = data.cases(chosen.root, selection), len(data.cases(chosen.root, everything))
    picked = _picked(chosen, selection)
    extra: Link = {}
    if cases.empty:
        st.info("No scan passes these filters. Widen one of them, or clear all.", icon=":material/filter_alt_off:")
    else:
        shown = Shown(chosen.root, chosen.labels, selection, chosen.target, picked, chosen.shares_only)
        extra = cohort_charts.draw(view, shown)
        if view == "overview":
            on_masked_regions(chosen.root, selection, chosen.target)
        _table(chosen, selection, cases, picked)
    link = filters.link_of(selection, chosen.target, picked) | {"view": [view]} | extra
    with heading, st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        _heading(chosen, selection, len(cases), total)
        saved.keep(chosen.root, CaseList("", chosen.cohort, tuple(cases["case_id"].tolist()), link=link), "cohort")
    ADDRESS.write(link)


def _heading(chosen: Chosen, selection: Selection, count: int, total: int) -> None:
    active = filters.describe(selection, chosen.labels)
    scans = "1 scan" if total == 1 else f"{total} scans"
    st.markdown(f"### {words.plain(chosen.title(chosen.target))}: what the model looks at", width="content")
    st.markdown(f"**{count} of {scans}**" if active else f"**{scans}**", width="content")
    if active:
        st.markdown(" ".join(f":primary-badge[{words.plain(word)}]" for word in active), width="content")
        st.button(
            "Clear all filters", on_click=filters.clear, args=(ADDRESS,), icon=":material/close:", key="cohort_clear",
            type="tertiary",
        )  # fmt: skip


# ---- a click and its list ------------------------------------------------------------------------


def _picked(chosen: Chosen, selection: Selection) -> Pick | None:
    """What the link or a click picked, as long as the run shown has its target and region.

    A part that has been joined since stands for the whole.
    """
    wish, picked = ADDRESS.asked("pick"), st.session_state.get(PICKED)
    if wish is not None:
        picked = tuple(wish[0].split("~")) if wish else None
    regions = data.region_names(chosen.root, selection)
    if picked and len(picked) == 2 and picked[1] not in regions:
        picked = picked[0], chosen.labels.joins.get(picked[1], picked[1])
    known = data.targets(chosen.root, chosen.cohort, chosen.run)
    if picked and not (len(picked) == 2 and picked[0] in known and picked[1] in regions):
        if wish and ADDRESS.from_outside:
            words.not_here("Box or cell", wish[0])
        picked = None
    st.session_state[PICKED] = picked
    return picked


def _table(chosen: Chosen, selection: Selection, cases: pd.DataFrame, picked: Pick | None) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f"##### {words.plain(_table_title(chosen, selection, picked))}", help=TABLE_HELP, width="content")
        if picked:
            st.button("Show all scans", key="cohort_unpick", on_click=_unpick, icon=":material/close:", type="tertiary")
    shown = table_of(cases)
    if picked:
        ranked = data.ranked(chosen.root, selection, *picked).rename(columns={"dice": "target_dice"})
        # Metadata of the same names gives way to what was asked for.
        shown = ranked.merge(shown.drop(columns=RANKED, errors="ignore"), on="case_id", how="left")
    key = f"cohort_table_{chosen.cohort}_{chosen.run}"
    columns = _column_config(chosen, selection, picked)
    event = st.dataframe(
        _in_percent(shown) if picked and selection.value == "mass" else shown, hide_index=True,
        column_config=columns, key=key, on_select="rerun",
        selection_mode="single-cell", placeholder="–", height=tables.height(shown, TABLE_HEIGHT),
    )  # fmt: skip
    narrowed = " and ".join(filters.describe(selection, chosen.labels))
    title = narrowed or "all scans"
    title += f", by {_amount(selection)} on {chosen.title(picked[1])}" if picked else ""
    order = case.CaseOrder(chosen.cohort, tuple(shown["case_id"].tolist()), title)
    _hand_on(order if narrowed or picked else None)
    if event["selection"]["cells"]:
        st.session_state[case.ORDER] = order
        case_id = str(shown["case_id"].iloc[event["selection"]["cells"][0][0]])
        target, region = picked or (chosen.target, "")
        case.go_to(selection, case_id, target, region)


def _hand_on(order: case.CaseOrder | None) -> None:
    """The Case page steps through the scans shown here, however it is opened; None: no more than others asked for."""
    before = st.session_state.get(HANDED)
    st.session_state[HANDED] = order
    if order is not None and order.cases:
        st.session_state[case.ORDER] = order
    elif before is not None and st.session_state.get(case.ORDER) == before:
        del st.session_state[case.ORDER]


def _unpick() -> None:
    st.session_state[PICKED] = None


def _table_title(chosen: Chosen, selection: Selection, picked: Pick | None) -> str:
    if picked is None:
        return "Scans"
    target, region = (chosen.title(name) for name in picked)
    return f"Scans by {_amount(selection)} of {target}’s attribution on {region}, highest first"


def _amount(selection: Selection) -> str:
    return "share" if selection.value == "mass" else "mean per voxel"


def table_of(cases: pd.DataFrame) -> pd.DataFrame:
    """Columns a reader wants, in order: the case, whether it has an image, its metadata, its mean Dice."""
    metadata = [name for name in cases.columns if name not in NOT_SHOWN]
    shown = cases[["case_id"]].copy()
    has_image = cases["image"].fillna("").astype(bool)
    if not has_image.all():
        shown["image"] = np.where(has_image, "stored", "no image stored")
    if not cases["explained"].all():
        shown["explained"] = np.where(cases["explained"], "yes", "not yet")
    shown[metadata] = cases[metadata]
    if cases["dice"].notna().any():
        shown["dice"] = cases["dice"]
    return shown


def _in_percent(shown: pd.DataFrame) -> pd.DataFrame:
    return shown.assign(value=100 * shown["value"])


def _column_config(chosen: Chosen, selection: Selection, picked: Pick | None) -> dict[str, Any]:
    number = st.column_config.NumberColumn
    config: dict[str, Any] = {
        "case_id": st.column_config.TextColumn("Scan", pinned=True),
        "image": "Image",
        "explained": "Explained",
        "dice": number("Mean Dice", format="%.3f"),
    }
    if picked:
        share = selection.value == "mass"
        name = f"{'Share' if share else 'Mean'} on {chosen.title(picked[1])}"
        config["value"] = number(name, format="%.2f %%" if share else "%.3g", width=9 * len(name))
        config["target_dice"] = number(f"Dice of {chosen.title(picked[0])}", format="%.3f")
    return config | data.once(
        chosen.root,
        ("columns", chosen.cohort, chosen.run, *config),
        lambda: _metadata_config(chosen, selection, config),
    )


def _metadata_config(chosen: Chosen, selection: Selection, config: dict[str, Any]) -> dict[str, Any]:
    """Of the columns that `config` does not name. Of all scans, so that a filter leaves the columns as they are."""
    everything = table_of(data.cases(chosen.root, selection.unfiltered()))
    return tables.metadata(everything, [str(name) for name in everything if name not in config])
