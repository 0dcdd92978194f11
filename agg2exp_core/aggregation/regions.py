"""Local explanations: attribution summed over regions that partition the scan (arXiv 2407.16653, section 3).

Sums are kept, not shares: Σ max(a, 0), Σ max(−a, 0) and voxels of a region are additive, so that every sign,
mass, mean and group of regions follows from them exactly.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from agg2exp_core.records import InputError, SumTable

SIGNS = ("abs", "pos", "neg")

CACHED_VOXELS = 2**18
"""Of one slab, 1 MB in float32: about what a core's cache holds; smaller ones make threads wait for each other."""


def region_sums(attributions: np.ndarray, regions: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Positive and negative sums of attributions (targets, I, J, K) over regions, each (targets, count) float64.

    regions: (I, J, K) integers 0 … count−1. One pass over all arrays, slabs side by side. Neighbours in a row that
    share a region are summed pairwise in the arrays' own precision (float32 at least), all else in float64 and in the
    slabs' order, so that the same arrays give the same bits.
    """
    thick = max(1, CACHED_VOXELS // regions[0].size)
    slabs = [slice(start, start + thick) for start in range(0, len(regions), thick)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        sums = map if len(slabs) == 1 else threads.map  # threads are started when they are first asked for something
        parts = list(sums(lambda slab: _slab_sums(attributions[:, slab], regions[slab], count), slabs))
    positive, negative = np.sum(parts, axis=0)
    return positive, negative


def _slab_sums(attributions: np.ndarray, regions: np.ndarray, count: int) -> np.ndarray:
    """Positive and negative sums, each (targets, count) float64."""
    ids = regions.reshape(-1)
    # Organs are compact: neighbours in a row mostly share a region, so runs are summed first, and then few sums.
    starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    owners = ids[starts].astype(np.intp)
    part = np.empty(ids.size, np.promote_types(attributions.dtype, np.float32))
    positive, negative = sums = np.zeros((2, len(attributions), count))
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is for the caller to refuse
        for target, attribution in enumerate(attributions):
            values = attribution.reshape(-1)
            np.maximum(values, np.float32(0), out=part)
            positive[target] = np.bincount(owners, np.add.reduceat(part, starts), count)
            np.subtract(part, values, out=part)  # max(−a, 0), without a rounding
            negative[target] = np.bincount(owners, np.add.reduceat(part, starts), count)
    return sums


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
