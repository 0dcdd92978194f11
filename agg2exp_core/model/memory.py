"""What is done where a device's memory does not suffice: fewer windows at a time, then scans that stay off it."""

from __future__ import annotations

import copy

import torch
from monai.inferers import SlidingWindowInferer

from agg2exp_core.model.predict import last_wins


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
