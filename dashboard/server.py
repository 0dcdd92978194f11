"""What `agg2exp dashboard` starts: the Streamlit app with the viewer's routes beside it."""

from __future__ import annotations

import streamlit as st
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from streamlit import net_util

from dashboard import start, uploads
from dashboard.viewer import addresses


def _never_asked() -> None:
    """This machine's address as the world sees it: not known here."""


class WithoutMetrics:
    """Streamlit tells anybody, also before the sign-in, how many people are here: nothing of ours asks for it."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = scope["type"] == "http" and "/_stcore/metrics" in scope["path"]
        await (Response(status_code=404) if asked else self._app)(scope, receive, send)


# Else Streamlit asks Amazon for it whenever a page elsewhere tries to connect, and answers nobody meanwhile.
net_util.get_external_ip = _never_asked

routes = [*addresses.routes(), *start.routes()]
app = st.App("app.py", routes=routes, middleware=[Middleware(WithoutMetrics), Middleware(uploads.OfThoseInvited)])
