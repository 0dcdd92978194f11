"""Half precision against single: what it does to the shares of a scan's explanation, and how much faster it is."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch

from agg2exp_core.attribution.attribute import Explainer, Subject, attribute
from agg2exp_core.model.windows import plan_windows
from agg2exp_core.records import Method

METHOD = Method(samples=2)
TARGETS = 3
HOPELESS = 2.0
"""Times as long as single precision: warm, it would not be the faster one either."""


def compare_precisions(explainer: Explainer, image: torch.Tensor) -> tuple[float, float]:
    """Largest difference of a mass in bfloat16 and float32, and how many times as fast bfloat16 is.

    Of the largest few classes in the middle window of a scan (channels, I, J, K).
    """
    subject = Subject(_middle(explainer, image))
    found = attribute(explainer, subject, explainer.classes, Method("gradient"), _silent, keep=()).prediction
    sizes = torch.bincount(found.reshape(-1).long(), minlength=len(explainer.classes)).numpy()
    largest = [index for index in np.argsort(-sizes, kind="stable") if sizes[index]][:TARGETS]
    wanted = tuple(explainer.classes[index] for index in sorted(largest))
    masses, seconds = {}, dict[str, float]()
    for precision in ("float32", "bfloat16", "float32", "bfloat16"):  # the first of each warms up
        if seconds.get("bfloat16", 0) > HOPELESS * seconds.get("float32", np.inf):
            break
        started = time.perf_counter()
        explained = attribute(explainer, subject, wanted, replace(METHOD, precision=precision), _silent, keep=())
        seconds[precision] = time.perf_counter() - started
        amounts = np.stack([np.sum(tally.sums(), axis=0) for tally in explained.tallies.values()])
        totals = amounts.sum(axis=1, keepdims=True)  # 0 where a target's gradient is
        masses[precision] = np.divide(amounts, totals, out=np.zeros_like(amounts), where=totals > 0)
    off = float(np.abs(masses["bfloat16"] - masses["float32"]).max())
    return off, seconds["float32"] / seconds["bfloat16"]


def _middle(explainer: Explainer, image: torch.Tensor) -> torch.Tensor:
    plan = plan_windows(explainer.inferer, tuple(image.shape[1:]), image)
    sizes = [min(size, edge) for size, edge in zip(image.shape[1:], plan.weight.shape, strict=True)]
    starts = [(whole - size) // 2 for whole, size in zip(image.shape[1:], sizes, strict=True)]
    i, j, k = (slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
    return image[:, i, j, k]


def _silent(done: int, total: int, note: str) -> None: ...
