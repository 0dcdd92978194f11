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
from agg2exp_core.model.predict import check_finite
from agg2exp_core.model.windows import WindowPlan


@dataclass(frozen=True, eq=False)
class StitchedModel:
    """A network with the windows it slides over one scan.

    tick: told how many windows are done, after their last backward pass. precision: of gradients.
    """

    network: torch.nn.Module
    plan: WindowPlan
    tick: Callable[[int], None] = lambda windows: None
    precision: str = "float32"

    @property
    def together(self) -> int:
        """Scans, or windows of one, that share each pass: one leaves a GPU half idle, and a processor not."""
        return 2 if self.plan.weight.is_cuda else 1

    def batch(self, passes: int) -> int:
        """Windows that share each of so many passes."""
        return max(self.plan.batch, self.together // min(passes, self.together))


@dataclass(frozen=True, eq=False)
class Pass:
    """One scan whose gradients are wanted: what they count, and the slot in which they are summed.

    scan: asked for window by window, each a place in the padded scan: (channels, window).
    """

    scan: Callable[[Place], torch.Tensor]
    weight: float = 1.0
    slot: int = 0


Stacked = dict[int, dict[int, torch.Tensor]]
"""Target's index → slot → Σ weight · ∂S/∂x (channels, box)."""


def box_gradients(
    model: StitchedModel, passes: Sequence[Pass], targets: Sequence[Target]
) -> Iterator[tuple[Place, Stacked]]:
    """Places in the scan and the targets' gradients there, as soon as the windows that reach them are done.

    Masks of the targets lie on the padded scan. Where no window with a voxel of a target reaches, nothing comes: its
    gradient is 0 there.
    """
    batch = model.batch(len(passes))
    mosaic, windows = Mosaic(model.plan, batch), len(model.plan.slices)
    for start in range(0, windows, batch):
        numbers = range(start, min(start + batch, windows))
        here = {index: one for index, one in enumerate(targets) if window_mask(model.plan, one, numbers).any()}
        for first in range(0, len(passes), model.together):
            some = passes[first : first + model.together]
            if here:
                _add_together(model, some, numbers, here, mosaic)
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
    targets: dict[int, Target],
    mosaic: Mosaic,
) -> None:
    """One forward pass serves all targets, each known by its index; seeds are made one by one, as they are large."""
    windows = [model.plan.slices[number] for number in numbers]
    image = torch.stack([one.scan(window) for one in passes for window in windows]).requires_grad_()
    logits = run(model.network, image, model.precision)
    for part, window in zip(logits, windows * len(passes), strict=True):
        check_finite(part, window)
    shares, last = window_shares(model.plan, numbers), max(targets)
    for index, target in targets.items():
        seed = (window_mask(model.plan, target, numbers) * shares).repeat(len(passes), 1, 1, 1)
        (gradients,) = torch.autograd.grad(logits[:, target.channel], image, seed, retain_graph=index != last)
        for (one, number), gradient in zip(product(passes, numbers), gradients, strict=True):
            mosaic.add(number, (index, one.slot), model.plan.fold(gradient) * one.weight)


def window_mask(plan: WindowPlan, target: Target, numbers: Sequence[int]) -> torch.Tensor:
    """M of a target in windows, bool (windows, window); empty in those that it skips."""
    mask = torch.stack([target.mask(plan.slices[number]) for number in numbers])
    mask[[number in target.skipped for number in numbers]] = False
    return mask


def window_shares(plan: WindowPlan, numbers: Sequence[int]) -> torch.Tensor:
    """B_w / Σ_w' B_w' of windows (windows, window): times a mask, where a backward pass starts from."""
    return torch.stack([plan.share(plan.slices[number]) for number in numbers])
