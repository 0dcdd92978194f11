"""Integrated gradients (Sundararajan et al. 2017) of the stitched output."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from agg2exp_core.attribution.gradient import Pass
from agg2exp_core.model.windows import WindowPlan
from agg2exp_core.records import InputError, Method

DATASET_MEAN, DATASET_STD = 0.2302, 0.2377
"""Of the scaled TotalSegmentator scans (arXiv 2407.16653)."""
CONSTANT = ("air", "ones", "mean")
BASELINES = (*CONSTANT, "uniform", "normal", "blurred")
NODES = ("auto", "linear", "logarithmic")
FIRST_ALPHA = 1e-6
BLUR = 1 / 20
"""Of the longest edge, σ of the blurred scan: organs merge, the body stays."""
NORMALISING = (torch.nn.modules.instancenorm._InstanceNorm, torch.nn.GroupNorm, torch.nn.LayerNorm)
"""Layers that scale up a scan without contrast."""

NORMALISING_NAMES = ("InstanceNorm3d", "GroupNorm", "LayerNorm")


def check_baseline(method: Method, air: float | None) -> None:
    """InputError: air, where its value is not known."""
    if method.baseline == "air" and air is None:
        others = ", ".join(name for name in BASELINES if name != "air")
        raise InputError("baseline air needs a chain that scales HU alike in every scan", "air", others)


def baseline_of(scan: torch.Tensor, method: Method, air: float | None) -> torch.Tensor:
    """x₀ (channels, I, J, K) of a scan, by the method's name for it. InputError: air, where its value is not known."""
    check_baseline(method, air)
    generator = torch.Generator().manual_seed(method.seed << 20)
    if method.baseline == "blurred":
        # MONAI's smoothing takes what lies outside for 0, which is no grey value of every chain.
        width = [0.0, *[BLUR * max(scan.shape[1:])] * 3]  # channels are not mixed
        return torch.as_tensor(gaussian_filter(scan.cpu().numpy(), width, mode="nearest")).to(scan)
    if method.baseline == "uniform":
        return torch.rand(scan.shape, generator=generator).to(scan)
    if method.baseline == "normal":
        return (DATASET_MEAN + DATASET_STD * torch.randn(scan.shape, generator=generator)).to(scan)
    return torch.full_like(scan, {"air": air, "ones": 1.0, "mean": DATASET_MEAN}[method.baseline] or 0.0)


def path_passes(scan: torch.Tensor, baseline: torch.Tensor, plan: WindowPlan, nodes: np.ndarray) -> list[Pass]:
    """∫ ∂S_t/∂x (x₀ + α(x − x₀)) dα; times x − x₀ it is the attribution. nodes (steps, 2): α and its weight.

    InputError: a baseline on another grid.
    """
    if baseline.shape != scan.shape:
        raise InputError("a baseline must have the scan's shape", tuple(baseline.shape), tuple(scan.shape))
    start, end = (plan.extend(one) for one in (baseline, scan))
    return [
        Pass(lambda place, alpha=alpha: start[(slice(None), *place)].lerp(end[(slice(None), *place)], alpha), weight)  # type: ignore[misc]
        for alpha, weight in nodes.tolist()
    ]


def _is_normalising(layer: torch.nn.Module) -> bool:
    """Of TorchScript as well, whose layers have one class and tell their own by name."""
    return isinstance(layer, NORMALISING) or getattr(layer, "original_name", "") in NORMALISING_NAMES


def path_nodes(network: torch.nn.Module, method: Method) -> np.ndarray:
    """Gauss–Legendre nodes α in (0, 1) and their weights (steps, 2), in log α where the network calls for it.

    Towards a constant baseline a network with normalisation gets its contrast scaled back up, so that its gradient
    grows as 1/α: in log α that is even, and few nodes serve. At α = 0 itself it would decide the result.
    """
    places, weights = np.polynomial.legendre.leggauss(method.samples)
    normalised = any(_is_normalising(layer) for layer in network.modules())
    usual = "logarithmic" if normalised and method.baseline in CONSTANT else "linear"
    if (usual if method.nodes == "auto" else method.nodes) == "linear":
        return np.stack([(places + 1) / 2, weights / 2], axis=1)
    low = math.log(FIRST_ALPHA)
    alphas = np.exp(low * (1 - places) / 2)
    return np.stack([alphas, -low / 2 * weights * alphas], axis=1)
