"""Do two methods say the same of a case?"""

from __future__ import annotations

import pandas as pd
from scipy.stats import spearmanr


def rank_agreement(one: pd.DataFrame, other: pd.DataFrame) -> tuple[float, int] | None:
    """Spearman's ρ of two tables of one case and target (region, value), and over how many regions both have.

    None where there are fewer than five, or one of them says nothing.
    """
    both = pd.merge(one[["region", "value"]], other[["region", "value"]], on="region").dropna()
    if len(both) < 5 or both["value_x"].nunique() < 2 or both["value_y"].nunique() < 2:
        return None
    return float(spearmanr(both["value_x"].astype(float), both["value_y"].astype(float)).statistic), len(both)
