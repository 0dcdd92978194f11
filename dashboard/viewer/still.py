"""One slice as a picture of its own, for galleries and reports: scan, attribution and the target's outline."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image, ImageColor
from scipy import ndimage

from dashboard.charts.common import GREY
from dashboard.viewer import layers, slices
from dashboard.viewer.slices import Plane, Voxel
from dashboard.viewer.stage import Look, Scene


def still(scene: Scene, plane: Plane, voxel: Voxel, look: Look, height: int = 240) -> Image.Image:
    """The plane's slice through the voxel, `height` pixels high and true in millimetres, in radiological convention."""
    index = voxel[plane.across]
    grey = layers.grey(slices.cut(scene.scan.array, plane, index), scene.windows[look.window])
    picture: np.ndarray = np.repeat(grey[..., None].astype(np.float32), 3, axis=-1)
    if scene.attribution is not None:
        values = slices.sample(scene.attribution.volume, scene.scan, plane, index, order=1)
        colors = layers.palette(look.signed)[layers.quantised(values, scene.attribution.end).astype(np.int16) + 128]
        strength = colors[..., 3:].astype(np.float32) / 255
        picture = picture * (1 - strength) + colors[..., :3] * strength
    image = _in_millimetres(Image.fromarray(np.rint(picture).astype(np.uint8)), scene, plane, height)
    if scene.prediction is not None:
        labels = slices.sample(scene.prediction, scene.scan, plane, index, order=0)
        _outline(image, labels == scene.target, _color(scene))
    return image


def png(image: Image.Image) -> bytes:
    """The picture as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def data_uri(image: Image.Image) -> str:
    """The picture inside an address, for HTML that stands alone."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def _in_millimetres(image: Image.Image, scene: Scene, plane: Plane, height: int) -> Image.Image:
    spacing = scene.scan.spacing
    wide, high = image.width * spacing[plane.horizontal], image.height * spacing[plane.vertical]
    return image.resize((max(round(height * wide / high), 1), height), Image.Resampling.BILINEAR)


def _outline(image: Image.Image, inside: np.ndarray, color: tuple[int, ...]) -> None:
    """Draw the border of a mask, a pixel wide at any zoom."""
    mask = np.asarray(Image.fromarray(inside).resize(image.size, Image.Resampling.NEAREST))
    border = mask & ~ndimage.binary_erosion(mask)
    image.paste(color, mask=Image.fromarray(np.uint8(border) * 255))


def _color(scene: Scene) -> tuple[int, ...]:
    known = {organ.id: organ.color for organ in scene.labels.organs}
    return ImageColor.getrgb(known.get(scene.target, GREY))
