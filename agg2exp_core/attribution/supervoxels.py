"""Supervoxels: features that follow the grey values, as SLIC's do (Achanta et al. 2012), by scikit-learn's k-means."""

from __future__ import annotations

import math

import numpy as np
from sklearn.cluster import KMeans

from agg2exp_core.attribution.features import cube_map
from agg2exp_core.records import InputError

FITTED_VOXELS = 50_000
"""Of which the centres are found; all voxels are then given to the nearest of these."""


def supervoxels(scan: np.ndarray, count: int, contrast: float = 1.0, seed: int = 0) -> np.ndarray:
    """Supervoxel of each voxel (I, J, K) int32, numbered from 0 without a gap: about `count` of them.

    Nearest in place, in edges of a cube of the same size, and grey values, in standard deviations of each channel of
    the scan (channels, I, J, K) times `contrast`; 0 leaves the place alone. One may be in several pieces. The same seed
    gives the same. InputError: more of them than voxels, a contrast below 0.
    """
    shape, size = scan.shape[1:], scan[0].size
    if not 0 < count <= size:
        raise InputError("supervoxels must be from 1 to the voxels of the scan", count, f"1 to {size}")
    if not 0 <= contrast < math.inf:
        raise InputError("contrast must be 0 or more", contrast)
    cubes = cube_map(shape, count).reshape(-1)
    edge = (size / (int(cubes.max()) + 1)) ** (1 / len(shape))
    grey = np.stack([contrast * (one - one.mean()) / (float(one.std()) or 1.0) for one in scan])
    centres = _means(_points(grey, edge, np.arange(size)), cubes)
    drawn = np.random.default_rng(seed).permutation(size)[: max(FITTED_VOXELS, 20 * len(centres))]
    found = KMeans(len(centres), init=centres, n_init=1, max_iter=20).fit(_points(grey, edge, np.sort(drawn)))
    slabs = np.array_split(np.arange(size), max(1, size // FITTED_VOXELS))
    nearest = np.concatenate([found.predict(_points(grey, edge, slab)) for slab in slabs])
    return np.unique(nearest, return_inverse=True)[1].reshape(shape).astype(np.int32)


def _points(grey: np.ndarray, edge: float, voxels: np.ndarray) -> np.ndarray:
    """(voxels, 3 + channels) float32: place in cube edges, and grey values. voxels: places in a flattened channel."""
    places = np.unravel_index(voxels, grey.shape[1:])
    greys = (one.reshape(-1)[voxels] for one in grey)
    return np.stack([*(place / edge for place in places), *greys], axis=1).astype(np.float32)


def _means(points: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Mean of each group's points, a row a group."""
    sums = np.stack([np.bincount(groups, column) for column in points.T], axis=1)
    return (sums / np.bincount(groups)[:, None]).astype(np.float32)
