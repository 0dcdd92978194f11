"""Who the outliers are: their metadata against that of all other cases."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import fisher_exact, mannwhitneyu, ttest_ind

from agg2exp_core.analysis.significance import benjamini_hochberg
from agg2exp_core.records import InputError

FEWEST = 2
"""Values that a test of numbers needs on each side."""

MOST_VALUES = 50
"""Of a category; one with more names scans, and its tests would drown those of the others."""

RESULT = ("column", "value", "n_outliers", "n_rest", "outliers", "rest", "difference", "low", "high", "p", "p_t")


def compare_metadata(table: pd.DataFrame, outlier: np.ndarray) -> pd.DataFrame:
    """A row for each column of numbers and for each value of each category, smallest p first.

    Of a category with two values alone that which is more frequent among the outliers: the other's row is its mirror.

    table: (cases, columns) of metadata; outlier: (cases,) bool. In the result, `outliers` and `rest` are means of
    numbers (value "") or shares of cases, `difference` theirs with its 95 % interval (Welch's for means, Newcombe's for
    shares). p: Mann and Whitney's U or Fisher's exact test; p_t: Welch's t, of numbers; p_adjusted: Benjamini and
    Hochberg over all rows. n counts the cases in which the column is filled, with a finite number, and no others
    count. Categories of more than MOST_VALUES have no rows.
    InputError: another number of cases, or nobody on one side.
    """
    if len(outlier) != len(table):
        raise InputError("every case must be an outlier or not", f"{len(outlier)} of {len(table)}")
    if not 0 < np.count_nonzero(outlier) < len(outlier):
        raise InputError("outliers and other cases are needed to compare them", f"{np.count_nonzero(outlier)} outliers")
    rows: list[tuple[object, ...]] = []
    for name, column in table.items():
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            numbers = column.to_numpy(float, na_value=np.nan)
            known = np.isfinite(numbers)
            rows.append((name, "", *_numbers(numbers[known & outlier], numbers[known & ~outlier])))
            continue
        known = column.notna().to_numpy()
        given, odd = column[known].astype(str), outlier[known]
        values = sorted(given.unique())
        if len(values) == 2:
            # One is all that the other is not: the same test twice, which the correction would count twice.
            values = [max(values, key=lambda value: np.mean(odd[(given == value).to_numpy()]))]
        if len(values) <= MOST_VALUES:
            rows += [(name, value, *_shares((given == value).to_numpy(), odd)) for value in values]
    found = pd.DataFrame(rows, columns=list(RESULT))
    found["p_adjusted"] = benjamini_hochberg(found["p"].to_numpy(float))
    return found.sort_values("p", kind="stable", ignore_index=True)


def _numbers(outliers: np.ndarray, rest: np.ndarray) -> tuple[float, ...]:
    """RESULT from n_outliers on."""
    counts = len(outliers), len(rest)
    means = [float(side.mean()) if len(side) else np.nan for side in (outliers, rest)]
    if min(counts) < FEWEST or np.ptp(np.concatenate([outliers, rest])) == 0:
        return (*counts, *means, means[0] - means[1], np.nan, np.nan, np.nan, np.nan)
    welch = ttest_ind(outliers, rest, equal_var=False)
    interval = welch.confidence_interval()
    ranks = mannwhitneyu(outliers, rest).pvalue
    return (*counts, *means, means[0] - means[1], interval.low, interval.high, ranks, welch.pvalue)


def _shares(has: np.ndarray, odd: np.ndarray) -> tuple[float, ...]:
    """RESULT from n_outliers on."""
    # A second to import, and needed here only.
    from statsmodels.stats.proportion import confint_proportions_2indep

    counts = np.array([np.count_nonzero(odd), np.count_nonzero(~odd)])
    hits = np.array([np.count_nonzero(has & odd), np.count_nonzero(has & ~odd)])
    if counts.min() == 0:
        shares = np.divide(hits, counts, out=np.full(2, np.nan), where=counts > 0)
        return (*counts, *shares, np.nan, np.nan, np.nan, np.nan, np.nan)
    shares = hits / counts
    low, high = confint_proportions_2indep(hits[0], counts[0], hits[1], counts[1], method="newcomb", compare="diff")
    p = fisher_exact([hits, counts - hits]).pvalue
    return (*counts, *shares, shares[0] - shares[1], low, high, p, np.nan)
