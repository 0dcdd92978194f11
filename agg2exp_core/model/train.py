"""Train a small network on a labelled cohort and write it as a MONAI bundle."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks import one_hot
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandSpatialCropd,
)

from agg2exp_core import volumes
from agg2exp_core.model.bundle import Bundle, save_weights
from agg2exp_core.model.predict import pick_device, segment
from agg2exp_core.model.preprocess import load_scan, on_model_grid
from agg2exp_core.model.windows import plan_windows
from agg2exp_core.organs import LabelSet
from agg2exp_core.records import InputError

NETWORKS: dict[str, dict[str, Any]] = {
    "swinunetr": {"_target_": "SwinUNETR", "feature_size": 12, "window_size": 4},
    "segresnet": {"_target_": "SegResNet", "init_filters": 8, "dropout_prob": 0.0},
}
"""Name → MONAI's network, small enough for a CPU: the one attends to windows, the other convolves."""


@dataclass(frozen=True)
class TrainPlan:
    """What a training run depends on. network: one of NETWORKS; spacing in mm, window in voxels of that spacing."""

    steps: int = 1200
    batch: int = 2
    learning_rate: float = 1.5e-3
    seed: int = 0
    spacing: float = 5.0
    window: int = 64
    network: str = "swinunetr"
    held_out: float = 0.1


CHANNELS_LAST: Any = torch.channels_last_3d
"""Convolutions of few channels take two thirds of the time."""

MOST_SKIPPED = 10
"""Steps in a row without a finite gradient before training gives up."""

Report = Callable[[int, int, str], None]


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

    Dice and cross-entropy, AdamW, one-cycle cosine; the last `held_out` share of the pairs is never trained on
    and gives the record's Dice by class.
    """
    monai.utils.set_determinism(plan.seed)
    started = time.monotonic()
    held_out = max(1, round(len(pairs) * plan.held_out))
    parts = {"trained": pairs[:-held_out], "held_out": pairs[-held_out:]}
    cases = [_load_pair(bundle, pair, report, i, len(pairs)) for i, pair in enumerate(parts["trained"])]
    network: Any = bundle.untrained_network()  # its stubs know no memory format
    network.to(pick_device("auto"), memory_format=CHANNELS_LAST)
    weight = _class_weights((case["label"] for case in cases), len(bundle.classes))
    curve = _fit(network, cases, weight, plan, report)
    save_weights(bundle, network)
    record = {
        "plan": asdict(plan),
        "cases": {part: [image.name for image, _ in some] for part, some in parts.items()},
        "parameters": sum(p.numel() for p in network.parameters()),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "loss": curve,
        "held_out_dice": held_out_dice(bundle, parts["held_out"], report),
    }
    path = bundle.folder / "docs" / "training.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def held_out_dice(bundle: Bundle, pairs: Sequence[tuple[Path, Path]], report: Report) -> dict[str, float]:
    """Mean Dice by class (foreground, model grid) of the bundle as it is saved, with its own inferer."""
    metric = DiceMetric(include_background=False, reduction="mean_batch")
    count = len(bundle.classes)
    network = bundle.network(torch.device("cpu"))
    for done, (image, label) in enumerate(pairs):
        scan = load_scan(bundle, image)
        plan = plan_windows(bundle.inferer(), tuple(scan.voxels.shape[1:]), scan.voxels)
        prediction, _ = segment(network, plan, scan.voxels[0])
        truth = torch.as_tensor(on_model_grid(volumes.read_labels(label), scan)).long()
        metric(one_hot(prediction[None, None].long(), count), one_hot(truth[None, None], count))
        report(done + 1, len(pairs), "held-out Dice")
    scores = metric.aggregate()
    return {name: round(float(score), 4) for name, score in zip(bundle.classes[1:], scores, strict=True)}


def _load_pair(
    bundle: Bundle, pair: tuple[Path, Path], report: Report, done: int, total: int
) -> dict[str, torch.Tensor]:
    scan = load_scan(bundle, pair[0])
    labels = torch.as_tensor(on_model_grid(volumes.read_labels(pair[1]), scan))[None]
    if int(labels.max()) >= len(bundle.classes):
        allowed = f"0 to {len(bundle.classes) - 1}"
        raise InputError("labels must be ids of the label set", f"{int(labels.max())} in {pair[1].name}", allowed)
    plan = plan_windows(bundle.inferer(), tuple(scan.voxels.shape[1:]), scan.voxels)
    report(done + 1, total, "loading scans")
    # Padded as inference pads, so that the network meets the same borders in training.
    return {"image": plan.extend(scan.voxels), "label": plan.pad(labels)}


def _fit(
    network: torch.nn.Module,
    cases: list[dict[str, torch.Tensor]],
    weight: torch.Tensor,
    plan: TrainPlan,
    report: Report,
) -> list[dict[str, float]]:
    """Train in place; at every 25th step the loss, smoothed over about 20 steps, and the batch's Dice."""
    device = next(network.parameters()).device
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True, batch=True, weight=weight.to(device))
    optimizer = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.learning_rate, plan.steps, pct_start=0.1)
    network.train()
    fast = _computes_bfloat16(device)
    curve: list[dict[str, float]] = []
    smooth, skipped = float("nan"), 0
    batches = _batches(cases, plan, device)
    for step, (image, label) in zip(range(1, plan.steps + 1), batches, strict=False):
        with torch.autocast(image.device.type, torch.bfloat16, enabled=fast):
            logits = network(image)
        loss = loss_of(logits.float(), label)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        # bfloat16 overflows now and then: such a step is left out, as loss scaling does, else all weights become NaN.
        skipped = 0 if torch.isfinite(norm) else skipped + 1
        if skipped > MOST_SKIPPED:
            raise InputError("training must stay finite", f"{skipped} steps without a finite gradient by step {step}")
        if not skipped:
            optimizer.step()
            now = float(loss.detach())
            smooth = now if math.isnan(smooth) else 0.95 * smooth + 0.05 * now
        schedule.step()
        if step % 25 == 0:
            curve.append({"step": step, "loss": round(smooth, 4), "dice": _batch_dice(logits.detach(), label)})
        score = f", Dice {curve[-1]['dice']:.3f}" if curve else ""
        report(step, plan.steps, f"training, loss {smooth:.3f}{score}")
    return curve


def _computes_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is computed as such; a CPU that emulates it is forty times slower than in float32."""
    able = torch.cpu.get_capabilities()
    return device.type == "cuda" or able.get("avx512_bf16", False) or able.get("amx_bf16", False)


def _class_weights(labels: Iterable[torch.Tensor], count: int) -> torch.Tensor:
    """(count,) by 1/√frequency, mean 1: unweighted, organs of a few hundred voxels are never predicted at all."""
    voxels = torch.stack([torch.bincount(each.flatten().long(), minlength=count) for each in labels]).sum(0)
    weight = voxels.clamp(min=1) ** -0.5
    return weight / weight.mean()


def _batch_dice(logits: torch.Tensor, label: torch.Tensor) -> float:
    """Mean Dice of the foreground classes that the batch holds."""
    metric = DiceMetric(include_background=False, num_classes=logits.shape[1])
    metric(logits.argmax(1, keepdim=True), label)
    score = metric.aggregate()
    assert isinstance(score, torch.Tensor)
    return round(float(score), 4)


def _batches(
    cases: list[dict[str, torch.Tensor]], plan: TrainPlan, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Random windows of random cases, (batch, 1, window³) each, without end."""
    soft = (0.3, 0.7)
    # No flips: left and right lobes differ only by their side.
    augment = Compose(
        [
            RandSpatialCropd(keys=("image", "label"), roi_size=(plan.window,) * 3, random_size=False),
            RandGaussianNoised(keys="image", prob=0.5, std=0.03),
            RandAdjustContrastd(keys="image", prob=0.3, gamma=(0.8, 1.25)),
            RandGaussianSmoothd(keys="image", prob=0.2, sigma_x=soft, sigma_y=soft, sigma_z=soft),
        ]
    ).set_random_state(plan.seed)
    order = np.random.default_rng(plan.seed)
    while True:
        chosen = [augment(cases[i]) for i in order.integers(len(cases), size=plan.batch)]
        image, label = (torch.stack([torch.as_tensor(case[key]) for case in chosen]) for key in ("image", "label"))
        yield image.to(device, memory_format=CHANNELS_LAST), label.to(device)


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
