"""Ablation: what a target's output loses when one feature becomes neutral tissue.

The effect on S_k is S_k(x) − S_k(x without the feature): Captum's FeatureAblation.
"""

from __future__ import annotations

import numpy as np

from agg2exp_core.attribution.perturbation import Perturbed


def ablation(perturbed: Perturbed, count: int) -> np.ndarray:
    """Effects (targets, features) of taking each of `count` features away."""
    one_less = ~np.eye(count, dtype=bool)
    values = perturbed.many([np.ones(count, dtype=bool), *one_less])
    return np.asarray((values[0] - values[1:]).T)
