"""The attribution engine against the published algorithm, on the demo's networks and one scan, in one process.

The published algorithm: for each window, noisy copy and class one forward and one backward pass in float32, in a batch
of one. A single copy is timed and counted 20 times, since copies cost the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from agg2exp_core.attribution.attribute import Explainer, Explanation, Subject, attribute
from agg2exp_core.attribution.target import Maps, Target, masked_targets
from agg2exp_core.model.bundle import find_bundle
from agg2exp_core.model.predict import segment
from agg2exp_core.model.preprocess import AIR_HU, load_scan, scaled
from agg2exp_core.model.windows import WindowPlan, plan_windows
from agg2exp_core.records import Method
from agg2exp_core.settings import SHIPPED

MODELS = ("thorax17_segresnet", "thorax17_swinunetr")
SCAN = SHIPPED / "cohorts" / "reference" / "images" / "ref-01.nii.gz"
PUBLISHED = 20
SOME = ("heart", "aorta", "lung_lower_lobe_left")
REFERENCE = Method(samples=128, tolerance=1e-9)
"""256 noisy copies."""


def main() -> list[tuple[str, str]]:
    """Rows of figure name and value: how much faster few pairs are than the published estimator, all targets."""
    return [row for model in MODELS for row in _speed(model)]


def _speed(model: str) -> list[tuple[str, str]]:
    explainer, image = _ready(model)
    plain, rows = PUBLISHED * _seconds(lambda: _one_plain_copy(explainer, image)), []
    for pairs in (2, 4):
        ours = _seconds(lambda n=pairs: _explain(explainer, image, explainer.classes, Method(samples=n)))
        plain = min(plain, PUBLISHED * _seconds(lambda: _one_plain_copy(explainer, image)))
        told = f"{ours:.0f} s, {plain / ours:.1f} times faster than {PUBLISHED} plain copies"
        rows.append((f"SmoothGrad, all organs, {model}, {pairs} pairs", told))
    return rows


def errors(model: str) -> list[tuple[str, str]]:
    """Largest error of a mass, some targets, against 256 copies: of the published estimator and of few pairs."""
    explainer, image = _ready(model)
    settled = _masses(_explain(explainer, image, SOME, REFERENCE))
    rows = []
    few = [Method(samples=pairs, seed=1, tolerance=1e-9) for pairs in (2, 4, 8)]
    for method in (Method(samples=PUBLISHED, estimator="plain", seed=1), *few):
        off = np.abs(_masses(_explain(explainer, image, SOME, method)) - settled).max()
        rows.append((f"largest error of a mass, {model}, {method.estimator} × {method.samples}", f"{off:.4f}"))
    return rows


def _ready(model: str) -> tuple[Explainer, torch.Tensor]:
    bundle, device = find_bundle(SHIPPED, model), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    explainer = Explainer(bundle.network(device), bundle.inferer(), bundle.classes, device, scaled(bundle, AIR_HU))
    return explainer, load_scan(bundle, Path(SCAN)).voxels.to(device)


def _explain(explainer: Explainer, image: torch.Tensor, targets: tuple[str, ...], method: Method) -> Explanation:
    return attribute(explainer, Subject(image), targets, method, lambda *_: None, keep=())


def _masses(explained: Explanation) -> np.ndarray:
    amounts = np.stack([np.sum(tally.sums(), axis=0) for tally in explained.tallies.values()])
    return amounts / amounts.sum(axis=1, keepdims=True)


def _one_plain_copy(explainer: Explainer, image: torch.Tensor) -> torch.Tensor:
    """Σ over windows of the window gradients of every class, for one noisy copy."""
    scan = image[0]
    plan = plan_windows(explainer.inferer, tuple(scan.shape), scan)
    prediction, _ = segment(explainer.network, plan, scan)
    targets, _ = masked_targets(Maps(prediction).padded(plan), explainer.classes, explainer.classes, "prediction")
    noisy = plan.pad(scan + 0.1 * (scan.max() - scan.min()) * torch.randn_like(scan), plan.fill)
    saliency = noisy.new_zeros((len(targets), *plan.padded))
    for window in plan.slices:
        for row, target in enumerate(targets):
            saliency[row][window] += _window_gradient(explainer.network, plan, noisy[window], window, target)
    return saliency


def _window_gradient(
    network: torch.nn.Module, plan: WindowPlan, voxels: torch.Tensor, window: tuple[slice, ...], target: Target
) -> torch.Tensor:
    leaf = voxels[None, None].clone().requires_grad_()
    seed = target.mask(window) * plan.share(window)
    return torch.autograd.grad(network(leaf)[0, target.channel], leaf, seed)[0][0, 0]


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    for name in MODELS:
        for row in errors(name):
            print(*row, sep="  ", flush=True)
