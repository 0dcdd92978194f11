"""Detectors: what is planted is found, what is absent stays absent, nobody is judged by what has seen him."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from explanations import ORGANS, made_up, published
from hypothesis import given, settings
from hypothesis import strategies as st

from agg2exp_core.analysis.detectors import DETECTORS, LEAST_MASS, RobustZ, log_ratios
from agg2exp_core.analysis.importance import Importance, take_cases, take_organs
from agg2exp_core.analysis.outliers import (
    FLAGGED_ABOVE,
    FOLDS,
    LEAST_CASES,
    case_deviations,
    deviations,
    fit,
    held_out,
    judge,
    outlier_table,
    overall,
    rank_correlation,
    roc_auc,
    score_fold,
    spearman_by_target,
    thresholds,
    usual_folds,
)
from agg2exp_core.analysis.significance import benjamini_hochberg
from agg2exp_core.records import InputError

COHORT = made_up(40)
HEART, RIBS = ORGANS.index("heart"), ORGANS.index("ribs")


def _planted(cases: int = 12, planted: int = 4) -> tuple[Importance, np.ndarray]:
    """Others of the cohort's kind, of which the first look at the ribs when they draw the heart."""
    others = made_up(cases, seed=7)
    values = others.values.copy()
    values[:planted, HEART] = values[:planted, RIBS]
    return replace(others, values=values), np.arange(cases) < planted


def _quiet(done: int, total: int, note: str) -> None:
    pass


@pytest.fixture(autouse=True)
def _no_warnings() -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# ---- every detector ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DETECTORS)
def test_what_is_planted_scores_highest_and_only_in_its_target(name: str) -> None:
    others, planted = _planted()
    scores = fit(name, COHORT.values).score(others.values)
    assert roc_auc(scores[:, HEART], planted) == 1 and roc_auc(overall(scores), planted) >= 0.9
    unchanged = np.arange(len(ORGANS)) != HEART
    own = fit(name, COHORT.values).score(made_up(12, seed=7).values)
    np.testing.assert_array_equal(scores[:, unchanged], own[:, unchanged])


@pytest.mark.parametrize("name", DETECTORS)
def test_an_absent_target_has_no_score_and_an_absent_region_is_ordinary(name: str) -> None:
    detector, others = fit(name, COHORT.values), _planted()[0]
    values = others.values.copy()
    values[0, HEART], values[1, :, RIBS], values[2, 0, 1] = np.nan, np.nan, -1e-6  # the last is 0, by rounding
    scores = detector.score(values)
    assert np.isnan(scores[0, HEART]) and np.isnan(scores).sum() == 1
    values[1, :, RIBS] = np.median(COHORT.values[:, :, RIBS], axis=0)
    np.testing.assert_array_equal(detector.score(values), scores)


@pytest.mark.parametrize("name", DETECTORS)
def test_absence_in_the_cohort_is_no_obstacle(name: str) -> None:
    values = COHORT.values.copy()
    values[: 40 - LEAST_CASES + 1, HEART] = np.nan  # too few hearts are left
    values[:, :, RIBS], values[:, RIBS] = np.nan, np.nan  # no ribs in any case
    scores = fit(name, values).score(_planted()[0].values)
    assert np.isnan(scores[:, [HEART, RIBS]]).all() and np.isfinite(np.delete(scores, [HEART, RIBS], axis=1)).all()
    assert np.isfinite(overall(scores)).all()


@pytest.mark.parametrize("name", DETECTORS)
def test_the_same_numbers_every_time_and_case_by_case(name: str) -> None:
    others = _planted()[0].values
    scores = fit(name, COHORT.values).score(others)
    np.testing.assert_array_equal(fit(name, COHORT.values).score(others), scores)
    np.testing.assert_allclose(fit(name, COHORT.values).score(others[3:4]), scores[3:4], rtol=1e-9)


@pytest.mark.parametrize("name", ["robust_z", "neighbours", "mahalanobis"])
def test_nobody_is_scored_by_what_has_seen_him(name: str) -> None:
    values = COHORT.values[:12]
    one, folds = held_out(name, values, len(values)), held_out(name, values, folds=5)
    rest = np.arange(12) != 3
    np.testing.assert_array_equal(one[3], fit(name, values[rest]).score(values[3:4])[0])
    np.testing.assert_array_equal(folds[8], fit(name, values[np.arange(12) % 5 != 3]).score(values[8:9])[0])


# ---- one detector ------------------------------------------------------------------------------------


def test_robust_z_by_hand() -> None:
    usual = RobustZ.fit(np.array([[0.1, 0.5], [0.2, 0.5], [0.3, 0.5], [np.nan, 0.5]]))
    assert usual.median == pytest.approx([0.2, 0.5]) and usual.scale == pytest.approx([0.14826, LEAST_MASS])
    assert usual.z(np.array([[0.2 - 0.29652, 0.5003]])) == pytest.approx(np.array([[-2, 3]]))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), scale=st.floats(1, 100))
def test_log_ratios_know_no_total(seed: int, scale: float) -> None:
    rows = np.random.default_rng(seed).dirichlet(np.full(6, 50), 3)
    np.testing.assert_allclose(log_ratios(rows * scale), log_ratios(rows), atol=1e-12)
    np.testing.assert_allclose(log_ratios(rows).sum(axis=1), 0, atol=1e-12)
    assert np.isfinite(log_ratios(np.array([[1.0, 0.0]]))).all()


# ---- what scores say ---------------------------------------------------------------------------------


def test_a_cohort_flags_a_twentieth_of_itself() -> None:
    scores = held_out("robust_z", COHORT.values)
    assert (scores > thresholds(scores)).mean(axis=0) == pytest.approx(1 - FLAGGED_ABOVE)
    assert np.isnan(thresholds(np.full((3, 1), np.nan))).all()


def test_overall_is_the_mean_of_what_is_there() -> None:
    np.testing.assert_array_equal(overall(np.array([[1, 3], [np.nan, 5], [np.nan, np.nan]])), [2, 5, np.nan])


@pytest.fixture
def in_tenths(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many cases are: one by one takes long."""
    monkeypatch.setattr("agg2exp_core.analysis.outliers.ONE_BY_ONE", 8)


@pytest.mark.usefixtures("in_tenths")
def test_the_table_has_a_row_for_each_case_target_and_detector() -> None:
    others, planted = _planted()
    values = others.values.copy()
    values[5, HEART] = np.nan
    # Organs in another order are the same organs.
    turned = Importance(others.cases, ORGANS[::-1], ORGANS[::-1], values[:, ::-1, ::-1])
    told: list[tuple[int, int]] = []
    table = outlier_table(COHORT, turned, lambda done, total, _: told.append((done, total)))
    assert list(table) == ["case_id", "target", "detector", "score", "flagged"]
    assert len(table) == 12 * 5 * 4 and not table[["case_id", "target", "detector"]].duplicated().any()
    assert told == [(number, 40) for number in range(1, 41)]
    absent = table[(table["case_id"] == "case-005") & (table["target"] == "heart")]
    assert absent[["score", "flagged"]].isna().all(axis=None) and table["score"].isna().sum() == 4
    heart = table[(table["target"] == "heart") & table["case_id"].isin(np.array(others.cases)[planted])]
    assert heart["flagged"].all() and table["flagged"].mean() < 0.4
    row = table.query("detector == 'robust_z' and case_id == 'case-007' and target == 'aorta'").iloc[0]
    assert row["score"] == fit("robust_z", COHORT.values).score(values)[7, ORGANS.index("aorta")]


@pytest.mark.usefixtures("in_tenths")
def test_only_targets_that_both_explain_are_scored() -> None:
    fewer = replace(COHORT, targets=ORGANS[2:0:-1], values=COHORT.values[:, 2:0:-1])
    for one, other in ((COHORT, fewer), (fewer, COHORT)):
        table = outlier_table(one, other, _quiet).query("detector == 'robust_z'")
        scores = fit("robust_z", one.values).score(one.values)
        expected = [scores[:, one.targets.index(name)] for name in table["target"].unique()]
        np.testing.assert_array_equal(table["score"].to_numpy().reshape(40, 2).T, expected)


@pytest.mark.usefixtures("in_tenths")
def test_the_cohort_itself_is_held_out() -> None:
    table = outlier_table(COHORT, None, _quiet).query("detector == 'neighbours'")
    np.testing.assert_array_equal(table["score"], held_out("neighbours", COHORT.values).reshape(-1))
    assert table["flagged"].mean() == pytest.approx(1 - FLAGGED_ABOVE)


def test_those_seen_while_learning_keep_their_held_out_scores() -> None:
    usual = take_cases(COHORT, np.arange(20))
    own = held_out("robust_z", usual.values)
    judged = take_cases(COHORT, np.array([25, 3]))
    scores = judge("robust_z", usual, judged, own)
    np.testing.assert_array_equal(scores[1], own[3])
    np.testing.assert_array_equal(scores[0], fit("robust_z", usual.values).score(judged.values[:1])[0])
    assert (judge("robust_z", usual, judged)[1] < own[3]).any()


def test_folds_in_pieces_are_the_whole() -> None:
    whole = held_out("neighbours", COHORT.values, folds=7)
    for number in range(7):
        np.testing.assert_array_equal(score_fold("neighbours", COHORT.values, number, 7), whole[number::7])
    assert usual_folds(32) == 32 and usual_folds(10_000) == FOLDS


def test_nobody_is_compared_with_himself() -> None:
    first, rest = COHORT.cases[0], take_cases(COHORT, np.arange(1, len(COHORT.cases)))
    organs = [name for name in ORGANS if name != "background"]  # of which one is told what it looks at
    own = deviations(take_organs(rest, organs, ORGANS), take_organs(COHORT, organs, ORGANS).values[0], 4)
    pd.testing.assert_frame_equal(case_deviations(COHORT, COHORT, first, n=4), own)
    assert set(case_deviations(COHORT, COHORT, first, "heart")["target"]) == {"heart"}
    with pytest.raises(InputError, match="at least 8 other cases; got 7"):
        case_deviations(take_cases(COHORT, np.arange(8)), COHORT, first)
    with pytest.raises(InputError, match="explained on both sides"):
        case_deviations(COHORT, COHORT, first, "spleen")
    with pytest.raises(InputError, match="must be explained"):
        case_deviations(COHORT, COHORT, "nobody")


def test_why_a_case_is_unusual() -> None:
    values = COHORT.values[0].copy()
    values[HEART] = np.median(COHORT.values[:, HEART], axis=0)
    values[HEART, RIBS] += 0.5
    values[0, 0] = np.nan
    table = deviations(COHORT, values, 3)
    assert table.loc[0, ["target", "region"]].tolist() == ["heart", "ribs"] and len(table) == 3
    assert table.loc[0, "value"] - table.loc[0, "median"] == pytest.approx(0.5) and table.loc[0, "z"] > 5
    assert (table["z"].abs().diff().dropna() <= 0).all()
    assert len(deviations(COHORT, values, 99)) == 24
    nobodys = COHORT.values.copy()
    nobodys[:, :, RIBS] = np.nan
    assert len(deviations(replace(COHORT, values=nobodys), values, 99)) == 19


def test_auc_by_hand() -> None:
    scores, abnormal = np.array([1, 2, 3, 4, np.nan]), np.array([False, True, False, True, True])
    assert roc_auc(scores, abnormal) == 0.75 and roc_auc(-scores, abnormal) == 0.25
    assert np.isnan(roc_auc(scores, np.ones(5, bool)))


def test_correlation_by_target() -> None:
    dice = np.linspace(0.5, 1, 10)[:, None] * np.ones(3)
    scores = np.stack([-dice[:, 0], np.ones(10), np.sin(np.arange(10) * 3)], axis=1)
    scores[0, 2] = np.nan
    table = spearman_by_target(scores, dice, ("a", "b", "c"))
    assert table["n"].tolist() == [10, 10, 9] and table.loc[0, "rho"] == pytest.approx(-1)
    assert table.loc[1, ["rho", "p", "p_adjusted"]].isna().all()
    assert table.loc[2, "p_adjusted"] == table.loc[2, "p"] and table.loc[0, "p_adjusted"] == 2 * table.loc[0, "p"]


def test_benjamini_and_hochberg_by_hand() -> None:
    adjusted = benjamini_hochberg(np.array([[0.01, np.nan], [0.04, 0.03]]))
    assert adjusted == pytest.approx(np.array([[0.03, np.nan], [0.04, 0.04]]), nan_ok=True)


@pytest.mark.parametrize("cases", [0, LEAST_CASES - 1])
def test_what_makes_no_sense_is_refused(cases: int) -> None:
    with pytest.raises(InputError, match="isolation_forest, robust_z"):
        fit("lof", COHORT.values)
    with pytest.raises(InputError, match=f"at least {LEAST_CASES} cases"):
        fit("robust_z", COHORT.values[:cases])
    with pytest.raises(InputError, match=f"more than {LEAST_CASES} cases"):
        outlier_table(made_up(cases), None, _quiet)
    with pytest.raises(InputError, match="targets and regions"):
        deviations(COHORT, np.zeros((2, 2)))
    with pytest.raises(InputError, match="the same regions; got liver"):
        outlier_table(COHORT, made_up(9, organs=ORGANS[:-1]), _quiet)
    with pytest.raises(InputError, match="a target in common"):
        outlier_table(COHORT, replace(COHORT, targets=tuple("vwxyz")), _quiet)


# ---- the published table -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "folds", "least"),
    [("isolation_forest", 4, 0.5), ("robust_z", 32, 0.5), ("neighbours", 32, 0.4), ("mahalanobis", 32, 0.4)],
)
def test_unusual_evidence_goes_with_lower_dice(name: str, folds: int, least: float, published_table: Path) -> None:
    """Leave-one-out on 32 real scans: −0.51, −0.53, −0.44 and −0.45, in this order, when this was written.

    The forest leaves eight out at a time, which also gave −0.51 and takes an eighth of the time.
    """
    masses, dice = published(published_table)
    scores = held_out(name, masses.values, folds)
    rho, p = rank_correlation(overall(scores), dice[:, 1:].mean(axis=1))
    assert rho <= -least and p < 0.05
    table = spearman_by_target(scores, dice, masses.targets).set_index("target")
    assert table.loc["lung_lower_lobe_right", "p_adjusted"] < 0.05
