"""Widgets → Selection, Selection → link and words. What a link says is followed once, then the widgets rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from agg2exp_core.organs import LabelSet
from agg2exp_core.records import Condition, Selection
from dashboard import charts, data, words
from dashboard.charts import Pick

SIGNS = {"abs": "Absolute", "pos": "Positive", "neg": "Negative"}
VALUES = {"mass": "Share", "mean": "Mean per voxel"}
ALL_DICE = (0.0, 1.0)

SIGN_HELP = (
    "**Absolute** counts all attribution. **Positive** counts only voxels where more of the scan's signal raises the "
    "target's score, **negative** only those where it lowers it. With gradients, signal is a higher HU value; with "
    "integrated gradients, the difference from the baseline. Read them as *for* and *against* with care."
)
VALUE_HELP = (
    "**Share**: the attribution on a region ÷ that on the whole scan, so large regions collect more. "
    "**Mean per voxel**: the attribution on a region ÷ its voxels, comparable between small and large regions."
)
BACKGROUND_HELP = (
    "Background is every voxel outside the predicted organs. Without it, shares are taken of the organs alone "
    "and sum to 100 % again."
)

Link = dict[str, list[str]]
"""A link's parameters: name → values."""

_KEY, _ASKED, _WRITTEN, _NEUTRAL = "cohort_", "cohort_link_asked", "cohort_link_written", "cohort_neutral"


# ---- link ----------------------------------------------------------------------------------------


def follow_link() -> None:
    """Note what a link asks for when it came from outside, or what was last shown when one comes back to the page."""
    now = {name: st.query_params.get_all(name) for name in st.query_params}
    if "case" in now:
        now = {}  # the browser's Back leaves the Case page's parameters in place
    written = st.session_state.get(_WRITTEN)
    if now != written or f"{_KEY}cohort" not in st.session_state:
        st.session_state[_ASKED] = dict(now or written or {})


def write_link(link: Link) -> None:
    """Let the browser's address name what is shown; what a link asked for has been answered by then."""
    st.session_state[_ASKED] = {}
    if st.session_state.get(_WRITTEN) != link or set(st.query_params) != set(link):
        st.query_params.from_dict(link)
    st.session_state[_WRITTEN] = link


def link_of(selection: Selection, target: str, picked: Pick | None = None) -> Link:
    """The parameters that open this view again."""
    link = {
        "cohort": [selection.cohort], "run": [selection.run], "target": [target], "sign": [selection.sign],
        "value": [selection.value], "background": ["on" if selection.background else "off"],
    }  # fmt: skip
    for condition in selection.where:
        if condition.values is not None:
            link[f"is.{condition.column}"] = [str(value) for value in condition.values]
        else:
            link[f"in.{condition.column}"] = [f"{condition.low!r}~{condition.high!r}"]
    if selection.dice:
        organ, low, high = selection.dice
        link["dice"] = [f"{low!r}~{high!r}"]
        link |= {"dice_of": [organ]} if organ else {}
    if selection.present:
        link["present"] = list(selection.present)
    return link | ({"pick": ["~".join(picked)]} if picked else {})


def asked(name: str) -> list[str] | None:
    """What the link asks for under this name, once."""
    return st.session_state.get(_ASKED, {}).pop(name, None)


def _asked_range(name: str, low: float, high: float) -> tuple[float, float] | None:
    try:
        first, last = (float(text) for text in (asked(name) or [""])[0].split("~"))
    except ValueError:
        return None
    return (max(first, low), min(last, high)) if low <= last and first <= high and first <= last else None


# ---- choosing ------------------------------------------------------------------------------------


def pick_one(
    label: str, name: str, options: Sequence[str], titles: dict[str, str] | None = None, text: str | None = None
) -> str | None:
    """A select box that follows the link once. None when there is nothing to choose."""
    key, wish = _KEY + name, asked(name)
    if wish and wish[0] in options:
        st.session_state[key] = wish[0]
    elif wish:
        words.not_here(label, wish[0])
    if st.session_state.get(key) not in options:
        st.session_state[key] = options[0] if options else None
    return st.selectbox(
        label, options, key=key, format_func=lambda option: (titles or {}).get(option, option), help=text
    )


def measures(shares_only: bool) -> tuple[str, str, bool]:
    """Switches: sign, value, background. shares_only: an imported table, which holds no signs."""
    sign = "abs" if shares_only else _asked_segments("Attribution counted", "sign", SIGNS, SIGN_HELP)
    value = _asked_segments("Measure", "value", VALUES, VALUE_HELP)
    wish = asked("background")
    if wish:
        st.session_state[f"{_KEY}background"] = wish == ["on"]
    background = st.toggle("With background", key=f"{_KEY}background", help=BACKGROUND_HELP)
    return sign, value, background


def segments(label: str, key: str, titles: dict[str, str], usual: str, text: str | None = None) -> str:
    """A row of choices, always one of them taken, which stays so for the session."""
    st.session_state.setdefault(key, usual)
    chosen = st.segmented_control(
        label, list(titles), format_func=titles.__getitem__, key=key, required=True, help=text, persist_state="session"
    )
    return str(chosen or usual)


def _asked_segments(label: str, name: str, titles: dict[str, str], text: str) -> str:
    """Such a row that follows the link once; its first choice is the usual one."""
    key, wish = _KEY + name, asked(name)
    if wish and wish[0] in titles:
        st.session_state[key] = wish[0]
    return segments(label, key, titles, next(iter(titles)), text)


# ---- filtering -----------------------------------------------------------------------------------


def narrow(root: Path, selection: Selection, labels: LabelSet) -> Selection:
    """The filter widgets of a cohort; the selection with what they say."""
    st.session_state[_NEUTRAL] = {}
    where = tuple(
        condition
        for column in data.metadata_columns(root, selection.cohort).to_dict("records")
        if (condition := _condition(selection.cohort, column)) is not None
    )
    organs = [name for name in data.targets(root, selection.cohort, selection.run) if name != charts.BACKGROUND]
    titles = {name: charts.organ_of(labels, name).title for name in organs}
    dice = _dice(selection.cohort, titles) if data.cases(root, selection)["dice"].notna().any() else None
    present = _several("Organ present", "present", selection.cohort, organs, titles.__getitem__)
    return Selection(
        selection.cohort, selection.run, selection.sign, selection.value, selection.background, where, dice,
        tuple(present),
    )  # fmt: skip


def _condition(cohort: str, column: dict[Any, Any]) -> Condition | None:
    name = column["column"]
    if column["kind"] == "number":
        return _between(cohort, name, float(column["low"]), float(column["high"]))
    chosen = _several(words.plain(str(name).capitalize()), f"is.{name}", cohort, list(column["values"]), in_words)
    return Condition(name, values=tuple(chosen)) if chosen else None


def _several(label: str, name: str, cohort: str, options: list[Any], shown: Callable[[Any], str]) -> list[Any]:
    key, wish = f"{_KEY}filter_{cohort}_{name}", asked(name)
    if wish is not None:
        st.session_state[key] = [option for option in options if str(option) in wish]
    st.session_state[_NEUTRAL][key] = []
    return st.multiselect(label, options, key=key, format_func=shown, placeholder="Any")


def _between(cohort: str, name: str, low: float, high: float) -> Condition | None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return None
    chosen = _slider(words.plain(str(name).capitalize()), f"in.{name}", cohort, (low, high))
    return None if chosen == (low, high) else Condition(name, low=chosen[0], high=chosen[1])


def _dice(cohort: str, titles: dict[str, str]) -> tuple[str, float, float] | None:
    chosen = _slider("Dice", "dice", cohort, ALL_DICE)
    key, wish = f"{_KEY}filter_{cohort}_dice_of", asked("dice_of")
    if wish and wish[0] in titles:
        st.session_state[key] = wish[0]
    st.session_state[_NEUTRAL][key] = ""
    organ = st.selectbox(
        "Dice of", ["", *titles], key=key, format_func=lambda name: titles.get(name, "Mean over organs"),
        help="Overlap of prediction and label, 0 to 1. The range above applies to this organ, or to the mean.",
    )  # fmt: skip
    return None if chosen == ALL_DICE else (organ, *chosen)


def _slider(label: str, name: str, cohort: str, ends: tuple[float, float]) -> tuple[float, float]:
    """A range; whole numbers step by one, others by a hundredth of the range."""
    key, (low, high) = f"{_KEY}filter_{cohort}_{name}", ends
    whole = low.is_integer() and high.is_integer() and high - low > 2
    step = 1.0 if whole else 10.0 ** math.floor(math.log10((high - low) / 50))
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    if wish := _asked_range(name, low, high):
        st.session_state[key] = wish
    st.session_state[_NEUTRAL][key] = (low, high)
    st.session_state.setdefault(key, (low, high))
    chosen: Any = st.slider(label, low, high, step=step, key=key, format="%d" if whole else "%g")
    first, last = chosen
    return (ends[0] if first <= low else first), (ends[1] if last >= high else last)


def clear() -> None:
    """Put every filter back to letting all cases through."""
    for key, value in st.session_state.get(_NEUTRAL, {}).items():
        st.session_state[key] = value


# ---- words ---------------------------------------------------------------------------------------


def in_words(value: object) -> str:
    """A metadata value; an empty one says so."""
    return "none" if value is None or value == "" or value != value else str(value)


def describe(selection: Selection, labels: LabelSet) -> list[str]:
    """The active filters, each in a few words."""
    parts = []
    for condition in selection.where:
        if condition.values is not None:
            parts.append(f"{condition.column} is {' or '.join(in_words(value) for value in condition.values)}")
        else:
            parts.append(f"{condition.column} {condition.low:g} to {condition.high:g}")
    if selection.dice:
        organ, low, high = selection.dice
        whose = f"Dice of {charts.organ_of(labels, organ).title}" if organ else "mean Dice"
        parts.append(f"{whose} {low:g} to {high:g}")
    return [*parts, *(f"{charts.organ_of(labels, name).title} present" for name in selection.present)]
