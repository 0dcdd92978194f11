"""The most and the least unusual scans as cards: a slice, the numbers, and what deviates most."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from agg2exp_core.records import InputError
from agg2exp_core.store import cohorts, results
from dashboard import words
from dashboard.charts.common import organ_of
from dashboard.viewer.scene import Sources
from dashboard.viewer.thumbnail import thumbnail
from dashboard.views import case, unusual
from dashboard.views.outlier_list import Listed

CARDS = 5
HELP = (
    "Axial slices, radiological convention (the patient’s left is at the right). Through the strongest attribution of "
    "the organ named, where a map of it is stored, else through the organ’s middle; the organ is outlined. "
    "The number is the score, the sentence what deviates most. **Open** shows the scan there."
)


def draw(listed: Listed) -> None:
    """Two rows of cards; scans in the middle of the order are in neither."""
    table = listed.table[np.isfinite(listed.table["score"])].sort_values("score", ascending=False, kind="stable")
    most = table.head(min(CARDS, (len(table) + 1) // 2))
    least = table.iloc[len(most) :].tail(CARDS).iloc[::-1]
    for title, rows, name in (
        ("The most unusual scans", most, "most"),
        ("The least unusual scans", least, "least"),
    ):
        if not rows.empty:
            st.markdown(f"##### {title}", help=HELP)
            columns = st.columns(CARDS, gap="small")
            for place, (column, row) in enumerate(zip(columns, rows.to_dict("records"), strict=False)):
                with (
                    column,
                    st.container(border=True, gap="small", height="stretch", key=f"outliers_card_{name}_{place}"),
                ):
                    _card(listed, row, name)


def _card(listed: Listed, row: dict, name: str) -> None:
    case_id, target = str(row["case_id"]), str(row["target"])
    at, place = _picture(listed, case_id, target)
    dice = f" · Dice {row['dice']:.2f}" if pd.notna(row["dice"]) else ""
    st.markdown(f"**{words.plain(case_id)}**  \n:small[:gray[score {row['score']:.2f}{dice}]]")
    st.caption(words.plain(place))
    try:
        told = unusual.why_unusual(listed.case(case_id), listed.usual, target, 1)
    except InputError:
        told = []
    if told:
        st.markdown(f":small[{told[0]}]")
    st.space("stretch")  # so that the buttons of a row stand in line
    if st.button("Open", key=f"outliers_open_{name}_{case_id}", icon=":material/visibility:", width="stretch"):
        case.go_to(listed.place, case_id, target, at)


def _picture(listed: Listed, case_id: str, target: str) -> tuple[tuple[int, ...], str]:
    """Draw the slice; the voxel that it goes through, and what it shows or why there is none."""
    image = cohorts.find_case(listed.root, listed.place.cohort, case_id).image
    title = organ_of(listed.labels, target).title
    if image is None:
        return (), "No image is stored: this scan comes from a table."
    folder = results.case_path(listed.root, listed.place.cohort, listed.place.run, case_id)
    try:
        small = thumbnail(Sources(image, folder if folder.is_dir() else None, target), listed.labels)
    except InputError as error:
        return (), str(error)
    st.image(small.png, width="stretch", alt=f"{case_id}: {title}, {small.place}")
    return small.at, f"{title}, {small.place}"
