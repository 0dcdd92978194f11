"""Who may send files: Streamlit keeps in memory whatever comes from anybody with a page open, also from its sign-in."""

from __future__ import annotations

import threading
from collections import OrderedDict

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from streamlit.runtime.scriptrunner import get_script_run_ctx

from dashboard import access

MOST = 1000
"""Sessions that are remembered; those that were drawn a place to upload last."""

_invited: OrderedDict[str, str | None] = OrderedDict()
"""Session → who looks at it."""

_lock = threading.Lock()


def invite() -> None:
    """Let the session that is drawn send files, as long as who looks at it may."""
    context = get_script_run_ctx()
    if context is None:
        return
    with _lock:
        _invited[context.session_id] = access.person()
        _invited.move_to_end(context.session_id)
        while len(_invited) > MOST:
            _invited.popitem(last=False)


def is_welcome(session: str) -> bool:
    """Whether a file from that session is taken."""
    with _lock:
        return session in _invited and access.is_operator(_invited[session])


class OfThoseInvited:
    """Streamlit's way in for files, closed to all others."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _, place, rest = scope.get("path", "").partition("/_stcore/upload_file/")
        answer = self._app
        if scope["type"] == "http" and scope["method"] != "OPTIONS" and place and not is_welcome(rest.split("/")[0]):
            answer = Response(status_code=403)
        await answer(scope, receive, send)
