"""The organ × organ matrix of any choice of cases, at once: every cell's values were put in order before."""

from __future__ import annotations

import numpy as np
import pandas as pd

from agg2exp_core.analysis.importance import Importance
from agg2exp_core.analysis.summary import cells

BLOCK = 8
"""Cases whose bits are counted at once."""


class Ordered:
    """An array whose cells are sorted, at 8 bytes a number.

    A filter then costs a look along each cell, where `summary.matrix` of the cases taken would copy and part them.
    """

    def __init__(self, importance: Importance):
        self._importance = importance
        self._values = np.moveaxis(importance.values, 0, -1)
        order = np.argsort(self._values, axis=-1)  # absent values last
        count = len(importance.cases)
        # Behind all cases, one that is never chosen fills the last block.
        self._order = np.pad(order, ((0, 0), (0, 0), (0, -count % BLOCK)), constant_values=count)
        # Rows of one table each, as numbers: so a sum over the chosen cases is one product.
        present = np.isfinite(self._values).reshape(-1, count)
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
        # The median is where half of the chosen cases lie below in the order.
        there = np.append(chosen, False)[self._order]
        through = np.cumsum(np.bitwise_count(np.packbits(there, axis=-1)), axis=-1, dtype=np.int32)
        low, high = (self._at(there, through, nth) for nth in ((present - 1) // 2, present // 2))
        median = np.where(present, low + (high - low) / 2, np.nan)
        return cells(self._importance, median, mean, present)

    def _at(self, there: np.ndarray, through: np.ndarray, nth: np.ndarray) -> np.ndarray:
        """The nth smallest of the chosen values, cell by cell, counted from 0; where none is present: any.

        there: which of a cell's ordered cases are chosen; through: how many are so up to the end of each block.
        """
        rows, wanted = through.reshape(-1, through.shape[-1]), nth.reshape(-1)
        found = [row.searchsorted(at, side="right") for row, at in zip(rows, wanted, strict=True)]
        block = np.minimum(found, through.shape[-1] - 1).reshape(*nth.shape, 1)
        inside = np.cumsum(np.take_along_axis(there, BLOCK * block + np.arange(BLOCK), axis=-1), axis=-1)
        before = np.take_along_axis(through, block, axis=-1) - inside[..., -1:]
        place = BLOCK * block + np.argmax(before + inside > nth[..., None], axis=-1)[..., None]
        case = np.minimum(np.take_along_axis(self._order, place, axis=-1), self._values.shape[-1] - 1)
        return np.take_along_axis(self._values, case, axis=-1)[..., 0]
