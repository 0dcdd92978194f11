"""p-values of many tests at once."""

from __future__ import annotations

import numpy as np
from scipy.stats import false_discovery_control


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """p-values of any shape, adjusted so that a cut at q leaves a share of q false discoveries at most; NaN stays."""
    adjusted = np.full(np.shape(p), np.nan)
    tested = np.isfinite(p)
    if tested.any():
        adjusted[tested] = false_discovery_control(np.asarray(p)[tested])
    return adjusted
