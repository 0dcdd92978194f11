"""From long tables to arrays, matrices, graphs and dendrograms: by hand, by identities, and on the published table."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from explanations import made_up, published
from hypothesis import given, settings
from hypothesis import strategies as st

from agg2exp_core.analysis import summary
from agg2exp_core.analysis.clustering import LINKAGES, cluster, distances
from agg2exp_core.analysis.graph import cumulative_edges, self_loops, top_edges
from agg2exp_core.analysis.importance import Importance, context, foreground, means, medians, take_cases, to_array
from agg2exp_core.analysis.ordered import Ordered
from agg2exp_core.records import InputError

LOWER_LEFT = "lung_lower_lobe_left"
ROWS = [
    ("b", "heart", "heart", 0.6), ("b", "heart", "background", 0.4), ("a", "heart", "background", None),
    ("a", "heart", "heart", None), ("a", "aorta", "heart", 0.25), ("a", "aorta", "background", 0.75),
]  # fmt: skip


@pytest.fixture(scope="module")
def masses(published_table: Path) -> Importance:
    return published(published_table)[0]


def _table(rows: list[tuple[str, str, str, float | None]] = ROWS) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["case_id", "target", "region", "value"])


def _matrix(values: list[list[float]], names: str = "ab") -> pd.DataFrame:
    return pd.DataFrame(values, index=list(names), columns=list(names)).rename_axis("target")


# ---- arrays ----------------------------------------------------------------------------------------


def test_an_array_has_the_given_order_and_nan_where_nothing_is() -> None:
    found = to_array(_table(), ("background", "liver", "aorta"))
    assert (found.cases, found.targets, found.regions) == (("b", "a"), ("aorta", "heart"), ("background", "heart"))
    expected = [[[np.nan, np.nan], [0.4, 0.6]], [[0.75, 0.25], [np.nan, np.nan]]]
    np.testing.assert_array_equal(found.values, expected)


def test_the_order_of_rows_does_not_count_but_for_the_cases() -> None:
    names, shuffled = ("background", "heart", "aorta"), _table(ROWS[:1] + ROWS[:0:-1])
    np.testing.assert_array_equal(to_array(shuffled, names).values, to_array(_table(), names).values)


@pytest.mark.parametrize(
    ("table", "rule"),
    [
        (_table().drop(columns="value"), "columns"),
        (_table([*ROWS, ROWS[0]]), "once"),
        (_table([*ROWS, ("b", "aorta", "heart", np.inf)]), "finite"),
        (_table([*ROWS, (None, "aorta", "heart", 0.5)]), "name its case"),
    ],
)
def test_tables_that_make_no_sense_are_refused(table: pd.DataFrame, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        to_array(table)


def test_an_empty_table_is_an_empty_array() -> None:
    found = to_array(_table([]))
    assert found.values.shape == (0, 0, 0) and medians(found).empty and context(found).empty


def test_what_is_absent_everywhere_is_nan_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = medians(to_array(_table(ROWS[2:])))
    assert table.loc["heart"].isna().all() and table.loc["aorta", "heart"] == 0.25


def test_the_foreground_sums_to_one_and_keeps_proportions() -> None:
    found = foreground(to_array(_table([*ROWS[:2], ("b", "heart", "aorta", 0.2), ("b", "background", "heart", 1.0)])))
    assert found.targets == ("heart",) and found.regions == ("heart", "aorta")
    np.testing.assert_allclose(found.values, [[[0.75, 0.25]]], rtol=1e-15)
    assert np.isnan(foreground(to_array(_table([("b", "heart", "heart", 0.0)]))).values).all()


def test_context_is_the_diagonal() -> None:
    masses = made_up(7)
    np.testing.assert_array_equal(context(masses).to_numpy(), np.diagonal(masses.values, axis1=1, axis2=2))
    assert list(context(to_array(_table())).columns) == ["heart"]


def test_cases_are_taken_by_mask_and_by_place() -> None:
    masses = made_up(5)
    assert take_cases(masses, np.array([3, 1])).cases == ("case-003", "case-001")
    mask = np.array([False, True, False, True, False])
    np.testing.assert_array_equal(take_cases(masses, mask).values, masses.values[[1, 3]])


def test_published_medians(masses: Importance) -> None:
    assert masses.values.shape == (32, 17, 17)
    row = medians(masses).loc[LOWER_LEFT].drop("background").sort_values(ascending=False).head(6).round(4)
    assert row.to_dict() == {
        LOWER_LEFT: 0.0969, "lung_upper_lobe_left": 0.0738, "heart": 0.0283, "lung_lower_lobe_right": 0.0195,
        "vertebraes": 0.016, "ribs": 0.015,
    }  # fmt: skip
    assert context(masses)[LOWER_LEFT].median() == pytest.approx(0.0969, abs=5e-5)
    np.testing.assert_allclose(foreground(masses).values.sum(axis=2), 1, atol=1e-12)


# ---- graph -----------------------------------------------------------------------------------------


def test_edges_lead_from_the_largest_regions_and_keep_their_sign() -> None:
    edges = top_edges(_matrix([[0.2, -0.5], [0.0, np.nan]]), 2)
    assert edges.to_numpy().tolist() == [["a", "b", -0.5, "neg"], ["a", "a", 0.2, "pos"]]
    assert self_loops(edges).to_numpy().tolist() == [["a", "a", 0.2, "pos"]]


def test_a_cut_keeps_the_largest_that_stay_below_it() -> None:
    matrix = pd.DataFrame([[0.5, 0.3, 0.2]], index=["a"], columns=["a", "b", "c"])
    assert [len(cumulative_edges(matrix, cut)) for cut in (0.4, 0.5, 0.8, 0.99, 1)] == [0, 1, 2, 2, 3]


def test_published_graph(masses: Importance) -> None:
    organs = means(masses).drop(index="background", columns="background")
    for matrix in (organs, medians(masses).loc[organs.index, organs.columns]):
        edges = top_edges(matrix)
        assert len(edges) == 80 and len(self_loops(edges)) == 9
    assert organs.size == 256 and len(cumulative_edges(organs, 0.35)) == 240
    assert len(cumulative_edges(means(foreground(masses)), 0.35)) < 32
    assert len(cumulative_edges(means(foreground(masses)), 1)) == 256


@pytest.mark.parametrize("cut", [0, -1, 1.1, np.nan])
def test_cuts_that_make_no_sense_are_refused(cut: float) -> None:
    with pytest.raises(InputError):
        cumulative_edges(_matrix([[1, 0], [0, 1]]), cut)
    with pytest.raises(InputError):
        top_edges(_matrix([[1, 0], [0, 1]]), 0)


# ---- clusters --------------------------------------------------------------------------------------


def test_distance_by_hand() -> None:
    far = distances(_matrix([[0.64, 0.09], [0.25, 0.36]]))
    assert far.to_numpy() == pytest.approx(np.array([[0, 0.4], [0.4, 0]]))  # 0.8 − (0.3 + 0.5) / 2


def test_distance_of_pairs_that_are_absent() -> None:
    nothing = [np.nan] * 4
    far = distances(_matrix([[0.64, 0.09, np.nan, 0], [np.nan, 0.36, 0.1, 0], [np.nan, 0.1, 0.2, 0], nothing], "abcd"))
    assert list(far) == ["a", "b", "c"]
    assert far.loc["a", "b"] == pytest.approx(0.5) and far.loc["c", "a"] == pytest.approx(0.8)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), method=st.sampled_from(LINKAGES))
def test_a_dendrogram_has_every_leaf_once_whatever_the_order(seed: int, method: str) -> None:
    matrix = medians(made_up(9, seed))
    tree = cluster(matrix, method)
    assert sorted(tree.order) == sorted(tree.names) == sorted(matrix.index) and -1 <= tree.cophenetic <= 1
    shuffled = matrix.sample(frac=1, random_state=seed % 100)
    again = cluster(shuffled[shuffled.index], method)
    np.testing.assert_allclose(np.sort(again.linkage[:, 2]), np.sort(tree.linkage[:, 2]), atol=1e-12)
    assert again.cophenetic == pytest.approx(tree.cophenetic, abs=1e-9)


def test_organs_that_explain_each_other_join_first(masses: Importance) -> None:
    organs = means(foreground(masses))
    trees = {method: cluster(organs, method) for method in LINKAGES}
    assert max(trees, key=lambda method: trees[method].cophenetic) == "average"
    places = sorted(trees["average"].order.index(f"lung_{lobe}_lobe_right") for lobe in ("upper", "middle", "lower"))
    assert places[2] - places[0] == 2
    assert trees["average"].cophenetic == pytest.approx(0.734, abs=5e-4)


def test_dendrograms_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="average, complete, single, ward"):
        cluster(_matrix([[1, 0], [0, 1]]), "median")
    with pytest.raises(InputError, match="2 organs"):
        cluster(_matrix([[1, 0], [np.nan, np.nan]]))


# ---- a matrix of any choice of cases -----------------------------------------------------------------


@given(seed=st.integers(0, 10**6), share=st.floats(0, 1), lacking=st.floats(0, 0.6))
@settings(max_examples=60, deadline=None)
def test_sorted_cells_give_the_matrix_of_the_cases_chosen(seed: int, share: float, lacking: float) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 5, (rng.integers(1, 40), 2, 3)) / 4  # with ties
    values[rng.random(values.shape) < lacking] = np.nan
    everything = Importance(tuple(f"case-{n}" for n in range(len(values))), ("a", "b"), ("a", "b", "c"), values)
    chosen = rng.random(len(values)) < share
    found = Ordered(everything).matrix(chosen)
    pd.testing.assert_frame_equal(found, summary.matrix(take_cases(everything, chosen)))
