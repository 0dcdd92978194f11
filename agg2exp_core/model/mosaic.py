"""Windows put together piece by piece: a box of the scan is given out as soon as no later window reaches it.

What is held at a time is then a few windows' worth of voxels, however large the scan.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise, product

import torch

from agg2exp_core.model.windows import WindowPlan

Key = tuple[int, int]
"""What a sum is of, such as a target and a noisy copy."""

Box = tuple[tuple[int, int], ...]
"""(first, past the last) voxel along each axis of the padded scan."""


class Mosaic:
    """Sums of what windows say about each voxel of a scan, kept only until the last window that reaches it is in.

    The scan is cut along the edges of all windows and its own; what lies in the padding is dropped.
    """

    def __init__(self, plan: WindowPlan):
        self.plan = plan
        self._boxes = [_boxes(plan, number) for number in range(len(plan.slices))]
        self._last = {box: number for number, boxes in enumerate(self._boxes) for box in boxes}
        self._parts: dict[Box, dict[Key, torch.Tensor]] = defaultdict(dict)

    def add(self, number: int, key: Key, part: torch.Tensor) -> None:
        """Add a part (…, window) of window `number` to the sum that is known as `key`."""
        corner = [edge.start for edge in self.plan.slices[number]]
        for box in self._boxes[number]:
            i, j, k = (slice(a - at, b - at) for (a, b), at in zip(box, corner, strict=True))
            piece = part[..., i, j, k]
            parts = self._parts[box]
            if key in parts:
                parts[key] += piece
            else:
                parts[key] = piece.clone()

    def finished(self, number: int) -> Iterator[tuple[tuple[slice, ...], dict[Key, torch.Tensor]]]:
        """Places in the scan that window `number` was the last to reach, and their sums by key; they are let go."""
        for box in self._boxes[number]:
            if self._last[box] == number and box in self._parts:
                yield self._place(box), self._parts.pop(box)

    def largest(self) -> int:
        """Voxels that one sum holds at most at a time."""
        now = most = 0
        first = {box: number for number, boxes in reversed([*enumerate(self._boxes)]) for box in boxes}
        for number, boxes in enumerate(self._boxes):
            now += sum(_voxels(box) for box in boxes if first[box] == number)
            most = max(most, now)
            now -= sum(_voxels(box) for box in boxes if self._last[box] == number)
        return most

    def _place(self, box: Box) -> tuple[slice, ...]:
        return tuple(slice(a - before, b - before) for (a, b), before in zip(box, self.plan.before, strict=True))


def _boxes(plan: WindowPlan, number: int) -> list[Box]:
    axes = []
    for axis, (edge, before, size) in enumerate(zip(plan.slices[number], plan.before, plan.shape, strict=True)):
        cuts = {before, before + size} | {cut for w in plan.slices for cut in (w[axis].start, w[axis].stop)}
        low, high = max(edge.start, before), min(edge.stop, before + size)
        axes.append([*pairwise(sorted(cut for cut in cuts if low <= cut <= high))])
    return [*product(*axes)]


def _voxels(box: Box) -> int:
    return int(torch.tensor([b - a for a, b in box]).prod())
