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
<span class='looks'></span>
<style>
/* Bare styles would stand among the toasts, and go when a fragment shows one: so this is an element, without room. */
[data-testid="stElementContainer"]:has(.looks) { display: none; }
/* A working surface: the content starts under the navigation and uses the window's width. */
.stMainBlockContainer { padding: 3.4rem 1.6rem 1.5rem 1.6rem; }
[data-testid="stSidebarHeader"] { height: 2.2rem; min-height: 2.2rem; margin-bottom: 0; }
[data-testid="stSidebarContent"] { padding-left: 1rem; padding-right: 1rem; }
[data-testid="stSidebarUserContent"] { padding: 0 0 1rem 0; }
[data-testid="stSidebar"] [data-testid="stSelectbox"] * { font-size: 0.82rem; }
[data-testid="stSidebar"] [data-testid="stSelectbox"] input {
  padding-left: 0.45rem; padding-right: 0; font-size: 0.76rem; text-overflow: ellipsis;
}
[data-testid="stSidebar"] [data-testid="stExpanderDetails"] { padding: 0.6rem 0.8rem; }
/* Axis labels are organs' names, read first: in the theme's own text colour, not in grey. */
.js-plotly-plot .xtick text, .js-plotly-plot .ytick text, .js-plotly-plot .legendtext,
.js-plotly-plot .cbaxis text, .js-plotly-plot .g-xtitle text, .js-plotly-plot .g-ytitle text,
.js-plotly-plot .annotation-text, .js-plotly-plot .textpoint text { fill: currentColor !important; }
.groups { display: grid; grid-template-rows: auto auto; grid-auto-flow: column; column-gap: 1.2rem; }
.groups div { font-size: 0.85rem; }
/* In line with the words beside it. */
.st-key-cohort_clear button, .st-key-cohort_unpick button, .st-key-case_download button,
[class*="st-key-keep_"] button[kind="tertiary"] {
  min-height: 0; padding-top: 0; padding-bottom: 0.15rem;
}
/* In the sidebar's empty head, beside its arrow. */
.st-key-about { margin: -2.1rem 0 -0.6rem -0.6rem; position: relative; z-index: 1; }
.st-key-about * { white-space: nowrap; width: max-content; }
/* The Query page: code in the editor, examples as a list to read. */
.st-key-query_edited textarea {
  font-family: ui-monospace, 'SF Mono', Menlo, 'DejaVu Sans Mono', monospace; font-size: 0.85rem; line-height: 1.45;
}
.st-key-query_examples button { min-height: 0; padding: 0.1rem 0; }
.st-key-query_examples button, .st-key-query_examples button * { justify-content: flex-start; text-align: left; }
/* All views are in sight at once. */
.st-key-query_views { gap: 4px; }
.st-key-query_views summary { min-height: 0; padding-top: 0.2rem; padding-bottom: 0.2rem; }
.st-key-query_views table { font-size: 0.82rem; width: 100%; }
.st-key-query_views td, .st-key-query_views th { padding: 0.15rem 0.4rem; }
/* Beside a scan there is little room: the bars come first. */
.st-key-case_measures { gap: 0.35rem 0.7rem; }
.st-key-case_measures label p, .st-key-case_measures button p { font-size: 0.82rem; }
/* A question, its tags and steps fit beside the scan. */
.st-key-review_tags { gap: 0.35rem; }
.st-key-review_tags button { min-height: 1.9rem; padding: 0 0.55rem; }
.st-key-review_tags button p { font-size: 0.85rem; }
.st-key-review_verdicts { gap: 0.5rem; }
.st-key-review_verdicts .stElementContainer { flex: 1 1 45%; }
.st-key-review_view .stButton button { padding: 0 0.4rem; }
/* What was asked last, while the next is drawn: its buttons answer no more, and its scan stays a moment longer. */
[data-stale="true"]:is([class*="st-key-review_say_"], [class*="st-key-review_keep_"]) button {
  opacity: 0.25; cursor: progress;
}
[data-stale="true"].st-key-review_stage { opacity: 0.25; transition: opacity 0s 0.15s; }
/* Reading ahead says nothing, and some keys need no button to be seen. */
.st-key-review_next, .st-key-review_slices, .st-key-viewer_warm { display: none; }
/* Cards of one row: pictures of one size, so that the words below them stand in line. */
[class*="st-key-outliers_card_"] img { aspect-ratio: 4 / 3; object-fit: contain; background: #000; }
/* A chart's heading, its switch and its downloads share one line. */
[class*="st-key-cohort_"][class*="_head"] { flex-wrap: nowrap; }
/* Charts that answer to a click look as if they do. */
[class*="st-key-cohort_"] .nsewdrag,
.st-key-compare_boxes .nsewdrag, .st-key-compare_matrix .nsewdrag { cursor: pointer; }
/* Plotly's own button makes the pictures; the download menu presses it. */
[class*="st-key-cohort_"] .modebar-container { display: none; }
/* Two sets: their colours name them wherever they are compared. */
.side { font-weight: 600; margin-top: 0.2rem; }
.sides { font-size: 0.9rem; display: flex; flex-wrap: wrap; gap: 0 2rem; }
/* Sentences that answer to a click read as a list. */
.st-key-compare_changes button { min-height: 0; padding: 0.28rem 0; }
.st-key-compare_changes button, .st-key-compare_changes button * { justify-content: flex-start; text-align: left; }
.st-key-compare_changes button p { line-height: 1.3; font-size: 0.9rem; }
[class*="st-key-compare_less_"] [data-testid="stIconMaterial"] { color: #c2771f; }
[class*="st-key-compare_more_"] [data-testid="stIconMaterial"] { color: #13928a; }
</style>
"""


def apply() -> None:
    """Put the style into the page."""
    st.html(CSS)
