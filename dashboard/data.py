"""Cached wrappers of the store: what a page asks twice is read once, until the files change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import streamlit as st

from agg2exp_core.analysis.compare import Comparison, compare, compare_dice
from agg2exp_core.analysis.importance import Importance, take_organs, to_array
from agg2exp_core.organs import BACKGROUND, LabelSet, load_label_set, made_label_set
from agg2exp_core.records import InputError, Selection
from agg2exp_core.store import catalog, queries
from agg2exp_core.store.lists import CaseList, list_lists

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


@st.cache_data(max_entries=500, show_spinner=False)
def _answer(root: str, fingerprint: str, query: str, *arguments: object) -> Any:
    # A cursor of its own: sessions run in threads, and a connection serves one at a time.
    return getattr(queries, query)(_connection(root, fingerprint).cursor(), *arguments)


def _ask(root: Path, query: str, *arguments: object) -> Any:
    return _answer(str(root), _fingerprint(str(root)), query, *arguments)


def cohorts(root: Path) -> pd.DataFrame:
    return _ask(root, "cohorts")


def run_records(root: Path, cohort: str) -> dict[str, dict[str, Any]]:
    """Run → its record, see `queries.runs`; `parameters` as a dict."""
    records = {}
    for row in _ask(root, "runs", cohort).to_dict("records"):
        record = {str(name): value for name, value in row.items()}
        parameters = record["parameters"]
        record["parameters"] = json.loads(parameters) if isinstance(parameters, str) else parameters
        records[str(record["run"])] = record
    return records


def targets(root: Path, cohort: str, run: str) -> list[str]:
    return list(_ask(root, "targets", cohort, run)["target"])


def organ_names(root: Path, cohort: str, run: str) -> list[str]:
    return list(_ask(root, "organ_names", cohort, run))


def labels(root: Path, cohort: str, record: dict[str, Any]) -> LabelSet:
    """The label set of a run; where it is not here, as a bundle need not bring one, one made of the run's organs.

    record: see `run_records`; empty for a case that nothing has explained.
    """
    name = record.get("label_set") or DEFAULT_LABELS
    try:
        return load_label_set(name, root)
    except InputError:
        if not record:
            raise
        return made_label_set(name, organ_names(root, cohort, record["run"]))


def metadata_columns(root: Path, cohort: str) -> pd.DataFrame:
    return _ask(root, "metadata_columns", cohort)


def cases(root: Path, selection: Selection) -> pd.DataFrame:
    return _ask(root, "cases", selection)


def box_stats(root: Path, selection: Selection, target: str) -> pd.DataFrame:
    return _ask(root, "box_stats", selection, target)


def matrix(root: Path, selection: Selection) -> pd.DataFrame:
    return _ask(root, "matrix", selection)


def ranked(root: Path, selection: Selection, target: str, region: str) -> pd.DataFrame:
    return _ask(root, "ranked", selection, target, region)


def case_importance(root: Path, selection: Selection, case_id: str, target: str) -> pd.DataFrame:
    return _ask(root, "case_importance", selection, case_id, target)


def case_masked(root: Path, selection: Selection, case_id: str, target: str) -> pd.DataFrame:
    return _ask(root, "case_masked", selection, case_id, target)


def masked_values(root: Path, selection: Selection, target: str) -> pd.DataFrame:
    return _ask(root, "masked_values", selection, target)


def region_sets(root: Path, cohort: str, run: str) -> pd.DataFrame:
    return _ask(root, "region_sets", cohort, run)


def agreement(root: Path, cohort: str, run: str, case_id: str) -> pd.DataFrame:
    return _ask(root, "agreement", cohort, run, case_id)


@st.cache_data(max_entries=20, show_spinner=False)
def _lists(root: str, fingerprint: str, cohort: str) -> list[CaseList]:
    return list_lists(Path(root), cohort)


def lists(root: Path, cohort: str) -> list[CaseList]:
    """The saved lists of a cohort, by name."""
    return _lists(str(root), _fingerprint(str(root)), cohort)


@st.cache_data(max_entries=20, show_spinner="Reading the explanations …")
def _importance(root: str, fingerprint: str, selection: Selection) -> Importance:
    table = _answer(root, fingerprint, "local_explanations", selection)
    return to_array(table, organ_names(Path(root), selection.cohort, selection.run))


def importance(root: Path, selection: Selection) -> Importance:
    """All local explanations of the cases that pass, as one array."""
    return _importance(str(root), _fingerprint(str(root)), selection)


@st.cache_data(max_entries=50, show_spinner="Comparing the two sets …")
def _comparison(root: str, fingerprint: str, first: Selection, second: Selection, paired: bool) -> Comparison:
    return compare(_targeted(root, fingerprint, first), _targeted(root, fingerprint, second), paired=paired)


def _targeted(root: str, fingerprint: str, selection: Selection) -> Importance:
    """Without background, it is no target either."""
    found = _importance(root, fingerprint, selection)
    targets = [name for name in found.targets if selection.background or name != BACKGROUND]
    return take_organs(found, targets, found.regions)


def comparison(root: Path, first: Selection, second: Selection, paired: bool) -> Comparison:
    """The second set minus the first, pair by pair."""
    return _comparison(str(root), _fingerprint(str(root)), first, second, paired)


@st.cache_data(max_entries=50, show_spinner=False)
def _dice_comparison(
    root: str, fingerprint: str, first: Selection, second: Selection, paired: bool
) -> tuple[Comparison, Comparison]:
    one, other = (_answer(root, fingerprint, "dice", side) for side in (first, second))
    return compare_dice(one, other, paired)


def dice_comparison(root: Path, first: Selection, second: Selection, paired: bool) -> tuple[Comparison, Comparison]:
    """Dice of the second set minus that of the first: organ by organ, and the mean over organs."""
    return _dice_comparison(str(root), _fingerprint(str(root)), first, second, paired)
