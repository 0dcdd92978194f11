"""A page of the dashboard without a browser."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
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
