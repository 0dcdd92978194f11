"""A page of the dashboard without a browser, and what a browser shows of one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, Request
from streamlit.testing.v1 import AppTest

import dashboard

APP = str(Path(dashboard.__file__).with_name("app.py"))
"""The dashboard whole, which opens its first page."""

PAGE = "from dashboard.views import {name}\n{name}.page()"


def opened(
    monkeypatch: pytest.MonkeyPatch, root: Path, page: str, link: Mapping[str, str], reviewer: str | None = None
) -> AppTest:
    """The page, by its module's name or as APP, drawn once from a link without an exception.

    reviewer: the name that the Review page would ask for.
    """
    monkeypatch.setenv("AGG2EXP_DATA", str(root))
    script = PAGE.format(name=page)
    app = (
        AppTest.from_file(APP, default_timeout=180) if page == APP else AppTest.from_string(script, default_timeout=900)
    )
    for name, value in link.items():
        app.query_params[name] = value
    if reviewer:
        app.session_state["review_reviewer"] = reviewer
    app.run()
    assert not app.exception
    return app


def texts(app: AppTest) -> str:
    """All that the page says, a line an element."""
    groups = (app.markdown, app.caption, app.info, app.warning, app.error, app.success)
    return "\n".join(str(element.value) for group in groups for element in group)


def watched(page: Page) -> list[str]:
    """What a page must not do, noted while it does it: errors in the console, and requests to other machines."""
    noted: list[str] = []

    def requested(request: Request) -> None:
        if urlsplit(request.url).hostname not in ("127.0.0.1", None):  # None: made by the page itself
            noted.append(request.url)

    page.on("console", lambda message: noted.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: noted.append(str(error)))
    page.on("request", requested)
    return noted


def drawn(page: Page, chart: str) -> list[dict]:
    """The traces of a chart as they are drawn: name, x and y."""
    plot = page.locator(f".st-key-{chart} .js-plotly-plot")
    plot.locator(".barlayer path, .boxlayer path, .heatmaplayer image, .scatterlayer path").first.wait_for(
        state="attached"
    )
    return plot.evaluate(
        "chart => chart._fullData.map(({name, x, y}) => ({name, x: Array.from(x ?? []), y: Array.from(y ?? [])}))"
    )


def cells(page: Page) -> list[str]:
    """The cells of the page's first table as a screen reader is told them: what one sees is a canvas."""
    grid = page.locator("[data-testid=stDataFrame] table").first
    grid.locator("td").first.wait_for(state="attached")
    return grid.locator("td").all_text_contents()
