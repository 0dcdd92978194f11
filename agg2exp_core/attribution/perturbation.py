"""What a target's output is when some features of the scan are replaced: asked of the windows that it changes alone.

S_k is a sum over windows, and what a window adds depends on its own features only. Each window is run once for each
choice among them, for all targets at once, and remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from agg2exp_core.attribution.gradient import StitchedModel, window_shares
from agg2exp_core.attribution.target import Place, Target
from agg2exp_core.model.forward import run
from agg2exp_core.model.predict import check_finite


@dataclass(eq=False)
class Perturbed:
    """Values S_t of scans in which features are kept or replaced.

    scan, replacement: (channels, I, J, K); a feature is replaced in all channels at once, since they show one body: in
    one channel alone the others would still show it. features: (I, J, K) integers from 0. Masks of the targets lie on
    the padded scan.
    """

    model: StitchedModel
    targets: Sequence[Target]
    scan: torch.Tensor
    replacement: torch.Tensor
    features: torch.Tensor
    _known: dict[tuple[int, bytes], np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plan = self.model.plan
        self.scan, self.replacement = (plan.extend(one) for one in (self.scan, self.replacement))
        self.features = plan.extend(self.features, -1)
        self._seeded = [any(bool(one.mask(window).any()) for one in self.targets) for window in plan.slices]
        self._inside = [present(self.features[window]) for window in plan.slices]

    def values(self, kept: np.ndarray) -> np.ndarray:
        """S_t (targets,) float64 of the scan with the features kept that are True, (features,) bool."""
        return self.many([kept])[0]

    def many(self, choices: Sequence[np.ndarray]) -> np.ndarray:
        """The same for several choices, (choices, targets)."""
        total = np.zeros((len(choices), len(self.targets)))
        for number, seeded in enumerate(self._seeded):
            if seeded:
                keys = [(number, kept[self._inside[number]].tobytes()) for kept in choices]
                unknown = {key: kept for key, kept in zip(keys, choices, strict=True) if key not in self._known}
                self._run(number, unknown)
                total += np.stack([self._known[key] for key in keys])
        return total

    def _run(self, number: int, unknown: dict[tuple[int, bytes], np.ndarray]) -> None:
        window, keys = self.model.plan.slices[number], list(unknown)
        shares = window_shares(self.model.plan, [number])[0] if unknown else None
        for start in range(0, len(keys), self.model.together):
            some = keys[start : start + self.model.together]
            with torch.no_grad():
                scans = torch.stack([self._scan(window, unknown[key]) for key in some])
                logits = run(self.model.network, scans)
            for key, one in zip(some, logits, strict=True):
                check_finite(one, window)
                self._known[key] = np.zeros(len(self.targets))
                for index, target in enumerate(self.targets):
                    weighed = one[target.channel] * target.mask(window) * shares
                    self._known[key][index] = float(weighed.sum(dtype=torch.float64))

    def _scan(self, window: Place, kept: np.ndarray) -> torch.Tensor:
        features = self.features[window]
        # The last entry is for the padding, which is never replaced.
        stays = torch.as_tensor(np.append(kept, True), device=features.device)[features.long()]
        return torch.where(stays, self.scan[(slice(None), *window)], self.replacement[(slice(None), *window)])


def present(features: torch.Tensor) -> np.ndarray:
    """Numbers of the features that some voxels have, in order; padding has none."""
    there = features.unique().cpu().numpy()
    return there[there >= 0]
