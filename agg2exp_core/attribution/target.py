"""What is explained: S_k(x) = Σ_{v ∈ M_k} z_k(v), its mask fixed from the clean scan's prediction."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from agg2exp_core.records import InputError


@dataclass(frozen=True, eq=False)
class Target:
    """One class to explain: its name, its output channel and its mask M_k (I, J, K) bool."""

    name: str
    channel: int
    mask: torch.Tensor


def predicted_targets(
    prediction: torch.Tensor, classes: tuple[str, ...], wanted: tuple[str, ...]
) -> tuple[list[Target], dict[str, str]]:
    """Targets with a voxel in the prediction (I, J, K), and the reason for each that has none."""
    targets, absent = [], {}
    for name in wanted:
        if name not in classes:
            raise InputError("target must be a class of the model", repr(name), f"all, {', '.join(classes)}")
        channel = classes.index(name)
        mask = prediction == channel
        if mask.any():
            targets.append(Target(name, channel, mask))
        else:
            absent[name] = "not predicted"
    return targets, absent


def target_values(logits: torch.Tensor, targets: list[Target]) -> list[float]:
    """S_k of logits (classes, I, J, K), summed in float64."""
    return [float(logits[t.channel][t.mask].double().sum()) for t in targets]
