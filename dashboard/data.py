"""Cached wrappers of the store: what a page asks twice is read once, until the files change."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import duckdb
import numpy as np
import pandas as pd
import streamlit as st

from agg2exp_core.analysis import outliers, summary
from agg2exp_core.analysis.compare import Comparison, compare, compare_dice
from agg2exp_core.analysis.importance import Importance, take_cases, take_organs, to_array
from agg2exp_core.analysis.ordered import Ordered
from agg2exp_core.files import read_json
from agg2exp_core.organs import BACKGROUND, LabelSet, load_label_set, made_label_set, numbered
from agg2exp_core.records import InputError, Selection
from agg2exp_core.store import asking, catalog, queries
from agg2exp_core.store.lists import CaseList, list_lists

Made = TypeVar("Made")

DEFAULT_LABELS = "thorax17"
MOST_CELLS = 12_000_000
"""Numbers of one array, 100 MB; larger runs are summarised in SQL, where nothing is kept."""

KEPT_ARRAYS, KEPT_PARTS = 6, 100

MOST_ROWS = 500_000
"""Rows of a user's query that are read, and that its CSV holds."""

MOST_SECONDS = 20.0
"""Time after which a user's query ends without an answer."""

KEYED: dict[Any, Callable[[Any], Any]] = {Selection: repr, LabelSet: repr}
"""What a cache knows these by: Streamlit would take them apart field by field, some 40 times a page."""


_steady: ContextVar[dict[str, str] | None] = ContextVar("steady", default=None)
"""Root → the fingerprint that holds inside `steady`."""


@contextmanager
def steady() -> Iterator[None]:
    """Answer all that is asked inside from one state of the files.

    What goes together by its place, as cases and their scores do, must not meet what a run has finished meanwhile.
    """
    token = _steady.set({}) if _steady.get() is None else None
    try:
        yield
    finally:
        if token is not None:
            _steady.reset(token)


def _fingerprint(root: str) -> str:
    """Changes when files change."""
    held = _steady.get()
    if held is None:
        return _looked_at(root)
    if root not in held:
        held[root] = _looked_at(root)
    return held[root]


@st.cache_data(ttl=2, show_spinner="Reading the results …")
def _looked_at(root: str) -> str:
    """No more often than every two seconds."""
    return catalog.refresh(Path(root))


def forget() -> None:
    """Look at the files anew at the next question: something was just written."""
    _looked_at.clear()


@st.cache_resource(max_entries=2, show_spinner=False)
def _connection(root: str, fingerprint: str) -> duckdb.DuckDBPyConnection:
    return catalog.connect(Path(root))


@st.cache_resource(max_entries=200, show_spinner=False, hash_funcs=KEYED)
def _answer(root: str, fingerprint: str, query: str, *arguments: object) -> Any:
    # A cursor of its own: sessions run in threads, and a connection serves one at a time.
    # The connection is kept meanwhile, for it holds what the cursor reads.
    connection = _connection(root, fingerprint)
    return getattr(queries, query)(connection.cursor(), *arguments)


def _ask(root: Path, query: str, *arguments: object) -> Any:
    found = _answer(str(root), _fingerprint(str(root)), query, *arguments)
    # A table of ten thousand cases takes long to copy; this one is copied if and when somebody writes into it.
    return found.copy(deep=False) if isinstance(found, pd.DataFrame) else found


def cohorts(root: Path) -> pd.DataFrame:
    return _ask(root, "cohorts")


def run_records(root: Path, cohort: str) -> dict[str, dict[str, Any]]:
    """Run → its record, see `queries.runs`; `parameters` as a dict."""
    return {run: dict(record) for run, record in _run_records(str(root), _fingerprint(str(root)), cohort).items()}


@st.cache_resource(max_entries=50, show_spinner=False)
def _run_records(root: str, fingerprint: str, cohort: str) -> dict[str, dict[str, Any]]:
    records = {}
    for row in _answer(root, fingerprint, "runs", cohort).to_dict("records"):
        record = {str(name): value for name, value in row.items()}
        parameters = record["parameters"]
        record["parameters"] = json.loads(parameters) if isinstance(parameters, str) else parameters
        records[str(record["run"])] = record
    return records


def targets(root: Path, cohort: str, run: str) -> list[str]:
    return list(_ask(root, "targets", cohort, run)["target"])


def channels(root: Path, cohort: str, run: str) -> list[str]:
    """Input channels that the run's attribution is split among; none where it is not."""
    return list(_ask(root, "channels", cohort, run))


def channel_shares(root: Path, selection: Selection) -> pd.DataFrame:
    return _ask(root, "channel_shares", selection)


def organ_names(root: Path, cohort: str, run: str) -> list[str]:
    return list(_ask(root, "organ_names", cohort, run))


def labels(root: Path, cohort: str, record: dict[str, Any]) -> LabelSet:
    """The label set of a run, numbered as its model numbers it; where it is not here, as a bundle need not bring one,
    one made of the run's organs.

    record: see `run_records`; empty for a case that nothing has explained.
    """
    name = record.get("label_set") or DEFAULT_LABELS
    try:
        found = load_label_set(name, root)
    except InputError:
        if not record:
            raise
        return made_label_set(name, organ_names(root, cohort, record["run"]))
    classes = read_json(root / "runs" / cohort / record["run"] / "run.json").get("classes") if record else None
    return numbered(found, classes) if classes and tuple(classes) != found.names else found


def region_names(root: Path, selection: Selection) -> list[str]:
    return list(_ask(root, "region_names", selection.unfiltered()))


def metadata_columns(root: Path, cohort: str) -> pd.DataFrame:
    return _ask(root, "metadata_columns", cohort)


@steady()
def cases(root: Path, selection: Selection) -> pd.DataFrame:
    """See `queries.cases`. Of all cases, once asked for, a filter takes those that pass."""
    everything = selection.unfiltered()
    table = _ask(root, "cases", everything)
    if selection == everything:
        return table
    names = _names(str(root), _fingerprint(str(root)), everything)
    return table[_among(names, passing(root, selection))].reset_index(drop=True)


@st.cache_resource(max_entries=20, show_spinner=False, hash_funcs=KEYED)
def _names(root: str, fingerprint: str, everything: Selection) -> tuple[str, ...]:
    # As a list first: to go through Arrow's text word by word takes fifteen times as long.
    return tuple(_answer(root, fingerprint, "cases", everything)["case_id"].tolist())


def passing(root: Path, selection: Selection) -> list[str]:
    return list(_ask(root, "passing", selection))


def _among(names: Iterable[str], chosen: Iterable[str]) -> np.ndarray:
    """Which of the names are chosen: at ten thousand of them a hundred times sooner than `Series.isin` of strings."""
    known = set(chosen)
    return np.fromiter((name in known for name in names), bool)


@st.cache_data(max_entries=200, show_spinner=False, hash_funcs=KEYED)
def _box_stats(root: str, fingerprint: str, selection: Selection, target: str) -> pd.DataFrame:
    return summary.box_stats(importance(Path(root), selection, [target]), target)


def box_stats(root: Path, selection: Selection, target: str) -> pd.DataFrame:
    # What only cases have that left the cohort's list is in no array.
    if _fits(root, selection) and target in importance(root, selection.unfiltered()).targets:
        return _box_stats(str(root), _fingerprint(str(root)), selection, target)
    return _ask(root, "box_stats", selection, target)


@st.cache_data(max_entries=200, show_spinner=False, hash_funcs=KEYED)
def _matrix(root: str, fingerprint: str, selection: Selection) -> pd.DataFrame:
    everything = selection.unfiltered()
    known = _everything(root, fingerprint, everything)
    every = selection == everything
    chosen = np.ones(len(known.cases), bool) if every else _among(known.cases, passing(Path(root), selection))
    return _ordered(root, fingerprint, everything).matrix(chosen)


def matrix(root: Path, selection: Selection) -> pd.DataFrame:
    if _fits(root, selection):
        return _matrix(str(root), _fingerprint(str(root)), selection)
    return _ask(root, "matrix", selection)


def ranked(root: Path, selection: Selection, target: str, region: str) -> pd.DataFrame:
    return _ask(root, "ranked", selection, target, region)


def case_importance(root: Path, selection: Selection, case_id: str, target: str) -> pd.DataFrame:
    return _ask(root, "case_importance", selection, case_id, target)


def ablation_agreement(root: Path, place: tuple[str, str], case_id: str, target: str) -> tuple[float, int, str] | None:
    return _ask(root, "ablation_agreement", place, case_id, target)


def case_masked(root: Path, selection: Selection, case_id: str, target: str) -> pd.DataFrame:
    return _ask(root, "case_masked", selection, case_id, target)


def masked_values(root: Path, selection: Selection, target: str) -> pd.DataFrame:
    return _ask(root, "masked_values", selection, target)


def region_sets(root: Path, cohort: str, run: str) -> pd.DataFrame:
    return _ask(root, "region_sets", cohort, run)


def agreement(root: Path, cohort: str, run: str, case_id: str) -> pd.DataFrame:
    return _ask(root, "agreement", cohort, run, case_id)


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer to a user's query. table: its first `MOST_ROWS` rows; more: whether there are others."""

    table: pd.DataFrame
    more: bool
    seconds: float


# Shared, not copied: an answer may be large, and nobody changes it.
@st.cache_resource(max_entries=8, show_spinner="Asking …")
def _user_query(root: str, fingerprint: str, sql: str) -> Answer:
    found, seconds = asking.ask(asking.Question(Path(root), fingerprint, sql, MOST_ROWS + 1, MOST_SECONDS))
    return Answer(found.head(MOST_ROWS), len(found) > MOST_ROWS, seconds)


def user_query(root: Path, sql: str) -> Answer:
    """The answer to one SELECT of a user, see `queries.run_user_query`."""
    return _user_query(str(root), _fingerprint(str(root)), sql)


def views(root: Path) -> pd.DataFrame:
    return _ask(root, "views")


@st.cache_data(max_entries=20, show_spinner=False)
def _lists(root: str, fingerprint: str, cohort: str) -> list[CaseList]:
    return list_lists(Path(root), cohort)


def lists(root: Path, cohort: str) -> list[CaseList]:
    """The saved lists of a cohort, by name."""
    return _lists(str(root), _fingerprint(str(root)), cohort)


# ---- what is drawn -------------------------------------------------------------------------------


def once(root: Path, about: tuple[object, ...], make: Callable[[], Made]) -> Made:
    """A figure, or another part of a page, that `make` makes of all that `about` names and of the files.

    Making takes longer than sending: many people look at the same, and one who chooses another organ at the same
    matrix. Nobody may change it.
    """
    return cast("Made", _once(str(root), _fingerprint(str(root)), about, make))


@st.cache_resource(max_entries=KEPT_PARTS, show_spinner=False, hash_funcs=KEYED)
def _once(root: str, fingerprint: str, about: tuple[object, ...], _make: Callable[[], object]) -> object:
    return _make()


# ---- arrays --------------------------------------------------------------------------------------


def _fits(root: Path, selection: Selection) -> bool:
    """Whether the run's array is small enough to be kept."""
    records = run_records(root, selection.cohort)
    if selection.run not in records:
        return False
    place = root, selection.cohort, selection.run
    return records[selection.run]["cases"] * len(targets(*place)) * len(organ_names(*place)) <= MOST_CELLS


def _read(root: str, fingerprint: str, selection: Selection) -> Importance:
    connection = _connection(root, fingerprint)
    return to_array(queries.local_explanations(connection.cursor(), selection))


# Resources, as they are large and nobody changes them.
@st.cache_resource(max_entries=KEPT_ARRAYS, show_spinner="Reading the explanations …", hash_funcs=KEYED)
def _everything(root: str, fingerprint: str, selection: Selection) -> Importance:
    """All cases of a measure, of a run that `_fits`."""
    return _read(root, fingerprint, selection)


@st.cache_resource(max_entries=1, show_spinner="Reading the explanations of a large run …", hash_funcs=KEYED)
def _everything_large(root: str, fingerprint: str, selection: Selection) -> Importance:
    """Of one that does not: 10,000 scans of 117 organs take 1.1 GB, and so push out what was read before."""
    return _read(root, fingerprint, selection)


@st.cache_resource(max_entries=KEPT_ARRAYS, show_spinner=False, hash_funcs=KEYED)
def _ordered(root: str, fingerprint: str, selection: Selection) -> Ordered:
    return Ordered(_everything(root, fingerprint, selection))


def importance(root: Path, selection: Selection, only: Sequence[str] = ()) -> Importance:
    """Local explanations of the cases that pass, as one array; of these targets only, if any are named."""
    everything = _everything if _fits(root, selection) else _everything_large
    found = everything(str(root), _fingerprint(str(root)), selection.unfiltered())
    if only:
        found = take_organs(found, [name for name in only if name in found.targets], found.regions)
    if selection == selection.unfiltered():
        return found
    return take_cases(found, _among(found.cases, passing(root, selection)))


def values(root: Path, selection: Selection, target: str, region: str) -> np.ndarray:
    """(cases,): one target on one region, of the cases that pass and have a value."""
    found = importance(root, selection, [target]) if _fits(root, selection) else None
    if found is None or target not in found.targets or region not in found.regions:
        return ranked(root, selection, target, region)["value"].to_numpy(float)
    own = found.values[:, 0, found.regions.index(region)]
    return own[np.isfinite(own)]


@st.cache_data(max_entries=50, show_spinner="Comparing the two sets …")
def _comparison(root: str, fingerprint: str, first: Selection, second: Selection, paired: bool) -> Comparison:
    return compare(_targeted(root, first), _targeted(root, second), paired=paired)


def _targeted(root: str, selection: Selection) -> Importance:
    """Without background, it is no target either."""
    found = importance(Path(root), selection)
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


# ---- outliers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judges:
    """A detector, and the cases from which it learns what is usual."""

    detector: str
    usual: Selection


def agreements(root: Path, cohort: str, run: str) -> pd.DataFrame:
    """case_id, target, dice, iou of every case."""
    return _ask(root, "exported_agreement", cohort, run)


@st.cache_resource(max_entries=100, show_spinner=False)
def _scored_folds(root: str, fingerprint: str, judges: Judges) -> dict[int, np.ndarray]:
    """`held_out_scores` fills it fold by fold: what a user's next click interrupts goes on where it was."""
    return {}


@steady()
def held_out_scores(root: Path, judges: Judges, report: Callable[[int, int], None]) -> np.ndarray:
    """(cases, targets) of the usual cases, each scored by a detector that has not seen it; told how far it is."""
    values = importance(root, judges.usual).values
    done, folds = _scored_folds(str(root), _fingerprint(str(root)), judges), outliers.usual_folds(len(values))
    for number in range(folds):
        if number not in done:
            report(number, folds)
            done[number] = outliers.score_fold(judges.detector, values, number, folds)
    scores = np.full(values.shape[:2], np.nan)
    for number in range(folds):
        scores[number::folds] = done[number]
    return scores


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


@st.cache_data(max_entries=500, show_spinner="Comparing with the usual scans …")
def _deviations(
    root: str, fingerprint: str, usual: Selection, judged: Selection, case_id: str, target: str | None, n: int
) -> pd.DataFrame:
    known, judges = importance(Path(root), judged), importance(Path(root), usual)
    return outliers.case_deviations(judges, known, case_id, target, n)


def deviations(
    root: Path, usual: Selection, judged: Selection, case_id: str, target: str | None = None, n: int = 6
) -> pd.DataFrame:
    """target, region, value, median, z: where one case is most unlike the usual ones, see `case_deviations`."""
    return _deviations(str(root), _fingerprint(str(root)), usual, judged, case_id, target, n)
