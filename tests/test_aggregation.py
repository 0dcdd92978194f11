"""Sums over regions: identities, a case to check by hand, and MONAI as the oracle of agreement."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import DiceMetric, MeanIoU
from monai.networks import one_hot

from agg2exp_core.aggregation.agreement import dice_iou
from agg2exp_core.aggregation.groups import join_regions
from agg2exp_core.aggregation.regions import count_voxels, mass, mean, region_sums
from agg2exp_core.records import InputError, SumTable

REGIONS = ("background", "upper", "lower", "heart")


def table_of(seed: int, shape: tuple[int, int, int] = (5, 4, 3)) -> SumTable:
    rng = np.random.default_rng(seed)
    regions = rng.integers(0, len(REGIONS), shape).astype(np.uint8)
    positive, negative = region_sums(rng.standard_normal((2, *shape), np.float32), regions, len(REGIONS))
    return SumTable(("upper", "heart"), REGIONS, positive, negative, count_voxels(regions, len(REGIONS)))


def test_three_voxels_by_hand():
    attributions, regions = np.array([[[[2.0, -1.0, 1.0]]]]), np.array([[[1, 1, 0]]])
    positive, negative = region_sums(attributions, regions, 2)
    assert positive.tolist() == [[1, 2]] and negative.tolist() == [[0, 1]]
    table = SumTable(("a",), ("background", "a"), positive, negative, count_voxels(regions, 2))
    assert mass(table, "abs").tolist() == [[0.25, 0.75]]
    assert mass(table, "pos")[0] == pytest.approx([1 / 3, 2 / 3]) and mass(table, "neg").tolist() == [[0, 1]]
    assert mean(table, "abs").tolist() == [[1, 1.5]] and mean(table, "neg").tolist() == [[0, 0.5]]


@pytest.mark.parametrize("voxels", [1, 400, 2**17], ids=["a slab a plane", "uneven slabs", "one slab"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(("dtype", "kept", "close"), [(np.uint8, "f4", 1e-6), (np.int16, "f8", 1e-12)])
def test_sums_equal_the_plain_loop(monkeypatch, dtype, kept, close, order, voxels):
    monkeypatch.setattr("agg2exp_core.aggregation.regions.CACHED_VOXELS", voxels)
    rng = np.random.default_rng(0)
    shape = (17, 14, 13)
    attributions = np.asarray(rng.standard_normal((3, *shape)), kept, order=order)
    regions = rng.integers(0, 7, shape).astype(dtype)
    positive, negative = region_sums(attributions, regions, 9)
    assert positive.shape == negative.shape == (3, 9) and min(positive.min(), negative.min()) == 0
    for target, region in np.ndindex(3, 9):
        inside = attributions[target][regions == region].astype(np.float64)
        assert positive[target, region] == pytest.approx(inside[inside > 0].sum(), rel=close)
        assert negative[target, region] == pytest.approx(-inside[inside < 0].sum(), rel=close)
    assert region_sums(attributions[:0], regions, 9)[0].shape == (0, 9)
    with pytest.raises(ValueError):
        region_sums(attributions, regions, 6)  # a region too many


@pytest.mark.parametrize("kept", ["f2", "f4", ">f4", "f8"])
def test_large_regions_of_one_sign_are_summed_to_a_rounding_and_have_nothing_of_the_other(kept):
    attributions = np.full((2, 80, 80, 80), 0.1, kept)
    attributions[1] *= -1
    positive, negative = region_sums(attributions, np.ones(attributions.shape[1:], np.uint8), 2)
    assert positive[0, 1] == negative[1, 1] == pytest.approx(80**3 * float(attributions[0, 0, 0, 0]), rel=1e-6)
    assert positive[1].max() == negative[0].max() == 0


def test_little_of_one_sign_is_kept_beside_much_of_the_other():
    """A millionth: each sign is summed by itself, so that its masses are as exact as the other's."""
    rng = np.random.default_rng(0)
    attributions = np.exp(2 * rng.standard_normal((1, 40, 40, 40))).astype(np.float32)
    few = rng.random(attributions.shape) < 0.01
    attributions[few] *= -1e-4
    regions = np.zeros(attributions.shape[1:], np.uint8)
    regions[20:] = 1
    negative = region_sums(attributions, regions, 2)[1][0]
    exact = [-attributions[0, half][few[0, half]].astype(np.float64).sum() for half in (slice(20), slice(20, None))]
    assert 0 < sum(exact) < 2e-6 * attributions.sum(dtype=np.float64) and negative == pytest.approx(exact, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), sign=st.sampled_from(["abs", "pos", "neg"]))
def test_masses_over_the_partition_sum_to_one(seed, sign):
    assert mass(table_of(seed), sign).sum(axis=1) == pytest.approx(1, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), sign=st.sampled_from(["abs", "pos", "neg"]))
def test_a_group_is_the_sum_of_its_members(seed, sign):
    table = table_of(seed)
    joined = join_regions(table, {"lung": ("upper", "lower")})
    assert joined.regions == ("background", "lung", "heart")
    assert joined.voxels.sum() == table.voxels.sum()
    whole, parts = mass(joined, sign)[:, 1], mass(table, sign)[:, 1:3]
    assert whole == pytest.approx(parts.sum(axis=1), abs=1e-12)
    weighted = (mean(table, sign)[:, 1:3] * table.voxels[1:3]).sum(axis=1) / table.voxels[1:3].sum()
    assert mean(joined, sign)[:, 1] == pytest.approx(weighted, rel=1e-12)


def test_an_absent_target_stays_absent_in_every_measure():
    table = table_of(3)
    positive = table.positive.copy()
    positive[0] = np.nan
    absent = SumTable(table.targets, REGIONS, positive, table.negative, table.voxels, {"upper": "not predicted"})
    joined = join_regions(absent, {"lung": ("upper", "lower")})
    assert np.isnan(mass(joined, "abs")[0]).all() and np.isfinite(mass(joined, "abs")[1]).all()
    assert joined.absent == {"upper": "not predicted"}


@pytest.mark.parametrize("groups", [{"lung": ("upper", "liver")}, {"lung": ("upper",), "chest": ("upper", "heart")}])
def test_groups_that_make_no_sense_are_refused(groups):
    with pytest.raises(InputError):
        join_regions(table_of(0), groups)


def test_an_unknown_sign_is_refused():
    with pytest.raises(InputError, match="abs, pos, neg"):
        mass(table_of(0), "both")


def test_agreement_equals_monais():
    rng = np.random.default_rng(0)
    prediction, label = rng.integers(0, 4, (2, 12, 11, 10)).astype(np.uint8)
    dice, iou = dice_iou(prediction, label, 4)
    y_pred, y = (one_hot(torch.as_tensor(a.astype(np.int64))[None, None], 4) for a in (prediction, label))
    assert dice == pytest.approx(DiceMetric(include_background=True)(y_pred, y)[0].numpy())
    assert iou == pytest.approx(MeanIoU(include_background=True)(y_pred, y)[0].numpy())


def test_agreement_of_what_is_in_one_map_only_or_in_none():
    prediction, label = np.array([[[0, 1, 2]]]), np.array([[[0, 1, 9]]])
    dice, iou = dice_iou(prediction, label, 4)
    assert dice[:3].tolist() == iou[:3].tolist() == [1, 1, 0]
    assert np.isnan(dice[3]) and np.isnan(iou[3])
