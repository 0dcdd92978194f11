"""∂S_k/∂x of the stitched output, exactly, window by window.

The stitched logit is Σ_w B_w l_w / Σ_w' B_w', so window w's backward pass starts from M_k · B_w / Σ_w' B_w',
and the sum of the window gradients is the gradient of S_k through the whole sliding-window inference.
(Summing plain window gradients, as published with arXiv 2407.16653, counts overlaps more than once.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch

from agg2exp_core.attribution.target import Place, Target
from agg2exp_core.model.forward import run
from agg2exp_core.model.mosaic import Mosaic
from agg2exp_core.model.windows import WindowPlan


@dataclass(frozen=True, eq=False)
class StitchedModel:
    """A network with the windows it slides over one scan; `batch` windows share a forward pass.

    tick: told how many windows are done, after their last backward pass. precision: of gradients.
    """

    network: torch.nn.Module
    plan: WindowPlan
    batch: int = 1
    tick: Callable[[int], None] = lambda windows: None
    precision: str = "float32"


@dataclass(frozen=True, eq=False)
class Pass:
    """One scan whose gradients are wanted: what they count, and the slot in which they are summed.

    scan: asked for window by window, each a place in the padded scan.
    """

    scan: Callable[[Place], torch.Tensor]
    weight: float = 1.0
    slot: int = 0


Stacked = dict[int, dict[int, torch.Tensor]]
"""Target's index → slot → Σ weight · ∂S/∂x (box)."""

TOGETHER = 2
"""Scans, or windows of one, that share each pass: alone, convolutions take a path that is far slower."""


def box_gradients(
    model: StitchedModel, passes: Sequence[Pass], targets: Sequence[Target]
) -> Iterator[tuple[Place, Stacked]]:
    """Places in the scan and the targets' gradients there, as soon as the windows that reach them are done.

    Masks of the targets lie on the padded scan. Where no window with a voxel of a target reaches, nothing comes: its
    gradient is 0 there.
    """
    mosaic, windows = Mosaic(model.plan), model.plan.slices
    batch = max(model.batch, TOGETHER // min(len(passes), TOGETHER))
    for start in range(0, len(windows), batch):
        numbers = range(start, min(start + batch, len(windows)))
        seeds = window_seeds(model.plan, targets, numbers)
        for first in range(0, len(passes), TOGETHER):
            some = passes[first : first + TOGETHER]
            if seeds:
                _add_together(model, some, numbers, seeds, mosaic)
            model.tick(len(numbers) * len(some))
        for number in numbers:
            for place, parts in mosaic.finished(number):
                stacked: Stacked = defaultdict(dict)
                for (index, slot), part in parts.items():
                    stacked[index][slot] = part
                yield place, stacked


def _add_together(
    model: StitchedModel,
    passes: Sequence[Pass],
    numbers: Sequence[int],
    seeds: dict[tuple[int, int], torch.Tensor],
    mosaic: Mosaic,
) -> None:
    """One forward pass serves all targets; a target without a voxel in these windows costs nothing."""
    windows = [model.plan.slices[number] for number in numbers]
    image = torch.stack([one.scan(window) for one in passes for window in windows])[:, None].requires_grad_()
    logits = run(model.network, image, model.precision)
    last = max(seeds)
    for (index, channel), seed in seeds.items():
        (gradients,) = torch.autograd.grad(
            logits[:, channel], image, seed.repeat(len(passes), 1, 1, 1), retain_graph=(index, channel) != last
        )
        for (one, number), gradient in zip(product(passes, numbers), gradients[:, 0], strict=True):
            mosaic.add(number, (index, one.slot), gradient * one.weight)


def window_seeds(
    plan: WindowPlan, targets: Sequence[Target], numbers: Sequence[int]
) -> dict[tuple[int, int], torch.Tensor]:
    """(target's index, channel) → M · B_w / Σ_w' B_w' (windows, window), for targets with a voxel in these windows."""
    shares, seeds = torch.stack([plan.share(plan.slices[number]) for number in numbers]), {}
    for index, target in enumerate(targets):
        masks = torch.stack([target.mask(plan.slices[number]) for number in numbers])
        masks[[number in target.skipped for number in numbers]] = False
        if masks.any():
            seeds[index, target.channel] = masks * shares
    return seeds
