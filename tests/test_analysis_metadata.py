"""Metadata of outliers against the rest: by hand, and what is missing."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.stats import fisher_exact, mannwhitneyu, ttest_ind

from agg2exp_core.analysis.metadata import compare_metadata
from agg2exp_core.records import InputError

OUTLIER = np.arange(20) < 8
TABLE = pd.DataFrame(
    {
        "age": [*np.linspace(60, 80, 8), *np.linspace(30, 65, 11), np.nan],
        "scanner": [*"AAAAAAAB", *"ABBBBBBBBBB", None],
        "same": 1.0,
        "sex": [*"FM" * 10],
    }
)


@pytest.fixture
def found() -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return compare_metadata(TABLE, OUTLIER).set_index(["column", "value"])


def test_numbers_by_rank_and_by_mean(found: pd.DataFrame) -> None:
    one, other = TABLE["age"][:8], TABLE["age"][8:19]
    row = found.loc["age", ""]
    assert row[["n_outliers", "n_rest"]].tolist() == [8, 11] and row["difference"] == pytest.approx(70 - 47.5)
    assert row["p"] == mannwhitneyu(one, other).pvalue and row["p_t"] == ttest_ind(one, other, equal_var=False).pvalue
    assert 0 < row["low"] < row["difference"] < row["high"]


def test_shares_of_each_value(found: pd.DataFrame) -> None:
    row = found.loc["scanner", "A"]
    assert row[["n_outliers", "n_rest", "outliers"]].tolist() == [8, 11, 7 / 8] and row["rest"] == pytest.approx(1 / 11)
    assert row["p"] == fisher_exact([[7, 1], [1, 10]]).pvalue and np.isnan(row["p_t"])
    assert 0 < row["low"] < row["difference"] < row["high"] < 1
    # The other value's row would be the mirror of this one, and would count as a test of its own.
    assert ("scanner", "B") not in found.index


def test_the_most_telling_comes_first_and_p_is_adjusted(found: pd.DataFrame) -> None:
    assert set(found.index[:2].get_level_values("column")) == {"age", "scanner"}
    assert (found["p_adjusted"].dropna() >= found["p"].dropna()).all()
    assert found.loc["sex", ["p"]].to_numpy() == pytest.approx(1) and np.isnan(found.loc["same", ""]["p"])


def test_a_column_that_one_side_lacks_says_nothing() -> None:
    table = pd.DataFrame({"age": [1.0, 2.0, np.nan], "sex": ["F", "M", None]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare_metadata(table, np.array([False, False, True]))
    assert found["n_outliers"].tolist() == [0] * 2 and found[["difference", "p"]].isna().all(axis=None)


def test_names_of_scans_and_endless_numbers_are_no_evidence() -> None:
    outlier = np.arange(200) < 60
    table = pd.DataFrame({"age": np.arange(200.0), "visit": [f"v{n // 2}" for n in range(200)]})
    with_an_end = compare_metadata(table.iloc[:-1], outlier[:-1])
    table.loc[199, "age"] = np.inf
    found = compare_metadata(table, outlier)
    assert found["column"].tolist() == ["age"] and found.equals(with_an_end)


@pytest.mark.parametrize("outlier", [np.ones(19, bool), np.ones(20, bool), np.zeros(20, bool)])
def test_sides_that_make_no_sense_are_refused(outlier: np.ndarray) -> None:
    with pytest.raises(InputError):
        compare_metadata(TABLE, outlier)
