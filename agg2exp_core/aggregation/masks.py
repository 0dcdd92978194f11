"""Masks of another grid, brought to where an attribution lies. They may overlap the organs and each other."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import affine_transform

from agg2exp_core.records import InputError, Volume


def on_grid(mask: Volume, grid: Volume) -> np.ndarray:
    """A label map at the voxels of another grid, (I, J, K) int32: nearest neighbour through world space.

    What lies outside the mask's own grid is 0. InputError: the two grids have no voxel in common.
    """
    steps = np.linalg.inv(mask.affine) @ grid.affine
    # One more than each label, so that 0 is left for what lies outside.
    labels = mask.array.astype(np.int32) + 1
    # grid-constant: a voxel reaches half an edge beyond its centre, at the border of the grid too.
    found = affine_transform(labels, steps, output_shape=grid.array.shape, order=0, mode="grid-constant", cval=0)
    if not found.any():
        raise InputError("a mask must lie on its case's scan", "a grid that the scan's does not touch")
    return np.maximum(found - 1, 0)
