"""One scan, one method, any targets: attributions summed over the predicted organs, and maps of those to look at."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace

import torch
from monai.inferers import SlidingWindowInferer

from agg2exp_core.attribution.ablation import ablation
from agg2exp_core.attribution.features import CUBES, FEATURES, feature_map
from agg2exp_core.attribution.gradient import Pass, StitchedModel
from agg2exp_core.attribution.integrated import BASELINES, NODES, baseline_of, check_baseline, path_nodes, path_passes
from agg2exp_core.attribution.kernelshap import kernelshap
from agg2exp_core.attribution.outcomes import OUTCOMES, Outcomes
from agg2exp_core.attribution.perturbation import Perturbed
from agg2exp_core.attribution.quantile import Quantile
from agg2exp_core.attribution.smoothgrad import antithetic_passes, plain_passes
from agg2exp_core.attribution.sums import HELD_BYTES, Recipe, Regions, Sums
from agg2exp_core.attribution.supervoxels import supervoxels
from agg2exp_core.attribution.target import (
    Maps,
    Target,
    check_mask,
    masked_targets,
    target_values,
    without_small_windows,
)
from agg2exp_core.attribution.uncertainty import Tally, unbiased
from agg2exp_core.model.predict import segment, stitched_logits
from agg2exp_core.model.windows import plan_windows
from agg2exp_core.precision import PRECISIONS
from agg2exp_core.records import PERTURBING, InputError, Method

METHODS = ("gradient", "smoothgrad", "integrated_gradients", "gradient_x_input", "quantile_gradient", *PERTURBING)
SKIPPING = ("gradient", "smoothgrad", "integrated_gradients", "gradient_x_input")
ESTIMATORS = ("antithetic", "plain")
MOST_SKIPPED = 0.1
FIRST_PAIRS, MOST_PAIRS = 4, 8
"""Of a round: before a standard error is believed, fewer where fewer are allowed; and as all are held at a time."""

HELD_LOGITS = 2
"""Float32 scans."""

Report = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Explainer:
    """A network ready to be explained on a device.

    air, tissue: the scaled values of air and of soft tissue, if the chain gives them one. members: of each class those
    that lie in it, where classes are regions that may hold each other.
    """

    network: torch.nn.Module
    inferer: SlidingWindowInferer
    classes: tuple[str, ...]
    device: torch.device
    air: float | None = 0.0
    tissue: float | None = None
    members: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, eq=False)
class Subject:
    """A scan (channels, I, J, K) to explain; for masks that need them, its labels and a drawn mask on the same grid."""

    image: torch.Tensor
    label: torch.Tensor | None = None
    drawn: torch.Tensor | None = None


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
    """Prediction (I, J, K), what each target's attribution sums to, and the targets that were absent, with the reason.

    tallies: by target, over the predicted classes. saliency: signed maps (I, J, K) of the targets that were to be
    kept, float32 on the CPU, of several channels their sum. by_channel: (channels, I, J, K) of the same, where the
    attribution is split among several. completeness: of integrated gradients.
    """

    prediction: torch.Tensor
    tallies: dict[str, Tally]
    saliency: dict[str, torch.Tensor]
    absent: dict[str, str]
    completeness: dict[str, Completeness] = field(default_factory=dict)
    by_channel: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def targets(self) -> tuple[str, ...]:
        """Those that were explained."""
        return tuple(self.tallies)


def check_method(method: Method) -> Method:
    """The method itself if its parameters are in range, else InputError."""
    for what, given, allowed in (
        ("method", method.name, METHODS),
        ("estimator", method.estimator, ESTIMATORS),
        ("baseline", method.baseline, BASELINES),
        ("nodes", method.nodes, NODES),
        ("features", method.features, FEATURES),
        ("value", method.value, ("logits", *OUTCOMES)),
        ("precision", method.precision, PRECISIONS),
    ):
        if given not in allowed:
            raise InputError(f"{what} must be a known one", repr(given), ", ".join(allowed))
    check_mask(method.mask)
    # All features and none; and pairs enough to tell how sure their mean is.
    paired = method.name == "smoothgrad" and method.estimator == "antithetic"
    least = 2 if method.name == "kernelshap" or paired else 1
    if not least <= method.samples <= 10_000:
        raise InputError(f"samples must be from {least} to 10000", method.samples)
    if not 0 <= method.seed < 2**32:
        raise InputError("seed must be from 0 to 4294967295", method.seed)
    if not 0 <= method.sigma <= 10:
        raise InputError("sigma must be from 0 to 10", method.sigma)
    if not 0 < method.tolerance < 1:
        raise InputError("tolerance must be between 0 and 1", method.tolerance)
    if not 0 <= method.skip <= MOST_SKIPPED:
        raise InputError(f"skip must be from 0 to {MOST_SKIPPED}", method.skip)
    if method.skip and method.name not in SKIPPING:
        raise InputError("skip goes with a method of whole gradients", method.name, ", ".join(SKIPPING))
    return method


def attribute(
    explainer: Explainer,
    subject: Subject,
    wanted: tuple[str, ...],
    method: Method,
    report: Report,
    keep: Collection[str] | None = None,
) -> Explanation:
    """Explain the wanted classes of a scan; `report(done, total, note)` counts windows.

    Masks come from the clean scan's prediction and the label map. Targets whose mask is empty are absent, with the
    reason. keep: the targets whose maps are wanted, all if None; sums are taken of all.
    """
    check_method(method)
    if "baseline" in method.parameters():
        check_baseline(method, explainer.air)
    scan = subject.image.to(explainer.device)
    label, drawn = (None if one is None else one.to(explainer.device) for one in (subject.label, subject.drawn))
    plan = plan_windows(explainer.inferer, tuple(scan.shape[1:]), scan)
    report(0, len(plan.slices), "segmenting")
    prediction, outputs = segment(explainer.network, plan, scan, held=_held(scan))
    if outputs != len(explainer.classes):
        raise InputError("a bundle must name every output", f"{len(explainer.classes)} names", f"{outputs} outputs")
    maps, counter = Maps(prediction, label, drawn, explainer.members), _Counter(report)
    targets, absent = masked_targets(maps.padded(plan), explainer.classes, wanted, method.mask)
    targets = [without_small_windows(target, plan, method.skip) for target in targets]
    model = StitchedModel(explainer.network, plan, counter.tick, method.precision)
    kept = [target.name for target in targets if keep is None or target.name in keep]
    # What a region does, replaced in all channels at once, is no single channel's.
    channels = 1 if method.name in PERTURBING else len(scan)
    regions = Regions(prediction.cpu().numpy(), outputs, channels)
    work = _Work(method, scan, targets, Sums(model, regions, kept), counter)
    work.add(explainer.air, explainer.tissue)
    completeness = {}
    if method.name == "integrated_gradients":
        unpadded, _ = masked_targets(maps, explainer.classes, wanted, method.mask)
        completeness = work.completeness(unpadded, explainer.air)
    drawn_maps = work.sums.maps()
    summed = {name: one.sum(dim=0) if channels > 1 else one[0] for name, one in drawn_maps.items()}
    split = drawn_maps if channels > 1 else {}
    return Explanation(prediction.cpu(), work.sums.tallies, summed, absent, completeness, split)


def _held(scan: torch.Tensor) -> int:
    """Bytes of logits that may wait for more windows: no noise and no gradients are held at that time."""
    return max(int(HELD_LOGITS * 4 * scan[0].numel()), HELD_BYTES)


class _Counter:
    """What is done so far, passed on to the reporter."""

    def __init__(self, report: Report):
        self.report, self.total, self.done = report, 0, 0

    def expect(self, windows: int) -> None:
        self.total += windows

    def tick(self, windows: int = 1) -> None:
        self.done += windows
        self.report(self.done, self.total, "attributing")


@dataclass(frozen=True, eq=False)
class _Work:
    """One method on one scan (channels, I, J, K), filling the sums of targets, whose masks lie on the padded scan."""

    method: Method
    scan: torch.Tensor
    targets: list[Target]
    sums: Sums
    counter: _Counter

    def add(self, air: float | None, tissue: float | None) -> None:
        """All that the method computes."""
        if self.method.name in PERTURBING:
            self._perturb(air, tissue)
            return
        for recipe in self._rounds(air):
            if open := [one for one in self.targets if not _settled(self.sums.tallies.get(one.name), self.method)]:
                self.counter.expect(self.sums.windows(open, recipe))
                self.sums.add(open, recipe)

    def completeness(self, targets: list[Target], air: float | None) -> dict[str, Completeness]:
        """Of integrated gradients. The masks of these targets lie on the scan."""
        model, found = self.sums.model, {}
        ends = self.scan, baseline_of(self.scan, self.method, air)
        logits = (stitched_logits(model.network, model.plan, end, held=_held(end)) for end in ends)
        at_scan, at_baseline = (target_values(boxes, targets) for boxes in logits)
        for target, high, low in zip(targets, at_scan, at_baseline, strict=True):
            positive, negative = self.sums.tallies[target.name].sums()
            found[target.name] = Completeness(float((positive - negative).sum()), high - low)
        return found

    def _rounds(self, air: float | None) -> Iterator[Recipe]:
        """What to compute of every target and, as long as there are some that are not settled, of those."""
        scan, method, plan = self.scan, self.method, self.sums.model.plan
        padded = plan.extend(scan)
        once = [Pass(lambda place: padded[(slice(None), *place)])]
        if method.name == "integrated_gradients":
            baseline = baseline_of(scan, method, air)
            nodes = path_nodes(self.sums.model.network, method)
            yield Recipe(path_passes(scan, baseline, plan, nodes), factor=scan - baseline)
        elif method.name == "gradient":
            yield Recipe(once)
        elif method.name == "gradient_x_input":
            yield Recipe(once, factor=scan)
        elif method.name == "quantile_gradient":
            yield Recipe(once, quantile=Quantile(method.samples, method.seed))
        elif method.estimator == "plain":
            yield Recipe(plain_passes(scan, plan, method))
        else:
            for pairs in _pairs(method.samples):
                yield Recipe(antithetic_passes(scan, plan, method, pairs), unbiased(len(pairs)))

    def _perturb(self, air: float | None, tissue: float | None) -> None:
        """Features of the scan are replaced, in all channels: by soft tissue, or by the method's baseline.

        Where soft tissue has no value of its own, as in MRI, each channel's mean stands for it.
        """
        scan, method = self.scan, self.method
        kind = "regions" if method.name == "ablation" else method.features
        if kind == "supervoxels":
            features = supervoxels(scan.cpu().numpy(), CUBES, seed=method.seed)
        else:
            features = feature_map(kind, self.sums.regions)
        count = int(features.max()) + 1
        if method.name == "ablation":
            fill = [float(one.mean()) if tissue is None else tissue for one in scan]
            replacement = torch.stack([torch.full_like(one, value) for one, value in zip(scan, fill, strict=True)])
        else:
            replacement = baseline_of(scan, method, air)
        on_device = torch.as_tensor(features, device=scan.device)
        parts = self.sums.model, self.targets, scan, replacement, on_device
        perturbed = Perturbed(*parts) if method.value == "logits" else Outcomes(*parts, value=method.value)
        if method.name == "ablation":
            self.counter.expect(count)
            effects = ablation(perturbed, count, self.counter.tick)
        else:
            self.counter.expect(method.samples)
            effects = kernelshap(perturbed, count, method.samples, method.seed, self.counter.tick)
        self.sums.add_effects(self.targets, effects, features)


def _pairs(most: int) -> Iterator[range]:
    """A few pairs, then as many again as there were or MOST_PAIRS, up to `most`; never one alone after others."""
    done = 0
    while done < most:
        size = min(done or FIRST_PAIRS, MOST_PAIRS, most - done)
        size += most - done - size == 1
        yield range(done, done + size)
        done += size


def _settled(tally: Tally | None, method: Method) -> bool:
    """Whether twice the largest standard error is under the tolerance; of the noise, which more pairs lessen.

    Of the regions' shares, and of those of each channel.
    """
    seen = None if tally is None else replace(tally, left_out=0.0)
    errors = [] if seen is None else [seen.mass_se(), seen.channel_mass_se()]
    return bool(errors) and all(one is not None and 2 * float(one.max()) < method.tolerance for one in errors)
