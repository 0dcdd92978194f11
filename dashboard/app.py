"""The dashboard's entry: page config and navigation."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import streamlit as st

from dashboard import about, style


def view(name: str) -> Callable[[], None]:
    """The page of dashboard/views; loaded when it is opened, so that the first one need not wait for all."""
    return lambda: import_module(f"dashboard.views.{name}").page()


st.set_page_config(page_title="Agg²Exp Explorer", page_icon=style.ICON, layout="wide", initial_sidebar_state=350)
style.apply()
about.button()
pages = [
    st.Page(view("cohort"), title="Cohort", icon=":material/groups:", default=True),
    st.Page(view("case"), title="Case", icon=":material/person_search:", url_path="case"),
    st.Page(view("compare"), title="Compare", icon=":material/compare_arrows:", url_path="compare"),
    st.Page(view("outliers"), title="Outliers", icon=":material/scatter_plot:", url_path="outliers"),
    st.Page(view("review"), title="Review", icon=":material/rate_review:", url_path="review"),
    st.Page(view("query"), title="Query", icon=":material/terminal:", url_path="query"),
]
st.navigation(pages, position="top").run()
