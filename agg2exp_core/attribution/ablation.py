"""Ablation of predicted organs: what a target's output loses when one organ becomes neutral tissue.

The effect on S_k of replacing region R is S_k(x) − S_k(x with R neutral): Captum's FeatureAblation with the predicted
organs as features. S_k is a sum over windows, so only windows that R reaches are run again, for all targets at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from agg2exp_core.aggregation.regions import count_voxels
from agg2exp_core.attribution.gradient import TOGETHER, StitchedModel, window_seeds
from agg2exp_core.attribution.target import Target


def region_effects(
    model: StitchedModel, scan: torch.Tensor, regions: torch.Tensor, targets: Sequence[Target], neutral: float
) -> torch.Tensor:
    """S_t(x) − S_t(x with the region neutral), (targets, regions 0 … the largest) float64.

    scan, regions: (I, J, K). Masks of the targets lie on the padded scan. neutral: the scaled value of the tissue.
    """
    plan, padded, labels = model.plan, model.plan.pad(scan, model.plan.fill), regions
    if plan.padded != plan.shape:
        labels = plan.pad(regions.to(torch.int16), -1)
    effects = torch.zeros((len(targets), int(regions.max()) + 1), dtype=torch.float64)
    for window in plan.slices:
        seeds = window_seeds(plan, targets, [window])
        if seeds:
            image, organs = padded[window], labels[window]
            there = [organ for organ in organs.unique().tolist() if organ >= 0]
            scans = [image, *(image.masked_fill(organs == organ, neutral) for organ in there)]
            values = torch.cat(
                [_values(model, scans[start : start + TOGETHER], seeds) for start in range(0, len(scans), TOGETHER)]
            )
            rows = [index for index, _ in seeds]
            for organ, changed in zip(there, values[1:], strict=True):
                effects[rows, organ] += values[0] - changed
        model.tick(1)
    return effects


def painted(effects: np.ndarray, regions: np.ndarray) -> torch.Tensor:
    """A map (I, J, K) float32 in which each region's effect is spread evenly over its voxels, and so sums to it."""
    voxels = count_voxels(regions, len(effects))
    return torch.as_tensor((effects / np.maximum(voxels, 1)).astype(np.float32)[regions])


def _values(
    model: StitchedModel, scans: Sequence[torch.Tensor], seeds: dict[tuple[int, int], torch.Tensor]
) -> torch.Tensor:
    """What a window adds to each target's S, (scans, seeded targets) float64."""
    with torch.no_grad():
        logits = model.network(torch.stack([*scans])[:, None])
    sums = [(logits[:, channel] * seed).double().sum(dim=(1, 2, 3)) for (_, channel), seed in seeds.items()]
    return torch.stack(sums, dim=1).cpu()
