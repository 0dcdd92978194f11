"""Volumes made ready for the browser: cropped to where something is, quantised, as gzip'ed NIfTI."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import nibabel as nib
import numpy as np
from isal import igzip

from agg2exp_core.records import Volume
from dashboard.viewer import layers, slices

Box = tuple[slice, slice, slice]

AIR = -900
"""HU at and below which there is nothing to be seen; a table and clothes lie above."""

MARGIN = 2
FAINT = 6
"""Quantised attribution (of 127) below which nobody sees its colour, about 5 % of the scale's end."""


@dataclass(frozen=True, eq=False)
class Parcel:
    """One volume to send. id: SHA-256 of voxels, affine and kind, so that equal ids are equal bytes.

    shape, affine (4, 4): of what is sent. origin: its first voxel in the grid that it was cropped from.
    """

    id: str
    shape: tuple[int, int, int]
    affine: np.ndarray
    origin: tuple[int, int, int]
    make: Callable[[], bytes]


def scan_parcel(scan: Volume, attributions: list[Volume]) -> Parcel:
    """The body in int16 HU; the whole scan if visible attribution (int8) lies beside the body.

    So there are two crops of a scan at most, and changing the target rarely sends it again.
    """
    body = grown(box_of(scan.array > AIR), MARGIN, scan.array.shape)
    reached = all(_inside(volume, scan, body) for volume in attributions)
    return _parcel(scan, body if reached else whole(scan.array.shape))


def labels_parcel(labels: Volume) -> Parcel:
    """The label map (uint8 or uint16) around its labels."""
    return _parcel(labels, box_of(labels.array))


def attribution_parcel(attribution: Volume) -> Parcel:
    """A quantised map (int8, see `layers.quantised`) around its values."""
    return _parcel(attribution, box_of(attribution.array))


def quantised(volume: Volume, end: float) -> Volume:
    """The attribution in int8: off by half a step, end/254, at most; stronger than the end is clipped."""
    return Volume(layers.quantised(volume.array, end), volume.affine)


def box_of(something: np.ndarray) -> Box:
    """The smallest box around the voxels of (I, J, K) that are True, or not 0; the whole grid if there are none."""
    found = list(whole(something.shape))
    # Axis by axis within the box so far, from the one whose planes lie apart: each look then has less to see.
    for axis in (2, 1, 0):
        others = tuple(other for other in range(3) if other != axis)
        (at,) = np.nonzero(something[tuple(found)].any(axis=others))
        if not len(at):
            return whole(something.shape)
        found[axis] = slice(int(at[0]), int(at[-1]) + 1)
    return found[0], found[1], found[2]


def grown(box: Box, by: int, shape: tuple[int, ...]) -> Box:
    """The box and so many voxels more on every side, within the grid."""
    i, j, k = (slice(max(s.start - by, 0), min(s.stop + by, n)) for s, n in zip(box, shape, strict=True))
    return i, j, k


def whole(shape: tuple[int, ...]) -> Box:
    """The box that is the whole grid."""
    i, j, k = (slice(0, n) for n in shape)
    return i, j, k


def cropped(volume: Volume, box: Box) -> Volume:
    """The box's voxels; the affine moves along, so that every voxel keeps its place in the world."""
    affine = volume.affine.copy()
    affine[:3, 3] = slices.world(volume.affine, np.array([s.start for s in box]))
    return Volume(volume.array[box], affine)


def nifti(volume: Volume) -> bytes:
    """A `.nii.gz` that stores the array in its own type, unscaled; equal volumes give equal bytes."""
    image = nib.Nifti1Image(np.asfortranarray(volume.array), volume.affine, dtype=volume.array.dtype)
    image.header.set_xyzt_units("mm")
    # The fastest level: on the same machine sending costs less than squeezing out the last bytes.
    return igzip.compress(image.to_bytes(), 1, mtime=0)


def _inside(attribution: Volume, scan: Volume, box: Box) -> bool:
    """Whether every visible voxel of the attribution, taken as a box, lies in the scan's box or beside the scan."""
    visible = np.abs(attribution.array.astype(np.int16)) >= FAINT
    if not visible.any():
        return True
    ends = [(s.start, s.stop - 1) for s in box_of(visible)]
    corners = np.array(list(itertools.product(*ends)), float)
    there = np.linalg.solve(scan.affine, attribution.affine)
    at = corners @ there[:3, :3].T + there[:3, 3]
    last = np.array(scan.array.shape) - 1.0
    low, high = at.min(axis=0).clip(0, last), at.max(axis=0).clip(0, last)
    starts, stops = (np.array([getattr(s, name) for s in box]) for name in ("start", "stop"))
    return bool((low >= starts - 0.5).all() and (high <= stops - 0.5).all())


def _parcel(volume: Volume, box: Box) -> Parcel:
    part = cropped(volume, box)
    part = Volume(np.asfortranarray(part.array), part.affine)  # as it is sent
    digest = hashlib.sha256(f"{part.array.dtype.str} {part.array.shape}".encode())
    digest.update(np.ascontiguousarray(part.affine, np.float64).tobytes())
    digest.update(part.array.T.data)
    i, j, k = part.array.shape
    start = [s.start for s in box]
    return Parcel(digest.hexdigest(), (i, j, k), part.affine, (start[0], start[1], start[2]), partial(nifti, part))
