"""Where sliding windows lie and how much each adds to the stitched logits.

The same windows, padding and blending as MONAI's `sliding_window_inference`: window w adds its logits with
weight B_w(v), and the stitched logit is Σ_w B_w l_w / Σ_w B_w.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import SlidingWindowInferer
from monai.utils import ensure_tuple_rep, fall_back_tuple

from agg2exp_core.records import InputError


@dataclass(frozen=True, eq=False)
class WindowPlan:
    """Windows over one scan.

    shape: the scan's (I, J, K). before: voxels of padding in front of each axis. padded: shape with padding.
    slices: one (slice, slice, slice) per window, into the padded scan. weight: B (window).
    fill: what a scan is padded with.
    """

    shape: tuple[int, ...]
    before: tuple[int, ...]
    padded: tuple[int, ...]
    slices: tuple[tuple[slice, ...], ...]
    weight: torch.Tensor
    fill: float

    def pad(self, voxels: torch.Tensor, value: float = 0.0) -> torch.Tensor:
        """(…, I, J, K) → (…, padded). A scan is padded with `fill`; masks and labels with 0, as nothing lies there."""
        if self.padded == self.shape:
            return voxels
        after = [p - s - b for p, s, b in zip(self.padded, self.shape, self.before, strict=True)]
        amounts = [n for b, a in zip(reversed(self.before), reversed(after), strict=True) for n in (b, a)]
        return F.pad(voxels, amounts, value=value)

    def crop(self, padded: torch.Tensor) -> torch.Tensor:
        """The scan's part (…, I, J, K) of something padded."""
        i, j, k = (slice(b, b + s) for b, s in zip(self.before, self.shape, strict=True))
        return padded[..., i, j, k]

    def share(self, window: tuple[slice, ...]) -> torch.Tensor:
        """B_w / Σ_w' B_w' over one window: what its logits count in the stitched ones.

        Summed anew for each, so that no scan of totals is held.
        """
        total = torch.zeros_like(self.weight)
        for other in self.slices:
            shared = [(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(window, other, strict=True)]
            if all(low < high for low, high in shared):
                total[_within(window, shared)] += self.weight[_within(other, shared)]
        return self.weight / total


def plan_windows(inferer: SlidingWindowInferer, shape: tuple[int, ...], like: torch.Tensor) -> WindowPlan:
    """Windows of the bundle's inferer over a scan of this shape, in the dtype and on the device of `like`.

    InputError where the scan is smaller than a window and would be padded with voxels of its own: their gradient
    belongs to the voxels they repeat.
    """
    roi = fall_back_tuple(inferer.roi_size, shape)
    padded = tuple(max(size, window) for size, window in zip(shape, roi, strict=True))
    before = tuple(max(window - size, 0) // 2 for size, window in zip(shape, roi, strict=True))
    if padded != tuple(shape) and inferer.padding_mode != "constant":
        raise InputError(
            "a scan smaller than a window must be padded with a constant", inferer.padding_mode, "constant"
        )
    overlap = ensure_tuple_rep(inferer.overlap, len(shape))
    interval = tuple(
        window if window == size else max(int(window * (1 - share)), 1)
        for window, size, share in zip(roi, padded, overlap, strict=True)
    )
    slices = tuple(dense_patch_slices(padded, roi, interval))
    weight = compute_importance_map(
        roi, mode=inferer.mode, sigma_scale=inferer.sigma_scale, device=like.device, dtype=like.dtype
    )
    return WindowPlan(tuple(shape), before, padded, slices, weight, float(inferer.cval))


def _within(window: tuple[slice, ...], box: list[tuple[int, int]]) -> tuple[slice, ...]:
    """Where a box of the scan lies in a window that holds it."""
    return tuple(slice(low - edge.start, high - edge.start) for edge, (low, high) in zip(window, box, strict=True))
