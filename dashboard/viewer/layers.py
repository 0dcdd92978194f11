"""What is painted on a slice: HU as grey, attribution as colour, and the packing for the browser."""

from __future__ import annotations

import base64
import io
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

LARGEST = 127
"""Attribution is sent in 8 bits: −127 … 127 of the colour scale's end."""


@dataclass(frozen=True)
class Window:
    """A HU window as radiologists give it: width/level."""

    title: str
    width: float
    level: float


WINDOWS = {
    "lung": Window("Lung", 1500, -600),
    "soft": Window("Soft tissue", 400, 40),
    "bone": Window("Bone", 2500, 480),
}

OWN = "own"
LEAST_FAT = -100
"""A CT in HU has fat or air, which lie below; other images, such as those of an MRI, have no window in common."""
ENOUGH, LARGEST_GREY = 1000, np.iinfo(np.int16).max
"""Levels of grey that fractions may be rounded to, and the most that there are."""
SAMPLED = 2**20
"""Voxels from which an image's own window is taken."""


def step_of(voxels: np.ndarray) -> float:
    """What one unit is worth on the pages, which have whole numbers of 16 bits: 1 HU, as no scanner is finer.

    Of images that are not in HU, such as maps of diffusion, a power of ten where 1 would be too coarse or too fine.
    """
    low, high = float(voxels.min()), float(voxels.max())
    strongest = max(high, -low)
    if low < LEAST_FAT or strongest == 0:
        return 1.0
    fine = strongest >= ENOUGH or bool((voxels == np.rint(voxels)).all())
    return 1.0 if fine and strongest <= LARGEST_GREY else float(10.0 ** np.ceil(np.log10(strongest / LARGEST_GREY)))


def windows_of(voxels: np.ndarray, step: float = 1.0) -> dict[str, Window]:
    """HU windows or, where the values are none in HU, the image's own: from its 1st to its 99th percentile.

    Zeros are left out, which surround a body or a brain that was cut out. step: as of `step_of`; of HU it is 1.
    """
    if step == 1 and int(voxels.min()) < LEAST_FAT:
        return WINDOWS
    some = voxels.reshape(-1, order="A")[:: max(voxels.size // SAMPLED, 1)]
    there = some[some != 0]
    low, high = np.percentile(there, (1, 99)) if len(there) else (0.0, 1.0)
    return {OWN: Window("Whole range", max(float(high - low), 1.0), float(low + high) / 2)}


# From transparent to strong; lightness grows with strength in both directions, so that the two
# signs and their strength are also told apart without colour vision (blue against orange).
_POSITIVE = ("#7a2e00", "#c65102", "#f28211", "#ffa733", "#ffd166")
_NEGATIVE = ("#0a2f6b", "#0d5fb3", "#1f86e0", "#4faaf7", "#8fd0ff")
_ABSOLUTE = ("#3b0f70", "#8c2981", "#de4968", "#fe8f5c", "#ffd98a")


def grey(hu: np.ndarray, window: Window) -> np.ndarray:
    """uint8: black at level − width/2 and below, white at level + width/2 and above."""
    low = window.level - window.width / 2
    scaled = (hu.astype(np.float32) - low) * np.float32(255 / window.width)
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def quantised(attribution: np.ndarray, end: float) -> np.ndarray:
    """int8: −127 … 127 of the scale's end, what is stronger clipped."""
    if end <= 0:
        return np.zeros(attribution.shape, np.int8)
    scaled = attribution / np.float32(end)
    np.clip(scaled, -1, 1, out=scaled)
    scaled *= LARGEST
    return np.rint(scaled, out=scaled).astype(np.int8)


def palette(signed: bool) -> np.ndarray:
    """(256, 4) uint8 RGBA for the int8 values −128 … 127, seen as uint8 (value + 128).

    Weak attribution is transparent, so that the anatomy stays visible under it.
    """
    strength = np.abs(np.arange(256) - 128) / LARGEST
    strength = np.clip(strength, 0, 1)
    upper = _ramp(_POSITIVE if signed else _ABSOLUTE, strength)
    lower = _ramp(_NEGATIVE if signed else _ABSOLUTE, strength)
    colors = np.where((np.arange(256) < 128)[:, None], lower, upper)
    alpha = np.rint(255 * strength**0.6)
    return np.column_stack([colors, alpha]).astype(np.uint8)


def stops(name: str) -> list[list[float]]:
    """The palette's colours from weak to strong, RGB of 0 … 1: of `positive`, `negative` or `absolute` attribution."""
    colors = {"positive": _POSITIVE, "negative": _NEGATIVE, "absolute": _ABSOLUTE}[name]
    return [[int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)] for color in colors]


def css_ramp(signed: bool, steps: int = 17) -> str:
    """The colour bar as a CSS gradient, from the scale's low end to its high one, on black."""
    values = np.linspace(-LARGEST if signed else 0, LARGEST, steps).round().astype(int)
    table = palette(signed)[values + 128].astype(float)
    shades = np.rint(table[:, :3] * table[:, 3:] / 255).astype(int)
    return f"linear-gradient(to right, {', '.join('rgb({},{},{})'.format(*c) for c in shades)})"


def grey_png(picture: np.ndarray) -> str:
    """A (rows, columns) uint8 picture as a PNG data URI."""
    return _data_uri(Image.fromarray(np.ascontiguousarray(picture)))


def color_png(picture: np.ndarray, signed: bool) -> str:
    """A (rows, columns) int8 picture, coloured by the palette, as a PNG data URI with transparency."""
    table = palette(signed)
    image = Image.fromarray((picture.astype(np.int16) + 128).astype(np.uint8))
    image.putpalette(table[:, :3].tobytes())
    return _data_uri(image, transparency=table[:, 3].tobytes())


def packed(picture: np.ndarray) -> str:
    """An integer picture as base64 of its deflated little-endian bytes, row by row."""
    raw = np.ascontiguousarray(picture).astype(picture.dtype.newbyteorder("<")).tobytes()
    return base64.b64encode(zlib.compress(raw, 1)).decode()


def _ramp(colors: tuple[str, ...], strength: np.ndarray) -> np.ndarray:
    rgb = np.array([[int(color[n : n + 2], 16) for n in (1, 3, 5)] for color in colors], float)
    at = np.linspace(0, 1, len(colors))
    return np.rint(np.column_stack([np.interp(strength, at, rgb[:, n]) for n in range(3)]))


def _data_uri(image: Image.Image, **options: bytes) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1, **options)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
