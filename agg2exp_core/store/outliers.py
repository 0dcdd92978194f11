"""A run's outliers: `runs/<cohort>/<run>/outliers.csv`, which the view `outliers` reads."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from agg2exp_core.files import write_text
from agg2exp_core.settings import checked_id
from agg2exp_core.store.catalog import OUTLIER_COLUMNS


def write_outliers(root: Path, cohort: str, run: str, table: pd.DataFrame) -> Path:
    """Replace the run's outliers at once: case_id, target, detector, score, flagged; empty where there is no score."""
    path = root / "runs" / checked_id("cohort", cohort) / checked_id("run", run) / "outliers.csv"
    flagged = table["flagged"].map({True: "true", False: "false"})
    rows = table.assign(flagged=flagged)[list(OUTLIER_COLUMNS)]
    write_text(path, rows.to_csv(index=False, lineterminator="\n"))
    return path
