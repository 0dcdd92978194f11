"""What a training is of: the network, its windows, and how long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NETWORKS: dict[str, dict[str, Any]] = {
    "swinunetr": {"_target_": "SwinUNETR", "feature_size": 12, "window_size": 4},
    "segresnet": {"_target_": "SegResNet", "init_filters": 8, "dropout_prob": 0.0},
}
"""Name → MONAI's network, small enough for a CPU: the one attends to windows, the other convolves."""


@dataclass(frozen=True)
class TrainPlan:
    """What a training run depends on. network: one of NETWORKS; spacing in mm, window in voxels of that spacing.

    validate: steps between two looks at the held-out cases.
    """

    classes: int = 17
    steps: int = 1200
    validate: int = 200
    batch: int = 2
    learning_rate: float = 1.5e-3
    seed: int = 0
    spacing: float = 5.0
    window: int = 64
    network: str = "swinunetr"
    held_out: float = 0.1
