"""Ablation: what a target's output loses when one feature becomes neutral tissue.

The effect on S_k is S_k(x) − S_k(x without the feature): Captum's FeatureAblation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from agg2exp_core.attribution.perturbation import Perturbed


def ablation(perturbed: Perturbed, count: int, tick: Callable[[int], None] = lambda features: None) -> np.ndarray:
    """Effects (targets, features) of taking each of `count` features away; `tick` is told how many more are done."""
    whole, one_less = perturbed.values(np.ones(count, dtype=bool)), ~np.eye(count, dtype=bool)
    values, some = [], perturbed.model.together
    for start in range(0, count, some):
        values.append(perturbed.many([*one_less[start : start + some]]))
        tick(len(values[-1]))
    return np.asarray((whole - np.concatenate(values)).T)
