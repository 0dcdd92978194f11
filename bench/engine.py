"""The attribution engine against the published algorithm, on the demo's networks and one scan, in one process.

The published algorithm: for each window, noisy copy and class one forward and one backward pass in float32, in a batch
of one. A single copy is timed and counted 20 times, since copies cost the same. The scan is a real one where the
tests' data is there, else one of the demo's.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from agg2exp_core.aggregation.regions import region_sums
from agg2exp_core.attribution.attribute import Explainer, Explanation, Subject, attribute
from agg2exp_core.attribution.smoothgrad import noisy_copies
from agg2exp_core.attribution.target import Maps, Target, masked_targets
from agg2exp_core.model.bundle import find_bundle
from agg2exp_core.model.predict import segment
from agg2exp_core.model.preprocess import load_scan
from agg2exp_core.model.windows import WindowPlan, plan_windows
from agg2exp_core.pipeline import explainer_of
from agg2exp_core.precision import PRECISIONS
from agg2exp_core.records import Method
from agg2exp_core.settings import SHIPPED
from bench.clock import timed

MODELS = ("thorax17_segresnet", "thorax17_swinunetr")
REAL = SHIPPED.parents[1] / "shared" / "data" / "real" / "thorax_cta" / "ct.nii.gz"
DEMO = SHIPPED / "cohorts" / "reference" / "images" / "ref-01.nii.gz"
PUBLISHED = 20
SAME = Method(samples=2, estimator="plain")
"""For the part that changes no number."""
REFERENCE = Method(samples=128, tolerance=1e-9)
"""256 noisy copies."""
FEW = (2, 4, 8)
SOME = ("heart", "aorta", "lung_lower_lobe_left")


def main() -> list[tuple[str, str]]:
    """Rows of figure name and value: how much faster than the published estimator, all targets."""
    return [row for model in MODELS for row in _speed(model)]


def _speed(model: str) -> list[tuple[str, str]]:
    explainer, image = ready(model)
    plan, prediction, targets = _asked(explainer, image)

    def plain(copy: int) -> np.ndarray:
        return _plain_copy(explainer, image, plan, targets, copy)

    copies, seconds = zip(*(timed(lambda copy=copy: plain(copy)) for copy in range(SAME.samples)), strict=True)
    ours, same = timed(lambda: _explain(explainer, image, SAME))
    sums = region_sums(np.mean(copies, axis=0), prediction.cpu().numpy(), len(explainer.classes))
    off = np.abs(_shares(np.sum(sums, axis=0)) - _masses(ours)).max()
    rows = [(f"no other number, all organs, {model}", f"{sum(seconds) / same:.1f} times as fast, masses to {off:.0e}")]
    for precision in PRECISIONS:
        for pairs in FEW[:2]:
            method = Method(samples=pairs, precision=precision)
            _, few = timed(lambda method=method: _explain(explainer, image, method))
            slow = PUBLISHED * min(*seconds, timed(lambda: plain(0))[1])
            told = f"{few:.0f} s, {slow / few:.1f} times as fast as {PUBLISHED} plain copies"
            rows.append((f"SmoothGrad, all organs, {model}, {pairs} pairs, {precision}", told))
    return rows


def errors(model: str) -> list[tuple[str, str]]:
    """Largest error of a mass, some targets, against 256 copies: of the published estimator and of few pairs.

    The mean over two seeds: a single one may be lucky.
    """
    explainer, image = ready(model)

    def masses(method: Method) -> np.ndarray:
        return _masses(_explain(explainer, image, method, SOME))

    settled, rows = masses(REFERENCE), []
    few = [Method(samples=pairs, tolerance=1e-9, precision=one) for one in PRECISIONS for pairs in FEW]
    for method in (Method(samples=PUBLISHED, estimator="plain"), *few):
        off = np.mean([np.abs(masses(replace(method, seed=seed)) - settled).max() for seed in (1, 2)])
        name = f"largest error of a mass, {model}, {method.estimator} × {method.samples}, {method.precision}"
        rows.append((name, f"{off:.4f}"))
    return rows


def ready(model: str) -> tuple[Explainer, torch.Tensor]:
    """The demo's model on the device, and a scan for it (1, I, J, K)."""
    bundle, device = find_bundle(SHIPPED, model), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scan: Path = REAL if REAL.is_file() else DEMO
    return explainer_of(bundle, device), load_scan(bundle, scan).voxels.to(device)


def _asked(explainer: Explainer, image: torch.Tensor) -> tuple[WindowPlan, torch.Tensor, list[Target]]:
    """Windows over the scan, its prediction, and all organs that it has."""
    plan = plan_windows(explainer.inferer, tuple(image.shape[1:]), image)
    prediction, _ = segment(explainer.network, plan, image)
    targets, _ = masked_targets(Maps(prediction).padded(plan), explainer.classes, explainer.classes, "prediction")
    return plan, prediction, targets


def _explain(explainer: Explainer, image: torch.Tensor, method: Method, some: tuple[str, ...] = ()) -> Explanation:
    return attribute(explainer, Subject(image), some or explainer.classes, method, lambda *_: None, keep=())


def _masses(explained: Explanation) -> np.ndarray:
    return _shares(np.stack([np.sum(tally.sums(), axis=0) for tally in explained.tallies.values()]))


def _shares(amounts: np.ndarray) -> np.ndarray:
    return np.asarray(amounts / amounts.sum(axis=1, keepdims=True))


def _plain_copy(
    explainer: Explainer, image: torch.Tensor, plan: WindowPlan, targets: list[Target], copy: int
) -> np.ndarray:
    """Σ over windows of the window gradients of every class, for one noisy copy (targets, I, J, K)."""
    noisy = noisy_copies(image, plan, SAME)
    saliency = image.new_zeros((len(targets), *plan.padded))
    for window in plan.slices:
        voxels = noisy(copy, 1.0, window)
        for row, target in enumerate(targets):
            saliency[row][window] += _window_gradient(explainer.network, plan, voxels, window, target)
    return plan.crop(saliency).cpu().numpy()


def _window_gradient(
    network: torch.nn.Module, plan: WindowPlan, voxels: torch.Tensor, window: tuple[slice, ...], target: Target
) -> torch.Tensor:
    leaf = voxels[None].clone().requires_grad_()
    seed = target.mask(window) * plan.share(window)
    return torch.autograd.grad(network(leaf)[0, target.channel], leaf, seed)[0][0, 0]


if __name__ == "__main__":
    for name in MODELS:
        for row in errors(name):
            print(*row, sep="  ", flush=True)
