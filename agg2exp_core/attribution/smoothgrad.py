"""SmoothGrad (Smilkov et al. 2017): the mean gradient over noisy copies of the scan."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from agg2exp_core.attribution.gradient import StitchedModel, add_gradients, empty_sums
from agg2exp_core.attribution.target import Target
from agg2exp_core.records import Method


def smoothgrad(model: StitchedModel, scan: torch.Tensor, targets: Sequence[Target], method: Method) -> torch.Tensor:
    """Mean of ∂S_t/∂x over `samples` copies with noise σ = sigma · (max − min), (targets, I, J, K).

    The noise covers the whole scan, so that overlapping windows see the same voxel.
    """
    sums = empty_sums(model, scan, targets)
    sigma = method.sigma * float(scan.max() - scan.min())
    copies = (scan + sigma * _noise(scan, method.seed, sample) for sample in range(method.samples))
    add_gradients(model, ((1 / method.samples, copy) for copy in copies), targets, sums)
    return model.plan.crop(sums)


def _noise(scan: torch.Tensor, seed: int, sample: int) -> torch.Tensor:
    # Drawn on the CPU: a seed then means the same noise on every device.
    generator = torch.Generator().manual_seed((seed << 20) + sample)
    return torch.randn(scan.shape, generator=generator, dtype=torch.float32).to(scan)
