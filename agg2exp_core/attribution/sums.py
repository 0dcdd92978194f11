"""Attributions summed over regions as windows finish, so that no more than a few windows of them is ever held."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from agg2exp_core.aggregation.regions import region_sums
from agg2exp_core.attribution.features import painted
from agg2exp_core.attribution.gradient import Pass, StitchedModel, box_gradients
from agg2exp_core.attribution.quantile import Quantile
from agg2exp_core.attribution.target import Place, Target
from agg2exp_core.attribution.uncertainty import PLAIN, Estimator, Tally
from agg2exp_core.model.mosaic import Mosaic
from agg2exp_core.records import InputError

HELD_VOLUMES, HELD_BYTES = 1, 32 * 2**20
"""What is held of gradients at a time: this many float32 scans or, where scans are small, this many bytes."""
SLAB_VOXELS = 2**18
"""Of which all means that an estimate asks for are made at a time: there are two to three times as many as pairs."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """What one round computes of each target: its passes, and what becomes of the gradients in their slots.

    quantile: instead of the target's own gradient, that over gradients of single voxels of it.
    factor: (channels, I, J, K), what gradients are multiplied by.
    """

    passes: Sequence[Pass]
    estimator: Estimator = PLAIN
    quantile: Quantile | None = None
    factor: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Regions:
    """map: (I, J, K) integers 0 … count−1. channels: of the attributions that are summed over them."""

    map: np.ndarray
    count: int
    channels: int = 1


class Sums:
    """Sums over the regions of a scan, and the maps of those targets that are kept, filled round by round.

    regions: the predicted one of each voxel, and how many channels attributions have: those of the scan, or one where
    they cannot be split. tallies: by target's name, once it was added.
    """

    def __init__(self, model: StitchedModel, regions: Regions, kept: Collection[str]):
        self.model, self.regions, self.count, self.channels = model, regions.map, regions.count, regions.channels
        self.tallies: dict[str, Tally] = {}
        shape, dtype = (self.channels, *model.plan.shape), model.plan.weight.dtype
        self._maps = {name: torch.zeros(shape, dtype=dtype) for name in kept}

    def windows(self, targets: Sequence[Target], recipe: Recipe) -> int:
        """Windows that `add` will tell the model's tick of."""
        return len(self.model.plan.slices) * len(recipe.passes) * len(self._groups(targets, recipe))

    def add(self, targets: Sequence[Target], recipe: Recipe) -> None:
        """One round. InputError: gradients that are not finite."""
        means = torch.as_tensor(recipe.estimator.means)
        for group in self._groups(targets, recipe):
            sums = np.zeros((2, len(group), len(means), self.channels, self.count))
            for place, index, gradients in _slabs(self._gradients(group, recipe)):
                rows = torch.tensordot(means.to(gradients), gradients, 1)
                if recipe.factor is not None:
                    rows *= recipe.factor[(slice(None), *place)]
                found = region_sums(rows.flatten(0, 1).cpu().numpy(), self.regions[place], self.count)
                if not np.isfinite(found).all():
                    got = "NaN or infinity: the network's gradient breaks down"
                    raise InputError("attributions and their sums must be finite", got)
                sums[:, index] += np.reshape(found, sums[:, index].shape)
                if (drawn := self._maps.get(group[index].name)) is not None:
                    drawn[(slice(None), *place)] += recipe.estimator.pairs * rows[0].cpu()
            for index, target in enumerate(group):
                tally = self.tallies.setdefault(target.name, Tally(target.left_out, self.channels))
                tally.add(recipe.estimator, sums[:, index].reshape(2, len(means), -1))

    def add_effects(self, targets: Sequence[Target], effects: np.ndarray, features: np.ndarray) -> None:
        """What each feature (I, J, K) does to each target (targets, features), spread over its voxels."""
        for target, row in zip(targets, effects, strict=True):
            spread = painted(row, features)
            sums = np.stack(region_sums(spread[None], self.regions, self.count))
            self.tallies.setdefault(target.name, Tally()).add(PLAIN, sums)
            if (drawn := self._maps.get(target.name)) is not None:
                drawn += torch.as_tensor(spread)

    def maps(self) -> dict[str, torch.Tensor]:
        """Mean attribution (channels, I, J, K) of each kept target over all rounds; not to be added to afterwards."""
        return {name: drawn.div_(self.tallies[name].pairs) for name, drawn in self._maps.items()}

    def _gradients(self, group: Sequence[Target], recipe: Recipe) -> Iterator[tuple[Place, int, torch.Tensor]]:
        """Places, a target's index, and its gradients (slots, channels, box) there, one row a slot of the passes."""
        if recipe.quantile is None:
            for place, stacked in box_gradients(self.model, recipe.passes, group):
                for index, slots in stacked.items():
                    yield place, index, torch.stack([slots[slot] for slot in sorted(slots)])
            return
        for index, target in enumerate(group):
            voxels = recipe.quantile.voxels(target, self.model.plan.padded)
            for place, stacked in box_gradients(self.model, recipe.passes, voxels):
                if stacked:
                    reached = [slots[0] for slots in stacked.values()]
                    yield place, index, recipe.quantile.of(reached, len(voxels))[None]

    def _groups(self, targets: Sequence[Target], recipe: Recipe) -> list[Sequence[Target]]:
        """Targets that share forward passes: as many as the gradients of may be held at a time."""
        mosaic = Mosaic(self.model.plan, self.model.batch(len(recipe.passes)))
        each = 4 * recipe.estimator.pairs * mosaic.size * self.channels
        held = max(HELD_VOLUMES * 4 * self.regions.size, HELD_BYTES)
        size = 1 if recipe.quantile else max(1, held // each)
        return [targets[start : start + size] for start in range(0, len(targets), size)]


def _slabs(boxes: Iterator[tuple[Place, int, torch.Tensor]]) -> Iterator[tuple[Place, int, torch.Tensor]]:
    """The same places in parts that are not too large: the only box of a scan of one window is all of it."""
    for (first, *others), index, gradients in boxes:
        parts = gradients.split(max(1, SLAB_VOXELS // gradients[0, ..., 0, :, :].numel()), dim=-3)
        start = first.start
        for part in parts:
            yield (slice(start, start + part.shape[-3]), *others), index, part
            start += part.shape[-3]
