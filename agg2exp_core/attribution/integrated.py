"""Integrated gradients (Sundararajan et al. 2017) of the stitched output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from agg2exp_core.attribution.gradient import StitchedModel, add_gradients, empty_sums
from agg2exp_core.attribution.target import Target


def integrated_gradients(
    model: StitchedModel, scan: torch.Tensor, baseline: torch.Tensor, targets: Sequence[Target], steps: int
) -> torch.Tensor:
    """(x − x₀) · ∫ ∂S_t/∂x (x₀ + α(x − x₀)) dα, (targets, I, J, K).

    Gauss–Legendre nodes lie inside (0, 1): at α = 0 a network with instance normalisation has a gradient
    thousands of times too large, and one such node would decide the result.
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    sums = empty_sums(model, scan, targets)
    alphas = ((float(node) + 1) / 2 for node in nodes)
    scans = (baseline + alpha * (scan - baseline) for alpha in alphas)
    add_gradients(model, zip((weights / 2).tolist(), scans, strict=True), targets, sums)
    return model.plan.crop(sums) * (scan - baseline)
