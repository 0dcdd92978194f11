"""What the charts of a cohort show, from its array: the same as `queries.box_stats` and `queries.matrix` say in SQL.

Where the array fits the memory it answers many times faster than millions of rows read anew for every filter.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from agg2exp_core.analysis.importance import Importance, means, medians

BOX = ("region", "n", "low", "q1", "median", "q3", "high", "outliers")
HISTOGRAM = ("target", "region", "low", "high", "count", "median", "n")
WHISKER = 1.5
"""Whiskers reach the last value within so many box lengths."""


def box_stats(importance: Importance, target: str) -> pd.DataFrame:
    """region, n, low, q1, median, q3, high, outliers: one box a region, largest median first; n 0 without values."""
    rows = importance.values[:, importance.targets.index(target)]
    return boxes({name: rows[:, place] for place, name in enumerate(importance.regions)})


def boxes(values: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """As `box_stats`, of the values (cases,) of each region; NaN where absent."""
    table = pd.DataFrame([(name, *_box(own)) for name, own in values.items()], columns=list(BOX))
    order = ["median", "region"]
    return table.sort_values(order, ascending=[False, True], na_position="last", ignore_index=True)


def matrix(importance: Importance) -> pd.DataFrame:
    """target, region, value (median), mean, n: every cell, in the order of the array."""
    present = np.isfinite(importance.values).sum(axis=0)
    return cells(importance, medians(importance).to_numpy(), means(importance).to_numpy(), present)


def cells(importance: Importance, median: np.ndarray, mean: np.ndarray, present: np.ndarray) -> pd.DataFrame:
    """The table of `matrix` from its numbers, each (targets, regions)."""
    return pd.DataFrame(
        {
            "target": np.repeat(np.array(importance.targets, object), len(importance.regions)),
            "region": np.tile(np.array(importance.regions, object), len(importance.targets)),
            "value": median.reshape(-1),
            "mean": mean.reshape(-1),
            "n": present.reshape(-1),
        }
    )


def _box(values: np.ndarray) -> tuple[object, ...]:
    """BOX from n on."""
    values = np.sort(values[np.isfinite(values)])
    if not len(values):
        return 0, np.nan, np.nan, np.nan, np.nan, np.nan, []
    q1, median, q3 = np.quantile(values, [0.25, 0.5, 0.75])
    reach = WHISKER * (q3 - q1)
    first, end = values.searchsorted(q1 - reach), values.searchsorted(q3 + reach, side="right")
    beyond = [*values[:first].tolist(), *values[end:].tolist()]
    return len(values), values[first], q1, median, q3, values[end - 1], beyond


def histograms(cells: Mapping[tuple[str, str], np.ndarray], bins: int = 24) -> pd.DataFrame:
    """target, region, low, high, count, median, n: a row a bin, of the values (cases,) of each (target, region).

    All share their edges, evenly spaced on the square root from 0 to the largest value, so that small shares are told
    apart and cells compared. NaN, where absent, does not count.
    """
    known = {pair: values[np.isfinite(values)] for pair, values in cells.items()}
    top = max([1e-12, *(float(values.max()) for values in known.values() if len(values))])
    edges = np.linspace(0, np.sqrt(top), bins + 1) ** 2
    edges[-1] = top  # not below it by rounding, which would lose the largest
    tables = [pd.DataFrame(columns=list(HISTOGRAM))]
    for (target, region), values in known.items():
        # A published share may lie a millionth below 0, by rounding.
        counts = np.histogram(np.maximum(values, 0), edges)[0]
        cell = {"target": target, "region": region, "low": edges[:-1], "high": edges[1:], "count": counts}
        median = np.median(values) if len(values) else np.nan
        tables.append(pd.DataFrame(cell | {"median": median, "n": len(values)}))
    return pd.concat(tables[1:] or tables, ignore_index=True)
