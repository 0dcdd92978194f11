"""One scan, one method, any targets: saliency on the model's grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from monai.inferers import SlidingWindowInferer

from agg2exp_core.attribution.gradient import StitchedModel, gradient
from agg2exp_core.attribution.integrated import integrated_gradients
from agg2exp_core.attribution.smoothgrad import smoothgrad
from agg2exp_core.attribution.target import MASKS, Maps, Target, masked_targets, target_values
from agg2exp_core.model.predict import predicted_organs, stitched_logits
from agg2exp_core.model.windows import plan_windows
from agg2exp_core.records import InputError, Method

METHODS = ("gradient", "smoothgrad", "integrated_gradients")
BASELINES = ("air", "ones", "mean")
DATASET_MEAN = 0.2302
"""Mean of the scaled TotalSegmentator scans (arXiv 2407.16653)."""

Report = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Explainer:
    """A network ready to be explained on a device. air: the scaled value of air, if the chain gives it one."""

    network: torch.nn.Module
    inferer: SlidingWindowInferer
    classes: tuple[str, ...]
    device: torch.device
    air: float | None = 0.0


@dataclass(frozen=True, eq=False)
class Subject:
    """A scan (1, I, J, K) to explain and, for masks that need it, its label map (I, J, K) on the same grid."""

    image: torch.Tensor
    label: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Completeness:
    """Σ a against S(x) − S(x₀): integrated gradients should make them equal."""

    attribution_sum: float
    output_difference: float

    @property
    def gap(self) -> float:
        """|Σ a − ΔS| / |ΔS|."""
        return abs(self.attribution_sum - self.output_difference) / max(abs(self.output_difference), 1e-12)


@dataclass(frozen=True, eq=False)
class Explanation:
    """Prediction (I, J, K), signed saliency (targets, I, J, K) on the CPU, and the targets that were absent."""

    prediction: torch.Tensor
    targets: tuple[str, ...]
    saliency: torch.Tensor
    absent: dict[str, str]
    completeness: dict[str, Completeness] = field(default_factory=dict)


def check_method(method: Method) -> Method:
    """The method itself if its parameters are in range, else InputError."""
    if method.name not in METHODS:
        raise InputError("method must be a known one", repr(method.name), ", ".join(METHODS))
    if method.baseline not in BASELINES:
        raise InputError("baseline must be a known one", repr(method.baseline), ", ".join(BASELINES))
    if method.mask not in MASKS:
        raise InputError("mask must be a known one", repr(method.mask), ", ".join(MASKS))
    if not 1 <= method.samples <= 10_000:
        raise InputError("samples must be from 1 to 10000", method.samples)
    if not 0 <= method.seed < 2**32:
        raise InputError("seed must be from 0 to 4294967295", method.seed)
    if not 0 <= method.sigma <= 10:
        raise InputError("sigma must be from 0 to 10", method.sigma)
    return method


def attribute(
    explainer: Explainer, subject: Subject, wanted: tuple[str, ...], method: Method, report: Report
) -> Explanation:
    """Explain the wanted classes of a scan; `report(done, total, note)` counts windows.

    Masks come from the clean scan's prediction and the label map. Targets whose mask is empty are absent, with the
    reason.
    """
    check_method(method)
    image = subject.image.to(explainer.device)
    label = None if subject.label is None else subject.label.to(explainer.device)
    plan = plan_windows(explainer.inferer, tuple(image.shape[1:]), image)
    passes = 1 if method.name == "gradient" else method.samples
    counter = _Counter(report, len(plan.slices) * passes)
    report(0, counter.total, "segmenting")
    logits = stitched_logits(explainer.network, explainer.inferer, image)
    if len(logits) != len(explainer.classes):
        raise InputError("a bundle must name every output", f"{len(explainer.classes)} names", f"{len(logits)} outputs")
    prediction = predicted_organs(logits)
    targets, absent = masked_targets(Maps(prediction, label), explainer.classes, wanted, method.mask)
    values = target_values(logits, targets)
    del logits
    model = StitchedModel(explainer.network, plan, max(explainer.inferer.sw_batch_size, 1), counter.tick)
    completeness: dict[str, Completeness] = {}
    if method.name == "gradient":
        saliency = gradient(model, image[0], targets)
    elif method.name == "smoothgrad":
        saliency = smoothgrad(model, image[0], targets, method)
    else:
        baseline = _baseline(explainer, image[0], method.baseline)
        saliency = integrated_gradients(model, image[0], baseline, targets, method.samples)
        completeness = _completeness(explainer, baseline, targets, values, saliency)
    if not all(torch.isfinite(one).all() for one in saliency):
        raise InputError("attributions must be finite", "NaN or infinity: the network's gradient breaks down")
    names = tuple(target.name for target in targets)
    return Explanation(prediction.cpu(), names, saliency.cpu(), absent, completeness)


class _Counter:
    """Windows done so far, passed on to the reporter."""

    def __init__(self, report: Report, total: int):
        self.report, self.total, self.done = report, total, 0

    def tick(self, windows: int) -> None:
        self.done += windows
        self.report(self.done, self.total, "attributing")


def _baseline(explainer: Explainer, scan: torch.Tensor, name: str) -> torch.Tensor:
    value = {"air": explainer.air, "ones": 1.0, "mean": DATASET_MEAN}[name]
    if value is None:
        raise InputError("baseline air needs a chain that scales HU alike in every scan", name, "ones, mean")
    return torch.full_like(scan, value)


def _completeness(
    explainer: Explainer,
    baseline: torch.Tensor,
    targets: list[Target],
    values: list[float],
    saliency: torch.Tensor,
) -> dict[str, Completeness]:
    logits = stitched_logits(explainer.network, explainer.inferer, baseline[None])
    return {
        target.name: Completeness(float(attributed.double().sum()), value - at_baseline)
        for target, value, at_baseline, attributed in zip(
            targets, values, target_values(logits, targets), saliency, strict=True
        )
    }
