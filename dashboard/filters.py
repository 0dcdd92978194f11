"""Widgets → Selection, Selection → link and words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import streamlit as st

from agg2exp_core.organs import BACKGROUND, LabelSet
from agg2exp_core.records import Condition, Selection
from dashboard import data, words
from dashboard.address import Address, Link
from dashboard.charts.common import Pick, organ_of

SIGNS = {"abs": "Absolute", "pos": "Positive", "neg": "Negative"}
VALUES = {"mass": "Share", "mean": "Mean per voxel"}
ALL_DICE = (0.0, 1.0)
COLUMNS_OF_LINKS = ("is.", "in.")
"""What the names of filters by metadata begin with."""
_NEUTRAL = "neutral"
_IN, _NOT_IN = "list", "not_list"

SIGN_HELP = (
    "**Absolute** counts all attribution. **Positive** counts only voxels where more of the scan's signal raises the "
    "target's score, **negative** only those where it lowers it. With gradients, signal is a higher HU value; with "
    "integrated gradients, the difference from the baseline. Read them as *for* and *against* with care."
)
VALUE_HELP = (
    "**Share**: the attribution on a region ÷ that on the whole scan, so large regions collect more. "
    "**Mean per voxel**: the attribution on a region ÷ its voxels, comparable between small and large regions."
)
JOINED_HELP = (
    "Regions that are parts of one organ count as one, their attribution and voxels added: {}. Targets stay apart: "
    "what a lobe's and its neighbour's attributions would be together cannot be told from their sums."
)
BACKGROUND_HELP = (
    "Background is every voxel outside the predicted organs. Without it, shares are taken of the organs alone "
    "and sum to 100 % again."
)

# ---- link ----------------------------------------------------------------------------------------


def link_of(selection: Selection, target: str, picked: Pick | None = None) -> Link:
    """The parameters that open this view again."""
    link = scans_link(selection) | measure_link(selection)
    return link | {"target": [target]} | ({"pick": ["~".join(picked)]} if picked else {})


def measure_link(selection: Selection) -> Link:
    """What `measures` and `joining` ask for."""
    switches = {"background": selection.background, "joined": selection.joined}
    link = {"sign": [selection.sign], "value": [selection.value]}
    return link | {name: ["on" if on else "off"] for name, on in switches.items()}


def scans_link(selection: Selection) -> Link:
    """Which scans: cohort, run and what `Filters` asks for."""
    link = {"cohort": [selection.cohort], "run": [selection.run]}
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
    for name, lists in ((_IN, selection.within), (_NOT_IN, selection.without)):
        link |= {name: list(lists)} if lists else {}
    return link


def _asked_range(wish: str, low: float, high: float) -> tuple[float, float] | None:
    """The part of a range `first~last` that lies between the ends; None where none does."""
    try:
        first, last = (float(text) for text in wish.split("~"))
    except ValueError:
        return None
    return (max(first, low), min(last, high)) if low <= last and first <= high and first <= last else None


# ---- choosing ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """A select box: its label, its name in the link, the titles of its options, and what its help says."""

    label: str
    name: str
    titles: dict[str, str] = field(default_factory=dict)
    text: str | None = None


def pick_one(address: Address, choice: Choice, options: Sequence[str]) -> str | None:
    """A select box that follows the link once. None when there is nothing to choose."""
    key, wish = address.key(choice.name), address.asked(choice.name)
    if wish and wish[0] in options:
        st.session_state[key] = wish[0]
    elif wish and address.from_outside:
        words.not_here(choice.label, wish[0])
    if st.session_state.get(key) not in options:
        st.session_state[key] = options[0] if options else None
    titled = choice.titles.get
    return st.selectbox(
        choice.label, options, key=key, format_func=lambda option: titled(option, option), help=choice.text
    )


def measures(
    address: Address, shares_only: bool, fixed: Mapping[str, Any] = MappingProxyType({})
) -> tuple[str, str, bool]:
    """Switches: sign, value, background. shares_only: an imported table, which holds no signs.

    fixed: a value or background that the view cannot leave open, and which so has no switch.
    """
    sign = "abs" if shares_only else asked_segments(address, "Attribution counted", "sign", SIGNS, SIGN_HELP)
    value = fixed.get("value") or asked_segments(address, "Measure", "value", VALUES, VALUE_HELP)
    if "background" in fixed:
        return sign, value, fixed["background"]
    key, wish = address.key("background"), address.asked("background")
    if wish:
        st.session_state[key] = wish == ["on"]
    return sign, value, st.toggle("With background", key=key, help=BACKGROUND_HELP, persist_state="session")


def joining(address: Address, labels: LabelSet) -> bool:
    """The switch that joins regions, where the label set has any to join."""
    key, wish, wholes = address.key("joined"), address.asked("joined"), labels.joined
    if not wholes:
        return False
    if wish:
        st.session_state[key] = wish == ["on"]
    parts = "; ".join(
        ", ".join(words.plain(organ.title) for organ in labels.organs if organ.joined == whole.name)
        + f" as **{words.plain(whole.title)}**"
        for whole in wholes
    )
    # What was chosen stays, even while another page is shown.
    title = f"Join {words.plain(parts_words(labels))}"
    return st.toggle(title, key=key, help=JOINED_HELP.format(parts), persist_state="session")


def parts_words(labels: LabelSet) -> str:
    """What is joined: `lobes and muscles`, as far as the titles of the parts end alike."""
    ends: dict[str, set[str]] = {}
    for organ in labels.organs:
        if organ.joined:
            ends.setdefault(organ.joined, set()).add(organ.title.split()[-1].lower())
    kinds = [found.pop() + "s" for found in ends.values() if len(found) == 1]
    return " and ".join(dict.fromkeys(kinds)) if len(kinds) == len(ends) else "parts of one organ"


def segments(label: str, key: str, titles: dict[str, str], usual: str, text: str | None = None) -> str:
    """A row of choices, always one of them taken, which stays so for the session."""
    st.session_state.setdefault(key, usual)
    chosen = st.segmented_control(
        label, list(titles), format_func=titles.__getitem__, key=key, required=True, help=text, persist_state="session"
    )
    return str(chosen or usual)


def asked_segments(address: Address, label: str, name: str, titles: dict[str, str], text: str) -> str:
    """Such a row that follows the link once; its first choice is the usual one."""
    key, wish = address.key(name), address.asked(name)
    if wish and wish[0] in titles:
        st.session_state[key] = wish[0]
    elif wish and address.from_outside:
        words.not_here(label, wish[0])
    return segments(label, key, titles, next(iter(titles)), text)


# ---- filtering -----------------------------------------------------------------------------------


class Filters:
    """The filter widgets of one cohort on one page; their keys name the cohort, as each has its own columns."""

    def __init__(self, address: Address, cohort: str):
        self.address, self.cohort = address, cohort
        self.neutral: dict[str, Any] = {}

    def narrow(self, root: Path, selection: Selection, labels: LabelSet) -> Selection:
        """Draw the widgets; the selection with what they say."""
        where = tuple(
            condition
            for column in data.metadata_columns(root, self.cohort).to_dict("records")
            if (condition := self._condition(column)) is not None
        )
        organs = [name for name in data.targets(root, self.cohort, selection.run) if name != BACKGROUND]
        titles = {name: organ_of(labels, name).title for name in organs}
        dice = self._dice(titles) if data.cases(root, selection)["dice"].notna().any() else None
        present = self._several("Organ present", "present", organs, titles.__getitem__)
        within, without = self._lists([saved.name for saved in data.lists(root, self.cohort)])
        st.session_state[self.address.key(_NEUTRAL)] = self.neutral
        for name in self.address.unanswered(COLUMNS_OF_LINKS):
            words.not_here("Column", name)
        return replace(selection, where=where, dice=dice, present=tuple(present), within=within, without=without)

    def _key(self, name: str) -> str:
        return self.address.key(f"filter_{self.cohort}_{name}")

    def _condition(self, column: dict[Any, Any]) -> Condition | None:
        name = column["column"]
        if column["kind"] == "number":
            return self._between(name, float(column["low"]), float(column["high"]))
        chosen = self._several(words.column_title(name), f"is.{name}", list(column["values"]), in_words)
        return Condition(name, values=tuple(chosen)) if chosen else None

    def _lists(self, known: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Saved lists a case must be in one of, and in none of."""
        chosen: list[tuple[str, ...]] = []
        for label, name in (("In list", _IN), ("Not in list", _NOT_IN)):
            # A list may have been removed while it was chosen.
            st.session_state[self._key(name)] = [
                one for one in st.session_state.get(self._key(name), []) if one in known
            ]
            chosen.append(tuple(self._several(label, name, known, str)))
        return chosen[0], chosen[1]

    def _several(self, label: str, name: str, options: list[Any], shown: Callable[[Any], str]) -> list[Any]:
        key, wish = self._key(name), self.address.asked(name)
        if wish is not None:
            st.session_state[key] = [option for option in options if str(option) in wish]
            gone = [one for one in wish if one not in map(str, options)]
            if gone and self.address.from_outside:
                words.not_here(label, gone[0])
        self.neutral[key] = []
        if not options:
            return []
        return st.multiselect(words.plain(label), options, key=key, format_func=shown, placeholder="Any")

    def _between(self, name: str, low: float, high: float) -> Condition | None:
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            return None
        chosen = self._slider(words.column_title(name), f"in.{name}", (low, high))
        return None if chosen == (low, high) else Condition(name, low=chosen[0], high=chosen[1])

    def _dice(self, titles: dict[str, str]) -> tuple[str, float, float] | None:
        chosen = self._slider("Dice", "dice", ALL_DICE)
        key, wish = self._key("dice_of"), self.address.asked("dice_of")
        if wish and wish[0] in titles:
            st.session_state[key] = wish[0]
        elif wish and self.address.from_outside:
            words.not_here("Dice of", wish[0])
        self.neutral[key] = ""
        organ = st.selectbox(
            "Dice of", ["", *titles], key=key, format_func=lambda name: titles.get(name, "Mean over organs"),
            help="Overlap of prediction and label, 0 to 1. The range above applies to this organ, or to the mean.",
        )  # fmt: skip
        return None if chosen == ALL_DICE else (organ, *chosen)

    def _slider(self, label: str, name: str, ends: tuple[float, float]) -> tuple[float, float]:
        """A range; whole numbers step by one, others by a hundredth of the range."""
        key, (low, high) = self._key(name), ends
        whole = low.is_integer() and high.is_integer() and high - low > 2
        step = 1.0 if whole else 10.0 ** math.floor(math.log10((high - low) / 50))
        low, high = math.floor(low / step) * step, math.ceil(high / step) * step
        for wish in self.address.asked(name) or []:
            if asked := _asked_range(wish, low, high):
                st.session_state[key] = asked
            elif self.address.from_outside:
                words.not_here(label, wish)
        self.neutral[key] = (low, high)
        st.session_state[key] = self._stretched(key, (low, high))
        chosen: Any = st.slider(words.plain(label), low, high, step=step, key=key, format="%d" if whole else "%g")
        st.session_state[f"{key}_ends"] = chosen, (low, high)
        first, last = chosen
        return (ends[0] if first <= low else first), (ends[1] if last >= high else last)

    @staticmethod
    def _stretched(key: str, ends: tuple[float, float]) -> tuple[float, float]:
        """What was chosen, though cases came or went and so the range's ends moved; an end at the edge moves along."""
        chosen, before = st.session_state.get(f"{key}_ends", (ends, ends))
        first, last = st.session_state.get(key) or (ends if before == ends else chosen)
        low = ends[0] if first <= before[0] else min(max(first, ends[0]), ends[1])
        return low, ends[1] if last >= before[1] else max(min(last, ends[1]), low)


def clear(address: Address) -> None:
    """Put every filter back to letting all cases through."""
    for key, value in st.session_state.get(address.key(_NEUTRAL), {}).items():
        st.session_state[key] = value


def only_list(address: Address, cohort: str, name: str) -> None:
    """Let through the cases of one saved list and no others."""
    clear(address)
    st.session_state[address.key(f"filter_{cohort}_{_IN}")] = [name]


def leave_out_list(address: Address, cohort: str, name: str) -> None:
    """Let through no case of one saved list, whatever else is filtered."""
    key = address.key(f"filter_{cohort}_{_NOT_IN}")
    st.session_state[key] = list(dict.fromkeys([*st.session_state.get(key, []), name]))


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
            parts.append(f"{condition.column} {condition.low:.12g} to {condition.high:.12g}")
    if selection.dice:
        organ, low, high = selection.dice
        whose = f"Dice of {organ_of(labels, organ).title}" if organ else "mean Dice"
        parts.append(f"{whose} {low:g} to {high:g}")
    parts += [f"{organ_of(labels, name).title} present" for name in selection.present]
    for names, sign in ((selection.within, "in"), (selection.without, "not in")):
        parts += [f"{sign} list {' or '.join(names)}"] if names else []
    return parts
