"""Tiny networks and scans that the attribution tests share."""

from __future__ import annotations

import torch
from monai.inferers import SlidingWindowInferer

from agg2exp_core.attribution.attribute import Explainer

CLASSES = ("background", "aorta", "heart")


def conv_net(seed: int = 0, classes: int = 3) -> torch.nn.Module:
    """Two convolutions with a smooth nonlinearity, no normalisation: integrated gradients are complete on it."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.Softplus(), torch.nn.Conv3d(4, classes, 3, padding=1)
    ).requires_grad_(False)


def normed_net(seed: int = 0) -> torch.nn.Module:
    """With instance normalisation, as most segmentation networks have."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv3d(1, 4, 3, padding=1),
        torch.nn.InstanceNorm3d(4, affine=True),
        torch.nn.LeakyReLU(),
        torch.nn.Conv3d(4, 3, 3, padding=1),
    ).requires_grad_(False)


def scan_of(shape: tuple[int, int, int], seed: int = 1) -> torch.Tensor:
    """(1, I, J, K) in 0…1."""
    return torch.rand((1, *shape), generator=torch.Generator().manual_seed(seed))


def inferer_of(
    roi: tuple[int, int, int] = (8, 8, 8), overlap: float = 0.25, mode: str = "gaussian", batch: int = 1
) -> SlidingWindowInferer:
    return SlidingWindowInferer(roi, sw_batch_size=batch, overlap=overlap, mode=mode)


def explainer_of(network: torch.nn.Module, inferer: SlidingWindowInferer | None = None) -> Explainer:
    return Explainer(network, inferer or inferer_of(), CLASSES, torch.device("cpu"))
