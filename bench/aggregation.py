"""Sums by region in one pass, against the plain loop over target × region."""

from __future__ import annotations

import numpy as np

from agg2exp_core.aggregation.regions import region_sums
from bench.clock import best_of_three

TARGETS, EDGE = 17, 160


def main() -> list[tuple[str, str]]:
    """17 targets over 17 regions at 160³: seconds of each and their ratio."""
    rng = np.random.default_rng(0)
    regions = _blocks(rng)
    saliency = rng.standard_normal((TARGETS, EDGE, EDGE, EDGE), dtype=np.float32)
    plain, slow = best_of_three(lambda: _plain(saliency, regions))
    ours, fast = best_of_three(lambda: region_sums(saliency, regions, TARGETS))
    read = best_of_three(lambda: [np.abs(target).sum(dtype=np.float64) for target in saliency])[1]
    assert np.allclose(sum(ours), plain, rtol=1e-4)
    return [
        ("aggregation, plain loop, 17 × 160³", f"{slow:.2f} s"),
        ("aggregation, one pass", f"{fast:.2f} s, {slow / fast:.0f} times faster"),
        ("aggregation against |a| summed once", f"{fast / read:.1f} times"),
    ]


def _blocks(rng: np.random.Generator) -> np.ndarray:
    """Regions as organs are: compact, most of the scan background."""
    coarse = rng.integers(0, TARGETS, (10, 10, 10), dtype=np.uint8)
    coarse[rng.random(coarse.shape) < 0.6] = 0
    return np.ascontiguousarray(coarse.repeat(16, 0).repeat(16, 1).repeat(16, 2))


def _plain(saliency: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """As published: for every target and region take abs, compare, multiply, and sum twice (mass and total)."""
    sums = np.empty((len(saliency), TARGETS))
    for row, target in enumerate(saliency):
        for region in range(TARGETS):
            magnitude = np.abs(target)
            inside = magnitude * (regions == region)
            sums[row, region] = inside.sum(dtype=np.float64)
            magnitude.sum(dtype=np.float64)
    return sums
