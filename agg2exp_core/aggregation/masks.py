"""Volumes of another grid, brought to where something else lies: masks to an attribution, maps to a scan."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import affine_transform

from agg2exp_core.records import InputError, Volume


def on_grid(mask: Volume, grid: Volume) -> np.ndarray:
    """A label map at the voxels of another grid, (I, J, K) int32: nearest neighbour through world space.

    What lies outside the mask's own grid is 0. InputError: the two grids have no voxel in common.
    """
    # One more than each label, so that 0 is left for what lies outside.
    labels = mask.array.astype(np.int32) + 1
    # grid-constant: a voxel reaches half an edge beyond its centre, at the border of the grid too.
    found = _moved(Volume(labels, mask.affine), grid, order=0)
    if not found.any():
        raise InputError("a mask must lie on its case's scan", "a grid that the scan's does not touch")
    return np.maximum(found - 1, 0)


def values_on_grid(drawn: Volume, grid: Volume) -> np.ndarray:
    """Values at the voxels of another grid, (I, J, K) float32: linear through world space, 0 outside."""
    return _moved(Volume(drawn.array.astype(np.float32), drawn.affine), grid, order=1)


def _moved(volume: Volume, grid: Volume, order: int) -> np.ndarray:
    steps = np.linalg.inv(volume.affine) @ grid.affine
    shape = grid.array.shape
    return affine_transform(volume.array, steps, output_shape=shape, order=order, mode="grid-constant", cval=0)
