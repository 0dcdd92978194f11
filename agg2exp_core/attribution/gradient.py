"""∂S_k/∂x of the stitched output, exactly, window by window.

The stitched logit is Σ_w B_w l_w / Σ_w' B_w', so window w's backward pass starts from M_k · B_w / Σ_w' B_w',
and the sum of the window gradients is the gradient of S_k through the whole sliding-window inference.
(Summing plain window gradients, as published with arXiv 2407.16653, counts overlaps more than once.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, product

import torch

from agg2exp_core.attribution.target import Target
from agg2exp_core.model.windows import WindowPlan

Window = tuple[slice, ...]
Weighted = tuple[float, torch.Tensor]


@dataclass(frozen=True, eq=False)
class StitchedModel:
    """A network with the windows it slides over one scan; `batch` windows share a forward pass.

    tick: told how many windows are done, after their last backward pass.
    """

    network: torch.nn.Module
    plan: WindowPlan
    batch: int = 1
    tick: Callable[[int], None] = lambda windows: None


TOGETHER = 2
"""Scans of one shape that share each pass: in a batch of one, convolutions take a path that is far slower."""


def add_gradients(
    model: StitchedModel, weighted: Iterable[Weighted], targets: Sequence[Target], sums: torch.Tensor
) -> None:
    """sums[t] += weight · ∂S_t/∂x, for each weight and scan.

    Scans: (I, J, K), taken from the iterable as they are needed. sums: (targets, padded scan), written in place, so
    that a mean over many scans needs no second copy.
    """
    remaining = iter(weighted)
    while some := tuple(islice(remaining, TOGETHER)):
        weights, scans = zip(*some, strict=True)
        _add_together(model, weights, scans, targets, sums)


def _add_together(
    model: StitchedModel,
    weights: Sequence[float],
    scans: Sequence[torch.Tensor],
    targets: Sequence[Target],
    sums: torch.Tensor,
) -> None:
    """One forward pass serves all targets; a target without a voxel in a window costs nothing there."""
    padded = [model.plan.pad(scan, model.plan.fill) for scan in scans]
    masks = [model.plan.pad(target.mask) for target in targets]
    windows = model.plan.slices
    for start in range(0, len(windows), model.batch):
        some = windows[start : start + model.batch]
        seeds = {index: _seed(model.plan, mask, some) for index, mask in enumerate(masks) if _touches(mask, some)}
        if seeds:
            image = torch.stack([scan[window] for scan in padded for window in some])[:, None].requires_grad_()
            logits = model.network(image)
            last = max(seeds)
            for index, seed in seeds.items():
                channel = logits[:, targets[index].channel]
                seed = seed.repeat(len(scans), 1, 1, 1)
                (gradient,) = torch.autograd.grad(channel, image, seed, retain_graph=index != last)
                places = product(weights, some)
                for (weight, window), part in zip(places, gradient[:, 0], strict=True):
                    sums[index][window] += weight * part
        model.tick(len(some) * len(scans))


def gradient(model: StitchedModel, scan: torch.Tensor, targets: Sequence[Target]) -> torch.Tensor:
    """∂S_t/∂x (targets, I, J, K) of a scan (I, J, K)."""
    sums = empty_sums(model, scan, targets)
    add_gradients(model, [(1.0, scan)], targets, sums)
    return model.plan.crop(sums)


def empty_sums(model: StitchedModel, scan: torch.Tensor, targets: Sequence[Target]) -> torch.Tensor:
    """Zeros (targets, padded scan) on the scan's device."""
    return scan.new_zeros((len(targets), *model.plan.padded))


def _touches(mask: torch.Tensor, windows: Sequence[Window]) -> bool:
    return any(bool(mask[window].any()) for window in windows)


def _seed(plan: WindowPlan, mask: torch.Tensor, windows: Sequence[Window]) -> torch.Tensor:
    return torch.stack([mask[window] * plan.share(window) for window in windows])
