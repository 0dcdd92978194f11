"""Local explanations of many cases as one array, and what follows from it cell by cell."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from agg2exp_core.organs import BACKGROUND
from agg2exp_core.records import InputError

COLUMNS = ("case_id", "target", "region", "value")


@dataclass(frozen=True, eq=False)
class Importance:
    """values: (cases, targets, regions) float64, NaN where a target or region is absent; and the names of its axes.

    Usually masses, shares without a unit; all but `foreground` and what asks for masses take means as well. In memory
    the cases of one cell lie side by side, as medians and quantiles ask for them.
    """

    cases: tuple[str, ...]
    targets: tuple[str, ...]
    regions: tuple[str, ...]
    values: np.ndarray


def to_array(table: pd.DataFrame, names: Sequence[str] = ()) -> Importance:
    """The long table (case_id, target, region, value; a row a number, null where absent) as an array.

    Cases in the order of their first row. Organs in that of `names`, which may hold others too; those it lacks follow.
    A column of ordered categories brings its own order. Rows that are not there are NaN.
    InputError: a column is missing, a row comes twice, a value is infinite.
    """
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise InputError(f"local explanations need the columns {', '.join(COLUMNS)}", f"none named {missing[0]}")
    (case, cases), (target, targets), (region, regions) = (
        _coded(table[column], order) for column, order in zip(COLUMNS, ((), names, names), strict=False)
    )
    values = table["value"].to_numpy(np.float64, na_value=np.nan)
    if np.isinf(values).any():
        raise InputError("importance must be finite or absent", "an infinite value")
    shape = len(targets), len(regions), len(cases)
    place = (target * shape[1] + region) * shape[2] + case
    if np.bincount(place).max(initial=0) > 1:
        raise InputError("every case, target and region must be there once", "a row twice")
    filled = np.full(shape, np.nan)
    filled.reshape(-1)[place] = values
    return Importance(cases, targets, regions, np.moveaxis(filled, -1, 0))


def take_cases(importance: Importance, rows: np.ndarray) -> Importance:
    """Only the cases of a mask or of indices, in their order."""
    chosen = np.arange(len(importance.cases))[rows]
    cases = tuple(importance.cases[row] for row in chosen)
    values = np.take(np.moveaxis(importance.values, 0, -1), chosen, axis=-1)
    return replace(importance, cases=cases, values=np.moveaxis(values, -1, 0))


def take_organs(importance: Importance, targets: Sequence[str], regions: Sequence[str]) -> Importance:
    """Only the named targets and regions, in the order of the names."""
    rows, columns = (
        [own.index(name) for name in names]
        for own, names in ((importance.targets, targets), (importance.regions, regions))
    )
    values = importance.values[:, rows][:, :, columns]
    return Importance(importance.cases, tuple(targets), tuple(regions), values)


def roots(masses: np.ndarray) -> np.ndarray:
    """√mass, whose distances are Hellinger's but for a factor."""
    # A published share may lie a millionth below 0, by rounding.
    return np.sqrt(np.maximum(masses, 0))


def foreground(importance: Importance) -> Importance:
    """Masses among the organs alone: no background as target or region, each row divided by what is left of it.

    A row of which nothing is left is NaN.
    """
    organs = [[name for name in names if name != BACKGROUND] for names in (importance.targets, importance.regions)]
    kept = take_organs(importance, *organs)
    left = np.nansum(kept.values, axis=2, keepdims=True)
    return replace(kept, values=np.divide(kept.values, left, out=np.full_like(kept.values, np.nan), where=left > 0))


def medians(importance: Importance) -> pd.DataFrame:
    """(targets × regions): the median over the cases that have both; NaN where none has."""
    return _over_cases(_quick(np.median, np.nanmedian), importance)


def means(importance: Importance) -> pd.DataFrame:
    """(targets × regions): the mean over the cases that have both, as the published graph takes it."""
    return _over_cases(_quick(np.mean, np.nanmean), importance)


def context(importance: Importance) -> pd.DataFrame:
    """(cases × targets): the mass of each target's explanation inside the target itself; the rest is its context.

    Targets that are no region have no column.
    """
    own = [name for name in importance.targets if name in importance.regions]
    columns = {
        name: importance.values[:, importance.targets.index(name), importance.regions.index(name)] for name in own
    }
    return pd.DataFrame(columns, index=pd.Index(importance.cases, name="case_id"), columns=pd.Index(own, dtype=object))


def _quick(usual: Callable[..., np.ndarray], careful: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """A statistic that passes over what is absent, but asks the slow one only for cells that lack something."""

    def statistic(values: np.ndarray, axis: int) -> np.ndarray:
        found = usual(values, axis=axis)
        lacking = np.isnan(found)
        if lacking.any():
            found[lacking] = careful(np.moveaxis(values, axis, -1)[lacking], axis=-1)
        return found

    return statistic


def _coded(column: pd.Series, order: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Codes of the names, and the names that they stand for."""
    own_order = isinstance(column.dtype, pd.CategoricalDtype) and bool(column.cat.ordered)
    codes, found = (column.cat.codes.to_numpy(), column.cat.categories) if own_order else pd.factorize(column)
    if (codes < 0).any():
        raise InputError("every row of local explanations must name its case and organs", f"an empty {column.name}")
    names = [str(name) for name in found]
    if own_order:
        # A category that no row has leaves a gap in the codes.
        used = np.bincount(codes, minlength=len(names)) > 0
        return (np.cumsum(used) - 1)[codes], tuple(name for name, there in zip(names, used, strict=True) if there)
    known = set(names)
    ordered = [name for name in dict.fromkeys(order) if name in known]
    ordered += [name for name in names if name not in set(ordered)]
    place = {name: index for index, name in enumerate(ordered)}
    return np.array([place[name] for name in names], np.int64)[codes], tuple(ordered)


def _over_cases(statistic: Callable[..., np.ndarray], importance: Importance) -> pd.DataFrame:
    with warnings.catch_warnings():
        # NumPy warns of cells without any value; that is what their NaN says.
        warnings.simplefilter("ignore", RuntimeWarning)
        values = statistic(importance.values, axis=0)
    return pd.DataFrame(
        values, index=pd.Index(importance.targets, name="target"), columns=pd.Index(importance.regions, name="region")
    )
