"""Two sets of explanations, and what differs between them, in words. What a page says is Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from agg2exp_core.analysis.compare import DICE, MEAN, Comparison, largest_changes
from agg2exp_core.organs import LabelSet
from agg2exp_core.records import Selection
from dashboard import filters
from dashboard.charts.change import FALSE_DISCOVERIES, Row, differs, excludes_zero, from_to, interval, points, signed
from dashboard.charts.common import organ_of
from dashboard.words import model_title, plain

FEWEST_CASES = 2
MOST_NAMED = 3
"""Organs that a line names before it counts the rest."""

SMALLEST = 0.01
"""Difference of shares, one point, below which two sets hardly differ."""

NO_BREAK = "\u00a0"

Records = dict[str, dict[str, Any]]


# ---- the sets ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two sets. record: the run's row, see `queries.runs`; title: that run in words."""

    selection: Selection
    record: dict[str, Any]
    title: str
    labels: LabelSet

    @property
    def model(self) -> str:
        name = self.record.get("model")
        return model_title(name) if name else self.selection.run

    @property
    def filters(self) -> Selection:
        """The selection without its place: what narrows it."""
        return replace(self.selection, cohort="", run="")


def usual_pair(known: dict[str, Records], cohort: str | None = None) -> tuple[tuple[str, str], tuple[str, str]]:
    """Cohort and run of each set, where nobody chose: two runs of a cohort, else two cohorts, else the same one twice.

    known: cohort → its runs, none of them empty, those with most cases first. cohort: what was shown last, which comes
    first. Runs of other models come before other runs of the same one; the largest cohort before the others.
    """
    order = sorted(known, key=lambda name: (name != cohort, -_cases(known[name])))
    for name in order:
        first, *others = known[name].values()
        others = [record for record in others if record["cases"] >= FEWEST_CASES]
        if others:
            second = next((record for record in others if record.get("model") != first.get("model")), others[0])
            return (name, str(first["run"])), (name, str(second["run"]))
    # Of two cohorts the larger one is the reference.
    one, other = (sorted(order[:2], key=lambda name: -_cases(known[name])) * 2)[:2]
    first_run = next(iter(known[one]))
    return (one, first_run), (other, first_run if first_run in known[other] else next(iter(known[other])))


def by_one_run(known: dict[str, Records], wished: Sequence[str]) -> tuple[tuple[str, str], tuple[str, str]] | None:
    """(cohort, run) of two cohorts by the first run that both have; None for one cohort, or where they share none."""
    one, other = wished
    shared = [run for run in known.get(one, {}) if run in known.get(other, {})]
    return ((one, shared[0]), (other, shared[0])) if shared and one != other else None


def both_differ(first: Side, second: Side) -> str:
    """A warning where two things changed at once, else nothing."""
    if first.selection.cohort == second.selection.cohort or first.model == second.model:
        return ""
    return ":material/warning: The sets differ in cohort **and** in model: a difference may come from either."


def _cases(records: Records) -> int:
    return max(int(record["cases"]) for record in records.values())


def usually_paired(first: Selection, second: Selection) -> bool:
    """Whether the sets are the same scans by intent: one cohort, the same filters, another run."""
    return first.run != second.run and replace(first, run=second.run) == second


def names(first: Side, second: Side) -> tuple[str, str]:
    """What to call each set: what tells it from the other."""
    own = [_parts(side, other) for side, other in ((first, second), (second, first))]
    return own[0], own[1]


def _parts(side: Side, other: Side) -> str:
    parts = [side.selection.cohort] if side.selection.cohort != other.selection.cohort else []
    if side.model != other.model:
        parts.append(side.model)
    elif side.title != other.title:
        parts.append(side.title)
    elif not parts and side.selection.run != other.selection.run:
        parts.append(side.selection.run)
    if side.filters != other.filters:
        parts.append(", ".join(filters.describe(side.selection, side.labels)) or "all scans")
    return ", ".join(parts)


# ---- sentences -----------------------------------------------------------------------------------


def change(row: Row, labels: LabelSet, measure: str) -> str:
    """`**Heart**: **5.2 points less** on **Aorta**`, of the second set against the first."""
    target, region = (plain(organ_of(labels, row[name]).title) for name in ("target", "region"))
    return f"**{target}**: **{_amount(row, measure)}** on **{region}**"


def change_line(row: Row, labels: LabelSet, measure: str) -> str:
    """The change with both medians and its interval; in grey if chance could explain it."""
    numbers = f"{from_to(row, measure)}, {interval(row, measure)}".replace(" ", NO_BREAK)
    if differs(row):
        return f"{change(row, labels, measure)} :gray[{numbers}]"
    return f":gray[{change(row, labels, measure)} {numbers}]"


def _amount(row: Row, measure: str) -> str:
    if not row["difference"]:
        return "no change"
    more = "more" if row["difference"] > 0 else "less"
    return f"{points(row['difference'])} points {more}" if measure == "mass" else f"{more} per voxel"


def telling(comparison: Comparison) -> Row | None:
    """The row worth a headline: the largest difference that chance does not explain; None where there is none.

    A change on another organ comes first: an organ's share of itself moves whenever any other does. The size of a
    mean per voxel says little, so that only a share can be too small.
    """
    table = largest_changes(comparison, len(comparison.table))
    table = table[[differs(row) and excludes_zero(row) for row in table.to_dict("records")]]
    own = table["target"] == table["region"]
    large = table["difference"].abs() >= SMALLEST
    for rows in (table[large & ~own], table[large], table):
        if len(rows):
            return dict(rows.iloc[0])
    return None


def headline(comparison: Comparison, sides: tuple[Side, Side], measure: str) -> str:
    """The most telling difference as a sentence; or that it is small, or that there is none."""
    first, second = (plain(name) for name in names(*sides))
    if not comparison.table["p_adjusted"].notna().any():
        return f"Too few scans to tell {first} and {second} apart"
    row = telling(comparison)
    if row is None:
        return f"Chance could explain every difference between {first} and {second}"
    target, region = (plain(organ_of(sides[0].labels, row[name]).title) for name in ("target", "region"))
    region = f"{target} itself" if row["target"] == row["region"] else region
    amount = _amount(row, measure)
    if measure == "mean":
        return f"{second}: the attribution of {target} has {amount} of {region} than in {first}"
    if abs(row["difference"]) < SMALLEST:
        return f"Chance aside, {second} hardly differs from {first}: at most {amount} of {target} on {region}"
    if sides[0].model != sides[1].model:
        return f"{second} looks {amount} at {region} than {first} when it segments {target}"
    return f"In {second}, {amount} of the attribution of {target} lie on {region} than in {first}"


def verdict(comparison: Comparison) -> str:
    """How many pairs differ, and how many organs look more or less at themselves."""
    table = comparison.table
    tested, differing = table["p_adjusted"].notna(), table["p_adjusted"] <= FALSE_DISCOVERIES
    if not tested.any():
        return "Too few scans to test any pair: each set needs two at least"
    own = table[differing & (table["target"] == table["region"])]["difference"]
    sides = [(way, int((own * sign > 0).sum())) for way, sign in (("more", 1), ("less", -1))]
    told = ", ".join(f"{way} for {_count(count, 'organ')}" for way, count in sides if count)
    said = f"**{int(differing.sum())} of {int(tested.sum())} pairs** differ at a false-discovery rate of 5 %"
    return f"{said}. On the organ itself: {told}" if told else said


def dice_verdict(organs: Comparison, overall: Comparison, labels: LabelSet) -> str:
    """Mean Dice from set to set, and the organs that fell and rose."""
    row: Row = overall.table.set_index("target").loc[MEAN].to_dict()
    sizes = f"Mean Dice {row['first']:.3f} → {row['second']:.3f} (**{signed(row['difference'], DICE)}**"
    sizes += f", 95 % {signed(row['low'], DICE)} to {signed(row['high'], DICE)})" if math.isfinite(row["low"]) else ")"
    table = organs.table[organs.table["p_adjusted"] <= FALSE_DISCOVERIES]
    ordered = table.sort_values("difference", key=lambda values: -values.abs())
    fallen, risen = (ordered[ordered["difference"] * sign > 0] for sign in (-1, 1))
    parts = [
        f"{word} for {_listed(rows, labels)}" for word, rows in (("lower", fallen), ("higher", risen)) if len(rows)
    ]
    rest = int(organs.table["p_adjusted"].notna().sum()) - len(fallen) - len(risen)
    parts.append(f"no clear change for {_count(rest, 'organ')}")
    return f"{sizes}; {', '.join(parts)}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _listed(rows: pd.DataFrame, labels: LabelSet) -> str:
    told = [
        f"{plain(organ_of(labels, row['target']).title)} ({signed(row['difference'], DICE)})"
        for row in rows.head(MOST_NAMED).to_dict("records")
    ]
    return _and([*told, *([f"{len(rows) - MOST_NAMED} more"] if len(rows) > MOST_NAMED else [])])


def _and(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def pairing(comparison: Comparison, first: Selection, second: Selection, cases: tuple[int, int]) -> str:
    """Which scans are compared with which. cases: how many names are in both sets, and how many in one only."""
    shared, single = cases
    if comparison.paired:
        rest = f"; {_count(single, 'scan')} in only one of the sets left out" if single else ""
        return f"**Paired**: each of {_count(comparison.cases[0], 'scan')} with itself{rest}."
    if not shared:
        return f"**Not paired**: {comparison.cases[0]} against {comparison.cases[1]} other scans."
    if first.cohort != second.cohort:
        return f"**Not paired**: {_count(shared, 'name')} in both cohorts, which need not mean the same scans."
    return f"**Not paired**: {_count(shared, 'scan')} in both sets, which the tests take as independent."


def left_out(comparison: Comparison, labels: LabelSet) -> str | None:
    """Organs that only one set has."""
    if not comparison.left_out:
        return None
    titles = [plain(organ_of(labels, name).title) for name in comparison.left_out]
    return f"Only in one of the sets, so not compared: {_and(titles)}."
