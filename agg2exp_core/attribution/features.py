"""Groups of voxels that perturbation methods take away together, numbered from 0 without a gap."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from agg2exp_core.records import InputError

FEATURES = ("regions", "cubes", "supervoxels")
CUBES = 512
"""About so many of them (arXiv 2407.16653)."""


def feature_map(kind: str, regions: np.ndarray, cubes: int = CUBES) -> np.ndarray:
    """Feature of each voxel (I, J, K) int32: the predicted regions that are there, or cubes."""
    if kind == "cubes":
        return cube_map(regions.shape, cubes)
    return np.unique(regions, return_inverse=True)[1].reshape(regions.shape).astype(np.int32)


def cube_map(shape: tuple[int, ...], count: int) -> np.ndarray:
    """Boxes of nearly equal edges that tile any shape, about `count` of them.

    InputError: more of them than voxels.
    """
    if not 0 < count <= math.prod(shape):
        raise InputError("cubes must be from 1 to the voxels of the scan", count, f"1 to {math.prod(shape)}")
    edge = _edge(shape, count)
    numbers = [max(1, round(size / edge)) for size in shape]
    i, j, k = (np.arange(size) * number // size for size, number in zip(shape, numbers, strict=True))
    cubes = (i[:, None, None] * numbers[1] + j[:, None]) * numbers[2] + k
    return np.unique(cubes, return_inverse=True)[1].reshape(shape).astype(np.int32)


def _edge(shape: Sequence[int], count: int) -> float:
    """Of cubes, of which `count` fill the shape; an axis shorter than that holds one and is not divided."""
    edge = (math.prod(shape) / count) ** (1 / len(shape))
    longer = [size for size in shape if size >= edge]
    return edge if len(longer) in (0, len(shape)) else _edge(longer, count)


def painted(effects: np.ndarray, features: np.ndarray) -> np.ndarray:
    """A map (I, J, K) float32 in which each feature's effect is spread evenly over its voxels, and so sums to it."""
    voxels = np.bincount(features.reshape(-1), minlength=len(effects))
    return np.asarray((effects / np.maximum(voxels, 1)).astype(np.float32)[features])
