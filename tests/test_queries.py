"""The store's answers against oracles in NumPy and pandas; caches that come and go; what SQL may not do."""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from agg2exp_core.aggregation.groups import join_regions
from agg2exp_core.analysis import summary
from agg2exp_core.analysis.importance import to_array
from agg2exp_core.organs import load_label_set
from agg2exp_core.records import Condition, InputError, Selection, SumTable
from agg2exp_core.store import catalog, cohorts, held, lists, parquet_cache, queries, results

SOAK = 10 if os.environ.get("AGG2EXP_SOAK") else 1
ORGANS = load_label_set("thorax17").names
REGIONS = ("background", "aorta", "heart", "ribs")
TARGETS = ("aorta", "heart", "ribs")
CASES = tuple(f"s.{number:02}" for number in range(14))
NO_RIBS, UNEXPLAINED, NO_LABEL = "s.03", "s.13", "s.05"
LISTS = {"seven": CASES[:7], "ends": ("s.00", UNEXPLAINED), "even": CASES[::2]}
BASE = Selection("clinic", "r")
INFO = {
    "model": "m", "model_hash": "0", "method": "smoothgrad", "parameters": {"samples": 4}, "label_set": "thorax17",
    "values": "sums",
}  # fmt: skip


def _sums(number: int) -> SumTable:
    """Sums of a case; in NO_RIBS the ribs are not predicted. Region voxels grow with the case's number."""
    rng = np.random.default_rng(number)
    positive, negative = rng.gamma(2, 1, (2, len(TARGETS), len(REGIONS)))
    voxels = np.array([5000, 100, 200, 300]) + number
    if CASES[number] != NO_RIBS:
        return SumTable(TARGETS, REGIONS, positive, negative, voxels)
    positive[:, 3] = negative[:, 3] = voxels[3] = 0
    positive[2] = negative[2] = np.nan
    return SumTable(TARGETS, REGIONS, positive, negative, voxels, {"ribs": "not predicted"})


def _dice(number: int) -> np.ndarray:
    dice = np.random.default_rng(100 + number).uniform(0.5, 1, len(REGIONS))
    return np.where([False, False, False, CASES[number] == NO_RIBS], np.nan, dice)


def _explain(root: Path, number: int, run: str = "r") -> None:
    folder = root / "runs" / "clinic" / run / "cases" / CASES[number]
    with results.case_folder(folder, {"case_id": CASES[number], "targets": list(TARGETS)}) as new:
        results.write_importance(new, _sums(number))
        names = () if CASES[number] == NO_LABEL else REGIONS
        results.write_agreement(new, names, _dice(number)[: len(names)], _dice(number)[: len(names)] / 2)


def _metadata() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "case_id": CASES[::-1],
            "image": "",
            "label": "",
            "age": ["", *(str(30 + 3 * number) for number in range(13))],
            "sex": [("F", "M", "")[number % 3] for number in range(14)],
            "Case_ID": "1",
            "dice": "0.1",
            "note": [f"note {number}" for number in range(14)],
            "code": ["007", *["7e"] * 13],
            "pathology_mask": "mask.nii.gz",
        }
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`clinic`: 14 cases, one not explained; `other`: ages and codes of another kind; an empty run."""
    root = tmp_path_factory.mktemp("it's [a1] root*")
    cohorts.write_cases(root, "clinic", _metadata())
    other = pd.DataFrame({"case_id": ["x"], "image": "i.nii", "label": "", "Age": "41.5", "code": "12", "site": "A"})
    cohorts.write_cases(root, "other", other)
    for run in ("empty", "r"):
        results.write_run(root, "clinic", run, INFO)
    for number in range(13):
        _explain(root, number)
    for name, cases in LISTS.items():
        lists.save_list(root, lists.CaseList(name, "clinic", cases))
    lists.save_list(root, lists.CaseList("elsewhere", "other", ("x",)))
    return root


@pytest.fixture(scope="module")
def con(root: Path) -> duckdb.DuckDBPyConnection:
    return catalog.connect(root)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A root of two explained cases, to break."""
    cohorts.write_cases(tmp_path, "clinic", _metadata())
    results.write_run(tmp_path, "clinic", "r", INFO)
    for number in (0, 1):
        _explain(tmp_path, number)
    return tmp_path


# ---- oracle ------------------------------------------------------------------------------------------


def _oracle(selection: Selection, target: str) -> pd.DataFrame:
    """case × region of the selection's value, NaN where absent, by the formulas; no filters."""
    rows = {}
    for number in range(13):
        table = _sums(number)
        phi = {"abs": table.positive + table.negative, "pos": table.positive, "neg": table.negative}[selection.sign]
        row = np.where(table.voxels > 0, phi[TARGETS.index(target)], np.nan)
        if not selection.background:
            row[0] = np.nan
        rows[CASES[number]] = row / (np.nansum(row) if selection.value == "mass" else np.maximum(table.voxels, 1))
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(REGIONS))
    return table if selection.background else table.drop(columns="background")


def _meta() -> pd.DataFrame:
    table = _metadata().set_index("case_id")
    table["age"] = pd.to_numeric(table["age"])
    dice = pd.DataFrame([_dice(number) for number in range(13)], index=list(CASES[:13]), columns=list(REGIONS))
    dice.loc[NO_LABEL] = np.nan
    return table.join(dice.add_prefix("dice_")).assign(mean_dice=dice[list(TARGETS)].mean(axis=1))


measures = [
    Selection("clinic", "r", sign, value, background)
    for sign in ("abs", "pos", "neg") for value in ("mass", "mean") for background in (True, False)
]  # fmt: skip


def _id(selection: Selection) -> str:
    return f"{selection.sign} {selection.value} {'with' if selection.background else 'without'} background"


# ---- identities --------------------------------------------------------------------------------------


def test_masses_over_all_regions_sum_to_one(con: duckdb.DuckDBPyConnection) -> None:
    sums = con.execute("SELECT sum(mass), sum(organ_mass) FROM importance GROUP BY case_id, target, sign").fetchnumpy()
    for found in sums.values():
        assert np.ma.count(found) == 3 * (13 * len(TARGETS) - 1)
        np.testing.assert_allclose(np.ma.compressed(np.ma.masked_invalid(found)), 1, atol=1e-12)


def test_absolute_is_positive_and_negative(con: duckdb.DuckDBPyConnection) -> None:
    wide = con.execute("PIVOT importance ON sign USING any_value(mean) GROUP BY case_id, target, region").df()
    np.testing.assert_allclose(wide["abs"], wide["pos"] + wide["neg"], rtol=1e-15)


def test_absent_is_null_with_a_reason(con: duckdb.DuckDBPyConnection) -> None:
    sql = "SELECT DISTINCT case_id, target, region, absent FROM importance WHERE mass IS NULL AND mean IS NULL"
    own = {(NO_RIBS, "ribs", region, "not predicted") for region in REGIONS}
    others = {(NO_RIBS, target, "ribs", "region not predicted") for target in ("aorta", "heart")}
    assert set(con.execute(sql).fetchall()) == own | others
    wrong = con.execute("SELECT count(*) FROM importance WHERE isnan(mass) OR isnan(mean) OR mass = 0")
    assert wrong.fetchone() == (0,)
    given = con.execute("SELECT DISTINCT absent FROM importance WHERE mass IS NOT NULL").fetchall()
    assert given == [(None,)]


def test_a_target_without_attribution_has_no_shares(small: Path) -> None:
    folder = small / "runs" / "clinic" / "r" / "cases" / "s.02"
    zeros = np.zeros((1, 2))
    with results.case_folder(folder, {"case_id": "s.02"}) as new:
        results.write_importance(new, SumTable(("heart",), REGIONS[:2], zeros, zeros, np.array([1, 1])))
    con = catalog.connect(small)
    table = queries.case_importance(con, BASE, "s.02", "heart").set_index("region")
    assert table["value"].isna().all() and table.loc["aorta", "absent"] == "no attribution to share"
    assert table.loc["ribs", "absent"] == "not explained"
    means = queries.case_importance(con, Selection("clinic", "r", value="mean"), "s.02", "heart")
    assert list(means["value"].dropna()) == [0, 0]


def test_errors_of_shares_reach_their_view_and_the_case(small: Path) -> None:
    """Of |a| alone, with and without background; a case from before they were known has none."""
    sums = _sums(2)
    known = replace(sums, mass_se=np.full_like(sums.positive, 0.01), organ_mass_se=np.full_like(sums.positive, 0.02))
    with results.case_folder(small / "runs/clinic/r/cases" / CASES[2], {"case_id": CASES[2]}) as new:
        results.write_importance(new, known)
    older = small / "runs/clinic/r/cases" / CASES[1]
    lines = (older / "importance.csv").read_text().splitlines()
    with results.case_folder(older, {"case_id": CASES[1]}) as new:
        (new / "importance.csv").write_text("".join(",".join(line.split(",")[:6]) + "\n" for line in lines))
    con = catalog.connect(small)
    for selection, error in (
        (BASE, 0.01), (replace(BASE, background=False), 0.02),
        (replace(BASE, sign="pos"), None), (replace(BASE, value="mean"), None),
    ):  # fmt: skip
        table = queries.case_importance(con, selection, CASES[2], "heart")
        assert set(table["error"].dropna()) == ({error} if error else set())
    assert queries.case_importance(con, BASE, CASES[1], "heart")["error"].isna().all()
    sql = "SELECT sign, max(mass_se), max(organ_mass_se) FROM importance WHERE case_id = $1 GROUP BY sign ORDER BY sign"
    assert con.execute(sql, [CASES[2]]).fetchall() == [("abs", 0.01, 0.02), ("neg", None, None), ("pos", None, None)]
    assert con.execute(sql, [CASES[1]]).fetchall()[0] == ("abs", None, None)


# ---- charts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selection", measures, ids=_id)
def test_boxes_are_numpys(con: duckdb.DuckDBPyConnection, selection: Selection) -> None:
    for target in TARGETS:
        stats = queries.box_stats(con, selection, target)
        oracle = _oracle(selection, target)
        array = to_array(queries.local_explanations(con, selection))
        pd.testing.assert_frame_equal(stats, summary.box_stats(array, target), check_dtype=False, rtol=1e-12)
        assert set(stats["region"]) == set(oracle) and list(stats["median"]) == sorted(stats["median"], reverse=True)
        for row in stats.itertuples():
            _check_box(row, oracle[row.region].dropna().to_numpy())


def _check_box(row: Any, values: np.ndarray) -> None:
    q1, median, q3 = np.quantile(values, [0.25, 0.5, 0.75])
    inside = (values >= q1 - 1.5 * (q3 - q1)) & (values <= q3 + 1.5 * (q3 - q1))
    expected = [q1, median, q3, values[inside].min(), values[inside].max()]
    assert row.n == len(values)
    assert [row.q1, row.median, row.q3, row.low, row.high] == pytest.approx(expected, rel=1e-12)
    assert row.outliers == pytest.approx(sorted(values[~inside]), rel=1e-12) and isinstance(row.outliers, list)


@pytest.mark.parametrize("selection", measures[:3], ids=_id)
def test_the_matrix_is_the_median_of_each_cell(con: duckdb.DuckDBPyConnection, selection: Selection) -> None:
    matrix = queries.matrix(con, selection)
    array = to_array(queries.local_explanations(con, selection))
    pd.testing.assert_frame_equal(matrix, summary.matrix(array), check_dtype=False, rtol=1e-12)
    assert list(dict.fromkeys(matrix["target"])) == list(TARGETS)
    regions = REGIONS if selection.background else REGIONS[1:]
    assert list(matrix["region"]) == list(regions) * len(TARGETS)
    for target, cells in matrix.groupby("target"):
        oracle = _oracle(selection, str(target))
        assert list(cells["value"]) == pytest.approx(list(oracle.median()), rel=1e-12)
        assert list(cells["n"]) == list(oracle.count())


def test_cases_are_ranked_without_the_absent(con: duckdb.DuckDBPyConnection) -> None:
    ranked = queries.ranked(con, BASE, "heart", "ribs")
    oracle = _oracle(BASE, "heart")["ribs"].dropna().sort_values(ascending=False)
    assert list(ranked["case_id"]) == list(oracle.index) and NO_RIBS not in set(ranked["case_id"])
    assert list(ranked["value"]) == pytest.approx(list(oracle))
    dice = _meta()["dice_heart"]
    assert list(ranked["dice"]) == pytest.approx([dice[name] for name in oracle.index], nan_ok=True)


@pytest.mark.parametrize("selection", measures, ids=_id)
def test_a_case_stands_in_its_whole_cohort(con: duckdb.DuckDBPyConnection, selection: Selection) -> None:
    filtered = replace(selection, where=(Condition("sex", ("F",)),))
    table = queries.case_importance(con, filtered, CASES[4], "heart").set_index("region")
    oracle = _oracle(selection, "heart")
    assert list(table.index) == list(oracle)
    for region, row in table.iterrows():
        values, own = oracle[region].dropna(), oracle.at[CASES[4], region]
        others = values.drop(CASES[4])
        assert row["value"] == pytest.approx(own)
        spread = list(row[["q05", "q25", "median", "q75", "q95"]])
        assert spread == pytest.approx(list(values.quantile([0.05, 0.25, 0.5, 0.75, 0.95])))
        assert row["percentile"] == pytest.approx(100 * (others < own).mean())


def test_an_absent_region_keeps_its_row(con: duckdb.DuckDBPyConnection) -> None:
    table = queries.case_importance(con, BASE, NO_RIBS, "heart").set_index("region")
    assert math.isnan(table.at["ribs", "value"]) and math.isnan(table.at["ribs", "percentile"])
    assert table.at["ribs", "absent"] == "region not predicted" and table.at["ribs", "median"] > 0
    assert table["absent"].isna().sum() == 3
    unexplained = queries.case_importance(con, BASE, UNEXPLAINED, "heart")
    assert set(unexplained["absent"]) == {"not explained"} and len(unexplained) == 4


def test_without_other_cases_there_is_no_percentile(tmp_path: Path) -> None:
    cohorts.write_cases(tmp_path, "clinic", _metadata())
    results.write_run(tmp_path, "clinic", "r", INFO)
    _explain(tmp_path, 0)
    table = queries.case_importance(catalog.connect(tmp_path), BASE, CASES[0], "heart")
    assert table["percentile"].isna().all() and table["value"].notna().all()


def test_agreement_in_class_order(con: duckdb.DuckDBPyConnection) -> None:
    table = queries.agreement(con, "clinic", "r", NO_RIBS)
    assert list(table["target"]) == list(REGIONS)
    assert list(table["dice"]) == pytest.approx(list(_dice(3)), nan_ok=True)
    assert queries.agreement(con, "clinic", "r", NO_LABEL).empty


# ---- joined regions ------------------------------------------------------------------------------------

PARTS = ("background", "lung_upper_lobe_left", "lung_lower_lobe_left", "heart", "autochthon_left", "autochthon_right")
WHOLES = {"lung": PARTS[1:3], "autochthon": PARTS[4:]}
"""In s.00 the upper lobe is absent, in s.01 both muscles are."""


def _parted(number: int) -> SumTable:
    positive, negative = np.random.default_rng(number).gamma(2, 1, (2, 2, len(PARTS)))
    voxels = np.array([5000, 100, 200, 300, 40, 50]) + 7 * number
    missing = {0: [1], 1: [4, 5]}.get(number, [])
    positive[:, missing] = negative[:, missing] = voxels[missing] = 0
    return SumTable(PARTS[2:4], PARTS, positive, negative, voxels)


@pytest.fixture(scope="module")
def parted(tmp_path_factory: pytest.TempPathFactory) -> duckdb.DuckDBPyConnection:
    root = tmp_path_factory.mktemp("parted")
    cohorts.write_cases(root, "clinic", _metadata())
    results.write_run(root, "clinic", "r", INFO)
    for number in range(5):
        folder = root / "runs" / "clinic" / "r" / "cases" / CASES[number]
        with results.case_folder(folder, {"case_id": CASES[number]}) as new:
            results.write_importance(new, _parted(number))
    return catalog.connect(root)


def _whole(selection: Selection) -> pd.DataFrame:
    """(case, target) × joined region: what the core's own joining of the sums gives."""
    rows = {}
    for number in range(5):
        table = join_regions(_parted(number), WHOLES)
        phi = {"abs": table.positive + table.negative, "pos": table.positive, "neg": table.negative}[selection.sign]
        phi = np.where(table.voxels > 0, phi, np.nan)[:, 0 if selection.background else 1 :]
        voxels = np.maximum(table.voxels, 1)[0 if selection.background else 1 :]
        shares = phi / np.nansum(phi, axis=1, keepdims=True)
        for target, row in zip(table.targets, shares if selection.value == "mass" else phi / voxels, strict=True):
            rows[CASES[number], target] = row
    index = pd.MultiIndex.from_tuples(rows)
    return pd.DataFrame(list(rows.values()), index, list(table.regions[0 if selection.background else 1 :]))


@pytest.mark.parametrize("selection", measures, ids=_id)
def test_a_joined_region_is_the_sum_of_its_parts(parted: duckdb.DuckDBPyConnection, selection: Selection) -> None:
    joined, oracle = replace(selection, joined=True), _whole(selection)
    assert queries.region_names(parted, joined) == ["background", "lung", "heart", "autochthon"]
    local = queries.local_explanations(parted, joined).astype({"case_id": str, "target": str, "region": str})
    table = local.pivot(index=["case_id", "target"], columns="region")["value"]
    pd.testing.assert_frame_equal(
        table[list(oracle)].astype(float), oracle.loc[table.index], check_names=False, rtol=1e-12
    )
    for target in PARTS[2:4]:
        own = oracle.xs(target, level=1)
        cells = queries.matrix(parted, joined).set_index(["target", "region"])["value"]
        boxes = queries.box_stats(parted, joined, target).set_index("region")["median"]
        case = queries.case_importance(parted, joined, CASES[1], target).set_index("region")
        assert list(case.index) == list(oracle)
        for region in oracle:
            ranked = queries.ranked(parted, joined, target, region).set_index("case_id")["value"]
            assert ranked.to_dict() == pytest.approx(own[region].dropna().to_dict())
            assert cells[target, region] == boxes[region] == pytest.approx(own[region].median())
            assert case.at[region, "value"] == pytest.approx(own.at[CASES[1], region], nan_ok=True)
        assert case["absent"].dropna().to_dict() == {"autochthon": "region not predicted"}


def test_a_part_cannot_be_ranked_once_it_is_joined(parted: duckdb.DuckDBPyConnection) -> None:
    for region, joined in ((PARTS[1], True), ("lung", False)):
        with pytest.raises(InputError, match="region must be known"):
            queries.ranked(parted, replace(BASE, joined=joined), "heart", region)


def test_a_table_of_shares_joins_means_by_the_sizes_it_implies(tmp_path: Path) -> None:
    """Means of 2 on 30 voxels and of 1 on 60: 120 of 90 voxels. Without attribution on a part its size is unknown."""
    cohorts.write_cases(tmp_path, "clinic", pd.DataFrame({"case_id": ["a", "b"], "image": "", "label": ""}))
    results.write_run(tmp_path, "clinic", "r", INFO | {"values": "shares"})
    for name, lower in (("a", (0.6, 1.0)), ("b", (0.0, 0.0))):
        with results.case_folder(tmp_path / "runs" / "clinic" / "r" / "cases" / name, {"case_id": name}) as new:
            rows = [("heart", PARTS[1], 0.6, 2.0), ("heart", PARTS[2], *lower), ("heart", "heart", 0.4, 3.0)]
            pd.DataFrame(rows, columns=["target", "region", "mass", "mean"]).to_csv(new / "importance.csv", index=False)
    con, joined = catalog.connect(tmp_path), replace(BASE, value="mean", joined=True)
    ranked = queries.ranked(con, joined, "heart", "lung")
    assert ranked[["case_id", "value"]].to_numpy().tolist() == [["a", pytest.approx(1.2 / 0.9)]]
    assert list(queries.ranked(con, joined, "heart", "heart")["value"]) == [3, 3]
    case = queries.case_importance(con, joined, "b", "heart").set_index("region")
    assert case.at["lung", "absent"] == "size of a part not stored"
    assert list(queries.ranked(con, replace(joined, value="mass"), "heart", "lung")["value"]) == [1.2, 0.6]


# ---- filters -----------------------------------------------------------------------------------------

ends = st.one_of(st.none(), st.integers(20, 80).map(float))
conditions = st.one_of(
    st.builds(Condition, st.just("age"), st.none(), ends, ends),
    st.builds(Condition, st.just("sex"), st.lists(st.sampled_from(["F", "M", "", "X"]), max_size=3).map(tuple)),
)
dices = st.one_of(st.none(), st.tuples(st.sampled_from(["", "heart", "ribs"]), st.floats(0, 0.8), st.floats(0.6, 1)))
named = st.lists(st.sampled_from(list(LISTS)), max_size=2).map(tuple)
selections = st.builds(
    Selection, st.just("clinic"), st.just("r"), where=st.lists(conditions, max_size=2).map(tuple), dice=dices,
    present=st.lists(st.sampled_from(REGIONS[1:]), max_size=2).map(tuple), within=named, without=named,
)  # fmt: skip


def _passes(selection: Selection) -> pd.Series:
    table = _meta()
    keep = pd.Series(True, index=table.index)
    for condition in selection.where:
        column = table[condition.column]
        if condition.values is not None:
            numeric = pd.api.types.is_numeric_dtype(column)
            chosen = [catalog.finite_number(text) for text in condition.values] if numeric else condition.values
            keep &= column.isin([value for value in chosen if value is not None]) | (
                column.isna() & ("" in condition.values)
            )
        else:
            low = -math.inf if condition.low is None else condition.low
            keep &= column.between(low, math.inf if condition.high is None else condition.high)
    if selection.dice:
        organ, first, last = selection.dice
        keep &= table[f"dice_{organ}" if organ else "mean_dice"].between(first, last)
    for organ in selection.present:
        keep &= ~table.index.isin([UNEXPLAINED, NO_RIBS] if organ == "ribs" else [UNEXPLAINED])
    if selection.within:
        keep &= table.index.isin([case_id for name in selection.within for case_id in LISTS[name]])
    for name in selection.without:
        keep &= ~table.index.isin(LISTS[name])
    return keep


@given(selections)
@settings(max_examples=60, deadline=None)
def test_filters_are_those_of_pandas(con: duckdb.DuckDBPyConnection, selection: Selection) -> None:
    keep = _passes(selection)
    passing = list(keep.index[keep])
    found = queries.cases(con, selection)
    assert list(found["case_id"]) == passing == queries.passing(con, selection)
    array = to_array(queries.local_explanations(con, selection))
    assert list(array.cases) == [name for name in passing if name != UNEXPLAINED]
    oracle = _oracle(selection, "heart").reindex(passing)
    stats = queries.box_stats(con, selection, "heart").set_index("region")
    assert stats["n"].to_dict() == oracle.count().to_dict()
    cells = queries.matrix(con, selection).set_index(["target", "region"]).loc["heart"]
    assert list(cells["value"]) == pytest.approx(list(oracle.median()), nan_ok=True)
    assert set(queries.ranked(con, selection, "heart", "aorta")["case_id"]) == set(oracle["aorta"].dropna().index)


def test_cases_carry_their_metadata_and_mean_dice(con: duckdb.DuckDBPyConnection) -> None:
    found = queries.cases(con, BASE)
    assert list(found.columns) == [
        "cohort", "case_id", "image", "label", "age", "sex", "Case_ID_2", "dice_2", "note", "code", "pathology_mask",
        "dice", "explained",
    ]  # fmt: skip
    assert list(found["case_id"]) == list(CASES[::-1])
    oracle = _meta()["mean_dice"]
    assert list(found["dice"]) == pytest.approx([oracle[name] for name in found["case_id"]], nan_ok=True)
    assert list(found["explained"]) == [name != UNEXPLAINED for name in found["case_id"]]


def test_numbers_can_be_chosen_by_value(con: duckdb.DuckDBPyConnection) -> None:
    chosen = Selection("clinic", "r", where=(Condition("age", values=("30", "33.0", "")),))
    assert list(queries.cases(con, chosen)["case_id"]) == [UNEXPLAINED, "s.12", "s.11"]


@pytest.mark.parametrize(
    "selection",
    [
        Selection("gone", "r"), Selection("clinic", "gone"), Selection("clinic", "r", sign="both"),
        Selection("clinic", "r", value="share"), Selection("clinic", "r", present=("liver",)),
        Selection("clinic", "r", dice=("liver", 0, 1)), Selection("clinic", "r", where=(Condition("gone", ("1",)),)),
        Selection("clinic", "r", where=(Condition('sex" OR true --', ("1",)),)),
        Selection("clinic", "r", where=(Condition("sex", low=1.0),)), Selection("clinic", "r", within=("gone",)),
        Selection("clinic", "r", without=("elsewhere",)), Selection("clinic", "r", dice=("", 0, math.nan)),
        Selection("clinic", "r", where=(Condition("age", low=30, high=math.nan),)),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_there_is_refused(con: duckdb.DuckDBPyConnection, selection: Selection) -> None:
    for ask in (queries.cases, queries.matrix, lambda con, selection: queries.box_stats(con, selection, "heart")):
        with pytest.raises(InputError):
            ask(con, selection)


def test_unknown_names_are_refused(con: duckdb.DuckDBPyConnection) -> None:
    for ask in (
        lambda: queries.box_stats(con, BASE, "background"), lambda: queries.ranked(con, BASE, "heart", "liver"),
        lambda: queries.case_importance(con, BASE, "nobody", "heart"), lambda: queries.runs(con, "gone"),
        lambda: queries.agreement(con, "clinic", "r", "nobody"), lambda: queries.metadata_columns(con, "gone"),
    ):  # fmt: skip
        with pytest.raises(InputError):
            ask()


def test_values_are_bound_not_pasted(con: duckdb.DuckDBPyConnection) -> None:
    nasty = Selection("clinic", "r", where=(Condition("sex", ("F' OR '1'='1",)),))
    assert queries.cases(con, nasty).empty


# ---- lists -------------------------------------------------------------------------------------------


def test_cohorts_runs_and_targets(con: duckdb.DuckDBPyConnection) -> None:
    assert queries.cohorts(con).to_dict("list") == {"cohort": ["clinic", "other"], "cases": [14, 1]}
    runs = queries.runs(con, "clinic").set_index("run")
    assert list(runs.index) == ["r", "empty"] and list(runs["cases"]) == [13, 0]
    assert json.loads(runs.at["r", "parameters"]) == {"samples": 4}
    assert queries.runs(con, "other").empty
    assert list(queries.targets(con, "clinic", "r")["target"]) == list(TARGETS)
    assert queries.targets(con, "clinic", "empty").empty and queries.matrix(con, Selection("clinic", "empty")).empty
    assert not queries.cases(con, Selection("clinic", "empty"))["explained"].any()


def test_targets_come_in_the_order_of_the_label_set(small: Path) -> None:
    names = ("zebra", *ORGANS[3:0:-1])
    ones = np.ones((4, 4))
    with results.case_folder(small / "runs" / "clinic" / "r" / "cases" / "s.00", {"case_id": "s.00"}) as new:
        results.write_importance(new, SumTable(names, names, ones, ones, np.ones(4, np.int64)))
    found = list(queries.targets(catalog.connect(small), "clinic", "r")["target"])
    assert found == [*(name for name in ORGANS if name in {*names, *TARGETS}), "zebra"]


def test_metadata_to_filter_by(con: duckdb.DuckDBPyConnection) -> None:
    found = queries.metadata_columns(con, "clinic").set_index("column")
    assert list(found.index) == ["age", "sex", "Case_ID_2", "dice_2", "code"]
    assert list(found["kind"]) == ["number", "category", "number", "number", "category"]
    assert (found.at["age", "low"], found.at["age", "high"], found.at["age", "values"]) == (30, 66, [])
    assert found.at["sex", "values"] == ["", "F", "M"] and math.isnan(found.at["sex", "low"])
    assert found.at["code", "values"] == ["007", "7e"]


def test_a_column_named_rowid_does_not_change_the_order(small: Path) -> None:
    rows = {"case_id": ["b", "a", "c"], "image": "", "label": "", "RowID": ["3", "2", "1"]}
    cohorts.write_cases(small, "odd", pd.DataFrame(rows))
    results.write_run(small, "odd", "r", INFO)
    table = queries.cases(catalog.connect(small), Selection("odd", "r"))
    assert table["case_id"].tolist() == ["b", "a", "c"] and table["RowID_2"].tolist() == [3, 2, 1]


def test_the_view_of_cases_unites_the_cohorts(con: duckdb.DuckDBPyConnection) -> None:
    table = con.execute("FROM cases").df()
    assert list(table["cohort"]) == ["clinic"] * 14 + ["other"] and len(table.columns) == 12
    assert table["age"].dtype == float and table["age"].iloc[-1] == 41.5
    assert list(table["code"].iloc[[0, -1]]) == ["007", "12"]
    assert table["site"].notna().sum() == 1 and table["image"].notna().sum() == 1


def test_ranks_of_a_run_and_its_ablation(tmp_path: Path) -> None:
    """SciPy's ρ, ties included, for runs of one model and mask; absent organs, few regions and constants have none."""
    regions = ("background", "aorta", "heart", "ribs", "sternum", "trachea")
    targets = ("aorta", "heart", "ribs", "sternum")
    rng = np.random.default_rng(3)
    kinds = {"own": {}, "other": {"model_hash": "1"}, "false": {"parameters": {"mask": "fp"}}}
    kinds |= {"taken": {"method": "ablation", "parameters": {}}}
    sums = {run: rng.integers(1, 4, (len(targets), len(regions))).astype(float) for run in kinds}
    voxels = np.full(6, 10)
    voxels[5] = 0
    for run, info in kinds.items():
        results.write_run(tmp_path, "clinic", run, INFO | info)
        sums[run][:, 5], sums[run][2] = 0, 1.0
        sums[run][3] = np.nan
        table = SumTable(
            targets, regions, sums[run], np.where(np.isnan(sums[run]), np.nan, 0), voxels, {"sternum": "no"}
        )
        with results.case_folder(
            tmp_path / "runs/clinic" / run / "cases/one", {"case_id": "one", "targets": [*targets]}
        ) as new:
            results.write_importance(new, table)
    con = catalog.connect(tmp_path)
    found = con.execute("FROM ablation_agreement ORDER BY target").fetchall()
    expected = [spearmanr(sums["own"][row, :5], sums["taken"][row, :5]).statistic for row in (0, 1)]
    assert [row[:5] for row in found] == [("clinic", "own", "taken", "one", name) for name in targets[:2]]
    assert [row[5] for row in found] == pytest.approx(expected) and {row[6] for row in found} == {5}
    assert queries.ablation_agreement(con, ("clinic", "own"), "one", "aorta") == (
        pytest.approx(expected[0]),
        5,
        "taken",
    )
    assert queries.ablation_agreement(con, ("clinic", "other"), "one", "aorta") is None


def test_an_empty_root_has_all_views(tmp_path: Path) -> None:
    con = catalog.connect(tmp_path)
    for view in ("cases", "importance", "agreement", "runs", "outliers", "lists"):
        assert con.execute(f"FROM {view}").fetchall() == []
    assert queries.cohorts(con).empty


@pytest.mark.parametrize("record", ["{", '{"parameters": [4]}', '{"parameters": "four"}'])
def test_a_damaged_cohort_or_run_does_not_hide_the_others(
    small: Path, caplog: pytest.LogCaptureFixture, record: str
) -> None:
    (small / "cohorts" / "bad").mkdir()
    (small / "cohorts" / "bad" / "cases.csv").write_text("case_id,image,label\na,b\n")
    (small / "runs" / "clinic" / "cut").mkdir()
    (small / "runs" / "clinic" / "cut" / "run.json").write_text(record)
    con = catalog.connect(small)
    assert list(queries.cohorts(con)["cohort"]) == ["clinic"] and list(queries.runs(con, "clinic")["run"]) == ["r"]
    assert "cohort bad left out" in caplog.text and "run cut of cohort clinic left out" in caplog.text
    caplog.clear()
    catalog.connect(small)
    assert "run cut" not in caplog.text  # said once: a dashboard looks every two seconds


def test_outliers_are_read_as_they_are(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = small / "runs" / "clinic" / "r" / "outliers.csv"
    before = catalog.refresh(small)
    path.write_text("case_id,target,detector,score,flagged\n007,heart,lof,1.5,true\ns.01,heart,lof,,false\n")
    assert catalog.refresh(small) != before
    rows = catalog.connect(small).execute("FROM outliers").fetchall()
    assert rows == [
        ("clinic", "r", "007", "heart", "lof", 1.5, True),
        ("clinic", "r", "s.01", "heart", "lof", None, False),
    ]
    path.write_text("case_id,score\n1,2\n")
    assert catalog.connect(small).execute("FROM outliers").fetchall() == [] and "outliers of run r" in caplog.text


# ---- caches ------------------------------------------------------------------------------------------


def _explained(root: Path) -> list[str]:
    con = catalog.connect(root)
    return [row[0] for row in con.execute("SELECT DISTINCT case_id FROM importance ORDER BY 1").fetchall()]


def _cache(root: Path) -> Path:
    return root / "runs" / "clinic" / "r" / "importance.parquet"


def test_a_new_case_changes_the_fingerprint_and_the_cache(small: Path) -> None:
    first = catalog.refresh(small)
    assert catalog.refresh(small) == first and _cache(small).is_file()
    _explain(small, 2)
    second = catalog.refresh(small)
    assert second != first and _explained(small) == ["s.00", "s.01", "s.02"]
    (small / "cohorts" / "clinic" / "cases.csv").write_text("case_id,image,label\ns.00,,\n")
    assert catalog.refresh(small) != second


def test_a_replaced_case_is_read_again(small: Path) -> None:
    before = catalog.refresh(small)
    ones = np.ones((1, 2))
    with results.case_folder(small / "runs" / "clinic" / "r" / "cases" / "s.00", {"case_id": "s.00"}) as new:
        results.write_importance(new, SumTable(("heart",), REGIONS[:2], ones, ones, np.array([1, 1])))
    assert catalog.refresh(small) != before
    value = catalog.connect(small).execute("SELECT DISTINCT mass FROM importance WHERE case_id = 's.00'").fetchall()
    assert value == [(0.5,)]


def test_a_growing_run_reads_only_what_is_new(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = small / "runs" / "clinic" / "r" / "cases" / "s.03"
    _explain(small, 3)
    (broken / "importance.csv").write_text("cut")
    catalog.refresh(small)
    _explain(small, 2)
    _explain(small, 1)
    read, original = [], parquet_cache._read_case

    def noted(folder: Path, columns: dict[str, Any]) -> Any:
        read.append(folder.name)
        return original(folder, columns)

    monkeypatch.setattr(parquet_cache, "_read_case", noted)
    grown = catalog.connect(small).execute("FROM importance ORDER BY ALL").fetchall()
    assert read == ["s.01", "s.02", "s.03"]
    for name in ("importance", "agreement"):
        _cache(small).with_name(f"{name}.parquet").unlink()
    assert catalog.connect(small).execute("FROM importance ORDER BY ALL").fetchall() == grown
    assert len(read) == 3 + 4


def test_a_settled_run_is_not_looked_through_again(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small / "runs" / "clinic" / "r"
    for path in (run / "cases", run / "run.json"):
        os.utime(path, (1e9, 1e9))
    catalog.refresh(small)
    monkeypatch.setattr(parquet_cache, "_looked_up", lambda run: pytest.fail("looked through an unchanged run"))
    catalog.refresh(small)


@pytest.mark.parametrize("content", [b"", b"no parquet", None], ids=["empty", "garbage", "cut"])
def test_a_damaged_cache_is_built_again(small: Path, content: bytes | None) -> None:
    catalog.refresh(small)
    whole = _cache(small).read_bytes()
    _cache(small).write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert _explained(small) == ["s.00", "s.01"]
    assert pq.read_metadata(_cache(small)).num_rows == 2 * len(TARGETS) * len(REGIONS)


@pytest.mark.parametrize("name", ["importance", "agreement"])
def test_no_flipped_bit_of_a_cache_changes_an_answer(small: Path, name: str) -> None:
    def answer() -> list[Any]:
        parquet_cache._known.clear()
        con = catalog.connect(small)
        return [con.execute(f"FROM {view} ORDER BY ALL").fetchall() for view in ("importance", "agreement")]

    before, cache = answer(), _cache(small).with_name(f"{name}.parquet")
    whole = cache.read_bytes()
    for flip, place in enumerate(np.random.default_rng(0).integers(0, len(whole) * 8, 30)):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << (place % 8)
        cache.write_bytes(damaged)
        os.utime(cache, (1e9 + flip, 1e9 + flip))  # clocks of filesystems are too coarse to tell so many apart
        assert answer() == before and cache.read_bytes() == whole


def test_a_cache_is_hashed_once_a_process(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog.refresh(small)
    parquet_cache._verified.clear()
    hashed: list[Path] = []
    monkeypatch.setattr(parquet_cache, "sha256", lambda path: hashed.append(path) or results.sha256(path))
    for _ in range(3):
        parquet_cache._known.clear()
        catalog.refresh(small)
    assert len(hashed) == 2  # importance and agreement


def _rotten(path: Path, place: int) -> None:
    """One bit of the file flips, as a disk flips it: nothing else tells of it."""
    before, damaged = path.stat(), bytearray(path.read_bytes())
    damaged[place // 8] ^= 1 << (place % 8)
    with path.open("r+b") as file:
        file.write(damaged)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("settled", [True, False])
def test_bits_that_flip_under_a_running_dashboard_change_no_answer(small: Path, settled: bool) -> None:
    views, rng = ("importance", "agreement"), np.random.default_rng(1)
    if settled:
        for path in (small / "runs" / "clinic" / "r").glob("[cr]*"):
            os.utime(path, (1e9, 1e9))
    before = [catalog.connect(small).execute(f"FROM {view} ORDER BY ALL").fetchall() for view in views]
    con = catalog.connect(small)
    for name in views:
        cache = _cache(small).with_name(f"{name}.parquet")
        for place in rng.integers(0, cache.stat().st_size * 8, 20):
            _rotten(cache, place)
            for asked in (con.cursor(), catalog.connect(small)):
                assert [asked.execute(f"FROM {view} ORDER BY ALL").fetchall() for view in views] == before
    parquet_cache._known.clear()
    parquet_cache._verified.clear()  # as the next process
    assert catalog.connect(small).execute("FROM importance ORDER BY ALL").fetchall() == before[0]
    assert parquet_cache._opened(_cache(small))[0] is not None


def test_a_connection_reads_on_while_its_run_grows(small: Path) -> None:
    con = catalog.connect(small)
    before = con.execute("FROM importance ORDER BY ALL").fetchall()
    for case in (2, 3):
        _explain(small, case)
        assert len(catalog.connect(small).execute("FROM importance").fetchall()) > len(before)
    gc.collect()
    assert con.cursor().execute("FROM importance ORDER BY ALL").fetchall() == before


@pytest.mark.parametrize("reason", ["no room", "no descriptor"])
def test_caches_that_find_no_place_in_memory_are_read_from_the_disk(
    small: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    def refused(_: object) -> None:
        raise OSError(24, "Too many open files")

    before = catalog.connect(small).execute("FROM importance ORDER BY ALL").fetchall()
    if reason == "no room":
        monkeypatch.setattr(held, "memory_bytes", lambda: 8_000)
    else:
        monkeypatch.setattr(os, "memfd_create", refused, raising=False)
    for clear in (parquet_cache._verified.clear, _cache(small).unlink):
        parquet_cache._known.clear()
        clear()
        assert catalog.connect(small).execute("FROM importance ORDER BY ALL").fetchall() == before
        assert parquet_cache.current(_cache(small).parent).importance.path == _cache(small)


def test_a_deleted_or_moved_cache_is_built_again(small: Path) -> None:
    catalog.refresh(small)
    _cache(small).unlink()
    assert _explained(small) == ["s.00", "s.01"] and _cache(small).is_file()
    for manifest in small.glob("runs/*/*/cases/*/manifest.json"):
        os.utime(manifest, (1e9, 1e9))
    stale = _cache(small).read_bytes()
    parquet_cache._known.clear()
    catalog.refresh(small)
    assert _cache(small).read_bytes() != stale


def test_a_cache_holds_one_target_a_row_group_and_leaves_no_rubbish(root: Path, con: duckdb.DuckDBPyConnection) -> None:
    stored = pq.ParquetFile(_cache(root))
    named = [set(stored.read_row_group(i, ["target"])["target"].to_pylist()) for i in range(stored.num_row_groups)]
    assert named == [{target} for target in TARGETS]
    assert not list(_cache(root).parent.glob("*.cache.*"))


def test_a_root_that_cannot_be_written_is_read_from_memory(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError("read-only file system")

    monkeypatch.setattr(parquet_cache, "_write", refused)
    first = catalog.refresh(small)
    con = catalog.connect(small)
    assert catalog.refresh(small) == first and not _cache(small).exists()
    assert len(queries.matrix(con, BASE)) == 12 and len(queries.agreement(con, "clinic", "r", "s.00")) == 4
    assert con.cursor().execute("SELECT count(*) FROM importance").fetchone() == (2 * 3 * 12,)


def test_what_does_not_verify_is_left_out_and_told(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = small / "runs" / "clinic" / "r" / "cases" / "s.01" / "importance.csv"
    path.write_text(path.read_text().replace("1", "2", 1))
    with caplog.at_level(logging.WARNING):
        assert _explained(small) == ["s.00"]
    assert "s.01" in caplog.text and "importance.csv is damaged" in caplog.text
    con = catalog.connect(small)
    assert queries.runs(con, "clinic")[["cases", "damaged"]].to_numpy().tolist() == [[1, 1]]
    assert not queries.cases(con, BASE).set_index("case_id").at["s.01", "explained"]


def test_a_case_that_is_mended_is_there_again_in_a_process_that_saw_it_damaged(small: Path) -> None:
    run = small / "runs" / "clinic" / "r"
    path = run / "cases" / "s.01" / "importance.csv"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    for old in (run / "run.json", run / "cases"):
        os.utime(old, (0, 0))  # so that what was seen is trusted from now on
    current = parquet_cache.current(run)
    assert current is not None and list(current.content.damaged) == ["s.01"]
    assert parquet_cache.current(run) is current
    path.write_bytes(whole)
    current = parquet_cache.current(run)
    assert current is not None and not current.content.damaged


def test_a_file_that_is_brought_back_counts_again(small: Path) -> None:
    path = small / "runs" / "clinic" / "r" / "cases" / "s.01" / "importance.csv"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    before = catalog.refresh(small)
    path.write_bytes(whole)
    parquet_cache._known.clear()
    assert catalog.refresh(small) != before and _explained(small) == ["s.00", "s.01"]


def test_a_passing_error_leaves_no_case_out_for_ever(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Path, columns: dict[str, Any]) -> Any:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(parquet_cache, "read_numbers", failing)
        assert _explained(small) == []
        stored = _cache(small).stat().st_mtime_ns
        parquet_cache._known.clear()
        assert _explained(small) == [] and _cache(small).stat().st_mtime_ns == stored
    parquet_cache._known.clear()
    assert _explained(small) == ["s.00", "s.01"]


def test_numbers_that_are_not_finite_are_left_out(small: Path) -> None:
    folder = small / "runs" / "clinic" / "r" / "cases" / "s.01"
    with results.case_folder(folder, {"case_id": "s.01"}) as new:
        (new / "importance.csv").write_text("target,region,positive,negative,voxels,absent\nheart,heart,inf,0.0,1,\n")
    assert _explained(small) == ["s.00"]


def test_hidden_and_unfinished_cases_are_ignored(small: Path) -> None:
    cases = small / "runs" / "clinic" / "r" / "cases"
    (cases / "s.00").rename(cases / ".s.00-old")
    (cases / "s.01" / "manifest.json").unlink()
    assert _explained(small) == [] and queries.runs(catalog.connect(small), "clinic")["cases"].tolist() == [0]


# ---- a user's SQL ------------------------------------------------------------------------------------


def test_a_user_asks_the_views(con: duckdb.DuckDBPyConnection) -> None:
    sql = "WITH a AS (FROM importance) SELECT region, median(mass) AS share FROM a WHERE sign = 'abs' GROUP BY ALL;"
    assert len(queries.run_user_query(con, sql)) == len(REGIONS)
    assert queries.run_user_query(con, "SELECT parameters->>'samples' AS n FROM runs LIMIT 1")["n"].tolist() == ["4"]
    assert queries.run_user_query(con, 'SELECT run, "values" FROM runs')["values"].tolist() == ["sums", "sums"]


FORBIDDEN = (
    "", "--", "SELEC 1", "SELECT gone FROM cases", "SELECT 1; SELECT 2", "SELECT 1; DROP TABLE store.cases",
    "DROP TABLE store.cases", "DELETE FROM store.cases", "CREATE TABLE t AS SELECT 1", "SET threads = 1",
    "WITH gone AS (DELETE FROM store.cases RETURNING *) SELECT * FROM gone",
    "WITH new AS (INSERT INTO store.cohorts VALUES ('a', 1) RETURNING *) SELECT * FROM new",
    "PRAGMA database_list", "CALL pragma_version()", "INSTALL httpfs", "LOAD httpfs", "ATTACH '{file}' AS other",
    "COPY (SELECT 1) TO '{file}'", "COPY store.cases FROM '{file}'", "EXPORT DATABASE '{file}'", "EXPLAIN SELECT 1",
    "SELECT * FROM read_csv('/etc/passwd')", "SELECT * FROM read_text('/etc/passwd')", "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM glob('/etc/*')", "SELECT * FROM read_csv('{runs}/../../../../../../etc/passwd')",
    "SELECT * FROM read_blob('{runs}/../cohorts/clinic/cases.csv')",
    "SELECT * FROM enable_logging(storage := 'file', storage_path := '{file}')", "SELECT * FROM local_variable",
    "SELECT error('a' || chr(10) || 'b')", "SELECT '\ud800'", "SELECT current_setting('allowed_paths')",
    "SELECT lower(Current_Setting('secret_directory')) FROM cases", "SELECT 1 WHERE write_log('a') IS NULL",
    "FROM range(len(current_setting('home_directory')))", "SELECT system.main.current_setting('threads')",
    "FROM pg_catalog.pg_settings", "FROM PG_Settings", "FROM duckdb_views", "FROM main.duckdb_views",
    "FROM sqlite_master",
    "FROM system.main.sqlite_schema", "SELECT (SELECT sql FROM sqlite_temp_master LIMIT 1)", "FROM pg_views",
    "SELECT pg_catalog.PG_get_viewdef(i) FROM range(9) AS t(i)",
    "FROM information_schema.views", "WITH a AS (FROM system.information_schema.views) FROM a",
)  # fmt: skip


@pytest.mark.parametrize("sql", FORBIDDEN)
def test_a_user_can_do_nothing_else(con: duckdb.DuckDBPyConnection, root: Path, tmp_path: Path, sql: str) -> None:
    local_variable = pd.DataFrame({"secret": [1]})
    text = sql.format(file=tmp_path / "written", runs=str(root / "runs").replace("'", "''"))
    with pytest.raises(InputError) as refused:
        queries.run_user_query(con, text)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == [] and len(local_variable) == 1
    assert con.execute("SELECT count(*) FROM cases").fetchone() == (15,)


COPIES = (
    "COPY (SELECT 'gone') TO '{case}'", "COPY cases TO '{case}' (FORMAT csv)", "COPY (SELECT 1 AS a) TO '{run}'",
    "COPY (SELECT 1 AS a) TO '{cache}' (FORMAT parquet, USE_TMP_FILE false)", "COPY (SELECT 1) TO '{new}'",
    "COPY (SELECT 1 AS a, 2 AS b) TO '{folder}' (FORMAT parquet, PARTITION_BY (a), OVERWRITE true)",
)  # fmt: skip
AROUND = (
    "WITH x AS ({0}) SELECT 1",
    "WITH x AS MATERIALIZED ({0}) FROM x",
    "(WITH x AS ({0}) SELECT 1) UNION ALL SELECT 2",
    "SELECT 1 WHERE 1 IN (WITH x AS ({0}) SELECT 1)",
    "FROM (WITH x AS ({0}) SELECT 1)",
    "with /**/ X as ({0}) FROM X",
    "WITH RECURSIVE x AS ({0}), y AS (SELECT 1 AS a UNION ALL SELECT a + 1 FROM y WHERE a < 3) FROM y",
    "FROM query('{1}')",
    "FROM json_execute_serialized_sql(json_serialize_sql('{1}'))",
    "FROM \"JSON_Execute_Serialized_SQL\"(json_serialize_sql('{1}'))",
    "SELECT (SELECT count(*) FROM json_execute_serialized_sql(json_serialize_sql('{1}')))",
)
"""{0}: a statement. {1}: it in a query, quoted."""


def _content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("around", AROUND)
def test_a_select_changes_no_byte(con: duckdb.DuckDBPyConnection, root: Path, around: str) -> None:
    folder, before = root / "runs" / "clinic" / "r", _content(root)
    places = {"case": folder / "cases" / CASES[0] / "importance.csv", "run": folder / "run.json", "folder": folder} | {
        "cache": folder / "importance.parquet", "new": root / "runs" / "new.csv",
    }  # fmt: skip
    for copy in COPIES:
        told = copy.format(**{name: str(path).replace("'", "''") for name, path in places.items()})
        inner = f"WITH x AS ({told}) SELECT 1".replace("'", "''")
        with pytest.raises(InputError) as refused:
            queries.run_user_query(con, around.format(told, inner))
        assert "\n" not in str(refused.value)
    assert _content(root) == before


@pytest.mark.parametrize(
    "call",
    [
        "enable_logging()", "enable_logging(storage := 'file', storage_config := {{'path': '{runs}/logs'}})",
        "disable_logging()", "truncate_duckdb_logs()", "enable_profiling()", "checkpoint()", "force_checkpoint()",
        "disable_optimizer()", "query('SELECT 1')", "query_table(['cases'])", "read_text('{file}')",
        "read_blob('{file}')", "read_csv('{file}')", "read_json('{file}')", "read_parquet('{runs}/*/*/*.parquet')",
        "parquet_metadata('{file}')", "sniff_csv('{file}')", "glob('{runs}/*')", "read_duckdb('{runs}/a.db')",
        "READ_TEXT('{file}')", "system.main.read_text('{file}')", "register_external_resource('a')",
    ],
)  # fmt: skip
@pytest.mark.parametrize("around", ["FROM {0}", "SELECT EXISTS (FROM {0})", "FROM cases LIMIT (SELECT 1 FROM {0})"])
def test_functions_that_set_or_read_files_are_refused(con, root: Path, call: str, around: str) -> None:
    runs, before = str(root / "runs").replace("'", "''"), _content(root)
    with pytest.raises(InputError) as refused:
        queries.run_user_query(con, around.format(call.format(runs=runs, file=f"{runs}/clinic/r/run.json")))
    assert "\n" not in str(refused.value) and _content(root) == before


def test_without_the_check_of_queries_only_the_caches_can_be_read(con, root: Path) -> None:
    folder = root / "runs" / "clinic" / "r"
    for path in (folder / "run.json", folder / "cases" / CASES[0] / "importance.csv", root / "runs" / "new.csv"):
        for sql in ("FROM read_text('{0}')", "WITH x AS (COPY (SELECT 1) TO '{0}') SELECT 1"):
            with pytest.raises(duckdb.PermissionException):
                con.execute(sql.format(str(path).replace("'", "''")))


@pytest.mark.parametrize("nested", ["+".join(["1"] * 900), "abs(" * 900 + "1" + ")" * 900])
def test_a_query_that_is_nested_too_deeply_is_refused(con: duckdb.DuckDBPyConnection, nested: str) -> None:
    with pytest.raises(InputError, match="nested too deeply"):
        queries.run_user_query(con, f"SELECT {nested}")


@pytest.mark.parametrize(
    "sql",
    [
        "DESCRIBE importance", "SUMMARIZE runs", "SHOW TABLES", "VALUES (1)", "TABLE runs", "UNPIVOT runs ON cases",
        "PIVOT runs ON method IN ('smoothgrad') USING count(*)", "FROM range(3), unnest([1, 2])",
        "WITH RECURSIVE y AS (SELECT 1 AS a UNION ALL SELECT a + 1 FROM y WHERE a < 3) FROM y",
        "SELECT 1 UNION SELECT 2 INTERSECT SELECT 2", "SELECT 'COPY x TO y', unnest([1])",
        "FROM runs, LATERAL (SELECT run)",
        "FROM json_each((SELECT parameters FROM runs LIMIT 1))", "FROM information_schema.columns",
    ],
)  # fmt: skip
def test_all_that_only_reads_is_answered(con: duckdb.DuckDBPyConnection, sql: str) -> None:
    assert len(queries.run_user_query(con, sql)) > 0


@pytest.mark.parametrize("setting", ["threads = 1", "enable_external_access = true", "lock_configuration = false"])
def test_the_connection_itself_is_locked(con: duckdb.DuckDBPyConnection, setting: str) -> None:
    with pytest.raises(duckdb.Error):
        con.execute(f"SET {setting}")


# ---- what filters and queries reach ------------------------------------------------------------------

HOSTILE = (
    "' OR 1=1 --", "'; DROP TABLE store.cases; --", '" OR ""="', "note 1' UNION SELECT 1 --", "note 1", "note 13", "%",
    "note_1", "note 1\0", "\ud800", "NULL", "nan", "$case", "?", "{0}", "'||(FROM read_text('{secret}'))||'",
)  # fmt: skip
texts = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=12))
columns = st.one_of(st.sampled_from(["note", "sex", "code", "age"]), texts)
numbers = st.one_of(st.none(), st.floats(), st.integers(-(10**30), 10**30).map(float))
hostile = st.builds(
    Selection, st.just("clinic"), st.just("r"),
    where=st.lists(
        st.one_of(
            st.builds(Condition, columns, st.lists(texts, max_size=3).map(tuple)),
            st.builds(Condition, columns, st.none(), numbers, numbers),
        ), max_size=2,
    ).map(tuple),
    dice=st.one_of(st.none(), st.tuples(st.sampled_from(["", "heart", HOSTILE[0]]), st.floats(), st.floats())),
    present=st.lists(st.one_of(st.sampled_from(REGIONS), texts), max_size=1).map(tuple),
    within=st.lists(st.one_of(st.sampled_from(list(LISTS)), texts), max_size=1).map(tuple),
)  # fmt: skip


@given(hostile)
@example(Selection("clinic", "r", where=(Condition("note", ("\ud800",)),)))
@example(Selection("clinic", "r", where=(Condition("age", ("", "30")),)))
@settings(max_examples=200 * SOAK, deadline=None)
def test_a_filter_gives_the_rows_it_says_or_is_refused(con: duckdb.DuckDBPyConnection, selection: Selection) -> None:
    try:
        found = queries.passing(con, selection)
    except InputError as refused:
        assert "\n" not in str(refused)
        return
    assert found == list(_passes(selection).pipe(lambda keep: keep.index[keep]))


CALLS = ("read_text", "read_blob", "read_csv", "read_csv_auto", "parquet_scan", "read_json", "read_ndjson", "sniff_csv",
         "glob", "parquet_metadata", "read_parquet", "query", "lower", "getenv", "pragma_table_info")  # fmt: skip
words = st.one_of(
    st.sampled_from(
        ["SELECT", "FROM", "WHERE", "WITH x AS", "UNION ALL", "ORDER BY", "LIMIT", "GROUP BY ALL", "AS x", "x"]
    ),
    st.sampled_from(
        ["cases", "runs", "importance", "agreement", "lists", "outliers", "store.cases", "duckdb_secrets()"]
    ),
    st.sampled_from(
        ["*", "case_id", "mass", "count(*)", "1", "'a'", ",", "(", ")", "=", ";", "--", "/*", "*/", "$1", "''"]
    ),
    st.sampled_from(
        ["COPY", "TO", "ATTACH", "INSTALL", "LOAD", "SET", "PRAGMA", "EXPORT DATABASE", "CREATE TABLE t AS"]
    ),
    st.sampled_from(CALLS).map(lambda name: f"{name}('{{secret}}')"),
    st.sampled_from(["'{secret}'", '"{secret}"', "'{folder}/*'", "'{folder}/new'"]),
    texts,
)
asked = st.one_of(
    st.lists(words, max_size=14).map(" ".join),
    st.tuples(st.sampled_from(["SELECT {0}", "SELECT * FROM {0}", "SELECT (FROM {0})", "WITH x AS ({0}) FROM x",
                               "SELECT * FROM cases WHERE case_id IN (FROM {0})", "COPY (SELECT 1) TO {0}"]),
              words).map(lambda parts: parts[0].replace("{0}", parts[1])),
)  # fmt: skip


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Callable[[], list[str]]]]:
    """A file that no query may open, and what was done in its folder since it was last asked (Linux: inotify)."""
    path = tmp_path_factory.mktemp("outside") / "secret.csv"
    path.write_text("told\nnot for you\n")
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(descriptor, bytes(path.parent), 0xFFF) >= 0  # of every kind

    def seen() -> list[str]:
        try:
            return [path.name] * (len(os.read(descriptor, 1 << 16)) > 0)
        except BlockingIOError:
            return []

    yield path, seen
    os.close(descriptor)


@given(asked)
@settings(max_examples=300 * SOAK, deadline=None)
def test_a_query_is_answered_from_the_views_or_refused(
    con: duckdb.DuckDBPyConnection, outside: tuple[Path, Callable[[], list[str]]], sql: str
) -> None:
    path, seen = outside
    text = sql.replace("{secret}", str(path)).replace("{folder}", str(path.parent))
    try:
        answer = queries.run_user_query(con, text, rows=20, seconds=5)
    except InputError as refused:
        assert "\n" not in str(refused) and "not for you" not in str(refused)
    else:
        assert "not for you" not in answer.to_csv()
    assert seen() == []


def test_what_watches_the_file_sees_it_opened(outside: tuple[Path, Callable[[], list[str]]]) -> None:
    path, seen = outside
    assert duckdb.connect().execute(f"FROM read_csv('{path}')").fetchall() == [("not for you",)]
    assert seen() != []


# ---- names ------------------------------------------------------------------------------------------


def test_organs_that_no_label_set_orders_keep_the_order_of_the_classes(tmp_path: Path) -> None:
    results.write_run(tmp_path, "clinic", "r", INFO | {"label_set": "a_bundle"})
    cohorts.write_cases(tmp_path, "clinic", _metadata())
    table = SumTable(("ribs",), REGIONS, np.ones((1, 4)), np.ones((1, 4)), np.ones(4, np.int64))
    with results.case_folder(tmp_path / "runs" / "clinic" / "r" / "cases" / CASES[0], {"targets": ["ribs"]}) as new:
        results.write_importance(new, table)
        results.write_agreement(new, (), np.array([]), np.array([]))
    assert queries.organ_names(catalog.connect(tmp_path), "clinic", "r") == list(REGIONS)


def test_names_that_differ_only_in_case_stay_apart(small: Path) -> None:
    for cohort, run in (("clinic", "R"), ("CLINIC", "r")):
        shutil.copytree(small / "runs" / "clinic" / "r", small / "runs" / cohort / run)
    cohorts.write_cases(small, "CLINIC", _metadata().head(3))
    for number in (0, 1):
        shutil.rmtree(small / "runs" / "CLINIC" / "r" / "cases" / CASES[number])
    con = catalog.connect(small)
    assert queries.cohorts(con).values.tolist() == [["clinic", 14], ["CLINIC", 3]]  # the largest first
    for cohort, run, explained in (("clinic", "r", 2), ("clinic", "R", 2), ("CLINIC", "r", 0)):
        assert queries.cases(con, Selection(cohort, run))["explained"].sum() == explained
