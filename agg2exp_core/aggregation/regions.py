"""Local explanations: attribution summed over regions that partition the scan (arXiv 2407.16653, section 3).

Sums are kept, not shares: Σ max(a, 0), Σ max(−a, 0) and voxels of a region are additive, so that every sign,
mass, mean and group of regions follows from them exactly.
"""

from __future__ import annotations

import numpy as np

from agg2exp_core.records import InputError, SumTable

SIGNS = ("abs", "pos", "neg")


def region_sums(attributions: np.ndarray, regions: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Positive and negative sums of attributions (targets, I, J, K) over regions, each (targets, count) float64.

    regions: (I, J, K) integers 0 … count−1. One pass over all arrays, slab by slab, accumulated in float64.
    """
    positive, total = np.zeros((2, len(attributions), count))
    values, part = np.empty((2, regions[0].size))
    for slab in range(len(regions)):
        ids = regions[slab].reshape(-1)
        # Organs are compact: neighbours in a row mostly share a region, so runs are summed first, and then few sums.
        starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
        owners = ids[starts].astype(np.intp)
        for target, attribution in enumerate(attributions):
            np.copyto(values, attribution[slab].reshape(-1))
            total[target] += np.bincount(owners, np.add.reduceat(values, starts), count)
            np.maximum(values, 0, out=part)
            positive[target] += np.bincount(owners, np.add.reduceat(part, starts), count)
    # To a rounding of the positive sum, far below that of the attributions themselves.
    return positive, np.maximum(positive - total, 0)


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
