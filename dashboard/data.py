"""Cached wrappers of the store: what a page asks twice is read once, until the files change."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import streamlit as st

from agg2exp_core.analysis import outliers
from agg2exp_core.analysis.importance import Importance, to_array
from agg2exp_core.organs import LabelSet, load_label_set, made_label_set
from agg2exp_core.records import InputError, Selection
from agg2exp_core.store import catalog, queries

DEFAULT_LABELS = "thorax17"


@st.cache_data(ttl=2, show_spinner="Reading the results …")
def _fingerprint(root: str) -> str:
    """Changes when files change. Looked at no more often than every two seconds."""
    return catalog.refresh(Path(root))


def forget() -> None:
    """Look at the files anew at the next question: something was just written."""
    _fingerprint.clear()


@st.cache_resource(max_entries=2, show_spinner=False)
def _connection(root: str, fingerprint: str) -> duckdb.DuckDBPyConnection:
    return catalog.connect(Path(root))


@st.cache_data(max_entries=50, show_spinner=False)
def _judged(
    root: str, fingerprint: str, judges: Judges, judged: Selection, _own: np.ndarray | None
) -> tuple[tuple[str, ...], np.ndarray]:
    # Own scores follow from the judges, which the answer is kept under.
    all_usual = importance(Path(root), judges.usual)
    usual, others = outliers.shared(all_usual, importance(Path(root), judged))
    columns = [all_usual.targets.index(target) for target in usual.targets]
    own = None if _own is None else _own[:, columns]
    return usual.targets, outliers.judge(judges.detector, usual, others, own)


def judged_scores(
    root: Path, judges: Judges, judged: Selection, own: np.ndarray | None = None
) -> tuple[tuple[str, ...], np.ndarray]:
    """The targets that both sides explain, and the scores (cases, targets) of the judged ones.

    own: `held_out_scores` where both sides are cases of one run: those seen while learning keep these.
    """
    return _judged(str(root), _fingerprint(str(root)), judges, judged, own)
