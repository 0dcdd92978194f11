"""Cases whose evidence is unlike a cohort's: detectors for whole explanations, and what their scores are worth.

Values are masses (cases, targets, regions), NaN where absent. A target that is absent has no score; a region that is
absent is taken to be ordinary (the cohort's median), because absence says nothing of the evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from agg2exp_core.analysis.detectors import DETECTORS, RobustZ, RowDetector
from agg2exp_core.analysis.importance import Importance, take_cases, take_organs
from agg2exp_core.analysis.significance import benjamini_hochberg
from agg2exp_core.organs import BACKGROUND
from agg2exp_core.records import InputError

LEAST_CASES = 8
"""Fewer cases of a target say nothing of what is usual: it gets no scores."""

FOLDS = 10
ONE_BY_ONE = 50
"""Up to so many cases, each is left out on its own: a tenth of few cases is too much to learn without."""

FLAGGED_ABOVE = 0.95
"""The quantile of a cohort's own held-out scores above which a score is flagged."""

Report = Callable[[int, int, str], None]
"""Gets what is done, of how much, and its name."""

TABLE = ("case_id", "target", "detector", "score", "flagged")


@dataclass(frozen=True, eq=False)
class Target:
    """One target's detector, and the (regions,) masses that stand for absent regions."""

    ordinary: np.ndarray
    detector: RowDetector

    def score(self, rows: np.ndarray) -> np.ndarray:
        """(cases, regions) → (cases,), NaN where the target is absent."""
        scores = np.full(len(rows), np.nan)
        present = np.isfinite(rows).any(axis=1)
        if present.any():
            scores[present] = self.detector.score(_filled(rows[present], self.ordinary))
        return scores


@dataclass(frozen=True, eq=False)
class Detector:
    """A detector fitted on a cohort; a target that too few of its cases have is None."""

    name: str
    targets: tuple[Target | None, ...]

    def score(self, values: np.ndarray) -> np.ndarray:
        """(cases, targets, regions) → (cases, targets), higher = more abnormal; NaN without target or detector."""
        scores = np.full(values.shape[:2], np.nan)
        for index, target in enumerate(self.targets):
            if target is not None:
                scores[:, index] = target.score(values[:, index])
        return scores


def fit(name: str, values: np.ndarray) -> Detector:
    """One of DETECTORS on the cases (cases, targets, regions), target by target.

    Scores of these very cases are too low: a detector has seen them. Use `held_out` for those.
    InputError: an unknown detector, or fewer than LEAST_CASES cases.
    """
    if name not in DETECTORS:
        raise InputError("detector must be known", repr(name), ", ".join(DETECTORS))
    if len(values) < LEAST_CASES:
        raise InputError(f"outliers need at least {LEAST_CASES} cases to fit on", len(values))
    return Detector(name, tuple(_fitted(name, values[:, index]) for index in range(values.shape[1])))


def held_out(
    name: str, values: np.ndarray, folds: int = FOLDS, report: Callable[[int], None] | None = None
) -> np.ndarray:
    """(cases, targets): each case scored by a detector fitted on the other folds, which take the cases in turn.

    `folds` of at least the number of cases leaves out one at a time. `report` gets the number of folds that are done.
    InputError: as `fit`, for one case more.
    """
    usual_folds(len(values))
    scores = np.full(values.shape[:2], np.nan)
    for number in range(min(folds, len(values))):
        scores[number::folds] = score_fold(name, values, number, folds)
        if report:
            report(number + 1)
    return scores


def score_fold(name: str, values: np.ndarray, number: int, folds: int) -> np.ndarray:
    """(cases of the fold, targets): every `folds`th case from `number` on, by a detector fitted on all others."""
    inside = np.arange(len(values)) % folds == number
    return fit(name, values[~inside]).score(values[inside])


def usual_folds(cases: int) -> int:
    """Into how many parts a cohort of so many cases is taken to score itself: one a case, or FOLDS of many cases.

    InputError: LEAST_CASES or fewer, as nothing can be learned from the others.
    """
    if cases <= LEAST_CASES:
        raise InputError(f"outliers need more than {LEAST_CASES} cases to fit on", cases)
    return cases if cases <= ONE_BY_ONE else FOLDS


def thresholds(scores: np.ndarray) -> np.ndarray:
    """(targets,): the FLAGGED_ABOVE quantile of a cohort's `held_out` scores; NaN, which flags none, without any."""
    return np.array([threshold(own) for own in scores.T])


def threshold(scores: np.ndarray, share: float = FLAGGED_ABOVE) -> float:
    """The quantile of (cases,) scores; NaN of none."""
    known = scores[np.isfinite(scores)]
    return float(np.quantile(known, share)) if len(known) else float("nan")


def overall(scores: np.ndarray) -> np.ndarray:
    """(cases,): the mean over the targets that a case has; NaN where it has none."""
    known = np.isfinite(scores)
    count = known.sum(axis=1)
    return np.divide(np.where(known, scores, 0).sum(axis=1), count, out=np.full(len(scores), np.nan), where=count > 0)


def outlier_table(cohort: Importance, others: Importance | None, report: Report) -> pd.DataFrame:
    """case_id, target, detector, score, flagged: every detector fitted on the cohort scores the others or, if None, it.

    The cohort itself is scored by `held_out`. flagged: above the cohort's `thresholds`; NA where there is no score.
    Targets that one of two runs does not explain have no rows. InputError: other regions than the cohort's, no target
    in common, or too few cases.
    """
    cohort, scored = (cohort, cohort) if others is None else shared(cohort, others)
    folds, tables = usual_folds(len(cohort.cases)), []
    for place, name in enumerate(DETECTORS):

        def fold_done(done: int, place: int = place, name: str = name) -> None:
            report(place * folds + done, len(DETECTORS) * folds, name)

        own = held_out(name, cohort.values, folds, fold_done)
        scores = own if others is None else fit(name, cohort.values).score(scored.values)
        tables.append(_rows(scored, name, scores, thresholds(own)))
    return pd.concat(tables, ignore_index=True)


def shared(one: Importance, other: Importance) -> tuple[Importance, Importance]:
    """Both with the targets that both explain and, as masses are shares of all regions, with the same regions.

    InputError: other regions, or no target in common.
    """
    different = sorted(set(one.regions) ^ set(other.regions))
    if different:
        raise InputError("both runs must have the same regions", f"{different[0]} in one of them only")
    targets = [name for name in one.targets if name in other.targets]
    if not targets:
        raise InputError("both runs must explain a target in common", f"{other.targets[0]} … and {one.targets[0]} …")
    return take_organs(one, targets, one.regions), take_organs(other, targets, one.regions)


def judge(name: str, usual: Importance, judged: Importance, own: np.ndarray | None = None) -> np.ndarray:
    """(cases, targets): scores of the judged cases by a detector fitted on the usual ones; organs as `shared` has them.

    own: `held_out` scores of the usual cases (cases, targets), if a case of the same id is the same explanation on both
    sides: it then keeps these, so that nobody is judged by what has seen him.
    """
    place = {case: row for row, case in enumerate(usual.cases)} if own is not None else {}
    seen = np.array([case in place for case in judged.cases], bool)
    scores = np.full(judged.values.shape[:2], np.nan)
    if not seen.all():
        scores[~seen] = fit(name, usual.values).score(judged.values[~seen])
    if own is not None:
        scores[seen] = own[[place[case] for case in judged.cases if case in place]]
    return scores


def deviations(cohort: Importance, row: np.ndarray, n: int = 10) -> pd.DataFrame:
    """target, region, value, median, z: the n pairs in which one case is most unlike the cohort, the most so first.

    row: (targets, regions), masses of the case. z as `RobustZ` has it, negative where the case has less. Pairs that
    the case or the whole cohort lacks are left out. InputError: a row of another shape.
    """
    if row.shape != cohort.values.shape[1:]:
        raise InputError("a case must have the cohort's targets and regions", row.shape, cohort.values.shape[1:])
    usual = RobustZ.fit(cohort.values)
    z = usual.z(row)
    order = np.argsort(-np.abs(np.where(np.isfinite(z), z, 0)), axis=None, kind="stable")[:n]
    target, region = np.unravel_index(order, z.shape)
    table = pd.DataFrame(
        {
            "target": [cohort.targets[index] for index in target],
            "region": [cohort.regions[index] for index in region],
            "value": row[target, region],
            "median": usual.median[target, region],
            "z": z[target, region],
        }
    )
    return table.dropna(subset="z", ignore_index=True)


def case_deviations(
    usual: Importance, judged: Importance, case: str, target: str | None = None, n: int = 10
) -> pd.DataFrame:
    """`deviations` of one judged case, of all organs or of one target; organs as `shared` has them.

    A usual case of the same id does not count: nobody is compared with himself. InputError: as `shared`, no such case,
    an unknown target, or fewer than LEAST_CASES usual cases.
    """
    if case not in judged.cases:
        raise InputError("a case must be explained to be compared", repr(case))
    others = take_cases(usual, np.array([name != case for name in usual.cases], bool))
    if len(others.cases) < LEAST_CASES:
        raise InputError(f"what is usual is told from at least {LEAST_CASES} other cases", len(others.cases))
    others, own = shared(others, take_cases(judged, np.array([judged.cases.index(case)])))
    if target is not None and target not in own.targets:
        raise InputError("target must be explained on both sides", repr(target), ", ".join(own.targets))
    targets = [name for name in own.targets if name == (target or name) and (target or name != BACKGROUND)]
    others, own = (take_organs(side, targets, side.regions) for side in (others, own))
    return deviations(others, own.values[0], n)


def roc_auc(scores: np.ndarray, abnormal: np.ndarray) -> float:
    """The probability that an abnormal case scores above an ordinary one; cases without a score do not count.

    scores: (cases,) float; abnormal: (cases,) bool. NaN where either kind is missing.
    """
    known = np.isfinite(scores)
    if len(np.unique(abnormal[known])) < 2:
        return float("nan")
    return float(roc_auc_score(abnormal[known], scores[known]))


def spearman_by_target(scores: np.ndarray, dice: np.ndarray, targets: Sequence[str]) -> pd.DataFrame:
    """target, n, rho, p, p_adjusted (Benjamini and Hochberg, over targets): scores against Dice, (cases, targets) each.

    n counts the cases that have both; NaN where they are fewer than 3 or all alike.
    """
    rows = []
    for index, target in enumerate(targets):
        both = np.isfinite(scores[:, index]) & np.isfinite(dice[:, index])
        rows.append((target, int(both.sum()), *rank_correlation(scores[both, index], dice[both, index])))
    table = pd.DataFrame(rows, columns=["target", "n", "rho", "p"])
    return table.assign(p_adjusted=benjamini_hochberg(table["p"].to_numpy()))


def rank_correlation(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Spearman's rho and its p-value; NaN of fewer than 3 values or values that are all alike."""
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan"), float("nan")
    found = spearmanr(one, other)
    return float(found.statistic), float(found.pvalue)


def _fitted(name: str, rows: np.ndarray) -> Target | None:
    present = rows[np.isfinite(rows).any(axis=1)]
    if len(present) < LEAST_CASES:
        return None
    # A region that no case of the cohort has is one without evidence.
    seen = np.isfinite(present).any(axis=0)
    ordinary = np.zeros(rows.shape[1])
    ordinary[seen] = np.nanmedian(present[:, seen], axis=0)
    return Target(ordinary, DETECTORS[name](_filled(present, ordinary)))


def _filled(rows: np.ndarray, ordinary: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(rows), rows, ordinary)


def _rows(scored: Importance, name: str, scores: np.ndarray, limits: np.ndarray) -> pd.DataFrame:
    cases, targets = len(scored.cases), len(scored.targets)
    known = np.isfinite(scores)
    columns = (
        np.repeat(np.array(scored.cases, object), targets),
        np.tile(np.array(scored.targets, object), cases),
        name,
        scores.reshape(-1),
        pd.arrays.BooleanArray((scores > limits).reshape(-1), ~known.reshape(-1)),
    )
    return pd.DataFrame(dict(zip(TABLE, columns, strict=True)))
