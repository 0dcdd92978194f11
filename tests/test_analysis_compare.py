"""Differences of two sets: by hand, against SciPy, and against the bootstrap that draws every case."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from explanations import ORGANS, made_up
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, wilcoxon

from agg2exp_core.analysis.compare import DRAWS, STATISTICS, bootstrap, compare, compare_dice, largest_changes
from agg2exp_core.analysis.importance import Importance, take_cases
from agg2exp_core.records import InputError

FIRST, SECOND = made_up(30), made_up(30, seed=1)
STRANGERS = replace(SECOND, cases=tuple(f"other-{case}" for case in SECOND.cases))
HEART, RIBS = ORGANS.index("heart"), ORGANS.index("ribs")


@pytest.fixture(autouse=True)
def _no_warnings() -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _one(values: list[float], cases: str) -> Importance:
    return Importance(tuple(cases), ("heart",), ("ribs",), np.array(values, np.float64).reshape(-1, 1, 1))


def test_by_hand_paired_and_unpaired() -> None:
    first = _one([0.1, 0.2, 0.3], "abc")
    paired = compare(first, _one([0.5, 0.2, 0.2], "cab"))
    row = paired.table.iloc[0]
    assert paired.paired and row["difference"] == pytest.approx(0.1)  # median of 0.1, 0, 0.2
    assert (row["first"], row["second"]) == (0.2, 0.2) and row["n_first"] == row["n_second"] == 3
    apart = compare(first, _one([0.5, 0.2, 0.2, 0.9], "cabd"), "mean")
    assert not apart.paired and apart.table.loc[0, "difference"] == pytest.approx(0.45 - 0.2)


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("second", [SECOND, STRANGERS], ids=["paired", "unpaired"])
def test_turned_round_it_is_the_opposite(second: Importance, statistic: str) -> None:
    there, back = compare(FIRST, second, statistic).table, compare(second, FIRST, statistic).table
    assert there["difference"].to_numpy() == pytest.approx(-back["difference"].to_numpy())
    assert there["p"].to_numpy() == pytest.approx(back["p"].to_numpy())
    assert ((there["low"] <= there["difference"]) & (there["difference"] <= there["high"])).all()
    assert (there["p_adjusted"] >= there["p"]).all()


def test_p_values_are_scipys() -> None:
    one, other = FIRST.values[:, HEART, RIBS], SECOND.values[:, HEART, RIBS]
    where = "target == 'heart' and region == 'ribs'"
    assert compare(FIRST, SECOND).table.query(where)["p"].item() == pytest.approx(wilcoxon(other - one).pvalue)
    assert compare(FIRST, STRANGERS).table.query(where)["p"].item() == pytest.approx(mannwhitneyu(one, other).pvalue)


def test_few_scans_that_change_alike_are_tested_at_once() -> None:
    """SciPy alone would take seconds for each such pair: three ties and one that did not change, of 13."""
    sizes = [0.0, 0.1, 0.1, 0.1, *np.linspace(0.2, 0.5, 9)]
    first, second = (_one([factor * size for size in sizes], "abcdefghijklm") for factor in (1, 2))
    assert compare(first, second).table["p"].item() == pytest.approx(
        wilcoxon(sizes[1:], method="asymptotic").pvalue, rel=1e-6
    )
    alone = _one([0.0, 0.1, 0.2, 0.25], "abcd")
    assert compare(alone, _one([0.0, 0.2, 0.5, 0.6], "abcd")).table["p"].item() == pytest.approx(2 / 2**3)


def test_pairs_can_be_asked_for_and_forbidden() -> None:
    fewer = take_cases(SECOND, np.arange(20))
    assert not compare(FIRST, fewer).paired and compare(FIRST, fewer).cases == (30, 20)
    asked = compare(FIRST, fewer, paired=True)
    assert asked.cases == (20, 20)
    assert asked.table.equals(compare(take_cases(FIRST, np.arange(20)), fewer).table)
    forbidden = compare(FIRST, SECOND, paired=False)
    assert not forbidden.paired and forbidden.table.equals(compare(FIRST, STRANGERS).table)
    with pytest.raises(InputError, match="a case to be compared"):
        compare(FIRST, STRANGERS, paired=True)


def test_dice_of_organs_and_their_mean_over_what_both_models_have() -> None:
    def table(**dice: list[float]) -> pd.DataFrame:
        rows = [
            (case, organ, value) for organ, values in dice.items() for case, value in zip("ab", values, strict=True)
        ]
        return pd.DataFrame(rows, columns=["case_id", "target", "dice"])

    organs, overall = compare_dice(
        table(heart=[0.9, 0.7], ribs=[0.5, 0.5]), table(heart=[0.8, 0.7], ribs=[0.5, 0.6], liver=[0.1, 0.1]), True
    )
    assert organs.table.set_index("target")["difference"].to_dict() == pytest.approx({"heart": -0.05, "ribs": 0.05})
    assert organs.left_out == ("liver",)
    assert overall.table[["first", "second"]].iloc[0].tolist() == pytest.approx([0.65, 0.65])


def test_a_set_without_dice_is_refused() -> None:
    none = pd.DataFrame(columns=["case_id", "target", "dice"])
    some = pd.DataFrame([("a", "heart", 0.9)], columns=none.columns)
    for first, second in ((none, some), (some, none), (none, none)):
        with pytest.raises(InputError, match="each of two sets needs Dice"):
            compare_dice(first, second, paired=True)


@pytest.mark.parametrize("second", [SECOND, STRANGERS], ids=["paired", "unpaired"])
def test_a_planted_change_is_the_largest_and_the_only_significant_one(second: Importance) -> None:
    values = second.values.copy()
    values[:, HEART, RIBS] += 0.2
    found = compare(FIRST, replace(second, values=values))
    top = largest_changes(found, 3)
    assert top.loc[0, ["target", "region"]].tolist() == ["heart", "ribs"] and len(top) == 3
    assert 0.1 < top.loc[0, "low"] < 0.2 < top.loc[0, "high"] < 0.3
    assert (found.table["p_adjusted"] < 0.01).sum() == 1


def test_the_same_set_twice_has_not_changed() -> None:
    table = compare(FIRST, FIRST).table
    assert (table[["difference", "low", "high"]] == 0).all(axis=None) and (table[["p", "p_adjusted"]] == 1).all(
        axis=None
    )


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("paired", [True, False])
def test_absent_values_do_not_count(statistic: str, paired: bool) -> None:
    values = FIRST.values.copy()
    values[:10, HEART], values[:, RIBS], values[1:, 0] = np.nan, np.nan, np.nan
    first, second = replace(FIRST, values=values), SECOND if paired else STRANGERS
    table = compare(first, second, statistic).table.set_index("target")
    assert (table.loc["heart", "n_first"] == 20).all() and (
        table.loc["heart", "n_second"] == (20 if paired else 30)
    ).all()
    assert table.loc["ribs", ["difference", "low", "high", "p"]].isna().all(axis=None)
    assert table.loc["background", "difference"].notna().all() and table.loc["background", ["low", "p"]].isna().all(
        axis=None
    )
    assert len(largest_changes(compare(first, second, statistic), 99)) == 20
    if paired:
        rest = np.arange(30) >= 10
        expected = np.median((SECOND.values - FIRST.values)[rest, HEART], axis=0)
        assert statistic == "mean" or table.loc["heart", "difference"].to_numpy() == pytest.approx(expected)


@pytest.mark.parametrize("statistic", STATISTICS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(3, 40), absent=st.integers(0, 3))
def test_the_bootstrap_is_the_one_that_draws_cases(statistic: str, seed: int, n: int, absent: int) -> None:
    rng, absent = np.random.default_rng(seed), absent if statistic == "median" else 0
    known = rng.normal(size=n)
    values = rng.permutation(np.concatenate([known, np.full(absent, np.nan)]))[:, None]
    found = np.sort(np.concatenate([bootstrap(values, statistic, rng)[:, 0] for _ in range(8)]))
    assert found.shape == (8 * DRAWS,)
    drawn = known[rng.integers(0, n, (8 * DRAWS, n))]
    expected = np.sort(np.median(drawn, axis=1) if statistic == "median" else drawn.mean(axis=1))
    # Largest gap of the two distribution functions (Kolmogorov and Smirnov), on all values of both.
    points = np.concatenate([found, expected]) + 1e-12
    gaps = np.searchsorted(found, points) - np.searchsorted(expected, points)
    assert np.abs(gaps).max() / len(found) < 0.04


def test_few_values_among_many_absent_ones_still_have_an_interval() -> None:
    many = tuple(f"case-{number}" for number in range(60))
    values = np.full((60, 1, 1), np.nan)
    values[:2, 0, 0] = 0.1, 0.3
    few = Importance(many, ("heart",), ("ribs",), values)
    for other in (replace(few, values=2 * values), replace(few, cases=(*many[1:], "new"), values=2 * values)):
        row = compare(few, other, "mean").table.iloc[0]
        assert row["low"] < row["difference"] < row["high"]


def test_sets_share_what_they_have_in_common() -> None:
    fewer = made_up(30, organs=ORGANS[:3])
    assert compare(FIRST, fewer).table[["target", "region"]].drop_duplicates().shape == (9, 2)
    with pytest.raises(InputError, match="in common"):
        compare(FIRST, replace(FIRST, targets=tuple("vwxyz")))
    with pytest.raises(InputError, match="a case to be compared"):
        compare(FIRST, take_cases(SECOND, np.zeros(30, bool)))
    with pytest.raises(InputError, match="median, mean"):
        compare(FIRST, SECOND, "mode")
