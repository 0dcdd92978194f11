"""Stitched logits, box by box, and the predicted organs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from agg2exp_core.model.forward import run
from agg2exp_core.model.mosaic import Mosaic
from agg2exp_core.model.windows import WindowPlan
from agg2exp_core.records import InputError

Tick = Callable[[], None]
Place = tuple[slice, ...]


def stitched_logits(
    network: torch.nn.Module, plan: WindowPlan, scan: torch.Tensor, batch: int = 1, tick: Tick = lambda: None
) -> Iterator[tuple[Place, torch.Tensor]]:
    """Boxes of a scan (I, J, K) and their logits (classes, box), as MONAI's sliding window gives them for the whole.

    `batch` windows share a forward pass; `tick` is called after each. InputError: logits that are not finite.
    """
    padded, mosaic = plan.extend(scan), Mosaic(plan)
    for start in range(0, len(plan.slices), batch):
        some = plan.slices[start : start + batch]
        with torch.no_grad():
            logits = run(network, torch.stack([padded[window] for window in some])[:, None])
        for number, (window, part) in enumerate(zip(some, logits, strict=True), start):
            check_finite(part, window)
            mosaic.add(number, (0, 0), part.mul_(plan.share(window)))  # in place: logits of many classes are large
        tick()
        for number in range(start, start + len(some)):
            for place, sums in mosaic.finished(number):
                yield place, sums[0, 0]


def check_finite(logits: torch.Tensor, window: Place) -> None:
    """InputError: logits of a window that are NaN or infinite."""
    if not torch.isfinite(logits).all():
        voxels = ", ".join(f"{edge.start}:{edge.stop}" for edge in window)
        raise InputError("a network must give finite logits", f"NaN or infinity in voxels {voxels}")


def segment(
    network: torch.nn.Module, plan: WindowPlan, scan: torch.Tensor, batch: int = 1, tick: Tick = lambda: None
) -> tuple[torch.Tensor, int]:
    """The predicted organs (I, J, K) of a scan, and the number of the network's classes."""
    prediction = torch.empty(plan.shape, dtype=torch.int16, device=scan.device)
    classes = 0
    for place, logits in stitched_logits(network, plan, scan, batch, tick):
        prediction[place] = predicted_organs(logits).to(prediction.dtype)
        classes = len(logits)
    return prediction.to(torch.uint8) if classes <= 256 else prediction, classes


def predicted_organs(logits: torch.Tensor) -> torch.Tensor:
    """ŷ(v) = argmax_k z_k(v) of logits (classes, …); ties go to the lower class."""
    return logits.argmax(dim=0)


def pick_device(name: str) -> torch.device:
    """auto: CUDA where it is there."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError("device must be one of auto, cpu, cuda", repr(name))
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda needs a CUDA device", "none found", "auto, cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
