"""One axial slice of a case as a small picture: the plane through the strongest evidence, the organ outlined."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import streamlit as st
from PIL import Image
from scipy import ndimage

from agg2exp_core.organs import LabelSet
from dashboard.viewer import layers, slices
from dashboard.viewer.scene import Sources, load_scene
from dashboard.viewer.slices import Voxel
from dashboard.viewer.stage import Scene

AXIAL = slices.PLANES[0]
WIDTH = 420
"""Pixels across: sharp at the width of a card on a screen of high density, and small."""

Stamp = tuple[str, int, int]


@dataclass(frozen=True)
class Thumbnail:
    """png: the picture. at: the scan's voxel that it goes through. place: what that is, in words."""

    png: bytes
    at: Voxel
    place: str


def thumbnail(sources: Sources, labels: LabelSet) -> Thumbnail:
    """The picture of a case, kept while its files do not change. InputError if they cannot be read."""
    files = [sources.image]
    if sources.result is not None:
        files += [sources.result / "prediction.nii.gz", sources.result / "saliency" / f"{sources.target}.nii.gz"]
    return _kept(tuple(_stamp(file) for file in files), sources.target, labels.name, sources, labels)


def _stamp(file: Path) -> Stamp:
    try:
        stat = file.stat()
    except OSError:
        return str(file), 0, 0
    return str(file), stat.st_mtime_ns, stat.st_size


@st.cache_data(max_entries=200, show_spinner=False)
def _kept(stamps: tuple[Stamp, ...], target: str, name: str, _sources: Sources, _labels: LabelSet) -> Thumbnail:
    return drawn(load_scene(_sources, _labels))


def drawn(scene: Scene) -> Thumbnail:
    """The scene's axial slice through the peak of its attribution, else through its organ's middle or the scan's."""
    at, place = _where(scene)
    index = at[AXIAL.across]
    grey = layers.grey(slices.cut(scene.scan.array, AXIAL, index), layers.WINDOWS["soft"])
    picture = np.repeat(grey[..., None], 3, axis=2).astype(np.float32)
    if scene.attribution is not None:
        values = slices.sample(scene.attribution.volume, scene.scan, AXIAL, index, order=1)
        colors = layers.palette(signed=True)[layers.quantised(values, scene.attribution.end).astype(int) + 128]
        alpha = colors[..., 3:] / np.float32(255)
        picture = picture * (1 - alpha) + colors[..., :3] * alpha
    small = _resized(picture, scene)
    if scene.prediction is not None:
        organ = slices.sample(scene.prediction, scene.scan, AXIAL, index, order=0) == scene.target
        _outline(small, organ, scene)
    file = io.BytesIO()
    Image.fromarray(small).save(file, "PNG", compress_level=6)
    return Thumbnail(file.getvalue(), at, place)


def _where(scene: Scene) -> tuple[Voxel, str]:
    if scene.peak is not None:
        return scene.peak, "through its strongest attribution"
    if scene.prediction is not None:
        inside = np.argwhere(scene.prediction.array == scene.target)
        if len(inside):
            middle = slices.world(scene.prediction.affine, inside.mean(axis=0))
            return slices.nearest_voxel(scene.scan.affine, middle, scene.shape), "through its middle"
    return scene.middle, "the scan’s middle"


def _resized(picture: np.ndarray, scene: Scene) -> np.ndarray:
    """(rows, columns, 3) uint8, WIDTH across, in the patient's proportions."""
    image = Image.fromarray(np.rint(np.clip(picture, 0, 255)).astype(np.uint8))
    return np.array(image.resize(_size(scene), Image.Resampling.BICUBIC))


def _size(scene: Scene) -> tuple[int, int]:
    across, down = (scene.shape[axis] * scene.scan.spacing[axis] for axis in (AXIAL.horizontal, AXIAL.vertical))
    return WIDTH, max(round(WIDTH * down / across), 1)


def _outline(picture: np.ndarray, organ: np.ndarray, scene: Scene) -> None:
    """Draw the organ's edge, two pixels wide, in its colour. Smoothed as enlarged: no staircase of voxels."""
    mask = Image.fromarray(organ.astype(np.uint8) * 255).resize(_size(scene), Image.Resampling.BICUBIC)
    inside = np.array(mask) >= 128
    edge = inside & ~ndimage.binary_erosion(inside, iterations=2)
    color = next((one.color for one in scene.labels.organs if one.id == scene.target), "#ffffff")
    picture[edge] = [int(color[place : place + 2], 16) for place in (1, 3, 5)]


def image_missing(image: Path | None) -> str | None:
    """Why a case has no picture; None if it has one."""
    if image is None:
        return "no image is stored: it comes from a table"
    return None if image.is_file() else "its image is not on this machine"


