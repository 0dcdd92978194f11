"""Windows put together piece by piece: a box of the scan is given out as soon as no later window reaches it.

What is held at a time is then a few windows' worth of voxels, however large the scan.
"""

from __future__ import annotations

import ctypes
import math
import sys
from bisect import insort
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain, pairwise, product

import torch

from agg2exp_core.model.windows import WindowPlan

Key = tuple[int, int]
"""What a sum is of, such as a target and a noisy copy."""

Box = tuple[tuple[int, int], ...]
"""(first, past the last) voxel along each axis of the padded scan."""


TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


class Mosaic:
    """Sums of what windows say about each voxel of a scan, kept only until the last window that reaches it is in.

    The scan is cut along the edges of all windows and its own; what lies in the padding is dropped.
    batch: so many windows come before the first of them is `finished`. within: a part of the scan, if not all of it.
    numbers: windows that reach it, in the order in which they come. size: voxels that one sum holds at most at a time.
    """

    def __init__(self, plan: WindowPlan, batch: int = 1, within: Box | None = None):
        self.plan, self.batch = plan, batch
        within = within or tuple((at, at + size) for at, size in zip(plan.before, plan.shape, strict=True))
        boxes = _boxes(plan, within)
        self.numbers = [*boxes]
        self._boxes = boxes
        self._last = {box: number for number, some in boxes.items() for box in some}
        self._parts: dict[Box, dict[Key, torch.Tensor]] = defaultdict(dict)
        together = [self.numbers[start : start + batch] for start in range(0, len(boxes), batch)]
        # All sums of one key lie in one piece of memory: thousands of small ones would leave gaps that nothing fits in.
        self._at, self.size = _arranged([[*chain(*(boxes[number] for number in some))] for some in together])
        self._memory: dict[Key, torch.Tensor] = {}

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
                parts[key] = self._room(box, key, piece).copy_(piece)

    def finished(self, number: int) -> Iterator[tuple[tuple[slice, ...], dict[Key, torch.Tensor]]]:
        """Places in the scan that window `number` was the last to reach, and their sums by key.

        They are let go: what is added later may lie in their memory.
        """
        for box in self._boxes[number]:
            if self._last[box] == number and box in self._parts:
                yield self._place(box), self._parts.pop(box)
        _give_back()

    def reaching(self) -> dict[tuple[int, ...], tuple[int, ...]]:
        """Which windows reach each place that will be given out, by the place's first voxel."""
        found: dict[Box, list[int]] = defaultdict(list)
        for number, boxes in self._boxes.items():
            for box in boxes:
                found[box].append(number)
        return {tuple(edge.start for edge in self._place(box)): tuple(numbers) for box, numbers in found.items()}

    def _room(self, box: Box, key: Key, piece: torch.Tensor) -> torch.Tensor:
        if key not in self._memory:
            self._memory[key] = piece.new_empty((*piece.shape[:-3], self.size))
        at = self._at[box]
        return self._memory[key][..., at : at + _voxels(box)].unflatten(-1, piece.shape[-3:])

    def _place(self, box: Box) -> tuple[slice, ...]:
        return tuple(slice(a - before, b - before) for (a, b), before in zip(box, self.plan.before, strict=True))


def mosaics(plan: WindowPlan, most: float) -> list[Mosaic]:
    """Columns of a scan, as few as leave at most so many voxels of each unfinished at a time: one where that serves.

    Those of one window may always be. Windows that reach several columns are in the mosaic of each.
    """
    most, columns = max(most, plan.batch * plan.weight.numel()), 1
    while True:
        # The windows' first axis is the slowest, so that a column leaves a slab of its own width unfinished.
        wide = math.isqrt(columns - 1) + 1
        cuts = [
            _cut(at, size, pieces)
            for at, size, pieces in zip(plan.before, plan.shape, (1, wide, -(-columns // wide)), strict=True)
        ]
        found = [Mosaic(plan, plan.batch, column) for column in product(*cuts)]
        size = max(mosaic.size for mosaic in found)
        if size <= most:
            return found
        columns = max(columns + 1, int(columns * size / most))


def _cut(at: int, size: int, pieces: int) -> list[tuple[int, int]]:
    pieces = min(pieces, size)
    edges = [at + size * piece // pieces for piece in range(pieces + 1)]
    return [*pairwise(edges)]


def _boxes(plan: WindowPlan, within: Box) -> dict[int, list[Box]]:
    """Of each window that reaches there."""
    cuts = [
        sorted({*edges} | {cut for window in plan.slices for cut in (window[axis].start, window[axis].stop)})
        for axis, edges in enumerate(within)
    ]
    found = {}
    for number, window in enumerate(plan.slices):
        axes = []
        for edge, (first, last), places in zip(window, within, cuts, strict=True):
            low, high = max(edge.start, first), min(edge.stop, last)
            axes.append([*pairwise(cut for cut in places if low <= cut <= high)])
        if boxes := [*product(*axes)]:
            found[number] = boxes
    return found


def _arranged(turns: list[list[Box]]) -> tuple[dict[Box, int], int]:
    """Where in one piece of memory each box lies from its first turn to its last, and how large that must be."""
    last = {box: turn for turn, boxes in enumerate(turns) for box in boxes}
    at: dict[Box, int] = {}
    taken: list[tuple[int, int, Box]] = []
    size = 0
    for turn, boxes in enumerate(turns):
        for box in sorted(set(boxes) - at.keys(), key=_voxels, reverse=True):
            need, start = _voxels(box), 0
            for begin, end, _ in taken:
                if start + need <= begin:
                    break
                start = end
            at[box] = start
            insort(taken, (start, start + need, box))
            size = max(size, start + need)
        taken = [one for one in taken if last[one[2]] != turn]
    return at, size


def _give_back() -> None:
    """What is free goes back to the system: glibc keeps gaps of several scans' size between a window's tensors."""
    if TRIM is not None:
        TRIM(0)


def _voxels(box: Box) -> int:
    return math.prod(b - a for a, b in box)
