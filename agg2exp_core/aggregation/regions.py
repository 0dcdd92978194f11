"""Local explanations: attribution summed over regions that partition the scan (arXiv 2407.16653, section 3).

Sums are kept, not shares: Σ max(a, 0), Σ max(−a, 0) and voxels of a region are additive, so that every sign,
mass, mean and group of regions follows from them exactly.
"""

from __future__ import annotations

import numpy as np

from agg2exp_core.records import InputError, SumTable

SIGNS = ("abs", "pos", "neg")
LANES = 8
"""Neighbours in a row lie in one region, and an addition to a bin waits for the one before; so they take turns."""


def region_sums(attributions: np.ndarray, regions: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Positive and negative sums of attributions (targets, I, J, K) over regions, each (targets, count) float64.

    regions: (I, J, K) integers 0 … count−1. One pass over all arrays, slab by slab, accumulated in float64.
    """
    slabs, voxels = len(regions), regions[0].size
    # Bins by region, lane and sign, the sign last: one count of a target's slab gives both sums.
    lanes = np.arange(voxels) % LANES * 2
    sums = np.zeros((len(attributions), count * LANES * 2))
    bins, values = np.empty(voxels, np.intp), np.empty(voxels)
    below = np.empty(voxels, bool)
    for slab in range(slabs):
        first = regions[slab].reshape(-1).astype(np.intp) * (LANES * 2) + lanes
        for total, attribution in zip(sums, attributions, strict=True):
            part = attribution[slab].reshape(-1)
            np.add(first, np.signbit(part, out=below), out=bins)
            np.copyto(values, part)
            total += np.bincount(bins, values, total.size)
    positive, negative = np.abs(np.moveaxis(sums.reshape(len(sums), count, LANES, 2).sum(axis=2), -1, 0))
    return positive, negative


def count_voxels(regions: np.ndarray, count: int) -> np.ndarray:
    """Voxels of each region 0 … count−1, (count,) int64."""
    return np.bincount(regions.reshape(-1), minlength=count).astype(np.int64)


def amount(table: SumTable, sign: str) -> np.ndarray:
    """Σ φ(a) of each (target, region): φ is |a| for abs, max(a, 0) for pos, max(−a, 0) for neg."""
    if sign not in SIGNS:
        raise InputError("sign must be one of", repr(sign), ", ".join(SIGNS))
    return {"abs": table.positive + table.negative, "pos": table.positive, "neg": table.negative}[sign]


def mass(table: SumTable, sign: str) -> np.ndarray:
    """Share of each region in its target's attribution, (targets, regions); rows sum to 1, absent ones are NaN."""
    sums = amount(table, sign)
    total = sums.sum(axis=1, keepdims=True)
    return np.divide(sums, total, out=np.full_like(sums, np.nan), where=total > 0)


def mean(table: SumTable, sign: str) -> np.ndarray:
    """Attribution per voxel of each region, (targets, regions); NaN where a region has no voxel."""
    sums = amount(table, sign)
    return np.divide(sums, table.voxels, out=np.full_like(sums, np.nan), where=table.voxels > 0)
