"""What the Cohort page shows of masked regions: how much of one target's attribution lies on each, case by case."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from agg2exp_core.records import Selection
from dashboard import data
from dashboard.charts.strips import masked_strips

HELP = (
    "Masks of the scans, such as pathologies, summed by `agg2exp aggregate`. They may overlap the organs, so they are "
    "no part of the charts above. A dot is one scan that has the mask and a stored map of this target, the line their "
    "median; a share is always of the target’s whole attribution, background included."
)


def on_masked_regions(root: Path, selection: Selection, target: str) -> None:
    """Nothing where no scan shown has a masked region."""
    if data.region_sets(root, selection.cohort, selection.run).empty:
        return
    values = data.masked_values(root, selection, target).dropna(subset="value")
    if values.empty:
        return
    scans = values["case_id"].nunique()
    st.markdown(f"##### On masked regions: {scans} {'scan' if scans == 1 else 'scans'}", help=HELP)
    figure = masked_strips(values, selection.value)
    st.plotly_chart(figure, key="cohort_masked", config={"displayModeBar": False}, alt="Scans by share on each mask")
