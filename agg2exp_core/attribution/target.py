"""What is explained: S_k(x) = Σ_{v ∈ M_k} z_k(v), its mask fixed from the clean scan's prediction and the label map."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from agg2exp_core.records import InputError

MASKS = {
    "prediction": "not predicted",
    "label": "not in the label",
    "tp": "no correct voxels",
    "fp": "no false positives",
    "fn": "no false negatives",
}
"""Masks by name, and why a target without a voxel in it is absent."""


@dataclass(frozen=True, eq=False)
class Target:
    """One class to explain: its name, its output channel and its mask M_k (I, J, K) bool."""

    name: str
    channel: int
    mask: torch.Tensor


@dataclass(frozen=True, eq=False)
class Maps:
    """Prediction (I, J, K) and, where there is one, the label map on the same grid: what masks are made of."""

    prediction: torch.Tensor
    label: torch.Tensor | None = None

    def mask(self, channel: int, name: str) -> torch.Tensor:
        """M_k (I, J, K) bool of one class: one of MASKS. InputError: an unknown one, or one that needs a label map."""
        if name not in MASKS:
            raise InputError("mask must be a known one", repr(name), ", ".join(MASKS))
        predicted = self.prediction == channel
        if name == "prediction":
            return predicted
        if self.label is None:
            raise InputError(f"mask {name} needs a label map", "a case without one", "prediction")
        labelled = self.label == channel
        return {
            "label": labelled,
            "tp": predicted & labelled,
            "fp": predicted & ~labelled,
            "fn": labelled & ~predicted,
        }[name]


def masked_targets(
    maps: Maps, classes: tuple[str, ...], wanted: tuple[str, ...], mask: str
) -> tuple[list[Target], dict[str, str]]:
    """Targets with a voxel in their mask, and the reason for each that has none."""
    targets, absent = [], {}
    for name in wanted:
        if name not in classes:
            raise InputError("target must be a class of the model", repr(name), f"all, {', '.join(classes)}")
        channel = classes.index(name)
        voxels = maps.mask(channel, mask)
        if voxels.any():
            targets.append(Target(name, channel, voxels))
        else:
            absent[name] = MASKS[mask]
    return targets, absent


def target_values(logits: torch.Tensor, targets: list[Target]) -> list[float]:
    """S_k of logits (classes, I, J, K), summed in float64."""
    return [float(logits[t.channel][t.mask].double().sum()) for t in targets]
