"""The organ × organ matrix of any choice of cases, at once: every cell's values were put in order before."""

from __future__ import annotations

import numpy as np
import pandas as pd

from agg2exp_core.analysis.importance import Importance
from agg2exp_core.analysis.summary import cells


class Ordered:
    """An array whose cells are sorted, at 4 bytes a number.

    A filter then costs a look along each cell, where `summary.matrix` of the cases taken would copy and part them.
    """

    def __init__(self, importance: Importance):
        self._importance = importance
        self._values = np.moveaxis(importance.values, 0, -1)
        self._order = np.argsort(self._values, axis=-1).astype(np.int32)  # absent values last
        # Rows of one table each, as numbers: so a sum over the chosen cases is one product.
        present = np.isfinite(self._values).reshape(-1, len(importance.cases))
        self._present, self._known = (
            present.astype(np.float32),
            np.where(present, self._values.reshape(present.shape), 0),
        )

    def matrix(self, chosen: np.ndarray) -> pd.DataFrame:
        """As `summary.matrix` of the chosen cases. chosen: (cases,) bool."""
        shape = self._values.shape[:2]
        present = (self._present @ chosen.astype(np.float32)).astype(np.int64).reshape(shape)
        with np.errstate(invalid="ignore"):
            mean = (self._known @ chosen.astype(float)).reshape(shape) / np.where(present, present, np.nan)
        # How many chosen cases lie at or below each place of the order: the median is where half of them do.
        below = np.cumsum(chosen[self._order], axis=-1, dtype=np.int32)
        low, high = (self._at(below, nth) for nth in ((present - 1) // 2, present // 2))
        median = np.where(present, low + (high - low) / 2, np.nan)
        return cells(self._importance, median, mean, present)

    def _at(self, below: np.ndarray, nth: np.ndarray) -> np.ndarray:
        """The nth smallest of the chosen values, cell by cell, counted from 0."""
        rows, wanted = below.reshape(-1, below.shape[-1]), nth.reshape(-1)
        found = [row.searchsorted(at, side="right") for row, at in zip(rows, wanted, strict=True)]
        place = np.minimum(found, below.shape[-1] - 1).reshape(*nth.shape, 1)  # where none is present: any will do
        case = np.take_along_axis(self._order, place, axis=-1)
        return np.take_along_axis(self._values, case, axis=-1)[..., 0]
