"""Local explanations: attribution summed over regions that partition the scan (arXiv 2407.16653, section 3).

Sums are kept, not shares: Σ max(a, 0), Σ max(−a, 0) and voxels of a region are additive, so that every sign,
mass, mean and group of regions follows from them exactly.
"""

from __future__ import annotations

import numpy as np

from agg2exp_core.records import InputError, SumTable

SIGNS = ("abs", "pos", "neg")
BLOCK = 2**14
"""Voxels summed at a time: their temporaries stay in the processor's cache."""


def region_sums(attribution: np.ndarray, regions: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Positive and negative sums of an attribution (I, J, K) over regions 0 … count−1, each (count,) float64.

    regions: (I, J, K) integers. One pass over both arrays, accumulated in float64.
    """
    values, ids = attribution.reshape(-1), regions.reshape(-1)
    sums = np.zeros(2 * count)
    bins, sizes = np.empty(BLOCK, np.intp), np.empty(BLOCK)
    for start in range(0, values.size, BLOCK):
        part = values[start : start + BLOCK]
        here, size = bins[: part.size], sizes[: part.size]
        # Two bins a region, the second one for negative values: one count gives both sums.
        np.multiply(ids[start : start + BLOCK], 2, out=here, casting="unsafe", dtype=np.intp)
        here += np.signbit(part)
        np.abs(part, out=size)
        sums += np.bincount(here, size, minlength=2 * count)
    return sums[0::2], sums[1::2]


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
