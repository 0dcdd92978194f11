"""Attributions summed over regions as windows finish, so that no more than a few windows of them is ever held."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from agg2exp_core.aggregation.regions import region_sums
from agg2exp_core.attribution.gradient import Pass, StitchedModel, box_gradients
from agg2exp_core.attribution.target import Target
from agg2exp_core.attribution.uncertainty import PLAIN, Estimator, Tally
from agg2exp_core.model.mosaic import Mosaic
from agg2exp_core.records import InputError

HELD_VOLUMES, HELD_BYTES = 2, 64 * 2**20
"""What is held of gradients at a time: this many float32 scans or, where scans are small, this many bytes."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """What one round computes of each target: its passes, and what becomes of the gradients in their slots.

    factor: (I, J, K), what gradients are multiplied by.
    """

    passes: Sequence[Pass]
    estimator: Estimator = PLAIN
    factor: torch.Tensor | None = None


class Sums:
    """Sums over the regions of a scan, and the maps of those targets that are kept, filled round by round.

    regions: (I, J, K) integers 0 … count−1. tallies: by target's name, once it was added.
    """

    def __init__(self, model: StitchedModel, regions: np.ndarray, count: int, kept: Collection[str]):
        self.model, self.regions, self.count = model, regions, count
        self.tallies: dict[str, Tally] = {}
        self._maps = {name: torch.zeros(model.plan.shape, dtype=model.plan.weight.dtype) for name in kept}

    def windows(self, targets: Sequence[Target], recipe: Recipe) -> int:
        """Windows that `add` will tell the model's tick of."""
        return len(self.model.plan.slices) * len(recipe.passes) * len(self._groups(targets, recipe))

    def add(self, targets: Sequence[Target], recipe: Recipe) -> None:
        """One round. InputError: gradients that are not finite."""
        for group in self._groups(targets, recipe):
            sums = np.zeros((2, len(group), len(recipe.estimator.means), self.count))
            weights = torch.as_tensor(recipe.estimator.means)
            for place, index, stacked in box_gradients(self.model, recipe.passes, group):
                stack = torch.stack([stacked[slot] for slot in sorted(stacked)])
                means = torch.tensordot(weights.to(stack), stack, 1)
                if recipe.factor is not None:
                    means *= recipe.factor[place]
                if not torch.isfinite(means).all():
                    raise InputError(
                        "attributions must be finite", "NaN or infinity: the network's gradient breaks down"
                    )
                sums[:, index] += region_sums(means.cpu().numpy(), self.regions[place], self.count)
                if (drawn := self._maps.get(group[index].name)) is not None:
                    drawn[place] += recipe.estimator.pairs * means[0].cpu()
            for index, target in enumerate(group):
                self.tallies.setdefault(target.name, Tally()).add(recipe.estimator, sums[:, index])

    def maps(self) -> dict[str, torch.Tensor]:
        """Mean attribution (I, J, K) of each kept target over all rounds; not to be added to afterwards."""
        return {name: drawn.div_(self.tallies[name].pairs) for name, drawn in self._maps.items()}

    def _groups(self, targets: Sequence[Target], recipe: Recipe) -> list[Sequence[Target]]:
        """Targets that share forward passes: as many as the gradients of may be held at a time."""
        each = 4 * recipe.estimator.pairs * Mosaic(self.model.plan).largest()
        held = max(HELD_VOLUMES * 4 * self.regions.size, HELD_BYTES)
        size = max(1, held // each)
        return [targets[start : start + size] for start in range(0, len(targets), size)]
