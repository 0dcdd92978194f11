"""The dashboard's entry: page config and navigation."""

from __future__ import annotations

import streamlit as st

from dashboard import about, access, address, style
from dashboard.views import case, cohort, compare, outliers, query, review, runs

st.set_page_config(page_title="Agg²Exp Explorer", page_icon=style.ICON, layout="wide", initial_sidebar_state=374)
style.apply()
access.gate()
address.count_steps()
about.button()
access.who()
about.warn_if_insecure()
pages = [
    st.Page(cohort.page, title="Cohort", icon=":material/groups:", default=True),
    st.Page(case.page, title="Case", icon=":material/person_search:", url_path="case"),
    st.Page(compare.page, title="Compare", icon=":material/compare_arrows:", url_path="compare"),
    st.Page(outliers.page, title="Outliers", icon=":material/scatter_plot:", url_path="outliers"),
    st.Page(review.page, title="Review", icon=":material/rate_review:", url_path="review"),
    st.Page(runs.page, title="Runs", icon=":material/bolt:", url_path="runs"),
    st.Page(query.page, title="Query", icon=":material/terminal:", url_path="query"),
]
st.navigation(pages, position="top").run()
