"""KernelSHAP (Lundberg and Lee 2017): Shapley values of features, by a regression over Captum's coalitions."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from captum.attr import KernelShap
from sklearn.linear_model import LinearRegression

from agg2exp_core.attribution.perturbation import Perturbed
from agg2exp_core.records import InputError


def kernelshap(
    perturbed: Perturbed, count: int, evaluations: int, seed: int, tick: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Shapley values (targets, features) of `count` features, from so many coalitions; the same ones for all targets.

    `tick` is called after each coalition of the first target, which are all that the network is asked.
    InputError: no more evaluations than features, whose effects so few do not tell apart.
    """
    if evaluations <= count:
        got, allowed = f"{evaluations} for {count} features", f"{count + 1} or more"
        raise InputError("KernelSHAP's evaluations must be more than its features", got, allowed)
    everything = perturbed.values(np.ones(count, dtype=bool))
    if count == 1:  # Captum has nothing to draw from: the one feature has all of the effect.
        return np.asarray((everything - perturbed.values(np.zeros(1, dtype=bool)))[:, None])
    values: dict[bytes, np.ndarray] = {}

    def value(coalition: torch.Tensor, index: int) -> torch.Tensor:
        kept = coalition[0].bool().cpu().numpy()
        if kept.tobytes() not in values:
            # Captum rounds to float32, so it is given differences: sums of logits are far larger than those.
            values[kept.tobytes()] = perturbed.values(kept) - everything
        if index == 0:
            tick()
        return torch.tensor([values[kept.tobytes()][index]])

    there, nothing = torch.ones(1, count), torch.zeros(1, count)
    effects = []
    for index in range(len(perturbed.targets)):
        # Captum draws from the global generator: the same coalitions each time, and nothing of it is left behind.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            shap = KernelShap(lambda z, index=index: value(z, index))
            shap.interpretable_model = _Regression()
            effects.append(shap.attribute(there, nothing, n_samples=evaluations)[0].double().numpy())
    return np.stack(effects) if effects else np.zeros((0, count))


class _Regression:
    """Captum's own, but in float64: weights of 10⁶ beside 1 cost float32 a tenth of a coefficient with 512 features."""

    def fit(self, batches: Iterable[tuple[torch.Tensor, ...]]) -> None:
        """From the one batch of coalitions, values and weights that there is."""
        ((coalitions, values, weights),) = ([one.double().numpy() for one in batch] for batch in batches)
        self._found = LinearRegression().fit(coalitions, values, sample_weight=weights).coef_

    def representation(self) -> torch.Tensor:
        """Coefficients (1, features)."""
        return torch.as_tensor(self._found)[None]
