"""DuckDB on the stored run against pandas on the same file: what the Cohort page asks of 10,000 cases."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from agg2exp_core.records import Condition, Selection
from agg2exp_core.store import catalog, queries
from bench import synthetic
from bench.clock import best_of_three

CASES = 10_000
TARGET = "heart"
SELECTION = Selection(synthetic.COHORT, synthetic.RUN, where=(Condition("age", low=40, high=70),))


def main() -> list[tuple[str, str]]:
    """Rows of figure name and value: the filtered matrix and the filtered boxes' medians, each from the file."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        synthetic.write_root(root, CASES)
        con = catalog.connect(root)
        rows = []
        for what, ours, theirs in (
            ("matrix", lambda: queries.matrix(con, SELECTION), lambda: _pandas(root, None)),
            ("boxes of one target", lambda: queries.box_stats(con, SELECTION, TARGET), lambda: _pandas(root, TARGET)),
        ):
            answer, fast = best_of_three(ours)
            expected, slow = best_of_three(theirs)
            _check(answer, expected)
            rows.append((f"store, {CASES:,} cases: {what}, DuckDB", f"{fast:.2f} s, {slow / fast:.1f} times pandas'"))
        return rows


def _pandas(root: Path, target: str | None) -> pd.Series:
    """Medians of shares by (target, region), of the cases that pass."""
    run = root / "runs" / synthetic.COHORT / synthetic.RUN
    table = pd.read_parquet(run / "importance.parquet")
    listed = pd.read_csv(root / "cohorts" / synthetic.COHORT / "cases.csv", dtype={"case_id": str})
    table = table[table["case_id"].isin(listed.loc[listed["age"].between(40, 70), "case_id"])]
    table = table[table["target"] == target] if target else table
    share = (table["positive"] + table["negative"]) / (table["positive_total"] + table["negative_total"])
    return share.groupby([table["target"], table["region"]], observed=True).median()


def _check(answer: pd.DataFrame, expected: pd.Series) -> None:
    about = answer if "target" in answer else answer.assign(target=TARGET, value=answer["median"])
    found = about.set_index(["target", "region"])["value"].dropna()
    assert np.allclose(found, expected.reindex(found.index), rtol=1e-6)
