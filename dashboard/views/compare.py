"""The Compare page: what differs between two sets of explanations, and whether they are as right."""

from __future__ import annotations

from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from agg2exp_core import spreadsheet
from agg2exp_core.analysis.compare import DICE, Comparison, largest_changes
from agg2exp_core.records import InputError, Selection
from agg2exp_core.settings import data_root
from dashboard import contrast, data, filters, tables, words
from dashboard.address import Address, Link
from dashboard.charts import common
from dashboard.charts.change import Row, chance, from_to, interval
from dashboard.charts.common import SIDES, Pick
from dashboard.charts.dice_changes import dice_changes
from dashboard.charts.differences import Look, difference_matrix
from dashboard.charts.scans import scatter_of_scans, strips_of_scans
from dashboard.charts.side_boxes import side_by_side_boxes
from dashboard.contrast import Side
from dashboard.filters import Choice, Filters
from dashboard.views import case, choosing

ADDRESS = Address("compare")
SETS = Address("compare", "a"), Address("compare", "b")
TITLES = "First set", "Second set"
PICKED = "compare_picked"
TABLE_HEIGHT = 420
WAYS = {"more": "up", "less": "down", "same": "flat"}
MATRIX_HELP = (
    "Second set minus first: a row a target, a column a region, in the colour of the set that has more. Colour grows "
    "with the square root. **Paired**, a difference is the median of the scans’ own differences; else it is the "
    "difference of two medians. A **dot** says that the 95 % bootstrap interval of this one cell excludes zero. "
    "**Faded** cells are those that chance could explain once all cells are tested together (Wilcoxon’s signed ranks "
    "where paired, Mann and Whitney’s U where not; Benjamini and Hochberg, false-discovery rate 5 %)."
)
CHANGES_HELP = (
    "The ten largest differences, either way, second set minus first, each with the medians of both sets and the 95 % "
    "bootstrap interval of the difference. Grey ones could be chance. Click one to see its scans below."
)
BOX_HELP = (
    "Two boxes a region: the line is the median, a box holds the middle half, whiskers reach the last scan within 1.5 "
    "box lengths, ticks are the scans beyond. All scans of each set. Click a row to see its scans below."
)
DICE_HELP = (
    "Overlap of prediction and label, the mean over scans: second set minus first, with its 95 % bootstrap interval. "
    "Faded where chance could explain it (false-discovery rate 5 % over the organs)."
)
PAIRED_HELP = (
    "Each scan is compared with itself, which tells smaller differences. Scans of two cohorts that happen to have the "
    "same name are not the same scan: pair them only if you know that they are."
)
SCATTER_HELP = (
    "A dot a scan. Above the line the second set has more. Click a dot to open the scan in the second set’s run."
)
STRIPS_HELP = "A dot a scan, a box for each set. Click a dot to open the scan in its set’s run."


@dataclass(frozen=True, eq=False)
class View:
    """What the page shows. picked: target and region whose scans are listed."""

    root: Path
    sides: tuple[Side, Side]
    comparison: Comparison
    picked: Pick

    @property
    def look(self) -> Look:
        return Look(self.sides[0].labels, self.sides[0].selection.value, contrast.names(*self.sides))

    @property
    def row(self) -> Row:
        """The picked pair's row."""
        table = self.comparison.table
        return table[(table["target"] == self.picked[0]) & (table["region"] == self.picked[1])].iloc[0].to_dict()

    def title(self, organ: str) -> str:
        return common.organ_of(self.sides[0].labels, organ).title


@words.told
def page() -> None:
    """Draw the page."""
    ADDRESS.follow()
    root = data_root()
    with st.sidebar:
        chosen = _choose(root)
    if isinstance(chosen, str):
        st.info(chosen)
        return
    heading, switches = st.container(), st.container(horizontal=True, vertical_alignment="bottom", gap="medium")
    with switches:
        sides, paired = _measured(chosen)
    reason = _nothing_to_compare(root, sides)
    if reason:
        st.info(reason, icon=":material/compare_arrows:")
        ADDRESS.write(_link(sides, None, paired))
        return
    comparison = data.comparison(root, sides[0].selection, sides[1].selection, paired)
    target, picked = _target(comparison, sides[0])
    view = View(root, sides, comparison, picked or _largest(comparison, target))
    with heading:
        _heading(view)
    _differences(view)
    _target_and_dice(view)
    _scans(view)
    ADDRESS.write(_link(sides, target, paired) | ({"pick": ["~".join(picked)]} if picked else {}))


# ---- choosing ------------------------------------------------------------------------------------


def _choose(root: Path) -> tuple[Side, Side] | str:
    """The choosers at the left; where there is nothing to choose, what to do about it."""
    cohorts = list(data.cohorts(root)["cohort"])
    if not cohorts:
        return choosing.NO_COHORT
    known = {cohort: _finished(root, cohort) for cohort in cohorts}
    known = {cohort: records for cohort, records in known.items() if records}
    if not known:
        return f"Nothing is explained yet, so there is nothing to compare. {choosing.EXPLAIN}"
    shown = ADDRESS.asked("cohort")
    usual_pair = contrast.usual_pair(known, shown[0] if shown else None)
    wished = [(address.waiting("cohort") or [usual[0]])[0] for address, usual in zip(SETS, usual_pair, strict=True)]
    for address, usual in zip(SETS, contrast.by_one_run(known, wished) or usual_pair, strict=True):
        for name, value in zip(("cohort", "run"), usual, strict=True):
            st.session_state.setdefault(address.key(name), value)
    first = _choose_side(root, SETS[0], 0, known)
    second = _choose_side(root, SETS[1], 1, known)
    st.button("Swap the sets", key="compare_swap", on_click=_swap, icon=":material/swap_vert:", type="tertiary")
    return first, second


def _finished(root: Path, cohort: str) -> contrast.Records:
    return {run: record for run, record in data.run_records(root, cohort).items() if record["cases"]}


def _choose_side(root: Path, address: Address, place: int, known: dict[str, contrast.Records]) -> Side:
    st.html(f"<div class='side'><span style='color:{SIDES[place]}'>■</span> {TITLES[place]}</div>")
    cohort = filters.pick_one(address, Choice("Cohort", "cohort"), list(known)) or next(iter(known))
    records = known[cohort]
    run = choosing.run_box(address, records) or next(iter(records))
    labels = data.labels(root, cohort, records[run])
    with st.expander("Filter scans", icon=":material/filter_alt:"):
        selection = Filters(address, cohort).narrow(root, Selection(cohort, run), labels)
        st.button("Clear all filters", key=address.key("clear"), on_click=filters.clear, args=(address,),
                  icon=":material/close:", type="tertiary")  # fmt: skip
    return Side(selection, records[run], choosing.run_title(records[run]), labels)


def _swap() -> None:
    """Exchange what the two sets' choosers and filters say."""
    state = st.session_state
    said = []
    for address in SETS:
        keys = [address.key("cohort"), address.key("run")]
        keys += [str(key) for key in state if str(key).startswith(address.key("filter_"))]
        said.append({key.removeprefix(address.key("")): state[key] for key in keys if key in state})
    for address, values in zip(SETS, reversed(said), strict=True):
        for name, value in values.items():
            state[address.key("") + name] = value


def _measured(sides: tuple[Side, Side]) -> tuple[tuple[Side, Side], bool]:
    """The switches that both sets share: what is counted, and whether scans are paired."""
    shares_only = any(side.record.get("values") == "shares" for side in sides)
    sign, value, background = filters.measures(ADDRESS, shares_only)
    counted: dict[str, Any] = {"sign": sign, "value": value, "background": background}
    # Only regions that both sets join alike can be compared.
    if sides[0].labels.joins == sides[1].labels.joins:
        counted["joined"] = filters.joining(ADDRESS, sides[0].labels)
    first, second = (replace(side, selection=replace(side.selection, **counted)) for side in sides)
    return (first, second), _pairs(first.selection, second.selection)


def _pairs(first: Selection, second: Selection) -> bool:
    """Whether scans are compared with themselves: usually those of one cohort in two runs; the user may say else."""
    root = data_root()
    shared = set(_explained(root, first)) & set(_explained(root, second))
    if len(shared) < contrast.FEWEST_CASES or (first.cohort, first.run) == (second.cohort, second.run):
        return False
    usual = contrast.usually_paired(first, second)
    key, wish = f"compare_pairs_{'usual' if usual else 'unusual'}", ADDRESS.asked("pairs")
    if wish:
        st.session_state[key] = wish == ["on"]
    st.session_state.setdefault(key, usual)
    # Beside the sets, of which it speaks; the row of measures has no room for it.
    return st.sidebar.toggle("Pair scans of the same name", key=key, help=PAIRED_HELP)


def _explained(root: Path, selection: Selection) -> list[str]:
    """Cases of a set that have explanations."""
    # Whatever is counted, the scans are the same: one answer for all of it.
    usual = Selection(selection.cohort, selection.run)
    asked = replace(selection, sign=usual.sign, value=usual.value, background=usual.background, joined=usual.joined)
    cases = data.cases(root, asked)
    return list(cases["case_id"][cases["explained"]])


def _nothing_to_compare(root: Path, sides: tuple[Side, Side]) -> str | None:
    """Why there is no comparison, and what to do about it."""
    first, second = (side.selection for side in sides)
    if first == second:
        return (
            "Both sets are the same scans of the same run, so nothing differs. At the left, choose another run or "
            f"cohort for one of them, or filter one of them{_for_example(root, first.cohort)}."
        )
    for side, title in zip(sides, TITLES, strict=True):
        if not _explained(root, side.selection):
            return f"{title}: no explained scan passes its filters. Widen one of them, or clear all."
    return None


def _for_example(root: Path, cohort: str) -> str:
    columns = list(data.metadata_columns(root, cohort)["column"])
    return f", for example by {words.plain(columns[0])}" if columns else ""


def _target(comparison: Comparison, side: Side) -> tuple[str, Pick | None]:
    """The target whose boxes are drawn: the link's, the user's, else that of the largest difference; and the pick."""
    picked = _picked(comparison)
    names = common.in_group_order(comparison.table["target"], side.labels)
    key = ADDRESS.key("target")
    if st.session_state.get(key) not in names:
        st.session_state[key] = _largest(comparison)[0]
    titles = {name: common.organ_of(side.labels, name).title for name in names}
    choice = Choice("Target organ", "target", titles, "Whose regions are drawn as boxes. A click on a cell takes its.")
    with st.sidebar:
        target = filters.pick_one(ADDRESS, choice, names) or names[0]
    return target, picked if picked and picked[0] == target else None


def _largest(comparison: Comparison, target: str | None = None) -> Pick:
    """The pair, of one target if named, that tells most; where chance could explain all, the one that differs most."""
    table = comparison.table if target is None else comparison.table[comparison.table["target"] == target]
    comparison = replace(comparison, table=table)
    rows = [*largest_changes(comparison, 1).to_dict("records"), *table.to_dict("records")]
    row = contrast.telling(comparison) or rows[0]
    return str(row["target"]), str(row["region"])


def _picked(comparison: Comparison) -> Pick | None:
    """What the link or a click picked, as long as both sets have it."""
    wish, picked = ADDRESS.asked("pick"), st.session_state.get(PICKED)
    if wish:
        picked = tuple(wish[0].split("~"))
        st.session_state[ADDRESS.key("target")] = picked[0]
    if picked and picked not in set(zip(comparison.table["target"], comparison.table["region"], strict=True)):
        if wish and ADDRESS.from_outside:
            words.not_here("Cell", wish[0])
        picked = None
    st.session_state[PICKED] = picked
    return picked


def _link(sides: tuple[Side, Side], target: str | None, paired: bool) -> Link:
    """The parameters that open this view again: each set's own, then what both share."""
    link = filters.measure_link(sides[0].selection) | ({"target": [target]} if target else {})
    for address, side in zip(SETS, sides, strict=True):
        link |= address.own(filters.scans_link(side.selection))
    if paired != contrast.usually_paired(sides[0].selection, sides[1].selection):
        link["pairs"] = ["on" if paired else "off"]
    return link


# ---- heading -------------------------------------------------------------------------------------


def _heading(view: View) -> None:
    measure = view.look.measure
    st.markdown(f"### {contrast.headline(view.comparison, view.sides, measure)}")
    st.html(f"<div class='sides'>{''.join(_side_words(view, place) for place in (0, 1))}</div>")
    st.markdown(f":material/fact_check: **As right?** {_dice_words(view)}.  \n"
                f":material/psychology: **For the same reason?** {contrast.verdict(view.comparison)}. "
                f"{_pairing_words(view)}")  # fmt: skip
    for told in (contrast.both_differ(*view.sides), contrast.left_out(view.comparison, view.sides[0].labels)):
        if told:
            st.caption(told)


def _side_words(view: View, place: int) -> str:
    """One set in a line of HTML: its colour, what it is, how many scans."""
    side = view.sides[place]
    parts = [side.selection.cohort, side.title, *filters.describe(side.selection, side.labels)]
    count = view.comparison.cases[place]
    scans = "1 scan" if count == 1 else f"{count} scans"
    told = " · ".join(escape(part) for part in [*parts, scans])
    return f"<div><span style='color:{SIDES[place]}'>■</span> <b>{TITLES[place]}</b> {told}</div>"


def _dice(view: View) -> tuple[Comparison, Comparison] | None:
    """Dice of organs, and its mean over them; None where the sets have no labels to compare."""
    try:
        selections = [side.selection for side in view.sides]
        return data.dice_comparison(view.root, selections[0], selections[1], view.comparison.paired)
    except InputError:
        return None


def _dice_words(view: View) -> str:
    dice = _dice(view)
    if dice is None:
        return "Dice cannot be compared: it needs labels of the same organs in both sets"
    return contrast.dice_verdict(*dice, view.sides[0].labels)


def _pairing_words(view: View) -> str:
    """Which scans are compared with which; never left to be guessed."""
    first, second = (side.selection for side in view.sides)
    cases = [set(_explained(view.root, selection)) for selection in (first, second)]
    return contrast.pairing(view.comparison, first, second, (len(cases[0] & cases[1]), len(cases[0] ^ cases[1])))


# ---- all pairs -----------------------------------------------------------------------------------


def _differences(view: View) -> None:
    left, right = st.columns([11, 10], gap="small")
    with left:
        st.markdown("##### Differences: targets (rows), regions (columns)", help=MATRIX_HELP)
        figure = difference_matrix(view.comparison.table, view.look, view.picked)
        _clickable(figure, "compare_matrix", "Matrix of differences")
        st.caption(_picked_words(view))
    with right:
        _changes(view)


def _picked_words(view: View) -> str:
    row, measure = view.row, view.look.measure
    said = f"{contrast.change(row, view.sides[0].labels, measure)}: {from_to(row, measure)}, {interval(row, measure)}"
    return f"{said}, {chance(row)}. Its scans are below."


def _changes(view: View) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown("##### The ten largest changes", help=CHANGES_HELP, width="stretch")
        st.download_button(
            f"{len(view.comparison.table)} pairs as CSV", _csv(view), "differences.csv", "text/csv", key="compare_csv",
            icon=":material/download:", type="tertiary", on_click="ignore",
        )  # fmt: skip
    rows = largest_changes(view.comparison).to_dict("records")
    with st.container(key="compare_changes", gap=None):
        for place, row in enumerate(rows):
            way = "more" if row["difference"] > 0 else "less" if row["difference"] < 0 else "same"
            st.button(
                contrast.change_line(row, view.sides[0].labels, view.look.measure), key=f"compare_{way}_{place}",
                icon=f":material/trending_{WAYS[way]}:", type="tertiary", width="stretch",
                on_click=_take, args=((row["target"], row["region"]),),
            )  # fmt: skip


def _csv(view: View) -> str:
    """All pairs, with what the sets are called, as a table that stands on its own."""
    first, second = view.look.names
    table = view.comparison.table.assign(paired=view.comparison.paired, first_set=first, second_set=second)
    return spreadsheet.to_csv(table)


def _clickable(figure: Any, key: str, alt: str) -> None:
    st.plotly_chart(
        figure, key=key, on_select=lambda: _pick(key), selection_mode="points", config={"displayModeBar": False},
        alt=alt,
    )  # fmt: skip


def _pick(key: str) -> None:
    """A click on a row of boxes names its region, one on a cell also its target."""
    points = st.session_state[key]["selection"]["points"]
    if points:
        named = [str(name) for name in points[0]["customdata"]]
        target = [st.session_state[ADDRESS.key("target")]] if len(named) == 1 else []
        _take((*target, *named))


def _take(picked: tuple[str, ...]) -> None:
    """Show this pair's scans and this target's boxes."""
    st.session_state[PICKED] = picked
    st.session_state[ADDRESS.key("target")] = picked[0]


# ---- one target, and Dice ------------------------------------------------------------------------


def _target_and_dice(view: View) -> None:
    left, right = st.columns([11, 10], gap="small")
    target, region = view.picked
    stats = [data.box_stats(view.root, side.selection, target) for side in view.sides]
    with left:
        title = words.plain(view.title(target))
        st.markdown(f"##### Where the attribution of {title} lies", help=BOX_HELP)
        figure = side_by_side_boxes(stats[0], stats[1], view.look, region)
        _clickable(figure, "compare_boxes", f"Box plots of every region for {view.title(target)}, both sets")
    with right:
        st.markdown("##### Change of Dice, organ by organ", help=DICE_HELP)
        dice = _dice(view)
        if dice is None:
            st.info("Dice needs label maps of the same organs in both sets.", icon=":material/label_off:")
        else:
            figure = dice_changes(dice[0].table, replace(view.look, measure=DICE))
            st.plotly_chart(figure, key="compare_dice", config={"displayModeBar": False}, alt="Difference of Dice")


# ---- one pair, scan by scan ----------------------------------------------------------------------


def _scans(view: View) -> None:
    target, region = (words.plain(view.title(name)) for name in view.picked)
    amount = "Share" if view.look.measure == "mass" else "Mean per voxel"
    first, second = (data.ranked(view.root, side.selection, *view.picked) for side in view.sides)
    paired = view.comparison.paired
    table = _paired_table(first, second) if paired else _both_tables(first, second)
    st.markdown(
        f"##### {amount} of {target}’s attribution on {region}, scan by scan",
        help=SCATTER_HELP if paired else STRIPS_HELP,
    )
    if first.empty or second.empty or table.empty:
        st.info("No scan has both organs in both sets. Pick another cell.", icon=":material/info:")
        return
    left, right = st.columns([11, 10], gap="small")
    figure = scatter_of_scans(table, view.look) if paired else strips_of_scans(first, second, view.look)
    with left:
        event = st.plotly_chart(
            figure, key=f"compare_scans_{paired}", on_select="rerun", selection_mode="points",
            config={"displayModeBar": False}, alt="Every scan of both sets",
        )  # fmt: skip
        for point in event["selection"]["points"]:
            _open(view, *point["customdata"])
    with right:
        _table(view, table)


def _paired_table(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """case_id, first, second, change, dice_first, dice_second; the largest change first."""
    both = first.merge(second, on="case_id", suffixes=("_first", "_second"))
    both = both.rename(columns={"value_first": "first", "value_second": "second"})
    both = both.assign(change=both["second"] - both["first"])
    return both.sort_values("change", key=lambda change: -change.abs(), kind="stable").reset_index(drop=True)


def _both_tables(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """case_id, side ("first" | "second"), value, dice; the highest value first."""
    both = pd.concat([first.assign(side="first"), second.assign(side="second")])
    return both.sort_values("value", ascending=False, kind="stable").reset_index(drop=True)


def _table(view: View, table: pd.DataFrame) -> None:
    paired, share = view.comparison.paired, view.look.measure == "mass"
    measured = ["first", "second", "change"] if paired else ["value"]
    scores = ["dice_first", "dice_second"] if paired else ["dice"]
    columns = [
        "case_id",
        *([] if paired else ["set"]),
        *measured,
        *(name for name in scores if table[name].notna().any()),
    ]
    shown = table.assign(**{name: (100 if share else 1) * table[name] for name in measured})
    if not paired:
        shown["set"] = table["side"].map(dict(zip(("first", "second"), view.look.names, strict=True)))
    event = st.dataframe(
        shown[columns], hide_index=True, column_config=_column_config(view), key=f"compare_table_{paired}",
        on_select="rerun", selection_mode="single-cell", placeholder="–",
        height=tables.height(shown, TABLE_HEIGHT),
    )  # fmt: skip
    for row, column in event["selection"]["cells"]:
        side = ("first" if column.endswith("first") else "second") if paired else str(table["side"].iloc[row])
        _open(view, str(table["case_id"].iloc[row]), side)


def _column_config(view: View) -> dict[str, Any]:
    number = st.column_config.NumberColumn
    share = view.look.measure == "mass"
    (first, second), amount = view.look.names, "%.2f %%" if share else "%.3g"
    return {
        "case_id": st.column_config.TextColumn("Scan", pinned=True),
        "set": "Set",
        "first": number(TITLES[0], format=amount, width=80, help=f"{first}. Click to open the scan there."),
        "second": number(TITLES[1], format=amount, width=94, help=f"{second}. Click to open the scan there."),
        "change": number("Change", format="%+.2f" if share else "%+.3g", width=72, help="Second minus first."),
        "value": number("Share" if share else "Mean", format=amount),
        "dice_first": number("Dice, first", format="%.3f", width=84),
        "dice_second": number("Dice, second", format="%.3f", width=116),
        "dice": number("Dice", format="%.3f"),
    }


def _open(view: View, case_id: str, side: str) -> None:
    case.go_to(view.sides[side == "second"].selection, case_id, *view.picked)
