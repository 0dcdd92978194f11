"""KernelSHAP (Lundberg and Lee 2017): Shapley values of features, by Captum's regression over their coalitions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from captum.attr import KernelShap

from agg2exp_core.attribution.perturbation import Perturbed


def kernelshap(
    perturbed: Perturbed, count: int, evaluations: int, seed: int, tick: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Shapley values (targets, features) of `count` features, from so many coalitions; the same ones for all targets.

    `tick` is called after each coalition of the first target, which are all that the network is asked.
    """
    values: dict[bytes, np.ndarray] = {}

    def value(coalition: torch.Tensor, index: int) -> torch.Tensor:
        kept = coalition[0].bool().cpu().numpy()
        if kept.tobytes() not in values:
            values[kept.tobytes()] = perturbed.values(kept)
        if index == 0:
            tick()
        return torch.tensor([values[kept.tobytes()][index]])

    there, nothing = torch.ones(1, count), torch.zeros(1, count)
    effects = []
    for index in range(len(perturbed.targets)):
        # Captum draws from the global generator: the same coalitions each time, and nothing of it is left behind.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found = KernelShap(lambda z, index=index: value(z, index)).attribute(there, nothing, n_samples=evaluations)
        effects.append(found[0].double().numpy())
    return np.stack(effects) if effects else np.zeros((0, count))
