"""One small picture of a segmentation, for reports that are read without a viewer."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from agg2exp_core.organs import Organ
from agg2exp_core.records import Volume
from agg2exp_core.volumes import read_labels, read_volume, to_ras

SOFT_TISSUE = (-160.0, 240.0)
"""HU from black to white: width 400, level 40."""

LONG_SIDE = 300
"""Pixels of the picture's longer side."""


def key_slice(image: Path, prediction: Path, organ: Organ) -> bytes:
    """A PNG: the axial slice in which the organ is largest (the middle one if it is nowhere), with its outline.

    Radiological: the patient's right is on the left. InputError if a file cannot be read.
    """
    scan, labels = to_ras(read_volume(image)), to_ras(read_labels(prediction))
    areas = (labels.array == organ.id).sum(axis=(0, 1))
    index = _level(scan, labels, int(areas.argmax())) if areas.any() else scan.array.shape[2] // 2
    mask = _nearest(labels, scan, index) == organ.id
    return _drawn(scan, index, mask, organ.color)


def _level(scan: Volume, labels: Volume, index: int) -> int:
    """The scan's axial slice nearest to the middle of one of the label map's."""
    middle = np.array([(size - 1) / 2 for size in labels.array.shape[:2]] + [index, 1.0])
    found = np.linalg.solve(scan.affine, labels.affine @ middle)[2]
    return int(np.clip(round(found), 0, scan.array.shape[2] - 1))


def _nearest(labels: Volume, scan: Volume, index: int) -> np.ndarray:
    """(I, J): the label nearest to each voxel of the scan's slice, 0 off the label map's grid."""
    step = np.linalg.solve(labels.affine, scan.affine)
    i, j = np.indices(scan.array.shape[:2])
    points = np.einsum("ab,bij->aij", step[:3, :3], np.stack([i, j, np.full(i.shape, index)])) + step[:3, 3, None, None]
    return ndimage.map_coordinates(labels.array, points, order=0, mode="constant", cval=0, prefilter=False)


def _drawn(scan: Volume, index: int, mask: np.ndarray, color: str) -> bytes:
    low, high = SOFT_TISSUE
    width, height = (size * step for size, step in zip(scan.array.shape[:2], scan.spacing, strict=False))
    scale = LONG_SIDE / max(width, height)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    grey = np.clip((scan.array[:, :, index].astype(np.float32) - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    picture = np.array(Image.fromarray(_upright(grey)).resize(size, Image.Resampling.BILINEAR).convert("RGB"))
    inside = np.array(Image.fromarray(_upright(mask.astype(np.uint8) * 255)).resize(size)) > 127
    picture[inside & ~ndimage.binary_erosion(inside, iterations=2)] = [int(color[n : n + 2], 16) for n in (1, 3, 5)]
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", optimize=True)
    return file.getvalue()


def _upright(slice_: np.ndarray) -> np.ndarray:
    """(I, J) in RAS order as rows from anterior to posterior, the patient's right first."""
    return np.ascontiguousarray(slice_.T[::-1, ::-1])
