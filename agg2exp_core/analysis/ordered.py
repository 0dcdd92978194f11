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
        self._present = np.isfinite(self._values)
        self._known = np.where(self._present, self._values, 0)

    def matrix(self, chosen: np.ndarray) -> pd.DataFrame:
        """As `summary.matrix` of the chosen cases. chosen: (cases,) bool."""
        count = self._present @ chosen.astype(np.float32)
        present = count.astype(np.int64)
        with np.errstate(invalid="ignore"):
            mean = self._known @ chosen.astype(float) / np.where(present, present, np.nan)
        # How many chosen cases lie at or below each place of the order: the median is where half of them do.
        below = np.cumsum(chosen[self._order], axis=-1, dtype=np.int32)
        low, high = (self._at(below, nth) for nth in ((present - 1) // 2, present // 2))
        median = np.where(present, low + (high - low) / 2, np.nan)
        return cells(self._importance, median, mean, present)

    def _at(self, below: np.ndarray, nth: np.ndarray) -> np.ndarray:
        """The nth smallest of the chosen values, cell by cell, counted from 0."""
        place = (below > nth[..., None]).argmax(axis=-1)[..., None]
        case = np.take_along_axis(self._order, place, axis=-1)
        return np.take_along_axis(self._values, case, axis=-1)[..., 0]
