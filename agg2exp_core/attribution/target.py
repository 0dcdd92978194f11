"""What is explained: S_k(x) = Σ_{v ∈ M_k} z_k(v), its mask fixed from the clean scan's prediction and the label map."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from agg2exp_core.model.windows import WindowPlan
from agg2exp_core.records import InputError

MASKS = {
    "prediction": "not predicted",
    "label": "not in the label",
    "tp": "no correct voxels",
    "fp": "no false positives",
    "fn": "no false negatives",
}
"""Masks by name, and why a target without a voxel in it is absent."""
DRAWN, DRAWN_EMPTY = "file-", "no voxels in the mask file"
"""A mask that was read from a file is called `file-<its name>`, and is the same for all targets."""

MOST_LEFT_OUT = 0.05
"""Share of a target that skipping may leave out, however small its windows are."""

Place = tuple[slice, ...]
WHOLE: Place = (slice(None),) * 3


@dataclass(frozen=True, eq=False)
class Target:
    """One class to explain: its name, its output channel and its mask M_k, asked for place by place: bool (box).

    members: classes of the prediction that are its own: itself and what lies in it. skipped: numbers of windows that
    are not looked at. left_out: the share of the mask that is weighed there.
    """

    name: str
    channel: int
    mask: Callable[[Place], torch.Tensor]
    skipped: frozenset[int] = frozenset()
    left_out: float = 0.0
    members: tuple[int, ...] = ()

    def among(self, organs: torch.Tensor) -> torch.Tensor:
        """Where a map of organs has this class: bool of its shape."""
        return belongs(organs, self.members or (self.channel,))


def belongs(organs: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
    """Where a map of organs holds one of these classes."""
    first, *others = classes
    found = organs == first
    for other in others:
        found |= organs == other
    return found


@dataclass(frozen=True, eq=False)
class Maps:
    """What masks are made of, on one grid (I, J, K): prediction and, where there are any, label map and drawn mask.

    members: of each class those that count as it, if not itself alone: what lies in it, where classes are nested.
    """

    prediction: torch.Tensor
    label: torch.Tensor | None = None
    drawn: torch.Tensor | None = None
    members: tuple[tuple[int, ...], ...] = ()

    def mask(self, channel: int, name: str, place: Place = WHOLE) -> torch.Tensor:
        """M_k (box) bool of one class. InputError: an unknown one, or one that needs a map that is not there."""
        if check_mask(name).startswith(DRAWN):
            if self.drawn is None:
                raise InputError(f"mask {name} needs its file", "a case without one", "prediction")
            return self.drawn[place]
        members = self.members[channel] if self.members else (channel,)
        predicted = belongs(self.prediction[place], members)
        if name == "prediction":
            return predicted
        if self.label is None:
            raise InputError(f"mask {name} needs a label map", "a case without one", "prediction")
        labelled = belongs(self.label[place], members)
        return {
            "label": labelled,
            "tp": predicted & labelled,
            "fp": predicted & ~labelled,
            "fn": labelled & ~predicted,
        }[name]

    def padded(self, plan: WindowPlan) -> Maps:
        """The same on the padded scan; no class lies in the padding."""
        if plan.padded == plan.shape:
            return self
        label = None if self.label is None else plan.pad(self.label.to(torch.int16), -1)
        drawn = None if self.drawn is None else plan.pad(self.drawn)
        return replace(self, prediction=plan.pad(self.prediction.to(torch.int16), -1), label=label, drawn=drawn)


def check_mask(name: str) -> str:
    """The name itself if it is one of MASKS or a drawn one, else InputError."""
    if name in MASKS or name.removeprefix(DRAWN) not in ("", name):
        return name
    raise InputError("mask must be a known one or a file", repr(name), ", ".join(MASKS))


def masked_targets(
    maps: Maps, classes: tuple[str, ...], wanted: tuple[str, ...], mask: str
) -> tuple[list[Target], dict[str, str]]:
    """Targets with a voxel in their mask, and the reason for each that has none."""
    targets, absent = [], {}
    for name in wanted:
        if name not in classes:
            raise InputError("target must be a class of the model", repr(name), f"all, {', '.join(classes)}")
        channel = classes.index(name)
        if maps.mask(channel, mask).any():
            members = maps.members[channel] if maps.members else ()
            targets.append(Target(name, channel, partial(maps.mask, channel, mask), members=members))
        else:
            absent[name] = MASKS.get(mask, DRAWN_EMPTY)
    return targets, absent


def without_small_windows(target: Target, plan: WindowPlan, least: float) -> Target:
    """The target without windows in which less than a share `least` of its mask is weighed, the smallest first.

    All of them together leave out no more than MOST_LEFT_OUT: a large target has only small shares.
    """
    if not least:
        return target
    weighed = [float((target.mask(window) * plan.share(window)).sum(dtype=torch.float64)) for window in plan.slices]
    shares = np.array(weighed) / sum(weighed)
    order = np.argsort(shares, kind="stable")
    small = order[(shares[order] < least) & (np.cumsum(shares[order]) <= MOST_LEFT_OUT)]
    return replace(target, skipped=frozenset(small.tolist()), left_out=float(shares[small].sum()))


def target_values(boxes: Iterable[tuple[Place, torch.Tensor]], targets: Sequence[Target]) -> list[float]:
    """S_k of logits that come box by box, (classes, box) each, summed in float64."""
    values = [0.0] * len(targets)
    for place, logits in boxes:
        for index, target in enumerate(targets):
            values[index] += float(logits[target.channel][target.mask(place)].double().sum())
    return values
