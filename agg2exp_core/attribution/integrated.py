"""Integrated gradients (Sundararajan et al. 2017) of the stitched output."""

from __future__ import annotations

import numpy as np
import torch

from agg2exp_core.attribution.gradient import Pass
from agg2exp_core.model.windows import WindowPlan


def path_passes(scan: torch.Tensor, baseline: torch.Tensor, plan: WindowPlan, steps: int) -> list[Pass]:
    """∫ ∂S_t/∂x (x₀ + α(x − x₀)) dα; times x − x₀ it is the attribution. scan, baseline: (I, J, K).

    Gauss–Legendre nodes lie inside (0, 1): at α = 0 a network with instance normalisation has a gradient
    thousands of times too large, and one such node would decide the result.
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps)

    def on_path(alpha: float) -> torch.Tensor:
        return plan.pad(baseline + alpha * (scan - baseline), plan.fill)

    return [
        Pass(lambda alpha=(float(node) + 1) / 2: on_path(alpha), float(weight) / 2)  # type: ignore[misc]
        for node, weight in zip(nodes, weights, strict=True)
    ]
