"""Stitched logits and the predicted organs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.inferers import SlidingWindowInferer

from agg2exp_core.records import InputError

Tick = Callable[[], None]


def stitched_logits(
    network: torch.nn.Module, inferer: SlidingWindowInferer, image: torch.Tensor, tick: Tick = lambda: None
) -> torch.Tensor:
    """Logits (classes, I, J, K) of a scan (1, I, J, K) by MONAI's sliding window; `tick` is called per window batch."""

    def counted(windows: torch.Tensor) -> torch.Tensor:
        logits = network(windows)
        tick()
        return logits

    with torch.no_grad():
        logits = inferer(image[None], counted)[0]
    if not torch.isfinite(logits).all():
        raise InputError("a network must give finite logits", "NaN or infinity: the weights may be broken")
    return logits


def predicted_organs(logits: torch.Tensor) -> torch.Tensor:
    """ŷ(v) = argmax_k z_k(v) as uint8 or int16 (I, J, K)."""
    return logits.argmax(dim=0).to(torch.uint8 if logits.shape[0] <= 256 else torch.int16)


def pick_device(name: str) -> torch.device:
    """auto: CUDA where it is there."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError("device must be one of auto, cpu, cuda", repr(name))
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda needs a CUDA device", "none found", "auto, cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
