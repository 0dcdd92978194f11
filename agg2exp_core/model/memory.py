"""Memory: what is done where a device's does not suffice, and how the CPU's is not asked for again and again.

Fewer windows at a time, then scans that stay off the device.
"""

from __future__ import annotations

import copy
import ctypes
import sys

import torch
from monai.inferers import SlidingWindowInferer

from agg2exp_core.model.predict import last_wins

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's numbers for mallopt."""
LARGE, KEPT = 17 * 2**20, 256 * 2**20
"""Bytes. Larger arrays lie apart where freed memory has no room for them: just over 16 channels of a window of 64³.

Up to 32 MB in one heap was a little faster, at twice the peak.
"""


def keep_freed_memory() -> None:
    """From now on this process keeps up to 256 MB of freed memory for its next arrays, until the end of each window.

    By itself glibc returns what is free at the heap's end once that is some amount, 64 MB at most, and the next arrays'
    pages are made anew: a sixth of the time of backward passes. Where another allocator serves, nothing changes.
    """
    if sys.platform != "linux" or (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is None:
        return
    if mallopt(M_MMAP_THRESHOLD, LARGE):  # without it, the other would have arrays of 128 kB count as large
        mallopt(M_TRIM_THRESHOLD, KEPT)


class OffDevice(torch.nn.Module):
    """A network on its device for scans that are not on it: windows go there, logits and gradients come back."""

    def __init__(self, network: torch.nn.Module, device: torch.device):
        super().__init__()
        self.network, self.device = network, device
        self.last_wins = last_wins(network)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # Half precision was asked for on the kind of device where the images are.
        half = torch.is_autocast_enabled(images.device.type)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            return self.network(images.to(self.device)).to(images.device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a device or on the CPU, whose allocator has no error of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def half_the_windows(inferer: SlidingWindowInferer) -> SlidingWindowInferer | None:
    """The inferer with half as many windows at a time; None where it is one already."""
    if inferer.sw_batch_size <= 1:
        return None
    smaller = copy.copy(inferer)
    smaller.sw_batch_size //= 2
    return smaller
