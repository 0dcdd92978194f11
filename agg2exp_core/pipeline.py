"""One case end to end: the verbs, in order. Scan → logits → attribution → sums → files."""

from __future__ import annotations

import hashlib
import json
import logging
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from agg2exp_core import maps, phantom, volumes
from agg2exp_core.aggregation.agreement import dice_iou
from agg2exp_core.aggregation.regions import count_voxels
from agg2exp_core.attribution.attribute import Completeness, Explainer, Explanation, Subject, attribute, check_method
from agg2exp_core.attribution.precision import compare_precisions
from agg2exp_core.model.bundle import Bundle, find_bundle
from agg2exp_core.model.memory import OffDevice, half_the_windows, is_out_of_memory, keep_freed_memory
from agg2exp_core.model.predict import pick_device, segment
from agg2exp_core.model.preprocess import (
    AIR_HU,
    TISSUE_HU,
    Scan,
    check_images,
    load_scan,
    on_grid_of,
    on_model_grid,
    scaled,
)
from agg2exp_core.model.windows import plan_windows
from agg2exp_core.organs import BACKGROUND, load_label_set
from agg2exp_core.precision import Measured, decided, read_measured, write_measured
from agg2exp_core.records import PERTURBING, ChannelSums, InputError, Method, SumTable, Volume
from agg2exp_core.settings import LONGEST_ID
from agg2exp_core.store import results
from agg2exp_core.store.cohorts import Case
from agg2exp_core.store.layouts import scans_of

SALIENCY_DTYPES = ("view", "float16", "float32", "none")
SAME_PREDICTION = 0.01
"""Share of an organ's voxels by which devices may differ, so that targets explained on both stand in one table."""
PHANTOM_SEED = 20_000
"""Of the scan that models are tried on; none is trained on it."""
TIMED = 3
"""Classes whose explanation is timed, of models that have explained nothing yet."""
SPLIT = ("positive", "negative", "mass_se")
"""What a table has of each channel."""
VERSIONED = ("torch", "monai", "numpy", "nibabel")

Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Plan:
    """How cases are explained. targets empty: every class of the model. saliency: one of SALIENCY_DTYPES.

    drawn: the file of a mask `file-<name>`, or a folder of <case_id>.nii.gz.
    """

    model: str
    method: Method = field(default_factory=Method)
    targets: tuple[str, ...] = ()
    device: str = "auto"
    saliency: str = "view"
    drawn: Path | None = None


class Explaining:
    """A bundle ready on its device, to explain any number of cases by one plan."""

    def __init__(self, root: Path, plan: Plan):
        device = pick_device(plan.device)
        plan = replace(plan, method=decided(plan.method, read_measured(root, plan.model, device.type)))
        check_method(plan.method)
        if plan.saliency not in SALIENCY_DTYPES:
            raise InputError("saliency dtype must be known", repr(plan.saliency), ", ".join(SALIENCY_DTYPES))
        self.root, self.plan = root, plan
        self._masks = scans_of(plan.drawn) if plan.drawn is not None and plan.drawn.is_dir() else {}
        self.bundle = find_bundle(root, plan.model)
        self.targets = _known_targets(self.bundle, plan.targets)
        self.device, self.explainer = device, explainer_of(self.bundle, device)

    @property
    def run(self) -> str:
        """The run's id: model, method and every parameter that is not the usual one."""
        return run_id(self.plan.model, self.plan.method)

    def cohort_case(self, cohort: str, case: Case, report: Report) -> Path:
        """Explain a cohort's case into its run's folder; what is there and verifies is not computed again."""
        folder = results.case_path(self.root, cohort, self.run, case.case_id)
        return self.case(case, folder, report, cohort)

    def case(self, case: Case, folder: Path, report: Report, cohort: str | None = None) -> Path:
        """Explain one case into `folder`, adding to the targets that are there. cohort: whose run it belongs to."""
        check_images(self.bundle, _images_of(case))
        identity = self._identity(case)
        missing = self._missing(folder, _finished(folder, identity))
        if not missing:
            self._write_run(cohort, identity)  # which may have been lost
            return folder
        report(0, 1, "reading")
        started = time.monotonic()
        label, drawn = self._checked(case)
        self._write_run(cohort, identity)
        scan = load_scan(self.bundle, *_images_of(case))
        labels, mask = (None if one is None else on_model_grid(one, scan) for one in (label, drawn))
        labels = None if labels is None else _channels(self.root, self.bundle, case.label_set)[labels]
        subject = Subject(
            scan.voxels,
            None if labels is None else torch.as_tensor(labels),
            None if mask is None else torch.as_tensor(mask > 0),
        )
        explained = self._explained(case, subject, missing, report)
        with nullcontext() if cohort is None else results.publishing(folder):
            # Looked at again: another process may have explained other targets of this case meanwhile.
            known = _finished(folder, identity)
            explained = self._without_worse_maps(known, explained)
            with results.case_folder(folder, identity) as new:
                self._write(new, folder if known else None, scan, explained)
                self._write_agreement(new, explained, labels)
                identity["targets"] = list(results.read_importance(new).targets)
                identity["viewing"] = self._for_viewing(known, explained)
                if thinned := _thinned(known, explained):
                    identity["thinned"] = thinned
                if "estimator" in self.plan.method.parameters():
                    identity["pairs"] = (known or {}).get("pairs", {}) | _pairs(explained)
                identity["device"] = str(self.device)
                identity["windows"] = self._count_windows(scan)
                identity["peak_bytes"] = _peak_bytes()
                identity["seconds"] = round(time.monotonic() - started + float((known or {}).get("seconds", 0)), 1)
        if cohort is not None:
            extent = volumes.check_header(_images_of(case)[0]).extent
            results.write_latest(self.root, self.plan.model, identity, extent)
        return folder

    def check_free(self, case: Case, folder: Path) -> None:
        """InputError unless `folder` is new, empty, or holds just this scan's results by this model and method."""
        inside = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
        check_images(self.bundle, _images_of(case))
        known = _finished(folder, self._identity(case)) if inside else None
        sound = known is not None and inside == {"manifest.json", *known["files"]}
        if folder.is_file() or (inside and not sound):
            rule = "--out must be new, empty or hold sound results of this scan, model and method and nothing else"
            raise InputError(rule, folder.name)

    def _explained(self, case: Case, subject: Subject, targets: tuple[str, ...], report: Report) -> Explanation:
        """With less memory each time that the device's does not suffice. InputError where no less will do."""
        kept, explainer = () if self.plan.saliency == "none" else None, self.explainer
        while True:
            try:
                return attribute(explainer, subject, targets, self.plan.method, report, kept)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Not while the error is held, which holds what was computed.
            explainer = self._smaller(explainer, case.case_id, report)

    def _smaller(self, explainer: Explainer, case_id: str, report: Report) -> Explainer:
        """An explainer that needs less of the device's memory, for all cases where that has nothing to do with one."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if inferer := half_the_windows(explainer.inferer):
            self.explainer = explainer = replace(explainer, inferer=inferer)
            how = f"windows {inferer.sw_batch_size} at a time from here on"
        elif explainer.device.type != "cpu":
            network = OffDevice(explainer.network, explainer.device)
            explainer, how = replace(explainer, network=network, device=torch.device("cpu")), "sums that stay off it"
        else:
            raise InputError("a case must fit the memory of its device", f"{case_id} on {self.device}", "a larger one")
        logging.warning("%s: out of memory on %s; again with %s", case_id, self.device, how)
        report(0, 1, f"out of memory, again with {how}")
        return explainer

    def _checked(self, case: Case) -> tuple[Volume | None, Volume | None]:
        """The case's labels and drawn mask, if any. InputError, before long work, if they or the scan do not serve."""
        mask, drawn, label = self.plan.method.mask, self._drawn(case), self._label(case)
        if mask != "prediction" and drawn is None and label is None:
            got = f"case {case.case_id} without one" + (" of the model's classes" if case.label else "")
            raise InputError(f"mask {mask} needs a label map", got, "prediction")
        header = volumes.check_channels(_images_of(case))
        return (
            volumes.read_labels(label, like=header) if label else None,
            volumes.read_labels(drawn, like=header, called="a mask") if drawn else None,
        )

    def _label(self, case: Case) -> Path | None:
        """The case's label map, unless its label set has none of the model's classes: then it says nothing of them."""
        if case.label is None or not case.label_set or self.bundle.regions is not None:
            return case.label
        named = set(load_label_set(case.label_set, self.root).names) - {BACKGROUND}
        if named & set(self.bundle.classes):
            return case.label
        logging.warning("%s: no Dice, as label set %s has no class of the model", case.case_id, case.label_set)
        return None

    def _drawn(self, case: Case) -> Path | None:
        """The file of the case's drawn mask, if it is one that is explained."""
        drawn = self.plan.drawn
        if drawn is None or not drawn.is_dir():
            return drawn
        if case.case_id not in self._masks:
            raise InputError(f"a mask must be there as <case_id>.nii.gz in {drawn.name}", f"none of {case.case_id}")
        return self._masks[case.case_id]

    def _missing(self, folder: Path, known: dict[str, Any] | None) -> tuple[str, ...]:
        return tuple(name for name in self.targets if known is None or not self._has(folder, known, name))

    def _write(self, new: Path, old: Path | None, scan: Scan, explained: Explanation) -> None:
        prediction = explained.prediction.numpy()
        table = sum_table(self.bundle.classes, explained, self.split)
        saliency = new / "saliency"
        if old is not None:
            table = _merged(results.read_importance(old), table, self.bundle.classes)
            if (old / "saliency").is_dir():
                shutil.copytree(old / "saliency", saliency)
        results.write_importance(new, table)
        gaps = (results.read_completeness(old) if old is not None else {}) | _gaps(explained.completeness)
        if gaps:
            results.write_completeness(new, gaps)
        volumes.write_volume(new / results.PREDICTION, scan.volume(prediction))
        if self.plan.saliency != "none":
            saliency.mkdir(exist_ok=True)
            for name, drawn in self._maps(explained).items():
                kept, step = self._kept(drawn.numpy())
                (new / name).parent.mkdir(exist_ok=True)
                volumes.write_volume(new / name, scan.volume(kept), step)

    def _maps(self, explained: Explanation) -> dict[str, torch.Tensor]:
        """File of the case's folder → map (I, J, K): of each target and, where they are told apart, of its channels."""
        found = {results.map_name(name): drawn for name, drawn in explained.saliency.items()}
        for name in explained.saliency:
            for channel, drawn in zip(self.split, explained.by_channel.get(name, ()), strict=bool(self.split)):
                found[results.map_name(name, channel)] = drawn
        return found

    def _without_worse_maps(self, known: dict[str, Any] | None, explained: Explanation) -> Explanation:
        """Without maps to look at of targets that another process has kept in full meanwhile."""
        if known is None or self.plan.saliency != "view":
            return explained
        full = {name for name in explained.saliency if results.map_name(name) in known["files"]}
        full -= set(known.get("viewing", ()))
        kept = {name: drawn for name, drawn in explained.saliency.items() if name not in full}
        return replace(explained, saliency=kept)

    def _kept(self, drawn: np.ndarray) -> tuple[np.ndarray, float]:
        """A map as it is stored, and what one unit of it is worth."""
        if self.plan.saliency == "view":
            return maps.for_viewing(drawn)
        return (maps.half_precision(drawn) if self.plan.saliency == "float16" else drawn), 1.0

    def _for_viewing(self, known: dict[str, Any] | None, explained: Explanation) -> list[str]:
        """Targets whose stored map is good to look at, not to sum over."""
        others = set((known or {}).get("viewing", ())) - set(explained.saliency)
        return sorted(others | set(explained.saliency if self.plan.saliency == "view" else ()))

    def _count_windows(self, scan: Scan) -> int:
        return len(plan_windows(self.explainer.inferer, tuple(scan.voxels.shape[1:]), scan.voxels).slices)

    def _write_agreement(self, new: Path, explained: Explanation, labels: np.ndarray | None) -> None:
        if labels is None:
            results.write_agreement(new, (), np.empty(0), np.empty(0))
            return
        classes = self.bundle.classes
        scores = dice_iou(explained.prediction.numpy(), labels, len(classes), self.explainer.members)
        results.write_agreement(new, classes, *scores)

    def _has(self, folder: Path, manifest: dict[str, Any], target: str) -> bool:
        if target not in manifest["targets"]:
            return False
        drawn = results.map_name(target) in manifest["files"]
        if drawn and self.plan.saliency in ("float16", "float32") and target in manifest.get("viewing", ()):
            return False
        return drawn or self.plan.saliency == "none" or target in results.read_importance(folder).absent

    def _write_run(self, cohort: str | None, identity: dict[str, Any]) -> None:
        if cohort is not None:
            more = {"classes": list(self.bundle.classes), "versions": identity["versions"]}
            if self.bundle.regions is not None:
                more["members"] = self.bundle.regions.members
            results.write_run(self.root, cohort, self.run, self._run_info() | more)

    @property
    def split(self) -> tuple[str, ...]:
        """The channels that the attribution is split among: none where there is one, or all are changed at once."""
        several = len(self.bundle.channels) > 1 and self.plan.method.name not in PERTURBING
        return self.bundle.channels if several else ()

    def _run_info(self) -> dict[str, Any]:
        return {
            "model": self.plan.model,
            "model_hash": self.bundle.hash,
            "method": self.plan.method.name,
            "parameters": self.plan.method.parameters(),
            "label_set": self.bundle.label_set,
            "values": "sums",
            **({"channels": list(self.split)} if self.split else {}),
        }

    def _identity(self, case: Case) -> dict[str, Any]:
        parameters, drawn = self.plan.method.parameters(), self._drawn(case)
        return {
            "case_id": case.case_id,
            **self._run_info(),
            "input_sha256": volumes.images_sha256(_images_of(case)),
            "label_sha256": volumes.content_sha256(case.label) if case.label else "",
            **({"labelled_by": case.label_set} if case.label and case.label_set else {}),
            **({"mask_sha256": volumes.content_sha256(drawn)} if drawn else {}),
            "parameters_hash": hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest(),
            "versions": {name: version(name) for name in VERSIONED},
        }


def run_id(model: str, method: Method) -> str:
    """`<model>-<method>-<samples>`, then the parameters that differ from the usual ones, then an unusual mask.

    Samples that are antithetic pairs are called so. What would be too long ends with a digest instead.
    """
    parameters, usual = method.parameters(), asdict(Method(method.name))
    words = [model, method.name] + (["pairs"] if "estimator" in parameters else [])
    words += [str(parameters["samples"])] if "samples" in parameters else []
    others = {key: value for key, value in parameters.items() if key not in ("samples", "estimator", "mask")}
    words += [f"{key}{value}" for key, value in others.items() if value != usual[key]]
    name = "-".join([*words, *([method.mask] if "mask" in parameters else [])])
    if len(name) <= LONGEST_ID:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: LONGEST_ID - 9]}-{digest}"


def sum_table(classes: tuple[str, ...], explained: Explanation, channels: tuple[str, ...] = ()) -> SumTable:
    """Sums over the predicted organs for each explained target; absent targets keep a row of NaN.

    channels: those that the attribution is split among, if it is.
    """
    targets = tuple(name for name in classes if name in explained.targets or name in explained.absent)
    positive, negative, *errors = np.full((4, len(targets), len(classes)), np.nan)
    organs = np.array([name != BACKGROUND for name in classes])
    for name, tally in explained.tallies.items():
        row = targets.index(name)
        positive[row], negative[row] = tally.sums()
        for table, inside in zip(errors, (None, organs), strict=True):
            known = tally.mass_se(inside)
            table[row] = np.nan if known is None else known
    voxels = count_voxels(explained.prediction.numpy(), len(classes))
    split = _channel_sums(targets, explained, (channels, len(classes))) if channels else None
    mass_se, organ_mass_se = errors
    return SumTable(targets, classes, positive, negative, voxels, dict(explained.absent), mass_se, organ_mass_se, split)


def _channel_sums(targets: tuple[str, ...], explained: Explanation, shape: tuple[tuple[str, ...], int]) -> ChannelSums:
    """shape: names of the channels, and how many regions there are."""
    channels, regions = shape
    positive, negative, errors = np.full((3, len(channels), len(targets), regions), np.nan)
    for name, tally in explained.tallies.items():
        row, known = targets.index(name), tally.channel_mass_se()
        positive[:, row], negative[:, row] = tally.channel_sums()
        errors[:, row] = np.nan if known is None else known
    return ChannelSums(channels, positive, negative, errors)


def _channels(root: Path, bundle: Bundle, label_set: str) -> np.ndarray:
    """The model's output for every value of a label map, whose values are ids of a label set: by default the model's.

    An organ that the model does not have is background to it, another value no class. Where the model's label set does
    not name all its classes, labels are numbered as its outputs are. Labels of nested regions are those of its
    training. InputError: a label set that is asked for is not there.
    """
    if bundle.regions is not None:
        classes = np.full(volumes.MAX_LABEL + 1, len(bundle.classes), np.int32)
        for label, number in bundle.regions.classes_of.items():
            classes[label] = number
        return classes
    try:
        organs = load_label_set(label_set or bundle.label_set, root).organs
    except InputError:
        if label_set:
            raise
        organs = ()
    if not label_set and not set(bundle.classes) <= {organ.name for organ in organs}:
        return np.arange(volumes.MAX_LABEL + 1, dtype=np.int32)
    channels = np.full(volumes.MAX_LABEL + 1, len(bundle.classes), np.int32)
    for organ in organs:
        channels[organ.id] = bundle.classes.index(organ.name) if organ.name in bundle.classes else 0
    return channels


def explainer_of(bundle: Bundle, device: torch.device) -> Explainer:
    """The bundle's network with all that explaining needs, on a device."""
    if device.type == "cuda":
        # Else convolutions would round to 10 bits without a word, and float32 would not be float32.
        torch.backends.cudnn.allow_tf32 = False
    else:
        keep_freed_memory()
    neutral = scaled(bundle, AIR_HU), scaled(bundle, TISSUE_HU)
    members = bundle.regions.members if bundle.regions else ()
    return Explainer(bundle.network(device), bundle.inferer(), bundle.classes, device, *neutral, members)


def check_model(root: Path, model: str, device: str, images: Sequence[Path] = ()) -> tuple[str, Measured]:
    """Explain a scan, or a phantom, in both precisions, store what was measured; the kind of device, and that."""
    explainer, scan, extent = _on_trial(root, model, device, images)
    measured = Measured(*compare_precisions(explainer, scan))
    write_measured(root, model, explainer.device.type, measured)
    _time(root, model, explainer, scan, extent)
    return explainer.device.type, measured


def time_model(root: Path, model: str) -> None:
    """Explain some organs of a phantom, so that the time of scans is known before the first is explained."""
    _time(root, model, *_on_trial(root, model, "auto", ()))


def _on_trial(root: Path, model: str, device: str, images: Sequence[Path]) -> tuple[Explainer, torch.Tensor, float]:
    """A model, a scan for it on its device, (channels, I, J, K), and the mm³ of that; of a phantom without images."""
    bundle, on = find_bundle(root, model), pick_device(device)
    with TemporaryDirectory() as folder:
        if not images:
            image = Path(folder) / "phantom.nii.gz"
            volumes.write_volume(image, phantom.generate(PHANTOM_SEED).image)
            images = [image] * len(bundle.channels)
        voxels, extent = load_scan(bundle, *images).voxels, volumes.check_header(images[0]).extent
    return explainer_of(bundle, on), voxels.to(on), extent


def _time(root: Path, model: str, explainer: Explainer, scan: torch.Tensor, extent: float) -> None:
    """Measured of a few organs, unless this machine has computed by the model before, which tells more."""
    if results.read_latest(root, model) is not None:
        return
    method, started = Method("gradient"), time.monotonic()
    explained = attribute(explainer, Subject(scan), explainer.classes[:TIMED], method, lambda *_: None, keep=())
    needed = {
        "method": method.name,
        "parameters": method.parameters(),
        "targets": list(explained.targets),
        "seconds": round(time.monotonic() - started, 1),
        "windows": len(plan_windows(explainer.inferer, tuple(scan.shape[1:]), scan).slices),
        "peak_bytes": _peak_bytes(),
    }
    results.write_latest(root, model, needed, extent)


class Segmenting:
    """A bundle ready on its device, to segment any number of scans."""

    def __init__(self, bundle: Bundle, device: str):
        self.bundle = bundle
        self.device = pick_device(device)
        self.network = bundle.network(self.device)

    def case(self, case: Case, file: Path, report: Report) -> dict[str, float]:
        """Write the case's label map, on the scan's own grid and orientation; `report` counts windows.

        Of nested regions it has the labels of their training.

        Returns millilitres of each organ, as the label map has them.
        """
        images = _images_of(case)
        scan = load_scan(self.bundle, *images)
        image, inferer = scan.voxels.to(self.device), self.bundle.inferer()
        plan, done = plan_windows(inferer, tuple(image.shape[1:]), image), 0

        def tick(windows: int) -> None:
            nonlocal done
            done += windows
            report(done, len(plan.slices), "segmenting")

        organs, _ = segment(self.network, plan, image, tick)
        prediction = scan.volume(organs.cpu())
        labels = on_grid_of(prediction, volumes.read_volume(images[0]))
        file.parent.mkdir(parents=True, exist_ok=True)
        voxels, regions = count_voxels(labels.array, len(self.bundle.classes)), self.bundle.regions
        if regions is not None:
            voxels = np.array([voxels[list(inside)].sum() for inside in regions.members])
            labels = Volume(np.array(regions.given, np.uint16)[labels.array], labels.affine)
        volumes.write_volume(file, labels)
        millilitres = voxels * abs(np.linalg.det(labels.affine[:3, :3])) / 1000
        sizes = zip(self.bundle.classes, millilitres.tolist(), strict=True)
        return {name: size for name, size in sizes if name != BACKGROUND}


def _peak_bytes() -> int:
    """Most memory that this process has held so far; Linux counts it in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _images_of(case: Case) -> tuple[Path, ...]:
    """An image a channel."""
    if not case.images:
        raise InputError("a case needs an image", f"{case.case_id} without one")
    for image in case.images:
        if not image.is_file():
            raise InputError("a case's image must be there", str(image))
    return case.images


def _known_targets(bundle: Bundle, wanted: tuple[str, ...]) -> tuple[str, ...]:
    for name in wanted:
        if name not in bundle.classes:
            raise InputError("target must be a class of the model", repr(name), f"all, {', '.join(bundle.classes)}")
    return tuple(name for name in bundle.classes if not wanted or name in wanted)


def _finished(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest, if the folder holds sound results of this very input, model and method."""
    manifest = results.read_manifest(folder)
    if manifest is None or results.verify(folder):
        return None
    inputs = ("input_sha256", "label_sha256", "labelled_by", "mask_sha256")
    same = ("model_hash", "method", "parameters_hash", *inputs)
    return manifest if all(manifest.get(key) == identity.get(key) for key in same) else None


def _thinned(known: dict[str, Any] | None, explained: Explanation) -> dict[str, str]:
    """What full maps, since made small, were, of the targets that are not explained anew."""
    before = (known or {}).get("thinned", {})
    return {name: digest for name, digest in before.items() if name not in explained.targets}


def _pairs(explained: Explanation) -> dict[str, int]:
    """How many pairs of noisy copies each target took; most settle before all that were allowed."""
    return {name: tally.pairs for name, tally in explained.tallies.items()}


def _merged(old: SumTable, new: SumTable, classes: tuple[str, ...]) -> SumTable:
    rows = {name: (table, i) for table in (old, new) for i, name in enumerate(table.targets)}
    targets = tuple(name for name in classes if name in rows)

    def both(numbers: Callable[[SumTable], np.ndarray]) -> np.ndarray:
        return np.stack([numbers(table)[row] for table, row in (rows[name] for name in targets)])

    if not np.allclose(old.voxels, new.voxels, rtol=SAME_PREDICTION, atol=1):
        got = "organs of other sizes than before: another device, or another version of PyTorch"
        raise InputError("targets of one case must be explained on one prediction", got)
    absent = {name: table.absent[name] for name, (table, _) in rows.items() if name in table.absent}
    sums = both(lambda table: table.positive), both(lambda table: table.negative)
    mass_se, organ_mass_se = both(lambda table: table.mass_se), both(lambda table: table.organ_mass_se)
    split = None
    if (one := old.by_channel) is not None and (other := new.by_channel) is not None:
        of = {id(old): one, id(new): other}
        taken = [(of[id(table)], row) for table, row in (rows[name] for name in targets)]
        parts = (np.stack([getattr(sums, kind)[:, row] for sums, row in taken], axis=1) for kind in SPLIT)
        split = ChannelSums(other.names, *parts)
    return SumTable(targets, classes, *sums, new.voxels, absent, mass_se, organ_mass_se, split)


def _gaps(completeness: dict[str, Completeness]) -> dict[str, tuple[float, float, float]]:
    return {name: (c.attribution_sum, c.output_difference, c.gap) for name, c in completeness.items()}
