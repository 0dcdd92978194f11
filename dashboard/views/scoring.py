"""Scores of the Outliers page: which scans are judged, what their judges learned from, and what the scores say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from agg2exp_core.analysis.outliers import overall, threshold, thresholds
from agg2exp_core.organs import BACKGROUND
from agg2exp_core.records import Selection
from dashboard import data
from dashboard.address import Address
from dashboard.data import Judges

ADDRESS = Address("outliers")
USUAL = Address("outliers", "usual")
"""The filters of the scans to learn from."""

SELECTED = "outliers_selected"
"""The session's key of the case ids that are selected."""

TITLES = {
    "robust_z": "Robust z",
    "isolation_forest": "Isolation forest",
    "neighbours": "Neighbours",
    "mahalanobis": "Mahalanobis",
}
HELP = {
    "robust_z": "how many spreads (1.48 × median absolute deviation) an organ’s share lies from its median; of all "
    "organs’ shares, the value that a tenth exceeds. The sentences below name these shares.",
    "isolation_forest": "how few random cuts set a scan’s shares apart from the usual ones; between 0 and 1. "
    "The detector of the Agg²Exp paper.",
    "neighbours": "mean distance to the five usual scans whose shares are nearest (of square roots of shares).",
    "mahalanobis": "distance from the usual mean in log-ratios of shares, which are free to vary where shares must sum "
    "to 100 %; their covariance is shrunk (Ledoit–Wolf).",
}
DETECTOR_HELP = "How unusual a scan’s evidence is, target by target; higher is more unusual.\n\n" + "\n".join(
    f"- **{TITLES[name]}**: {text}" for name, text in HELP.items()
)

ALL = ""
"""The choice of all organs, whose score is the mean over them."""

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Question:
    """Judged: all scans of a run. usual: the scans to learn from, of the same run or another."""

    root: Path
    judged: Selection
    usual: Selection

    @property
    def same(self) -> bool:
        """Whether a case id means the same explanation on both sides."""
        return (self.judged.cohort, self.judged.run) == (self.usual.cohort, self.usual.run)


@dataclass(frozen=True, eq=False)
class Scores:
    """values: (cases, targets). own: (usual cases, targets), held out; None where nobody asked for it."""

    cases: tuple[str, ...]
    targets: tuple[str, ...]
    values: np.ndarray
    own: np.ndarray | None

    def of(self, organ: str) -> np.ndarray:
        """(cases,): one target's, or the mean over all."""
        return _of(self.values, self.targets, organ)

    def limit(self, organ: str, share: float) -> float:
        """What that share of the usual scans stays below."""
        return float("nan") if self.own is None else threshold(_of(self.own, self.targets, organ), share)

    @cached_property
    def most_unusual(self) -> list[str]:
        """(cases,): the organ with the highest score; background, if it is a target, where no organ has one.

        Scores are taken against what is usual for that organ, as those of neighbours grow with its spread.
        """
        organs = [place for place, name in enumerate(self.targets) if name != BACKGROUND]
        if not organs:
            return [BACKGROUND] * len(self.values)
        usual = np.ones(len(organs)) if self.own is None else thresholds(self.own)[organs]
        with np.errstate(divide="ignore", invalid="ignore"):
            known = np.nan_to_num(self.values[:, organs] / usual, nan=-np.inf)
        some, most = np.isfinite(known).any(axis=1), known.argmax(axis=1)
        none = BACKGROUND if BACKGROUND in self.targets else self.targets[organs[0]]
        return [self.targets[organs[at]] if known_ else none for at, known_ in zip(most, some, strict=True)]


def scored(question: Question, detector: str, report: Report, limits: bool = True) -> Scores:
    """Scores of one detector. limits: score the usual scans as well, even where only others are judged."""
    judges = Judges(detector, question.usual)
    own = data.held_out_scores(question.root, judges, report) if limits or question.same else None
    targets, values = data.judged_scores(question.root, judges, question.judged, own if question.same else None)
    everything = data.importance(question.root, question.usual).targets
    shared = None if own is None else own[:, [everything.index(target) for target in targets]]
    return Scores(data.importance(question.root, question.judged).cases, targets, values, shared)


def _of(values: np.ndarray, targets: tuple[str, ...], organ: str) -> np.ndarray:
    return overall(values) if organ == ALL else values[:, targets.index(organ)]
