"""What a link to a page opens: Streamlit's own start, told where its server is.

Else it asks for one below the page's own address first, and a browser's console shows what it does not find there.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import streamlit
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

PAGES = ("case", "compare", "outliers", "review", "runs", "query")
"""All but the first page, whose address is the server's own."""

TOLD = '<script>window.__streamlit = { BACKEND_BASE_URL: new URL(".", location.href).href }</script>'


def routes() -> list[Route]:
    """One a page."""
    return [Route(f"/{page}", _start) for page in PAGES]


def _start(_: Request) -> HTMLResponse:
    return HTMLResponse(_html(), headers={"Cache-Control": "no-cache"})


@cache
def _html() -> str:
    own = Path(streamlit.__file__).parent / "static" / "index.html"
    return own.read_text(encoding="utf-8").replace("<head>", f"<head>{TOLD}", 1)
