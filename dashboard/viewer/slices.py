"""Geometry of the three pictures: which voxel lies where on the screen, in radiological convention.

A scan is shown on its own grid turned to the closest RAS axes, so voxel indices grow towards the
patient's right, anterior and superior side. All three pictures then follow one rule: on the screen,
the horizontal axis runs against the index (right and anterior lie at the viewer's left), and the
vertical axis runs with it upwards (anterior or superior lies at the top).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from agg2exp_core.records import Volume

Voxel = tuple[int, int, int]


@dataclass(frozen=True)
class Plane:
    """One viewing plane: the axis it cuts across, its screen axes, and the letters at its four sides."""

    name: str
    across: int
    horizontal: int
    vertical: int
    left: str
    right: str
    top: str
    bottom: str


PLANES = (
    Plane("axial", 2, 0, 1, "R", "L", "A", "P"),
    Plane("coronal", 1, 0, 2, "R", "L", "S", "I"),
    Plane("sagittal", 0, 1, 2, "A", "P", "S", "I"),
)

CONVENTION = "Radiological view: the patient’s right is on your left; in the sagittal slice the face looks left."


def cut(array: np.ndarray, plane: Plane, index: int) -> np.ndarray:
    """The plane's picture (rows, columns) of an (I, J, K) array in RAS order, top row first."""
    slab = np.take(array, index, axis=plane.across)  # the two axes left keep their order
    return slab.T[::-1, ::-1]


def pixel(plane: Plane, voxel: Voxel, shape: Voxel) -> tuple[int, int]:
    """Row and column of the voxel in the plane's picture."""
    row = shape[plane.vertical] - 1 - voxel[plane.vertical]
    return row, shape[plane.horizontal] - 1 - voxel[plane.horizontal]


def world(affine: np.ndarray, voxel: Voxel | np.ndarray) -> np.ndarray:
    """World position (3,) in millimetres, RAS+, of a voxel's centre."""
    return affine[:3, :3] @ np.asarray(voxel, float) + affine[:3, 3]


def nearest_voxel(affine: np.ndarray, position: np.ndarray, shape: Voxel) -> Voxel:
    """The voxel whose centre is nearest to a world position, inside the grid."""
    index = np.linalg.solve(affine[:3, :3], np.asarray(position, float) - affine[:3, 3])
    i, j, k = np.clip(np.rint(index), 0, np.array(shape) - 1).astype(int)
    return int(i), int(j), int(k)


def tilt(affine: np.ndarray) -> float:
    """Largest angle in degrees between a voxel axis and the patient axis that it is shown as."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.degrees(np.arccos(np.clip(np.diag(axes), -1, 1))).max())


def sample(volume: Volume, shown: Volume, plane: Plane, index: int, order: int) -> np.ndarray:
    """`volume` at the world positions of one picture of `shown`: (rows, columns), 0 outside its grid.

    order: 0 takes the nearest voxel (labels), 1 interpolates linearly (saliency).
    """
    step = np.linalg.solve(volume.affine, shown.affine)
    axes = [np.arange(n) for n in shown.array.shape]
    axes[plane.across] = np.array([index])
    grid = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1)
    points = step[:3, :3] @ grid + step[:3, 3:4]
    values = ndimage.map_coordinates(volume.array, points, order=order, mode="nearest", prefilter=False)
    edge = np.array(volume.array.shape)[:, None] - 0.5
    values[((points < -0.5) | (points > edge)).any(axis=0)] = 0
    return cut(values.reshape([len(axis) for axis in axes]), plane, 0)


def peak(saliency: Volume) -> np.ndarray:
    """World position (3,) in millimetres of the voxel with the largest absolute attribution."""
    strength = np.abs(saliency.array).T  # as it lies in memory: files run along the first axis
    index = np.unravel_index(strength.argmax(), strength.shape)[::-1]
    return world(saliency.affine, np.array(index))


def peak_on(saliency: Volume, labels: Volume, among: Collection[int]) -> np.ndarray | None:
    """The same of the voxels whose nearest label is one of these; None where there is none, or nothing on them.

    The map may be coarser than the labels.
    """
    to_label = np.linalg.solve(labels.affine, saliency.affine)
    voxels = np.argwhere(saliency.array)
    places = np.rint(voxels @ to_label[:3, :3].T + to_label[:3, 3]).astype(int)
    i, j, k = np.clip(places, 0, np.array(labels.array.shape) - 1).T
    voxels = voxels[np.isin(labels.array[i, j, k], list(among))]
    if not len(voxels):
        return None
    strength = np.abs(saliency.array[tuple(voxels.T)])
    return world(saliency.affine, voxels[strength.argmax()])


def centre(labels: Volume, label: int) -> np.ndarray | None:
    """World position (3,) in millimetres of the organ's voxel that is nearest to its centre of gravity."""
    # From the array as it lies in memory, last axis first, which is many times faster.
    voxels = np.argwhere(label == labels.array.T)[:, ::-1]
    if not len(voxels):
        return None
    nearest = ((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1).argmin()
    return world(labels.affine, voxels[nearest])
