"""A chart to take away: SVG and PNG, made in the browser of what is drawn there, and its numbers as CSV."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pandas as pd
import streamlit as st

from agg2exp_core import spreadsheet

CHART_CONFIG = {"displayModeBar": True, "displaylogo": False, "modeBarButtons": [["toImage"]]}
"""Of every chart that can be downloaded: Plotly's own button, which `style` hides, makes the picture."""

MOST_IN_A_NAME = 120
PICTURE = """
export default function({ data, parentElement }) {
    for (const button of parentElement.querySelectorAll("button")) {
        const format = button.dataset.format;
        button.onclick = () => {
            const chart = document.querySelector(`.st-key-${data.chart} .js-plotly-plot`);
            // Plotly is not reachable by name; its own button is, and asks these options at every press.
            const picture = { format, filename: data.name, scale: format === "png" ? 3 : 1 };
            chart._context.toImageButtonOptions = picture;
            chart.querySelector(".modebar-btn").click();
        };
    }
}
"""
BUTTONS = """
<button data-format="svg" title="Vector picture, for a paper">SVG</button>
<button data-format="png" title="Picture of three times the resolution">PNG</button>
"""
LOOKS = """
:host { display: block; }
button {
    font: inherit; color: var(--st-text-color); background: transparent; cursor: pointer; padding: 0.3rem 0.9rem;
    border: 1px solid var(--st-border-color); border-radius: var(--st-base-radius); margin-right: 0.35rem;
}
button:hover { border-color: var(--st-primary-color); color: var(--st-primary-color); }
"""


def offer(chart: str, name: str, table: Callable[[], pd.DataFrame]) -> None:
    """A button that offers the chart of that key. name: of the files; table: what is drawn, asked when wanted."""
    with st.popover("", icon=":material/download:", type="tertiary", help="Download this chart", key=f"{chart}_get"):
        _pictures()(data={"chart": chart, "name": name}, key=f"{chart}_pictures", height="content")
        st.download_button(
            "CSV", lambda: spreadsheet.to_csv(table()), f"{name}.csv", "text/csv", key=f"{chart}_csv",
            on_click="ignore", help="The numbers that are drawn",
        )  # fmt: skip


def file_name(*parts: str) -> str:
    """Parts joined to a name that every filesystem takes; letters of any script are kept."""
    words = (re.sub(r"[^\w.-]+", "-", part).strip("-") for part in parts)
    return "_".join(word for word in words if word)[:MOST_IN_A_NAME]


@st.cache_resource
def _pictures() -> Callable[..., Any]:
    return st.components.v2.component("agg2exp_pictures", html=BUTTONS, css=LOOKS, js=PICTURE)
