"""Where sliding windows lie and how much each adds to the stitched logits.

The same windows, padding and blending as MONAI's `sliding_window_inference`: window w adds its logits with
weight B_w(v), and the stitched logit is Σ_w B_w l_w / Σ_w B_w.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import SlidingWindowInferer
from monai.utils import ensure_tuple_rep, fall_back_tuple

from agg2exp_core.model.nnunet import EvenInferer
from agg2exp_core.records import InputError


@dataclass(frozen=True, eq=False)
class WindowPlan:
    """Windows over one scan.

    shape: the scan's (I, J, K). before: voxels of padding in front of each axis. padded: shape with padding.
    slices: one (slice, slice, slice) per window, into the padded scan. weight: B (window).
    fill: what a scan is padded with. batch: windows that share a forward pass. copied: where the padding repeats
    voxels instead, for each axis which voxel of the scan each padded one is, else nothing.
    """

    shape: tuple[int, ...]
    before: tuple[int, ...]
    padded: tuple[int, ...]
    slices: tuple[tuple[slice, ...], ...]
    weight: torch.Tensor
    fill: float
    batch: int
    copied: tuple[torch.Tensor, ...] = ()

    def extend(self, voxels: torch.Tensor, value: float | None = None) -> torch.Tensor:
        """A scan, or what is added to one or goes along with one, (…, I, J, K) → (…, padded), as the inferer pads.

        value: in place of `fill`, where the padding is a constant.
        """
        if not self.copied:
            return self.pad(voxels, self.fill if value is None else value)
        for axis, source in enumerate(self.copied, -3):
            voxels = voxels.index_select(axis, source)
        return voxels

    def fold(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient (…, window) of a window of `extend`ed voxels, with what repeated voxels have added to theirs.

        Along an axis that is padded a window covers all of it, so that each window can be folded by itself.
        """
        for axis, (source, before, size, whole) in enumerate(
            zip(self.copied, self.before, self.shape, self.padded, strict=bool(self.copied)), -3
        ):
            if size != whole:
                gradient = torch.zeros_like(gradient).index_add_(axis, source + before, gradient)
        return gradient

    def pad(self, voxels: torch.Tensor, value: float = 0.0) -> torch.Tensor:
        """(…, I, J, K) → (…, padded) with a constant: masks and labels with 0, as nothing lies there."""
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
        corner = np.array([edge.start for edge in window])
        near = (np.abs(self._corners - corner) < self.weight.shape).all(axis=1)
        for other in np.flatnonzero(near):
            shared = [
                (max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(window, self.slices[other], strict=True)
            ]
            total[_within(window, shared)] += self.weight[_within(self.slices[other], shared)]
        return self.weight / total

    @cached_property
    def _corners(self) -> np.ndarray:
        """First voxel of each window (windows, 3): most windows do not touch a given one."""
        return np.array([[edge.start for edge in window] for window in self.slices])


def plan_windows(inferer: SlidingWindowInferer, shape: tuple[int, ...], like: torch.Tensor) -> WindowPlan:
    """Windows of the bundle's inferer over a scan of this shape, in the dtype and on the device of `like`.

    InputError where the scan is so small that it cannot be padded with voxels of its own as the inferer asks.
    """
    roi = fall_back_tuple(inferer.roi_size, shape)
    padded = tuple(max(size, window) for size, window in zip(shape, roi, strict=True))
    before = tuple(max(window - size, 0) // 2 for size, window in zip(shape, roi, strict=True))
    overlap = ensure_tuple_rep(inferer.overlap, len(shape))
    interval = tuple(
        window if window == size else max(int(window * (1 - share)), 1)
        for window, size, share in zip(roi, padded, overlap, strict=True)
    )
    if isinstance(inferer, EvenInferer):
        slices, weight = inferer.slices(padded), inferer.weight(like)
    else:
        slices = tuple(dense_patch_slices(padded, roi, interval))
        weight = compute_importance_map(
            roi, mode=inferer.mode, sigma_scale=inferer.sigma_scale, device=like.device, dtype=like.dtype
        )
    copied: tuple[torch.Tensor, ...] = ()
    if padded != tuple(shape) and inferer.padding_mode != "constant":
        axes = zip(shape, before, padded, strict=True)
        copied = tuple(_copied(*axis, mode=inferer.padding_mode).to(like.device) for axis in axes)
    batch = max(inferer.sw_batch_size, 1)
    return WindowPlan(tuple(shape), before, padded, slices, weight, float(inferer.cval), batch, copied)


def _copied(size: int, before: int, padded: int, mode: str) -> torch.Tensor:
    """(padded,) int64: the voxel along one axis that each padded one repeats."""
    line = torch.arange(size, dtype=torch.float64)[None, None]
    try:
        return F.pad(line, (before, padded - size - before), mode=mode)[0, 0].long()
    except (RuntimeError, NotImplementedError):
        rule = f"a scan must be large enough to be padded in the mode {mode}"
        raise InputError(rule, f"{size} voxels for a window of {padded}") from None


def _within(window: tuple[slice, ...], box: list[tuple[int, int]]) -> tuple[slice, ...]:
    """Where a box of the scan lies in a window that holds it."""
    return tuple(slice(low - edge.start, high - edge.start) for edge, (low, high) in zip(window, box, strict=True))
