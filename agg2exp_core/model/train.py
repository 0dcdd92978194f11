"""Train a small network on a labelled cohort and write it as a MONAI bundle."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.metrics import DiceMetric
from monai.networks import one_hot

from agg2exp_core import volumes
from agg2exp_core.files import locked, read_json, write_json
from agg2exp_core.model.bundle import Bundle, save_weights
from agg2exp_core.model.fitting import CHANNELS_LAST, Fitting
from agg2exp_core.model.plan import NETWORKS, TrainPlan
from agg2exp_core.model.predict import pick_device, segment
from agg2exp_core.model.preprocess import load_scan, on_model_grid
from agg2exp_core.model.windows import plan_windows
from agg2exp_core.organs import LabelSet
from agg2exp_core.records import InputError, Volume

EVERY = 60.0
"""Seconds between two stored states of a training."""

STATE = "training.pt"
"""Of a training that has not ended, in its bundle's folder."""

BEGUN = "plan.json"
"""What it is a training of, there too."""

DIVIDED = 32
"""How often the networks halve a window, as a factor."""

DICE = ("held_out_dice", "dice")
Report = Callable[[int, int, str], None]


def train_model(
    models: Path, name: str, labels: LabelSet, pairs: Sequence[tuple[Path, Path]], plan: TrainPlan, report: Report
) -> dict[str, Any]:
    """Train a new bundle `<models>/<name>` on (scan, label map) pairs; its record, see `train`.

    It is hidden until it is trained, and goes on from there where it was stopped. InputError: the name is taken, too
    few pairs, a plan that cannot be, or a training of that name with other parameters or files was stopped.
    """
    _check(plan, labels, pairs)
    hidden = models / f".{name}.training"
    files = {str(path): volumes.content_sha256(path) for pair in pairs for path in pair}
    about = {"plan": asdict(plan), "label_set": labels.name, "files": files}
    with locked(models / f".{name}"):
        if (models / name).exists():
            raise InputError("a new model needs a name that is free", repr(name))
        if read_json(hidden / BEGUN) not in ({}, about):
            got = f"a training of {name} with other parameters or files, which was stopped"
            raise InputError("a training goes on as it began", got, f"the same again, or without models/{hidden.name}")
        hidden.mkdir(exist_ok=True)
        write_json(hidden / BEGUN, about)
        try:
            record = train(write_bundle(hidden, labels, plan), pairs, plan, report)
        except InputError:
            if not (hidden / STATE).exists():  # else what was refused once would keep the name from what is mended
                shutil.rmtree(hidden)
            raise
        (hidden / BEGUN).unlink()
        hidden.rename(models / name)
    return record


def _check(plan: TrainPlan, labels: LabelSet, pairs: Sequence[tuple[Path, Path]]) -> None:
    if plan.network not in NETWORKS:
        raise InputError("network must be known", repr(plan.network), ", ".join(NETWORKS))
    if plan.window % DIVIDED:
        raise InputError(f"window must be a multiple of {DIVIDED}", plan.window)
    if [organ.id for organ in labels.organs] != [*range(len(labels.organs))]:
        got = f"the label set {labels.name}: {', '.join(str(organ.id) for organ in labels.organs)}"[:80]
        raise InputError("training takes labels that are numbered one by one", got, "0, 1, 2, …")
    if len(pairs) < 2:
        raise InputError("training needs at least 2 cases with an image and a label map", len(pairs))


def write_bundle(folder: Path, labels: LabelSet, plan: TrainPlan) -> Bundle:
    """An untrained bundle as the model zoo writes them: configs only, weights come with `save_weights`."""
    for name, content in (
        ("inference.json", _inference_config(len(labels.names), plan)),
        ("metadata.json", _metadata(labels, plan)),
    ):
        path = folder / "configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return Bundle(folder)


def train(bundle: Bundle, pairs: Sequence[tuple[Path, Path]], plan: TrainPlan, report: Report) -> dict[str, Any]:
    """Fit the bundle's network on (scan, label map) pairs; saves the weights and docs/training.json.

    The last `held_out` share of the pairs is never trained on: of the steps at which it is looked at, the weights of
    the best are the model's, those of the last are kept as models/last.safetensors. Where the bundle's folder holds the
    state of a training that was stopped, this goes on with it, to the weights that it would have come to.
    """
    monai.utils.set_determinism(plan.seed)
    held_out = max(1, round(len(pairs) * plan.held_out))
    parts = {"trained": pairs[:-held_out], "held_out": pairs[-held_out:]}
    _check_held_out(bundle, parts["held_out"])
    cases = [_load_pair(bundle, pair, report, i, len(pairs)) for i, pair in enumerate(parts["trained"])]
    network: Any = bundle.untrained_network()  # its stubs know no memory format
    network.to(pick_device("auto"), memory_format=CHANNELS_LAST)
    fitting = Fitting(network, cases, plan)
    best = _fit(bundle, fitting, parts["held_out"], report)
    save_weights(bundle, network, "last.safetensors")
    network.load_state_dict(best.pop("network"))
    save_weights(bundle, network)
    record = {
        "plan": asdict(plan),
        "cases": {part: [image.name for image, _ in some] for part, some in parts.items()},
        "parameters": sum(p.numel() for p in network.parameters()),
        "minutes": round(fitting.seconds / 60, 1),
        "loss": fitting.curve,
        "best_step": best["step"],
        "held_out_dice": held_out_dice(bundle, bundle.network(torch.device("cpu")), parts["held_out"], report),
    }
    path = bundle.folder / "docs" / "training.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (bundle.folder / STATE).unlink(missing_ok=True)
    return record


def _fit(bundle: Bundle, fitting: Fitting, held_out: Sequence[tuple[Path, Path]], report: Report) -> dict[str, Any]:
    """All steps that are left; the best weights by the mean Dice of the held-out cases, their score and step.

    Its state is stored now and then, at the end, and where it is told to stop, which so loses no finished step.
    """
    state, plan = bundle.folder / STATE, fitting.plan
    best: dict[str, Any] = {"score": -1.0, "step": 0, "network": {}}
    if state.is_file():
        best = fitting.load(state)
    stored = time.monotonic()
    with _told_to_stop() as stop:
        try:
            while fitting.step < plan.steps or _unseen(fitting):
                if _unseen(fitting):
                    best = _looked_at(bundle, fitting, held_out, best, stop)
                else:
                    fitting.advance()
                if time.monotonic() - stored >= EVERY:
                    fitting.save(state, best)
                    stored = time.monotonic()
                told = [
                    f"{key.replace('_', ' ')} {row[key]:.3f}"
                    for row in fitting.curve[-2:]
                    for key in DICE
                    if key in row
                ]
                report(fitting.step, plan.steps, ", ".join([f"training, loss {fitting.smooth:.3f}", *told[-1:]]))
                stop()
        except _Stop as told_to:
            fitting.save(state, best)
            raise told_to.end from None
        fitting.save(state, best)
    return best


def _unseen(fitting: Fitting) -> bool:
    """Whether the step was made at which the held-out cases are to be looked at, and they were not yet."""
    due = fitting.step > 0 and (fitting.step % fitting.plan.validate == 0 or fitting.step == fitting.plan.steps)
    return due and not any(row["step"] == fitting.step and "held_out_dice" in row for row in fitting.curve[-2:])


def _looked_at(
    bundle: Bundle,
    fitting: Fitting,
    held_out: Sequence[tuple[Path, Path]],
    best: dict[str, Any],
    stop: Callable[[], None],
) -> dict[str, Any]:
    """What is the best after the held-out cases were looked at, any of which may be the last before a stop."""
    score = mean_dice(held_out_dice(bundle, fitting.network, held_out, lambda *_: stop()))
    fitting.curve.append({"step": fitting.step, "held_out_dice": round(score, 4)})
    if score <= best["score"]:
        return best
    copied = {name: tensor.cpu().clone() for name, tensor in fitting.network.state_dict().items()}
    return {"score": score, "step": fitting.step, "network": copied}


class _Stop(Exception):
    """Ctrl+C or SIGTERM came, between two steps or two held-out cases. end: what ends the process as it would have."""

    def __init__(self, number: int):
        super().__init__(number)
        self.end = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


@contextmanager
def _told_to_stop() -> Iterator[Callable[[], None]]:
    """Keeps Ctrl+C and SIGTERM, which amid a step would lose it, until the function that it hands on is called.

    Who asks twice is not kept waiting. In threads, which get no signals, nothing is kept.
    """
    asked: list[int] = []

    def keep(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    def stop() -> None:
        if asked:
            raise _Stop(asked[0])

    main = threading.current_thread() is threading.main_thread()
    kinds = [kind for kind in (signal.SIGINT, signal.SIGTERM) if main and signal.getsignal(kind) != signal.SIG_IGN]
    before = {kind: signal.signal(kind, keep) for kind in kinds}
    try:
        yield stop
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def held_out_dice(
    bundle: Bundle, network: torch.nn.Module, pairs: Sequence[tuple[Path, Path]], report: Report
) -> dict[str, float | None]:
    """Mean Dice by class (foreground, model grid) of a network with the bundle's own inferer; None: no case has it."""
    metric = DiceMetric(include_background=False, reduction="mean_batch", get_not_nans=True)
    count, device = len(bundle.classes), next(network.parameters()).device
    network.eval()
    for done, (image, label) in enumerate(pairs):
        scan = load_scan(bundle, image)
        plan = plan_windows(bundle.inferer(), tuple(scan.voxels.shape[1:]), scan.voxels)
        prediction = segment(network, plan, scan.voxels.to(device))[0].cpu()
        truth = torch.as_tensor(on_model_grid(_labels(bundle, label), scan)).long()
        metric(one_hot(prediction[None, None].long(), count), one_hot(truth[None, None], count))
        report(done + 1, len(pairs), "held-out Dice")
    scores = zip(bundle.classes[1:], *metric.aggregate(), strict=True)
    return {name: round(float(score), 4) if cases else None for name, score, cases in scores}


def mean_dice(scores: Mapping[str, float | None]) -> float:
    """Over the classes that a case has; 0 where the model's grid is too coarse for all of them."""
    known = [score for score in scores.values() if score is not None]
    return sum(known) / len(known) if known else 0.0


def _check_held_out(bundle: Bundle, pairs: Sequence[tuple[Path, Path]]) -> None:
    """InputError, before long work, if they cannot be compared with."""
    held = [bool(_labels(bundle, label).array.any()) for _, label in pairs]
    if not any(held):
        raise InputError("held-out cases must have an organ", ", ".join(label.name for _, label in pairs[:4]))


def _labels(bundle: Bundle, path: Path) -> Volume:
    labels = volumes.read_labels(path)
    if int(labels.array.max()) >= len(bundle.classes):
        got, allowed = f"{int(labels.array.max())} in {path.name}", f"0 to {len(bundle.classes) - 1}"
        raise InputError("labels must be ids of the label set", got, allowed)
    return labels


def _load_pair(
    bundle: Bundle, pair: tuple[Path, Path], report: Report, done: int, total: int
) -> dict[str, torch.Tensor]:
    scan = load_scan(bundle, pair[0])
    labels = torch.as_tensor(on_model_grid(_labels(bundle, pair[1]), scan))[None]
    plan = plan_windows(bundle.inferer(), tuple(scan.voxels.shape[1:]), scan.voxels)
    report(done + 1, total, "loading scans")
    # Padded as inference pads, so that the network meets the same borders in training.
    return {"image": plan.extend(scan.voxels), "label": plan.pad(labels)}


def _inference_config(classes: int, plan: TrainPlan) -> dict[str, Any]:
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": NETWORKS[plan.network] | {"in_channels": 1, "out_channels": classes},
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
                {"_target_": "Spacingd", "keys": "image", "pixdim": [plan.spacing] * 3, "mode": "bilinear"},
                {
                    "_target_": "ScaleIntensityRanged",
                    "keys": "image",
                    "a_min": -1024,
                    "a_max": 1024,
                    "b_min": 0.0,
                    "b_max": 1.0,
                    "clip": True,
                },
                {"_target_": "EnsureTyped", "keys": "image"},
            ],
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": [plan.window] * 3,
            "sw_batch_size": 1,
            "overlap": 0.25,
            "mode": "gaussian",
        },
    }


def _metadata(labels: LabelSet, plan: TrainPlan) -> dict[str, Any]:
    patch = [plan.window] * 3
    return {
        "version": "0.1.0",
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "task": "Segmentation of thorax organs in CT",
        "description": f"A small {NETWORKS[plan.network]['_target_']}. For demonstration, not for patients.",
        "authors": "Agg²Exp Explorer",
        "intended_use": "Demonstration of attributions; never for diagnosis.",
        "label_set": labels.name,
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "hounsfield",
                    "modality": "CT",
                    "num_channels": 1,
                    "spatial_shape": patch,
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": True,
                    "channel_def": {"0": "image"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": len(labels.names),
                    "spatial_shape": patch,
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": True,
                    "channel_def": {str(organ.id): organ.name for organ in labels.organs},
                }
            },
        },
    }
