"""What `agg2exp dashboard` starts: the Streamlit app with the viewer's routes beside it."""

from __future__ import annotations

import streamlit as st
from starlette.middleware import Middleware
from streamlit import net_util

from dashboard import start, uploads
from dashboard.viewer import addresses


def _never_asked() -> None:
    """This machine's address as the world sees it: not known here."""


# Else Streamlit asks Amazon for it whenever a page elsewhere tries to connect, and answers nobody meanwhile.
net_util.get_external_ip = _never_asked

routes = [*addresses.routes(), *start.routes()]
app = st.App("app.py", routes=routes, middleware=[Middleware(uploads.OfThoseInvited)])
