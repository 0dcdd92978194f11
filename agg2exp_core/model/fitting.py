"""Fitting a network step by step, in a state that can be stored: a stopped training goes on to the same weights.

In bfloat16 on the CPU, oneDNN rounds the gradient of convolutions over very few voxels, as at the bottom of a Swin
UNETR, otherwise from run to run; there the same weights are as alike as those of two trainings that were not stopped.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    Randomizable,
    RandSpatialCropd,
)

from agg2exp_core.model.plan import TrainPlan
from agg2exp_core.model.unpickling import unpickled
from agg2exp_core.records import InputError

CHANNELS_LAST: Any = torch.channels_last_3d
"""Convolutions of few channels take two thirds of the time."""

MOST_SKIPPED = 10
"""Steps in a row without a finite gradient before training gives up."""

Cases = list[dict[str, torch.Tensor]]
"""image (1, I, J, K) and label (1, I, J, K) of each."""


class Batches:
    """Random windows of random cases, without end: image and label (batch, 1, window³) each."""

    def __init__(self, cases: Cases, plan: TrainPlan, device: torch.device):
        soft = (0.3, 0.7)
        self._cases, self._batch, self._device = cases, plan.batch, device
        # No flips: left and right lobes differ only by their side.
        self._augment = Compose(
            [
                RandSpatialCropd(keys=("image", "label"), roi_size=(plan.window,) * 3, random_size=False),
                RandGaussianNoised(keys="image", prob=0.5, std=0.03),
                RandAdjustContrastd(keys="image", prob=0.3, gamma=(0.8, 1.25)),
                RandGaussianSmoothd(keys="image", prob=0.2, sigma_x=soft, sigma_y=soft, sigma_z=soft),
            ]
        ).set_random_state(plan.seed)
        self._order = np.random.default_rng(plan.seed)

    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The next batch."""
        chosen = [self._augment(self._cases[i]) for i in self._order.integers(len(self._cases), size=self._batch)]
        image, label = (torch.stack([torch.as_tensor(case[key]) for case in chosen]) for key in ("image", "label"))
        return image.to(self._device, memory_format=CHANNELS_LAST), label.to(self._device)

    def state(self) -> dict[str, Any]:
        """Where all randomness stands, of texts, numbers and tensors only."""
        augment = []
        for one in _randomizable(self._augment):
            kind, keys, *rest = one.R.get_state()
            augment.append([kind, torch.from_numpy(keys.astype(np.int64)), *rest])
        return {"order": json.dumps(self._order.bit_generator.state), "augment": augment}

    def restore(self, state: dict[str, Any]) -> None:
        self._order.bit_generator.state = json.loads(state["order"])
        for one, (kind, keys, *rest) in zip(_randomizable(self._augment), state["augment"], strict=True):
            one.R.set_state((kind, keys.numpy().astype(np.uint32), *rest))


def _randomizable(transform: Any) -> Iterator[Any]:
    """The transform and those inside it that draw at random."""
    parts = transform.transforms if isinstance(transform, Compose) else vars(transform).values()
    for part in parts:
        if isinstance(part, Randomizable):
            yield part
            yield from _randomizable(part)


class Fitting:
    """A network that is being fitted: Dice and cross-entropy, AdamW, one-cycle cosine, bfloat16 where it is computed.

    step: how many were made. curve: at every 25th the loss, smoothed over about 20, and the batch's Dice; at every
    validation the held-out Dice.
    """

    def __init__(self, network: torch.nn.Module, cases: Cases, plan: TrainPlan):
        self.network, self.plan = network, plan
        device = next(network.parameters()).device
        weight = _class_weights((case["label"] for case in cases), plan.classes).to(device)
        self._loss_of = DiceCELoss(to_onehot_y=True, softmax=True, batch=True, weight=weight)
        self._optimizer = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate, weight_decay=1e-4)
        rate = plan.learning_rate
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimizer, rate, plan.steps, pct_start=0.1)
        self._batches, self._fast = Batches(cases, plan, device), _computes_bfloat16(device)
        self.step, self._skipped, self.smooth, self.seconds = 0, 0, math.nan, 0.0
        self.curve: list[dict[str, float]] = []

    def advance(self) -> None:
        """One step. InputError: no finite gradient for too long."""
        started = time.monotonic()
        self.network.train()
        image, label = self._batches.draw()
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self._fast):
            logits = self.network(image)
        loss = self._loss_of(logits.float(), label)
        self._optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.step += 1
        # bfloat16 overflows now and then: such a step is left out, as loss scaling does, else all weights become NaN.
        self._skipped = 0 if torch.isfinite(norm) else self._skipped + 1
        if self._skipped > MOST_SKIPPED:
            got = f"{self._skipped} steps without a finite gradient by step {self.step}"
            raise InputError("training must stay finite", got)
        if not self._skipped:
            self._optimizer.step()
            now = float(loss.detach())
            self.smooth = now if math.isnan(self.smooth) else 0.95 * self.smooth + 0.05 * now
        self._schedule.step()
        if self.step % 25 == 0:
            dice = _batch_dice(logits.detach(), label)
            self.curve.append({"step": self.step, "loss": round(self.smooth, 4), "dice": dice})
        self.seconds += time.monotonic() - started

    def save(self, path: Path, best: dict[str, Any]) -> None:
        """Store all of it, and what is known of the best so far, at once or not at all."""
        state = {
            "network": self.network.state_dict(), "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(), "batches": self._batches.state(),
            "torch": torch.get_rng_state(), "step": self.step, "skipped": self._skipped, "smooth": self.smooth,
            "curve": self.curve, "seconds": self.seconds, "best": best,
        }  # fmt: skip
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.replace(path)

    def load(self, path: Path) -> dict[str, Any]:
        """Go on where a stored one was; what was known of the best. InputError: it holds what could run code."""
        state = unpickled(path)
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._batches.restore(state["batches"])
        torch.set_rng_state(state["torch"])
        self.step, self._skipped, self.smooth = state["step"], state["skipped"], state["smooth"]
        self.curve, self.seconds = state["curve"], state["seconds"]
        return state["best"]


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
