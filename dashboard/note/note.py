"""The note on the page: what is sent to the browser, and the text that comes back while it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import streamlit as st

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Note:
    """of: what the note is about; another one empties the field. kept: the text is stored as a draft."""

    of: str
    text: str
    kept: bool
    label: str
    placeholder: str
    longest: int


def note(shown: Note, key: str, on_write: Callable[[], None]) -> None:
    """Mount the field. `on_write` runs at every pause; `written(key, of)` gives the text."""
    _component()(data=asdict(shown), key=key, on_note_change=on_write, height="content")


def written(key: str, of: str) -> str | None:
    """What was typed about this, None if nothing was: a text that comes late never lands on something else."""
    value = getattr(st.session_state.get(key), "note", None)
    if not isinstance(value, dict) or value.get("of") != of or not isinstance(value.get("text"), str):
        return None
    return str(value["text"])


@st.cache_resource
def _component() -> Callable[..., Any]:
    html, css, script = ((_HERE / f"note.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    return st.components.v2.component("agg2exp_note", html=html, css=css, js=script)
