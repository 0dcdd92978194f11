"""What differs between two sets of explanations: models, runs, cohorts, filters."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu, wilcoxon

from agg2exp_core.analysis.importance import Importance, take_cases, take_organs, to_array
from agg2exp_core.analysis.significance import benjamini_hochberg
from agg2exp_core.records import InputError

STATISTICS = ("median", "mean")
DRAWS, CONFIDENCE, SEED = 1000, 0.95, 0
FEWEST = 2
"""Values that an interval or a test needs, in each set."""

DICE, MEAN = "dice", "mean"
"""Names of the only region, and the only target, of Dice as importance."""

BLOCK = 1 << 22
"""Resampling weights that are held at a time."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """paired: whether cases were compared with themselves. cases: how many of each set were compared.

    left_out: organs that only one of the sets has. table: a row for each target and region that both sets have. Its
    columns: target, region, n_first, n_second, first, second (median or mean), difference, low, high (bootstrap,
    95 %), p (Wilcoxon's signed ranks or Mann and Whitney's U), p_adjusted (Benjamini and Hochberg, over all pairs).
    """

    paired: bool
    cases: tuple[int, int]
    left_out: tuple[str, ...]
    table: pd.DataFrame


def compare(first: Importance, second: Importance, statistic: str = "median", paired: bool | None = None) -> Comparison:
    """Second minus first, pair by pair.

    Paired, the difference is the statistic of the cases' differences, of cases that have the pair in both sets; else
    it is the difference of the two statistics. paired True compares the cases whose ids are in both sets and leaves out
    the others, False takes the sets as independent, None pairs sets of the same ids, whatever their order. Pairs with
    fewer than two values have no interval and no p. InputError: an unknown statistic, a set without cases, no target
    and region in common.
    """
    if statistic not in STATISTICS:
        raise InputError("statistic must be known", repr(statistic), ", ".join(STATISTICS))
    if paired is None:
        paired = sorted(first.cases) == sorted(second.cases)
    if paired:
        first, second = _in_both(first, second)
    if not first.cases or not second.cases:
        raise InputError("each of two sets needs a case to be compared", f"{len(first.cases)} and {len(second.cases)}")
    targets, regions = (
        [name for name in one if name in other]
        for one, other in ((first.targets, second.targets), (first.regions, second.regions))
    )
    if not targets or not regions:
        raise InputError("two sets need a target and a region in common to be compared", "none")
    one, other = _flat(first, targets, regions), _flat(second, targets, regions)
    if paired:
        both = np.isfinite(one) & np.isfinite(other)
        one, other = (np.where(both, values, np.nan) for values in (one, other))
    columns = _differences(one, other, statistic, paired)
    organs = [dict.fromkeys((*importance.targets, *importance.regions)) for importance in (first, second)]
    return Comparison(
        paired,
        (len(first.cases), len(second.cases)),
        tuple(name for name in (*organs[0], *organs[1]) if (name in organs[0]) != (name in organs[1])),
        pd.DataFrame(
            {"target": np.repeat(targets, len(regions)).astype(object), "region": regions * len(targets), **columns}
        ),
    )


def compare_dice(first: pd.DataFrame, second: pd.DataFrame, paired: bool) -> tuple[Comparison, Comparison]:
    """Mean Dice of two sets: organ by organ, and each case's mean over the organs that both sets have.

    first, second: case_id, target, dice. InputError: a set without Dice, no organ in common.
    """
    if first.empty or second.empty:
        raise InputError("each of two sets needs Dice to be compared", "none in one of them")
    one, other = (to_array(table.rename(columns={"dice": "value"}).assign(region=DICE)) for table in (first, second))
    shared = [name for name in one.targets if name in other.targets]
    overall = [_over_targets(take_organs(dice, shared, [DICE])) for dice in (one, other)]
    return compare(one, other, "mean", paired), compare(overall[0], overall[1], "mean", paired)


def largest_changes(comparison: Comparison, n: int = 10) -> pd.DataFrame:
    """The n rows of largest difference, either way, largest first."""
    table = comparison.table.dropna(subset="difference")
    return table.sort_values("difference", key=np.abs, ascending=False, kind="stable").head(n).reset_index(drop=True)


def bootstrap(values: np.ndarray, statistic: str, rng: np.random.Generator) -> np.ndarray:
    """(cases, pairs), NaN where absent → (DRAWS, pairs): the statistic of cases drawn with replacement.

    Medians are drawn from the cases that have the pair, means from all cases of the set:
    NaN where none of the drawn ones has a value.
    """
    return _median_draws(values, rng) if statistic == "median" else _mean_draws(values, rng)


def _in_both(first: Importance, second: Importance) -> tuple[Importance, Importance]:
    """The cases that both sets have, in the order of the first."""
    place = {case: row for row, case in enumerate(second.cases)}
    rows = [row for row, case in enumerate(first.cases) if case in place]
    others = [place[first.cases[row]] for row in rows]
    return take_cases(first, np.array(rows, np.int64)), take_cases(second, np.array(others, np.int64))


def _over_targets(importance: Importance) -> Importance:
    """Each case's mean over the targets that it has, as the only target."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a case without values is NaN
        values = np.nanmean(importance.values, axis=1, keepdims=True)
    return replace(importance, targets=(MEAN,), values=values)


def _flat(importance: Importance, targets: list[str], regions: list[str]) -> np.ndarray:
    """(cases, pairs) of the named targets and regions."""
    return take_organs(importance, targets, regions).values.reshape(len(importance.cases), -1)


def _differences(one: np.ndarray, other: np.ndarray, statistic: str, paired: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(SEED)
    counts = [np.isfinite(values).sum(axis=0) for values in (one, other)]
    first, second = _centre(one, statistic), _centre(other, statistic)
    change = other - one if paired else None
    if change is not None:
        difference, draws = _centre(change, statistic), bootstrap(change, statistic, rng)
    else:
        difference = second - first
        draws = bootstrap(other, statistic, rng) - bootstrap(one, statistic, rng)
    enough = np.minimum(*counts) >= FEWEST
    interval = np.full((2, len(enough)), np.nan)
    # A draw may hit none of the few cases that have a pair; it then says nothing of it.
    ends = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    interval[:, enough] = np.nanquantile(draws[:, enough], ends, axis=0)
    p = np.where(enough, _signed_ranks(change) if change is not None else _ranks(one, other), np.nan)
    return {
        "n_first": counts[0], "n_second": counts[1], "first": first, "second": second, "difference": difference,
        "low": interval[0], "high": interval[1], "p": p, "p_adjusted": benjamini_hochberg(p),
    }  # fmt: skip


def _centre(values: np.ndarray, statistic: str) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a pair without values is NaN
        return np.nanmedian(values, axis=0) if statistic == "median" else np.nanmean(values, axis=0)


def _median_draws(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bootstrap medians without drawing a single case.

    A drawn case is the sorted value at place ⌊n·U⌋ with U uniform, which keeps the order; so the middle of n drawn
    values is the value at the middle of n uniforms, and that is Beta distributed. Exact, and as cheap for 10,000
    cases as for ten.
    """
    n = np.isfinite(values).sum(axis=0)
    ordered = np.sort(values, axis=0)  # NaN last
    size = np.maximum(n, 1)
    lower = (size + 1) // 2
    u = rng.beta(lower, size - lower + 1, (DRAWS, len(n)))
    # For even n the middle is between two places, and the upper one is the least of the uniforms above the lower.
    above = np.where(size % 2 == 0, u + (1 - u) * rng.beta(1, np.maximum(size - lower, 1), u.shape), u)
    places = [np.minimum((size * at).astype(np.int64), size - 1) for at in (u, above)]
    return (np.take_along_axis(ordered, places[0], 0) + np.take_along_axis(ordered, places[1], 0)) / 2


def _mean_draws(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How often each case is drawn is multinomial; drawn cases without a value count for nothing."""
    cases = len(values)
    known = np.isfinite(values)
    filled = np.where(known, values, 0)
    draws = []
    step = max(BLOCK // max(cases, 1), 1)
    for start in range(0, DRAWS, step):
        weights = rng.multinomial(cases, np.full(cases, 1 / cases), min(step, DRAWS - start)).astype(np.float64)
        count = weights @ known
        draws.append(np.divide(weights @ filled, count, out=np.full_like(count, np.nan), where=count > 0))
    return np.concatenate(draws)


def _signed_ranks(change: np.ndarray) -> np.ndarray:
    """Wilcoxon's p for each pair; 1 where no case changed, which the test itself cannot say.

    Cases that did not change are left out, as the test has it, so that few others still get the exact p. Where sizes
    of change are tied it is the approximate one: SciPy would go through all 2ⁿ signs, seconds for each pair.
    """
    moved = np.where(change == 0, np.nan, change)
    sizes = np.sort(np.abs(moved), axis=0)
    tied = (np.diff(sizes, axis=0) == 0).any(axis=0)
    p = np.full(moved.shape[1], np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for columns, method in ((tied, "asymptotic"), (~tied, "auto")):
            if columns.any():
                p[columns] = wilcoxon(moved[:, columns], axis=0, nan_policy="omit", method=method).pvalue
    still = np.isnan(moved).all(axis=0) & np.isfinite(change).any(axis=0)
    return np.where(still, 1.0, p)


def _ranks(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return mannwhitneyu(one, other, axis=0, nan_policy="omit").pvalue
