"""Quantile gradient (arXiv 2407.16653): at each voxel a quantile over the gradients of single output voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from agg2exp_core.attribution.target import WHOLE, Place, Target

SORTED = 2**22
"""Numbers at a time."""


@dataclass(frozen=True)
class Quantile:
    """The `q`-quantile over gradients of `samples` output voxels of a target's mask, drawn with `seed`."""

    samples: int = 100
    seed: int = 0
    q: float = 0.9

    def voxels(self, target: Target, shape: tuple[int, ...]) -> list[Target]:
        """Each drawn voxel as a target of its own; all voxels of a mask that has fewer. shape: of the padded scan."""
        inside = target.mask(WHOLE).nonzero()
        generator = torch.Generator().manual_seed((self.seed << 20) + target.channel)
        drawn = inside.cpu()[torch.randperm(len(inside), generator=generator)[: self.samples]]
        return [replace(target, mask=partial(_alone, tuple(voxel), shape, inside.device)) for voxel in drawn.tolist()]

    def of(self, gradients: Sequence[torch.Tensor], count: int) -> torch.Tensor:
        """The quantile over `count` gradients (channels, box); those not given are 0. Linear between two of them."""
        # A part of the box at a time: to sort them takes several times what they hold themselves.
        thick = max(1, SORTED // (count * gradients[0][..., 0, :, :].numel()))
        parts = zip(*(one.split(thick, dim=-3) for one in gradients), strict=True)
        return torch.cat([self._of(part, count) for part in parts], dim=-3)

    def _of(self, gradients: Sequence[torch.Tensor], count: int) -> torch.Tensor:
        nothing = gradients[0].new_zeros((count - len(gradients), *gradients[0].shape))
        ordered = torch.cat([torch.stack([*gradients]), nothing]).sort(dim=0).values
        place = self.q * (count - 1)
        return ordered[int(place)].lerp(ordered[min(int(place) + 1, count - 1)], place % 1)


def _alone(voxel: tuple[int, ...], shape: tuple[int, ...], device: torch.device, place: Place) -> torch.Tensor:
    """The mask of one voxel, within a place of the padded scan."""
    edges = [edge.indices(size)[:2] for edge, size in zip(place, shape, strict=True)]
    mask = torch.zeros([stop - start for start, stop in edges], dtype=torch.bool, device=device)
    if all(start <= at < stop for at, (start, stop) in zip(voxel, edges, strict=True)):
        mask[tuple(at - start for at, (start, _) in zip(voxel, edges, strict=True))] = True
    return mask
