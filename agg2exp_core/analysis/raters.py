"""What reviewers said, counted: how far they agree, where they do not, and what seeing the evidence changed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

import pandas as pd
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from agg2exp_core.store.reviews import VERDICTS, Item, Session, Verdict, Verdicts, reviewer_id


@dataclass(frozen=True, eq=False)
class Agreement:
    """Two reviewers on the items that both judged, each without knowing the other's verdicts.

    items: their number. same: share with the same verdict. kappa: Cohen's, None where it is not defined, as both
    gave one and the same verdict to all, or there is no item. confusion: verdicts of the first (rows) and second.
    """

    first: str
    second: str
    items: int
    same: float | None
    kappa: float | None
    confusion: pd.DataFrame


def agreement(first: Mapping[Item, str], second: Mapping[Item, str], names: tuple[str, str]) -> Agreement:
    """Cohen's kappa (1960), unweighted: (p_o − p_e) / (1 − p_e), p_e the agreement that chance would give."""
    shared = [item for item in first if item in second]
    a, b = [first[item] for item in shared], [second[item] for item in shared]
    table = confusion_matrix(a, b, labels=list(VERDICTS)) if shared else [[0] * len(VERDICTS)] * len(VERDICTS)
    confusion = pd.DataFrame(table, index=pd.Index(VERDICTS), columns=pd.Index(VERDICTS))
    same = sum(x == y for x, y in zip(a, b, strict=True)) / len(shared) if shared else None
    return Agreement(*names, len(shared), same, _kappa(a, b), confusion)


def _kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    if not first:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where chance alone agrees on all: 0 / 0
        kappa = float(cohen_kappa_score(first, second, labels=list(VERDICTS)))
    return kappa if math.isfinite(kappa) else None


def pairs(verdicts: Verdicts, phase: str, target: str | None = None) -> list[Agreement]:
    """Every two reviewers, over all organs or one; verdicts given after seeing those of others do not count."""
    said: dict[str, dict[Item, str]] = {}
    for one in verdicts.independent:
        if one.phase == phase and target in (None, one.target):
            said.setdefault(reviewer_id(one.reviewer), {})[one.item] = one.verdict
    names = [name for name in verdicts.reviewers if reviewer_id(name) in said]
    return [agreement(said[reviewer_id(a)], said[reviewer_id(b)], (a, b)) for a, b in combinations(names, 2)]


# ---- item by item ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """An item's final verdicts by reviewer, its adjudication, and what came of them: a verdict, split, or None."""

    item: Item
    finals: dict[str, Verdict]
    adjudication: Verdict | None

    @property
    def split(self) -> bool:
        """Whether the reviewers differ."""
        return len({one.verdict for one in self.finals.values()}) > 1

    @property
    def verdict(self) -> str | None:
        """What all said or, where they differ, the adjudication, else "split"; None where nobody is done.

        An adjudication that reviewers have come to agree after settles nothing any more.
        """
        if self.split:
            return "split" if self.adjudication is None else self.adjudication.verdict
        return next((one.verdict for one in self.finals.values()), None)


def outcomes(session: Session, verdicts: Verdicts) -> list[Outcome]:
    """One for each item, in the session's own order."""
    finals: dict[Item, dict[str, Verdict]] = {}
    settled: dict[Item, Verdict] = {}
    names = {reviewer_id(name): name for name in verdicts.reviewers}
    for one in verdicts.current:
        if one.phase == "final":
            finals.setdefault(one.item, {})[names[reviewer_id(one.reviewer)]] = one
        elif one.phase == "adjudication":
            settled[one.item] = one
    items = [Item(case, target) for case in session.cases for target in session.targets]
    return [Outcome(item, finals.get(item, {}), settled.get(item)) for item in items]


def finished(session: Session, verdicts: Verdicts, reviewer: str) -> bool:
    """Whether the reviewer has a final verdict on every item."""
    return len(verdicts.of(reviewer, "final")) == len(session.cases) * len(session.targets)


def takes_part(session: Session, verdicts: Verdicts, reviewer: str) -> bool:
    """Whether the name is one of those who judge the items, by plan or by a verdict given."""
    return reviewer_id(reviewer) in map(reviewer_id, (*session.reviewers, *verdicts.reviewers))


# ---- tables ----------------------------------------------------------------------------------------


def progress(session: Session, verdicts: Verdicts) -> pd.DataFrame:
    """reviewer, done, total, seconds (median time an item took): everyone expected or seen."""
    names = {reviewer_id(name): name for name in (*session.reviewers, *verdicts.reviewers)}
    rows = []
    for name in names.values():
        done = verdicts.of(name, "final")
        total = len(session.cases) * len(session.targets)
        rows.append({"reviewer": name, "done": len(done), "total": total, "seconds": seconds_an_item(verdicts, name)})
    return pd.DataFrame(rows, columns=["reviewer", "done", "total", "seconds"])


def seconds_an_item(verdicts: Verdicts, reviewer: str) -> float | None:
    """Median over judged items of the time to the first final verdict, both phases together; breaks spoil no median."""
    spent: dict[Item, float] = {}
    for one in verdicts.given:
        if one.phase != "adjudication" and reviewer_id(one.reviewer) == reviewer_id(reviewer) and not one.replaces:
            spent[one.item] = spent.get(one.item, 0.0) + (one.seconds or 0.0)
    judged = verdicts.of(reviewer, "final")
    return median(spent[item] for item in judged) if judged and all(item in spent for item in judged) else None


def counts(session: Session, verdicts: Verdicts) -> pd.DataFrame:
    """reviewer, target and one column a verdict: final verdicts that hold."""
    rows = []
    for name in verdicts.reviewers:
        mine = list(verdicts.of(name, "final").values())
        for target in session.targets:
            said = [one.verdict for one in mine if one.target == target]
            rows.append({"reviewer": name, "target": target, **{verdict: said.count(verdict) for verdict in VERDICTS}})
    return pd.DataFrame(rows, columns=["reviewer", "target", *VERDICTS])


def changed_by_evidence(verdicts: Verdicts) -> pd.DataFrame:
    """reviewer, items, changed: how many first verdicts of a blinded session the evidence turned into another.

    A final verdict counts as first given and without knowing those of others: what changes later has other reasons.
    """
    rows = []
    for name in verdicts.reviewers:
        before, after = verdicts.of(name, "segmentation"), _first_finals(verdicts, name)
        both = [item for item in before if item in after]
        changed = sum(before[item].verdict != after[item].verdict for item in both)
        rows.append({"reviewer": name, "items": len(both), "changed": changed})
    return pd.DataFrame(rows, columns=["reviewer", "items", "changed"])


def _first_finals(verdicts: Verdicts, reviewer: str) -> dict[Item, Verdict]:
    first: dict[Item, Verdict] = {}
    for one in verdicts.given:
        if one.phase == "final" and one.independent and reviewer_id(one.reviewer) == reviewer_id(reviewer):
            first.setdefault(one.item, one)
    return first
