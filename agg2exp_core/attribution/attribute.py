"""One scan, one method, any targets: attributions summed over the predicted organs, and maps of those to look at."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import torch
from monai.inferers import SlidingWindowInferer

from agg2exp_core.attribution.ablation import region_effects
from agg2exp_core.attribution.gradient import TOGETHER, Pass, StitchedModel
from agg2exp_core.attribution.integrated import BASELINES, NODES, baseline_of, path_nodes, path_passes
from agg2exp_core.attribution.quantile import Quantile
from agg2exp_core.attribution.smoothgrad import antithetic_passes, plain_passes
from agg2exp_core.attribution.sums import Recipe, Sums
from agg2exp_core.attribution.target import MASKS, Maps, masked_targets, target_values
from agg2exp_core.attribution.uncertainty import Tally, unbiased
from agg2exp_core.model.predict import segment, stitched_logits
from agg2exp_core.model.windows import plan_windows
from agg2exp_core.records import InputError, Method

METHODS = ("gradient", "smoothgrad", "integrated_gradients", "gradient_x_input", "quantile_gradient", "ablation")
ESTIMATORS = ("antithetic", "plain")
FIRST_PAIRS = 4
"""Before a standard error is believed; fewer where fewer are allowed."""

Report = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Explainer:
    """A network ready to be explained on a device.

    air, tissue: the scaled values of air and of soft tissue, if the chain gives them one.
    """

    network: torch.nn.Module
    inferer: SlidingWindowInferer
    classes: tuple[str, ...]
    device: torch.device
    air: float | None = 0.0
    tissue: float | None = None


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
    """Prediction (I, J, K), what each target's attribution sums to, and the targets that were absent, with the reason.

    tallies: by target, over the predicted classes. saliency: signed maps (I, J, K) of the targets that were to be
    kept, float32 on the CPU. completeness: of integrated gradients.
    """

    prediction: torch.Tensor
    tallies: dict[str, Tally]
    saliency: dict[str, torch.Tensor]
    absent: dict[str, str]
    completeness: dict[str, Completeness] = field(default_factory=dict)

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
        ("mask", method.mask, MASKS),
    ):
        if given not in allowed:
            raise InputError(f"{what} must be a known one", repr(given), ", ".join(allowed))
    if not 1 <= method.samples <= 10_000:
        raise InputError("samples must be from 1 to 10000", method.samples)
    if not 0 <= method.seed < 2**32:
        raise InputError("seed must be from 0 to 4294967295", method.seed)
    if not 0 <= method.sigma <= 10:
        raise InputError("sigma must be from 0 to 10", method.sigma)
    if not 0 < method.tolerance < 1:
        raise InputError("tolerance must be between 0 and 1", method.tolerance)
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
    scan = subject.image.to(explainer.device)[0]
    label = None if subject.label is None else subject.label.to(explainer.device)
    plan = plan_windows(explainer.inferer, tuple(scan.shape), scan)
    batch = max(explainer.inferer.sw_batch_size, 1)
    report(0, len(plan.slices), "segmenting")
    prediction, outputs = segment(explainer.network, plan, scan, max(batch, TOGETHER))
    if outputs != len(explainer.classes):
        raise InputError("a bundle must name every output", f"{len(explainer.classes)} names", f"{outputs} outputs")
    maps = Maps(prediction, label)
    targets, absent = masked_targets(maps.padded(plan), explainer.classes, wanted, method.mask)
    counter = _Counter(report)
    model = StitchedModel(explainer.network, plan, batch, counter.tick)
    kept = [target.name for target in targets if keep is None or target.name in keep]
    sums = Sums(model, prediction.cpu().numpy(), outputs, kept)
    baseline = baseline_of(scan, method, explainer.air) if method.name == "integrated_gradients" else None
    if method.name == "ablation":
        counter.expect(len(plan.slices))
        neutral = float(scan.mean()) if explainer.tissue is None else explainer.tissue
        effects = region_effects(model, scan, prediction, targets, neutral)
        sums.add_effects(targets, effects.numpy())
    for recipe in _rounds(model, scan, method, baseline) if method.name != "ablation" else ():
        if open := [target for target in targets if not _settled(sums.tallies.get(target.name), method)]:
            counter.expect(sums.windows(open, recipe))
            sums.add(open, recipe)
    completeness = {}
    if baseline is not None:
        unpadded = masked_targets(maps, explainer.classes, wanted, method.mask)[0]
        values = [target_values(stitched_logits(explainer.network, plan, x, batch), unpadded) for x in (scan, baseline)]
        for target, at_scan, at_baseline in zip(unpadded, *values, strict=True):
            positive, negative = sums.tallies[target.name].sums()
            completeness[target.name] = Completeness(float((positive - negative).sum()), at_scan - at_baseline)
    return Explanation(prediction.cpu(), sums.tallies, sums.maps(), absent, completeness)


class _Counter:
    """Windows done so far, passed on to the reporter."""

    def __init__(self, report: Report):
        self.report, self.total, self.done = report, 0, 0

    def expect(self, windows: int) -> None:
        self.total += windows

    def tick(self, windows: int) -> None:
        self.done += windows
        self.report(self.done, self.total, "attributing")


def _rounds(
    model: StitchedModel, scan: torch.Tensor, method: Method, baseline: torch.Tensor | None
) -> Iterator[Recipe]:
    """What to compute of every target and, as long as there are some that are not settled, of those."""
    plan = model.plan
    padded = plan.pad(scan, plan.fill)
    once = [Pass(lambda place: padded[place])]
    if baseline is not None:
        yield Recipe(path_passes(scan, baseline, plan, path_nodes(model.network, method)), factor=scan - baseline)
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


def _pairs(most: int) -> Iterator[range]:
    """A few pairs, then as many again as there were, up to `most`; never one alone after others."""
    done = 0
    while done < most:
        size = min(done or FIRST_PAIRS, most - done)
        size += most - done - size == 1
        yield range(done, done + size)
        done += size


def _settled(tally: Tally | None, method: Method) -> bool:
    """Whether twice the largest standard error is under the tolerance."""
    errors = None if tally is None else tally.mass_se()
    return errors is not None and 2 * float(errors.max()) < method.tolerance
