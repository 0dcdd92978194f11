"""The Outliers page: scans whose evidence is unlike the rest, above all those that are segmented well all the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from agg2exp_core.analysis.outliers import (
    FLAGGED_ABOVE,
    ONE_BY_ONE,
    rank_correlation,
    roc_auc,
    spearman_by_target,
    usual_folds,
)
from agg2exp_core.organs import BACKGROUND
from agg2exp_core.records import InputError, Selection
from agg2exp_core.settings import data_root
from dashboard import access, data, filters, saved, words
from dashboard.address import MOST_IN_LINK, Link
from dashboard.charts import common
from dashboard.charts.scatter import Lines, Words, evidence_scatter
from dashboard.filters import Choice, Filters, in_words
from dashboard.views import choosing, gallery, outlier_list
from dashboard.views.choosing import ChosenRun
from dashboard.views.scoring import (
    ADDRESS,
    ALL,
    DETECTOR_HELP,
    SELECTED,
    TITLES,
    USUAL,
    Question,
    Scores,
    scored,
)  # fmt: skip

SLOW = "isolation_forest"
DRAG = {"lasso": "Lasso", "select": "Box"}
NO_COLOR = ""
ALL_TITLE = "All organs: mean"

SCATTER_HELP = (
    "One point a scan. Up: its evidence is more unusual. Right: it is segmented better (Dice, overlap of prediction "
    "and label). Both axes are stretched where most scans lie (logarithms). The dotted lines can be moved below. "
    "Draw around points, or click one, to list them; double-click to let go of them."
)
STRIP_HELP = "One point a scan, the most unusual first. Draw around points, or click one, to list them."
LIMIT_HELP = (
    "A scan is unusual if its score is higher than that of this share of the usual scans. Their own scores are held "
    "out: each comes from a detector that has not learned from that scan."
)
DICE_TITLE, STRIP_TITLE = "Dice against how unusual the evidence is", "How unusual the evidence is"
GOOD_HELP = "Dice from which a segmentation counts as good. At first a quarter of the scans lie below it."
DETECTORS_HELP = (
    "**ROC AUC**: the probability that an abnormal scan scores above an ordinary one; 0.5 is chance, 1 is perfect. "
    "**ρ with Dice**: Spearman’s rank correlation of score and Dice; −1 means that the more unusual the evidence, the "
    "worse the segmentation. Both are over the scans shown."
)
TARGETS_HELP = (
    "Spearman’s ρ of score and Dice, target by target. p is adjusted over the targets (Benjamini–Hochberg): below "
    "0.05, chance alone is unlikely."
)
ELSEWHERE = (
    "From these scans it cannot be learned what is usual. At the left, learn from a cohort that the same model "
    "explains in more scans, or from more of these."
)
USUAL_HELP = (
    "Detectors learn from these scans what is usual. A scan that they would learn from themselves is scored by a "
    "detector that has not seen it."
)


@dataclass(frozen=True)
class Line:
    """A slider of one of the lines that divide the chart."""

    label: str
    low: float
    high: float
    usual: float
    format: str
    text: str


LIMIT = Line("Unusual above", 0.5, 0.99, FLAGGED_ABOVE, "percent", LIMIT_HELP)


@dataclass(frozen=True, eq=False)
class Chosen(ChosenRun):
    """What the page is about. organ: a target, or ALL."""

    usual: Selection
    organ: str

    @property
    def everything(self) -> Selection:
        return Selection(self.cohort, self.run)

    @property
    def question(self) -> Question:
        return Question(self.root, self.everything, self.usual)

    def title(self, organ: str) -> str:
        return ALL_TITLE if organ == ALL else super().title(organ)


@dataclass(frozen=True, eq=False)
class Shown:
    """The scans on the page, in the order of the cohort's list, all of them explained.

    cases: their rows of `queries.cases`. scores, dice: (cases,), of the organ chosen. targets_dice: (cases, targets).
    rows: their places among all scans that were scored.
    """

    cases: pd.DataFrame
    rows: np.ndarray
    scores: np.ndarray
    dice: np.ndarray
    targets_dice: np.ndarray
    lines: Lines

    @cached_property
    def flagged(self) -> np.ndarray:
        return self.scores > self.lines.limit

    @cached_property
    def ids(self) -> list[str]:
        return list(self.cases["case_id"])

    @property
    def has_dice(self) -> bool:
        return bool(np.isfinite(self.dice).any())


@words.told
def page() -> None:
    """Draw the page."""
    ADDRESS.follow()
    chosen = _choose(data_root())
    if isinstance(chosen, str):
        st.info(chosen)
    else:
        access.fragment(_explore)(chosen)


# ---- choosing -------------------------------------------------------------------------------------


def _choose(root: Path) -> Chosen | str:
    """The choosers at the left; where there is nothing to choose, what to do about it."""
    with st.sidebar:
        place = choosing.pick_run(ADDRESS, root)
        if isinstance(place, str):
            return place
        usual = _choose_usual(root, place.cohort, place.run)
        # Of the arrays: a run may also hold targets that only cases have which left the cohort's list.
        stored, learned = (data.importance(root, one).targets for one in (Selection(place.cohort, place.run), usual))
        shared = pd.Series([organ for organ in stored if organ in learned], dtype=object)
        organs = common.in_group_order(shared, place.labels)
        titles = {ALL: ALL_TITLE} | {organ: place.title(organ) for organ in organs}
        choice = Choice("Target organ", "organ", titles, "Whose explanations are judged: one target’s or all of them.")
        organ = filters.pick_one(ADDRESS, choice, [ALL, *organs]) or ALL
    return Chosen(root, place.cohort, place.record, place.labels, usual, organ)


def _choose_usual(root: Path, name: str, run: str) -> Selection:
    """The run to learn from. At first the largest cohort that the same run explains; it may be the cohort itself."""
    runs = {
        f"{other}:{record['run']}": (int(record["cases"]), other, str(record["run"]), choosing.run_title(record))
        for other in data.cohorts(root)["cohort"]
        for record in data.run_records(root, other).values()
        if record["cases"]
    }
    own = f"{name}:{run}"
    alike = [key for key, (_, _, other_run, _) in runs.items() if other_run == run]
    best = max(alike, key=lambda key: (runs[key][0], key == own), default=own)
    order = list(dict.fromkeys([best, own, *alike, *runs]))
    titles = {
        key: runs[key][1] + ("" if key in alike else f" · {runs[key][3]}") + (", its other scans" if key == own else "")
        for key in order
        if key in runs
    }
    # Another run to judge has another best one to learn from: a choice is kept for each.
    _new_subject(own)
    key = filters.pick_one(ADDRESS, Choice("What is usual: learn from", "usual", titles, USUAL_HELP), list(titles))
    _, other, other_run, _ = runs[key or own]
    return Selection(other, other_run)


def _new_subject(own: str) -> None:
    if st.session_state.get("outliers_subject", own) != own:
        st.session_state.pop(ADDRESS.key("usual"), None)
    st.session_state["outliers_subject"] = own


# ---- the page's main part --------------------------------------------------------------------------


@words.told
@data.steady()
def _explore(chosen: Chosen) -> None:
    heading = st.container(horizontal=True, vertical_alignment="bottom", gap="small")
    detector = filters.asked_segments(ADDRESS, "Detector", "detector", TITLES, DETECTOR_HELP)
    with st.sidebar:
        with st.expander("Filter scans", icon=":material/filter_alt:"):
            selection = Filters(ADDRESS, chosen.cohort).narrow(chosen.root, chosen.everything, chosen.labels)
            if filters.describe(selection, chosen.labels):
                st.button("Clear all filters", on_click=filters.clear, args=(ADDRESS,), icon=":material/close:")
        with st.expander("Learn from some of them only", icon=":material/school:"):
            usual = Filters(USUAL, chosen.usual.cohort).narrow(chosen.root, chosen.usual, chosen.labels)
        saved.shelf(ADDRESS, chosen.root, chosen.cohort)
    chosen = replace(chosen, usual=usual)
    learned = {name: values for name, values in filters.scans_link(usual).items() if name not in ("cohort", "run")}
    link = filters.scans_link(selection) | USUAL.own(learned)
    # Before the scores, which take long: another session may have pushed out by then what these are read from.
    cases = _explained(chosen, selection)
    waiting = st.empty()
    try:
        with st.spinner(f"{TITLES[detector]}: learning what is usual …"):
            scores = scored(chosen.question, detector, _reporter(waiting, detector))
    except InputError:  # as of too few scans to learn from, which a link may show to a colleague too
        _write(chosen, detector, link)
        heading.markdown("### Unusual evidence")
        st.info(ELSEWHERE, icon=":material/school:")
        raise
    waiting.empty()
    if cases.empty:
        st.info("No explained scan passes these filters. Widen one of them.", icon=":material/filter_alt_off:")
        _write(chosen, detector, link)
        return
    shown, later = _overview(chosen, detector, scores, cases)
    with heading:
        _heading(chosen, selection, shown)
    scans = _list(chosen, shown, scores)
    listed = outlier_list.draw(scans)
    gallery.draw(scans)
    outlier_list.compare(chosen.root, chosen.cohort, shown.cases, np.isin(shown.ids, listed))
    _write(chosen, detector, link, shown)
    later()


def _reporter(place: Any, detector: str) -> Any:
    def report(done: int, total: int) -> None:
        place.progress(done / total, text=f"{TITLES[detector]}: {done} of {total} parts of the usual scans scored")

    return report


def _explained(chosen: Chosen, selection: Selection) -> pd.DataFrame:
    cases = data.cases(chosen.root, selection)
    return cases[cases["explained"]].reset_index(drop=True)


def _heading(chosen: Chosen, selection: Selection, shown: Shown) -> None:
    unusual, count = int(shown.flagged.sum()), len(shown.ids)
    st.markdown("### Unusual evidence", width="content")
    usual = len(data.importance(chosen.root, chosen.usual).cases)
    if chosen.question.same:
        alone = "all others" if usual <= ONE_BY_ONE else "nine tenths of them, never on itself"
        learned = f"each scored by a detector that learned from {alone}"
    else:
        learned = f"by what a detector learned from {usual} scans of {words.plain(chosen.usual.cohort)}"
    scans = f"**{unusual} of {count} scans** of {words.plain(chosen.cohort)} are unusual"
    st.markdown(f"{scans} :gray[{learned}]", width="content")
    active = filters.describe(selection, chosen.labels)
    for side, said in (("", active), ("learned from: ", filters.describe(chosen.usual, chosen.labels))):
        if said:
            st.markdown(" ".join(f":primary-badge[{side}{words.plain(word)}]" for word in said), width="content")


def _overview(chosen: Chosen, detector: str, scores: Scores, cases: pd.DataFrame) -> tuple[Shown, Callable[[], None]]:
    """The chart with its switches, and at the right what the scores are worth; what remains to be scored for that."""
    left, right = st.columns([8, 5], gap="medium")
    every, dice = _dice(chosen, scores, cases)
    with left:
        title, chart = st.container(horizontal=True, vertical_alignment="bottom"), st.container()
        with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
            share = _slider(ADDRESS.key("limit"), "limit", LIMIT)
            good, color = _good(chosen, dice), _color(chosen)
        place = {case_id: row for row, case_id in enumerate(scores.cases)}
        rows = np.array([place[case_id] for case_id in cases["case_id"]], int)
        lines = Lines(scores.limit(chosen.organ, share), good)
        shown = Shown(cases, rows, scores.of(chosen.organ)[rows], dice, every, lines)
        with title:
            name, text = (DICE_TITLE, SCATTER_HELP) if shown.has_dice else (STRIP_TITLE, STRIP_HELP)
            st.markdown(f"##### {name}", help=text)
            drag = filters.segments("Select with a", "outliers_drag", DRAG, "lasso")
        with chart:
            _chart(chosen, _figure(chosen, detector, shown, color, drag), name)
            _gaps(shown)
    with right:
        st.markdown("##### Which detector to trust", help=DETECTORS_HELP)
        abnormal = _abnormal(chosen, cases)
        table = st.container()
        _by_target(chosen, scores, shown)
    return shown, lambda: _all_detectors(table, chosen, shown, abnormal, (detector, scores))


def _chart(chosen: Chosen, figure: Any, name: str) -> None:
    key = f"outliers_chart_{chosen.cohort}_{chosen.run}"
    st.plotly_chart(
        figure, key=key, on_select=lambda: _select(key), selection_mode=("points", "box", "lasso"),
        config={"displayModeBar": False}, alt=name,
    )  # fmt: skip


def _slider(key: str, name: str, line: Line) -> float:
    """One of the two dividing lines; follows the link once."""
    try:
        value = float((ADDRESS.asked(name) or [""])[0])
    except ValueError:
        value = math.nan
    if math.isfinite(value):
        st.session_state[key] = min(max(value, line.low), line.high)
    st.session_state.setdefault(key, line.usual)
    return float(
        st.slider(line.label, line.low, line.high, step=0.01, key=key, format=line.format, help=line.text, width=170)
    )


def _dice(chosen: Chosen, scores: Scores, cases: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(cases, targets) and, of the organ chosen or the mean over organs, (cases,); NaN without a label."""
    table = data.agreements(chosen.root, chosen.cohort, chosen.run)
    wide = table.pivot_table(index="case_id", columns="target", values="dice", aggfunc="first")
    every = wide.reindex(index=cases["case_id"], columns=list(scores.targets)).to_numpy(float)
    if chosen.organ == ALL:
        return every, cases["dice"].to_numpy(float)
    return every, every[:, scores.targets.index(chosen.organ)]


def _good(chosen: Chosen, dice: np.ndarray) -> float | None:
    known = dice[np.isfinite(dice)]
    if not len(known):
        return None
    usual = math.floor(100 * float(np.quantile(known, 0.25))) / 100
    key = f"outliers_good_{chosen.cohort}_{chosen.run}_{chosen.organ}"
    return _slider(key, "good", Line("Good Dice from", 0.0, 1.0, usual, "%.2f", GOOD_HELP))


def _color(chosen: Chosen) -> str:
    columns = list(data.metadata_columns(chosen.root, chosen.cohort)["column"])
    if "planted" in columns:
        columns = ["planted", *(name for name in columns if name != "planted")]
    options = [*columns, NO_COLOR] if "planted" in columns else [NO_COLOR, *columns]
    titles = {name: words.column_title(name) for name in columns} | {NO_COLOR: "Nothing"}
    if not columns:
        return NO_COLOR
    key, wish = ADDRESS.key("color"), ADDRESS.asked("color")
    if wish and wish[0] in options:
        st.session_state[key] = wish[0]
    if st.session_state.get(key) not in options:
        st.session_state[key] = options[0]
    return st.selectbox("Colour by", options, key=key, format_func=titles.__getitem__, width=170)


def _figure(chosen: Chosen, detector: str, shown: Shown, color: str, drag: str) -> Any:
    selected = _selected(shown)
    points = pd.DataFrame({"case_id": shown.ids, "x": shown.dice, "score": shown.scores})
    points["selected"] = points["case_id"].isin(selected)
    points["told"] = [_told(shown, row, color) for row in range(len(points))]
    if color:
        values = shown.cases[color]
        points["color"] = values if pd.api.types.is_numeric_dtype(values) else [in_words(value) for value in values]
    points = points[np.isfinite(points["score"])]
    if shown.has_dice:
        points = points[np.isfinite(points["x"])]
    else:
        points = points.sort_values("score", ascending=False).assign(x=np.arange(1, len(points) + 1))
    what = "mean over organs" if chosen.organ == ALL else f"of {chosen.title(chosen.organ)}"
    x = f"Dice, {what}" if shown.has_dice else "scans, the most unusual first"
    y = f"how unusual: {TITLES[detector].lower()}" + (", mean over targets" if chosen.organ == ALL else "")
    return evidence_scatter(points, shown.lines, Words(x, y, words.column_title(color)), drag)


def _told(shown: Shown, row: int, color: str) -> str:
    lines = [f"<b>{shown.ids[row]}</b>", f"score {common.rounded(shown.scores[row], 3)}"]
    lines += [f"Dice {shown.dice[row]:.3f}"] if math.isfinite(shown.dice[row]) else []
    lines += [f"{common.short(color)} {common.short(in_words(shown.cases[color][row]))}"] if color else []
    corner = shown.lines.quadrant(shown.scores[row], shown.dice[row])
    return "<br>".join([*lines, *([corner.lower()] if corner else [])])


def _gaps(shown: Shown) -> None:
    without_score, without_dice = (int((~np.isfinite(values)).sum()) for values in (shown.scores, shown.dice))
    told = [f"{without_score} without this organ have no score"] if without_score else []
    if shown.has_dice and without_dice:
        told.append(f"{without_dice} without Dice are in the list only")
    if told:
        st.caption(f"Of {len(shown.ids)} scans, {' and '.join(told)}.")


# ---- selecting -------------------------------------------------------------------------------------


def _select(key: str) -> None:
    points = st.session_state[key]["selection"]["points"]
    st.session_state[SELECTED] = tuple(dict.fromkeys(str(point["customdata"][0]) for point in points))
    st.session_state[outlier_list.WHICH] = "selected" if points else "unusual"


def _selected(shown: Shown) -> list[str]:
    """The scans that a link or the chart selected, as far as they are shown."""
    wish = ADDRESS.asked("pick")
    if wish:
        st.session_state[SELECTED] = tuple(wish)
        st.session_state[outlier_list.WHICH] = "selected"
    known = set(shown.ids)
    return [name for name in st.session_state.get(SELECTED, ()) if name in known]


def _list(chosen: Chosen, shown: Shown, scores: Scores) -> outlier_list.Listed:
    unusual = scores.most_unusual
    targets = [chosen.organ if chosen.organ != ALL else unusual[row] for row in shown.rows]
    table = pd.DataFrame({"case_id": shown.ids, "score": shown.scores, "flagged": shown.flagged, "dice": shown.dice})
    table["corner"] = [shown.lines.quadrant(*pair) for pair in zip(shown.scores, shown.dice, strict=True)]
    table["target"] = targets
    return outlier_list.Listed(
        chosen.root, chosen.everything, chosen.usual, chosen.labels, chosen.organ, table, shown.cases, _selected(shown),
    )  # fmt: skip


# ---- what scores are worth -------------------------------------------------------------------------


def _abnormal(chosen: Chosen, cases: pd.DataFrame) -> tuple[str, np.ndarray] | None:
    """The column that marks abnormal scans, and (cases,) bool; None where none is chosen or all are alike."""
    known = data.metadata_columns(chosen.root, chosen.cohort)
    columns = known[known["kind"] == "category"].set_index("column")["values"]
    if columns.empty:
        return None
    key, wish = ADDRESS.key("abnormal"), ADDRESS.asked("abnormal")
    if wish and wish[0] in [*columns.index, ""]:
        st.session_state[key] = wish[0]
    if st.session_state.get(key) not in [*columns.index, ""]:
        st.session_state[key] = "planted" if "planted" in columns.index else ""
    with st.popover("Which scans are abnormal", icon=":material/rule:", type="tertiary"):
        column = st.selectbox(
            "A column that tells", ["", *columns.index], key=key,
            format_func=lambda name: words.column_title(name) or "None is known to be",
        )  # fmt: skip
        if not column:
            return None
        values = list(columns[column])
        ordinary_key, wish = f"outliers_ordinary_{chosen.cohort}_{column}", ADDRESS.asked("ordinary")
        if wish is not None:
            st.session_state[ordinary_key] = [value for value in values if value in wish]
        st.session_state.setdefault(ordinary_key, [value for value in values if value == ""] or values[:1])
        ordinary = st.multiselect("Its ordinary values", values, key=ordinary_key, format_func=in_words)
    abnormal = ~cases[column].fillna("").astype(str).isin(ordinary).to_numpy(bool)
    count = int(abnormal.sum())
    st.caption(f"{count} of {len(abnormal)} scans are abnormal by *{words.plain(column)}*.")
    return (column, abnormal) if 0 < count < len(abnormal) else None


def _all_detectors(
    place: Any, chosen: Chosen, shown: Shown, abnormal: tuple[str, np.ndarray] | None, known: tuple[str, Scores]
) -> None:
    """A row a detector, each as soon as its scores are there."""
    if abnormal is None and not shown.has_dice:
        place.caption("Neither labels nor a column that marks abnormal scans: nothing to compare the scores with.")
        return
    with place:
        table, waiting = st.empty(), st.empty()
    asked = known[0] == SLOW or not chosen.question.same or _forest_wanted(chosen, place)
    names = [known[0], *(name for name in TITLES if name != SLOW), *([SLOW] if asked else [])]
    rows: dict[str, dict[str, Any]] = {name: {"detector": title} for name, title in TITLES.items() if name in names}
    for name in dict.fromkeys(names):
        scores = known[1] if name == known[0] else scored(chosen.question, name, _reporter(waiting, name), limits=False)
        rows[name] |= _worth(scores.of(chosen.organ)[shown.rows], shown, abnormal)
        waiting.empty()
        _detector_table(table, rows, abnormal, shown)


def _forest_wanted(chosen: Chosen, place: Any) -> bool:
    """A cohort that judges itself needs a forest for every part and target: that takes minutes, so it is asked for."""
    wanted, subject = "outliers_forest", (chosen.cohort, chosen.run)
    if st.session_state.get(wanted) == subject:
        return True
    usual = data.importance(chosen.root, chosen.usual)
    count = usual_folds(len(usual.cases)) * len(usual.targets)
    place.button(
        f"Score by {TITLES[SLOW].lower()} too", key=f"{wanted}_too", type="tertiary", icon=":material/forest:",
        help=f"It grows {count:,} forests, one for every target and part left out: about {max(count // 600, 1)} min.",
        on_click=lambda: st.session_state.update({wanted: subject}),
    )  # fmt: skip
    return False


def _worth(scores: np.ndarray, shown: Shown, abnormal: tuple[str, np.ndarray] | None) -> dict[str, Any]:
    both = np.isfinite(scores) & np.isfinite(shown.dice)
    rho, p = rank_correlation(scores[both], shown.dice[both])
    found: dict[str, Any] = {"rho": rho, "p": outlier_list.p_in_words(p)}
    return found | ({"auc": roc_auc(scores, abnormal[1])} if abnormal else {})


def _detector_table(
    place: Any, rows: dict[str, dict[str, Any]], abnormal: tuple[str, np.ndarray] | None, shown: Shown
) -> None:
    number = st.column_config.NumberColumn
    config: dict[str, Any] = {"detector": st.column_config.TextColumn("Detector", width=112)}
    if abnormal:
        config["auc"] = st.column_config.ProgressColumn("ROC AUC", min_value=0, max_value=1, format="%.3f", width=104)
    if shown.has_dice:
        config |= {
            "rho": number("ρ with Dice", format="%.2f", width=90),
            "p": st.column_config.TextColumn("p", width=74),
        }
    table = pd.DataFrame(rows.values()).reindex(columns=list(config))
    place.dataframe(table, hide_index=True, column_config=config, placeholder="…")


def _by_target(chosen: Chosen, scores: Scores, shown: Shown) -> None:
    if not shown.has_dice:
        return
    table = spearman_by_target(scores.values[shown.rows], shown.targets_dice, scores.targets)
    table = table[(table["target"] != BACKGROUND) & table["rho"].notna()].sort_values("rho")
    st.markdown("##### Score and Dice, target by target", help=TARGETS_HELP)
    number = st.column_config.NumberColumn
    config = {
        "target": st.column_config.TextColumn("Target", width=176), "rho": number("ρ", format="%.2f", width=50),
        "p_adjusted": st.column_config.TextColumn("p, adjusted", width=94), "n": number("Scans", width=52),
    }  # fmt: skip
    table["target"] = [chosen.title(name) for name in table["target"]]
    table["p_adjusted"] = [outlier_list.p_in_words(p) for p in table["p_adjusted"]]
    st.dataframe(table[list(config)], hide_index=True, column_config=config, key="outliers_targets", height=318)


# ---- the link --------------------------------------------------------------------------------------


def _write(chosen: Chosen, detector: str, narrowed: Link, shown: Shown | None = None) -> None:
    """The parameters that open this view again. shown: None where no scan is."""
    state = st.session_state
    link = narrowed | {
        "usual": [f"{chosen.usual.cohort}:{chosen.usual.run}"], "detector": [detector], "organ": [chosen.organ],
        "limit": [f"{state.get(ADDRESS.key('limit'), FLAGGED_ABOVE):g}"],
    }  # fmt: skip
    if shown is None:
        ADDRESS.write(link)
        return
    if shown.lines.good is not None:
        link["good"] = [f"{shown.lines.good:g}"]
    for name in ("color", "abnormal"):
        link |= {name: [str(state[ADDRESS.key(name)])]} if ADDRESS.key(name) in state else {}
    ordinary = state.get(f"outliers_ordinary_{chosen.cohort}_{state.get(ADDRESS.key('abnormal'))}")
    link |= {"ordinary": ordinary} if ordinary else {}
    picked = _selected(shown)
    ADDRESS.write(link | ({"pick": picked} if 0 < len(picked) <= MOST_IN_LINK else {}))
