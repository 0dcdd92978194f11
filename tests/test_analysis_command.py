"""`agg2exp outliers`: from runs to the view, and everything that is refused."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import run
from explanations import ORGANS, made_up

from agg2exp_core.analysis.importance import Importance, to_array
from agg2exp_core.analysis.outliers import fit, held_out
from agg2exp_core.records import InputError, Selection
from agg2exp_core.store import catalog, queries
from agg2exp_core.store.published_csv import Layout, import_csv, local_column

USUAL, CLINIC = made_up(12), made_up(4, seed=1)
HEART, RIBS = ORGANS.index("heart"), ORGANS.index("ribs")


def _import(root: Path, masses: Importance, cohort: str, run: str = "r") -> None:
    """As a wide table, in which an absent organ's cells are empty."""
    wide = pd.DataFrame({"patient": masses.cases})
    for i, target in enumerate(masses.targets):
        for j, region in enumerate(masses.regions):
            for value in ("mass", "mean"):
                wide[local_column(target, region, value)] = masses.values[:, i, j]
    file = root / "wide.csv"
    wide[Layout(masses.targets, masses.regions, False, ()).columns()].to_csv(file, index=False)
    import_csv(root, file, cohort, run)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A cohort of usual cases and a clinic, whose first case looks at the ribs and whose last has no heart."""
    values = CLINIC.values.copy()
    values[0, HEART], values[3, HEART], values[3, :, HEART] = values[0, RIBS], np.nan, np.nan
    _import(tmp_path, USUAL, "usual")
    _import(tmp_path, replace(CLINIC, values=values), "clinic")
    return tmp_path


def test_outliers_reach_their_view(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = catalog.refresh(root)
    assert run("outliers", "--fit", "usual", "--score", "clinic:r", "--data", root) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and said.startswith("4 cases of clinic:r scored against 12 of usual:r: ")
    assert catalog.refresh(root) != before
    con = catalog.connect(root)
    table = con.execute("FROM outliers").df()
    assert len(table) == 4 * 5 * 4 and set(table["cohort"] + table["run"]) == {"clinicr"}
    absent = table.query("case_id == 'case-003' and target == 'heart'")
    assert absent[["score", "flagged"]].isna().all(axis=None) and table["score"].isna().sum() == len(absent) == 4
    planted = table.query("case_id == 'case-000' and target == 'heart'").set_index("detector")["flagged"]
    assert planted[["robust_z", "neighbours", "mahalanobis"]].all()
    masses = [
        to_array(queries.local_explanations(con, Selection(name, "r")), ORGANS).values for name in ("usual", "clinic")
    ]
    np.testing.assert_array_equal(masses[0], USUAL.values)
    scores = table[table["detector"] == "robust_z"]["score"]
    np.testing.assert_array_equal(scores, fit("robust_z", masses[0]).score(masses[1]).reshape(-1))


def test_a_cohort_that_judges_itself_is_held_out_and_replaces_what_was_there(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = root / "runs" / "usual" / "r" / "outliers.csv"
    file.write_text("old")
    assert run("outliers", "--fit", "usual:r", "--score", "usual", "--data", root) == 0
    scores = pd.read_csv(file).query("detector == 'mahalanobis'")["score"]
    np.testing.assert_allclose(scores, held_out("mahalanobis", USUAL.values, len(USUAL.values)).reshape(-1), rtol=1e-12)
    assert [path.name for path in file.parent.iterdir() if path.name.startswith(".out")] == []


@pytest.mark.parametrize(
    ("fitted", "scored", "rule"),
    [
        ("nobody", "clinic", "cohort must be known"),
        ("usual:nothing", "clinic", "run must be known"),
        ("usual", "../clinic", "cohort must be known"),
        ("clinic", "usual", "at least|more than 8 cases"),
        ("usual", "twice", "twice:a, twice:b"),
        ("usual", "fewer", "the same regions"),
        ("usual", "begun", "finished cases"),
    ],
)
def test_what_is_refused_is_said_in_one_line_and_writes_nothing(
    fitted: str, scored: str, rule: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _import(root, CLINIC, "twice", "a")
    _import(root, CLINIC, "twice", "b")
    _import(root, made_up(3, organs=ORGANS[:4]), "fewer")
    _import(root, CLINIC, "begun")
    shutil.rmtree(root / "runs" / "begun" / "r" / "cases")
    assert run("outliers", "--fit", fitted, "--score", scored, "--data", root) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and re.search(rule, said.err)
    assert list(root.rglob("outliers.csv")) == []


def test_local_explanations_are_of_the_cases_that_pass(root: Path) -> None:
    con = catalog.connect(root)
    table = queries.local_explanations(con, Selection("clinic", "r", present=("heart",)))
    assert list(dict.fromkeys(table["case_id"])) == ["case-000", "case-001", "case-002"] and len(table) == 3 * 25
    organs = queries.local_explanations(con, Selection("clinic", "r", background=False))
    sums = organs.groupby(["case_id", "target"])["value"].sum(min_count=1).dropna()
    assert len(sums) == 19 and sums.to_numpy() == pytest.approx(1)
    with pytest.raises(InputError, match="run must be known"):
        queries.local_explanations(con, Selection("clinic", "x"))
