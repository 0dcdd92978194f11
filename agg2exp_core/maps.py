"""What is kept of an attribution map to look at it: fewer bits, and no more places than a screen can tell apart."""

from __future__ import annotations

import numpy as np

LEVELS = 24
"""Of the colour scale to each side, in a map for viewing."""
FAINT = 0.15
"""Share of the colour scale below which a block of 2³ voxels is shown as one."""


def scale_end(saliency: np.ndarray) -> tuple[float, bool]:
    """Where the colour scale ends: the 99.9th percentile of |attribution|, or the peak of a map so sparse that this is
    0; and whether it is so sparse.

    A few voxels of SmoothGrad are far stronger than all others and would leave the rest invisible.
    """
    strength = np.abs(saliency).ravel(order="K")  # as it lies in memory: maps are read in the other order
    strongest = float(strength.max())
    end = float(np.percentile(strength, 99.9, overwrite_input=True))
    return (end, False) if end > 0 else (strongest, True)


def half_precision(voxels: np.ndarray) -> np.ndarray:
    """float32 with the 11 significant bits of float16: NIfTI has no half type, but the zeros compress away.

    Unlike a cast to float16, small gradients keep their exponent.
    """
    bits = np.ascontiguousarray(voxels, dtype=np.float32).view(np.uint32)
    # Round half up at bit 13; an overflow into the exponent is the next power of two, as it should be.
    rounded = (bits + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)
    return rounded.view(np.float32)


def for_viewing(voxels: np.ndarray) -> tuple[np.ndarray, float]:
    """Levels (I, J, K) int16 and what one is worth: a map on the same grid, 20 times smaller when compressed.

    Each voxel is off by half a level of the colour scale, those of a faint block by up to twice FAINT of the scale.
    Sums over it are not those of the attribution: they are taken before.
    """
    end, _ = scale_end(voxels)
    if end == 0:
        return np.zeros(voxels.shape, np.int16), 1.0
    step = max(end / LEVELS, float(np.abs(voxels).max()) / np.iinfo(np.int16).max)
    return np.rint(_blurred_where_faint(voxels, FAINT * end) / step).astype(np.int16), step


def _blurred_where_faint(voxels: np.ndarray, limit: float) -> np.ndarray:
    """Blocks of 2³ voxels, none of which reaches the limit, as their mean."""
    halves = [-(-size // 2) for size in voxels.shape]
    padding = [(0, 2 * half - size) for half, size in zip(halves, voxels.shape, strict=True)]
    blocks = np.pad(voxels, padding, mode="edge").reshape([n for half in halves for n in (half, 2)])
    faint = np.abs(blocks).max(axis=(1, 3, 5), keepdims=True) < limit
    i, j, k = voxels.shape
    return np.where(faint, blocks.mean(axis=(1, 3, 5), keepdims=True), blocks).reshape([2 * n for n in halves])[
        :i, :j, :k
    ]
