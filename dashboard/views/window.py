"""The HU window of plain slices: that of the organ, until somebody chooses one."""

from __future__ import annotations

import streamlit as st

from dashboard import filters
from dashboard.viewer.stage import Scene


def current(scene: Scene, key: str) -> str:
    """The window's name. key: the session's, under which a choice is kept."""
    chosen = st.session_state.get(key)
    usual = chosen in (None, st.session_state.get(_usual(key))) or chosen not in scene.windows
    return scene.window if usual else str(chosen)


def choose(scene: Scene, key: str) -> str:
    """The row of windows; the name of the one that is taken."""
    st.session_state[key] = current(scene, key)
    st.session_state[_usual(key)] = scene.window
    titles = {name: window.title for name, window in scene.windows.items()}
    return filters.segments("HU window" if scene.in_hu else "Grey window", key, titles, scene.window)


def _usual(key: str) -> str:
    """Where it is kept which window came with the organ."""
    return f"{key}_usual"
