"""What `agg2exp dashboard` starts: the Streamlit app with the viewer's routes beside it."""

from __future__ import annotations

import streamlit as st

from dashboard import start
from dashboard.viewer import addresses

app = st.App("app.py", routes=[*addresses.routes(), *start.routes()])
