"""Values of a perturbed scan's segmentation, beside the logit sum: soft Dice, or correct voxels less new false ones.

Unlike logits, probabilities and predictions do not add up over windows, so they are taken of the stitched logits.
They do add up over boxes between the windows' edges, and what a box adds depends on the features that its windows
hold: each is known once for each choice among those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch

from agg2exp_core.attribution.perturbation import Perturbed, present
from agg2exp_core.attribution.target import WHOLE, Place
from agg2exp_core.model.forward import run
from agg2exp_core.model.mosaic import Mosaic
from agg2exp_core.model.predict import check_finite, last_wins, predicted_organs
from agg2exp_core.records import InputError

OUTCOMES = ("dice", "counts")
HELD_BYTES = 2**30
"""Of windows' logits, the clean scan's first: those next to a window that is run again are then not run again too."""


@dataclass(eq=False, kw_only=True)
class Outcomes(Perturbed):
    """Values of targets of scans in which features are kept or replaced, in the place of sums of logits.

    value: dice: 2 Σ p_k m_k / (Σ p_k + Σ m_k) of the stitched softmax p_k, of nested classes the sigmoid, and the mask
    m_k. counts: voxels of the
    mask that are predicted as k, less voxels outside that are and were not in the clean scan.
    held_bytes: of logits kept between choices, as many as fit; what does not fit is run again.
    InputError: an unknown value, features that are not numbered from 0 without a gap, logits that are not finite.
    """

    value: str = "dice"
    held_bytes: int = HELD_BYTES
    _held: dict[tuple[int, bytes], torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.value not in OUTCOMES:
            raise InputError("value must be a known one", repr(self.value), ", ".join(OUTCOMES))
        self._count, plan = count_features(self.features), self.model.plan
        self.scan, self.replacement = (plan.extend(one) for one in (self.scan, self.replacement))
        self.features = plan.extend(self.features, -1)
        self._inside = [present(self.features[window]) for window in plan.slices]
        self._windows = Mosaic(plan).reaching()
        # A box between edges, by its corner: it is only as much of the scan as all of its windows share.
        self._reaching = {
            corner: np.unique(np.concatenate([self._inside[number] for number in windows]))
            for corner, windows in self._windows.items()
        }
        self._corners = {corner: number for number, corner in enumerate(self._windows)}
        self._clean = torch.zeros(plan.shape, dtype=torch.int16, device=self.scan.device)
        self._sizes = np.array([float(target.mask(WHOLE).sum()) for target in self.targets])

    def many(self, choices: Sequence[np.ndarray]) -> np.ndarray:
        """Values (choices, targets) float64 of scans with the features kept that are True, (features,) bool each."""
        # The clean scan comes first: its prediction says what is new, and its logits are the most useful to hold.
        everything = np.ones(self._count, dtype=bool)
        sums = np.stack([self._sums(kept) for kept in (everything, *choices)])[1:]
        if self.value == "dice":
            return np.asarray(2 * sums[:, 0] / (sums[:, 1] + self._sizes))
        return np.asarray(sums[:, 0] - sums[:, 1])

    def _sums(self, kept: np.ndarray) -> np.ndarray:
        """What the value is made of, summed over the scan: (2, targets)."""
        keys = {corner: (number, kept[self._reaching[corner]].tobytes()) for corner, number in self._corners.items()}
        unknown = {corner for corner, key in keys.items() if key not in self._known}
        needed = sorted({number for corner in unknown for number in self._windows[corner]})
        mosaic = Mosaic(self.model.plan)
        for number, part in self._parts(needed, kept):
            mosaic.add(number, (0, 0), part)
            for place, boxes in mosaic.finished(number):
                # Boxes at the rim of what is needed are known, and here without some of their windows.
                if (corner := _corner(place)) in unknown:
                    self._known[keys[corner]] = self._box_sums(place, boxes[0, 0], bool(kept.all()))
        return np.sum([self._known[key] for key in keys.values()], axis=0).reshape(2, len(self.targets))

    def _box_sums(self, place: Place, logits: torch.Tensor, clean: bool) -> np.ndarray:
        """Of one box's stitched logits (classes, box), (2, targets)."""
        padded = tuple(slice(e.start + b, e.stop + b) for e, b in zip(place, self.model.plan.before, strict=True))
        nested = last_wins(self.model.network)
        chances = (logits.sigmoid() if nested else logits.softmax(dim=0)) if self.value == "dice" else None
        predicted = predicted_organs(logits, nested)
        if clean:
            self._clean[place] = predicted.to(self._clean.dtype)
        sums = np.zeros((2, len(self.targets)))
        for index, target in enumerate(self.targets):
            mask = target.mask(padded)
            if chances is not None:
                chance = chances[target.channel]
                sums[:, index] = [float(one.sum(dtype=torch.float64)) for one in (chance * mask, chance)]
            else:
                drawn = target.among(predicted)
                new = drawn & ~mask & ~target.among(self._clean[place])
                sums[:, index] = [float((drawn & mask).sum()), float(new.sum())]
        return sums

    def _parts(self, numbers: Sequence[int], kept: np.ndarray) -> Iterator[tuple[int, torch.Tensor]]:
        """Windows in order, and what each adds to the stitched logits (classes, window)."""
        keys = {number: (number, kept[self._inside[number]].tobytes()) for number in numbers}
        missing = iter([number for number in numbers if keys[number] not in self._held])
        ready: dict[int, torch.Tensor] = {}
        for number in numbers:
            if keys[number] in self._held:
                yield number, self._held[keys[number]]
                continue
            if number not in ready:
                some = [*islice(missing, self.model.together)]
                ready = dict(zip(some, self._run_together(some, kept), strict=True))
            part = ready.pop(number)
            self._hold(keys[number], part)
            yield number, part

    def _run_together(self, numbers: Sequence[int], kept: np.ndarray) -> list[torch.Tensor]:
        """The same of windows that are run now, in one forward pass."""
        windows = [self.model.plan.slices[number] for number in numbers]
        with torch.no_grad():
            logits = run(self.model.network, torch.stack([self._scan(window, kept) for window in windows]))
        for window, one in zip(windows, logits, strict=True):
            check_finite(one, window)
        return [one * self.model.plan.share(window) for window, one in zip(windows, logits, strict=True)]

    def _hold(self, key: tuple[int, bytes], part: torch.Tensor) -> None:
        """Nothing is let go for it: the clean scan's are wanted for as long as there are choices."""
        if (len(self._held) + 1) * part.nbytes <= self.held_bytes:
            self._held[key] = part


def count_features(features: torch.Tensor) -> int:
    """How many there are. InputError: features (I, J, K) that are not numbered from 0 without a gap."""
    there = present(features)
    if not len(there) or not np.array_equal(there, np.arange(len(there))) or int(features.min()) < 0:
        got = f"{len(there)} from {there.min()} to {there.max()}" if len(there) else "none"
        raise InputError("features must be numbered from 0 without a gap", got)
    return len(there)


def _corner(place: Place) -> tuple[int, ...]:
    return tuple(edge.start for edge in place)
