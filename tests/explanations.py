"""Local explanations for the tests of the analysis: the published table, and made-up cohorts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from agg2exp_core.analysis.importance import Importance, to_array
from agg2exp_core.store.published_csv import local_column, read_wide

ORGANS = ("background", "heart", "aorta", "ribs", "liver")


def published(published_table: Path) -> tuple[Importance, np.ndarray]:
    """Masses of the published table, and Dice (cases, targets)."""
    layout, rows = read_wide(published_table)
    local = [
        (case, target, region, row[local_column(target, region, "mass")])
        for case, row in rows.items()
        for target in layout.targets
        for region in layout.regions
    ]
    masses = to_array(pd.DataFrame(local, columns=["case_id", "target", "region", "value"]), layout.targets)
    return masses, np.array([[row[f"{target}_dice"] for target in layout.targets] for row in rows.values()], np.float64)


def made_up(cases: int, seed: int = 0, organs: tuple[str, ...] = ORGANS) -> Importance:
    """Masses drawn around one and the same explanation, which is large on the target itself."""
    rng = np.random.default_rng(seed)
    usual = 40 * (np.eye(len(organs)) + 0.2)
    values = np.stack([rng.dirichlet(row, cases) for row in usual], axis=1)
    return Importance(tuple(f"case-{number:03}" for number in range(cases)), organs, organs, values)
