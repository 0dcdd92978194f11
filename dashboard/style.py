"""Looks that the theme file cannot set: how much room the pages take, and how readable charts are."""

from __future__ import annotations

import streamlit as st

ICON = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 3 3'><rect width='3' height='3' fill='#440154'/>"
    "<rect width='1' height='1' fill='#fde725'/><rect x='1' y='1' width='1' height='1' fill='#fde725'/>"
    "<rect x='2' y='2' width='1' height='1' fill='#fde725'/><rect x='1' width='1' height='1' fill='#21918c'/></svg>"
)
"""A small matrix. Drawn here, because Streamlit's named icons are fetched from another host."""

CSS = """
<style>
/* A working surface: the content starts under the navigation and uses the window's width. */
.stMainBlockContainer { padding: 3.4rem 1.6rem 1.5rem 1.6rem; }
[data-testid="stSidebarHeader"] { height: 2.2rem; min-height: 2.2rem; margin-bottom: 0; }
[data-testid="stSidebarContent"] { padding-left: 1rem; padding-right: 1rem; }
[data-testid="stSidebarUserContent"] { padding: 0 0 1rem 0; }
[data-testid="stSidebar"] [data-testid="stSelectbox"] * { font-size: 0.82rem; }
[data-testid="stSidebar"] [data-testid="stSelectbox"] input { padding-left: 0.45rem; padding-right: 0; }
[data-testid="stSidebar"] [data-testid="stExpanderDetails"] { padding: 0.6rem 0.8rem; }
/* Axis labels are organs' names, read first: in the theme's own text colour, not in grey. */
.js-plotly-plot .xtick text, .js-plotly-plot .ytick text, .js-plotly-plot .legendtext,
.js-plotly-plot .cbaxis text, .js-plotly-plot .g-xtitle text, .js-plotly-plot .g-ytitle text,
.js-plotly-plot .annotation-text, .js-plotly-plot .textpoint text { fill: currentColor !important; }
.groups { display: grid; grid-template-rows: auto auto; grid-auto-flow: column; column-gap: 1.2rem; }
.groups div { font-size: 0.85rem; }
/* In line with the words beside it. */
.st-key-cohort_clear button, .st-key-cohort_unpick button, [class*="st-key-keep_"] button[kind="tertiary"] {
  min-height: 0; padding-top: 0; padding-bottom: 0.15rem;
}
/* A chart's heading, its switch and its downloads share one line. */
[class*="st-key-cohort_"][class*="_head"] { flex-wrap: nowrap; }
/* Charts that answer to a click look as if they do. */
[class*="st-key-cohort_"] .nsewdrag { cursor: pointer; }
/* Plotly's own button makes the pictures; the download menu presses it. */
[class*="st-key-cohort_"] .modebar-container { display: none; }
</style>
"""


def apply() -> None:
    """Put the style into the page."""
    st.html(CSS)
