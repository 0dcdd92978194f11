"""The three linked slices on the page: what is sent to the browser, and the voxel that comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from agg2exp_core.organs import LabelSet
from agg2exp_core.records import Volume
from dashboard.viewer import layers, slices
from dashboard.viewer.slices import Plane, Voxel

_HERE = Path(__file__).parent
SKELETAL = ("skeleton", "skeletal system", "bones")
"""How label sets call the group of bones."""


KEYS = "Click or drag to move the other slices; scroll, or ↑ and ↓, steps through one."


@dataclass(frozen=True, eq=False)
class Attribution:
    """A map on the model's grid. end: where its colour scale ends. peak: world position of its strongest voxel.

    sparse: the scale ends at the peak, as hardly any voxel has a value.
    """

    volume: Volume
    end: float
    peak: np.ndarray
    sparse: bool = False


@dataclass(frozen=True, eq=False)
class Scene:
    """What is to be seen: the scan on its own grid in RAS, prediction and attribution on the model's grid.

    key names the files behind it, so that pictures can be cached, scan_key that of the scan alone.
    target: label value of the explained organ. windows: by name, those in which the scan can be seen. step: what one
    unit of the scan is worth.
    """

    key: str
    scan: Volume
    labels: LabelSet
    target: int
    prediction: Volume | None = None
    attribution: Attribution | None = None
    scan_key: str = ""
    windows: dict[str, layers.Window] = field(default_factory=lambda: layers.WINDOWS)
    step: float = 1.0

    @property
    def shape(self) -> Voxel:
        i, j, k = self.scan.array.shape
        return i, j, k

    @property
    def middle(self) -> Voxel:
        i, j, k = (size // 2 for size in self.shape)
        return i, j, k

    @property
    def centre(self) -> Voxel | None:
        """The scan's voxel nearest to the middle of the organ as predicted; it lies inside the organ."""
        place = None if self.prediction is None else slices.centre(self.prediction, self.target)
        return None if place is None else slices.nearest_voxel(self.scan.affine, place, self.shape)

    @cached_property
    def window(self) -> str:
        """The HU window in which the explained organ is seen: that whose level its middle is nearest to.

        Where the label set tells bones apart, they alone have theirs: with contrast, blood is as dense. An image
        that is not in HU has one of its own.
        """
        if layers.OWN in self.windows:
            return layers.OWN
        place = self.centre
        if place is None:
            return "soft"
        bones = {organ.id for organ in self.labels.organs if organ.group in SKELETAL}
        if self.target in bones:
            return "bone"
        names = [name for name in layers.WINDOWS if name != "bone" or not bones]
        around = self.scan.array[tuple(slice(max(at - 2, 0), at + 3) for at in place)]
        return min(names, key=lambda name: abs(layers.WINDOWS[name].level - float(np.median(around))))

    @property
    def in_hu(self) -> bool:
        """Whether the scan's values are HU."""
        return layers.OWN not in self.windows

    @property
    def unit(self) -> str:
        """Of the scan's values: HU, else none, or what they are multiples of."""
        return "HU" if self.in_hu else "" if self.step == 1 else f"× {self.step:g}"

    @property
    def brighter(self) -> str:
        """A higher value, in words."""
        return "higher HU" if self.in_hu else "brighter"

    @property
    def peak(self) -> Voxel | None:
        """The scan's voxel nearest to the strongest attribution."""
        if self.attribution is None or self.attribution.end == 0:
            return None
        return slices.nearest_voxel(self.scan.affine, self.attribution.peak, self.shape)

    def peak_on(self, region: str) -> Voxel | None:
        """The scan's voxel nearest to the strongest attribution on one region, joined ones too."""
        if self.attribution is None or self.prediction is None:
            return None
        parts = [organ.id for organ in self.labels.organs if region in (organ.name, organ.joined)]
        place = slices.peak_on(self.attribution.volume, self.prediction, parts)
        return None if place is None else slices.nearest_voxel(self.scan.affine, place, self.shape)


@dataclass(frozen=True)
class Look:
    """How it is to be seen: the HU window's name, and signed or absolute attribution."""

    window: str = "soft"
    signed: bool = True


@dataclass(frozen=True)
class Legend:
    """The colour bar's words: what is coloured, its two ends, a note on the scale, and its exact terms on hover."""

    title: str
    low: str
    high: str
    note: str
    exact: str

    def drawn(self, signed: bool) -> dict[str, Any]:
        """With its colours, as the browser draws it."""
        told = {"title": self.title, "ends": [self.low, self.high], "note": self.note, "exact": self.exact}
        return told | {"ramp": layers.css_ramp(signed)}


def stage_data(scene: Scene, look: Look, cursor: Voxel, legend: Legend | None) -> dict[str, Any]:
    """Everything that the browser needs to draw the three slices through `cursor`."""
    planes = {
        plane.name: _picture(scene, scene.key, plane, cursor[plane.across], look.window, look.signed)
        for plane in slices.PLANES
    }
    return {
        "scene": scene.key,
        "shape": list(scene.shape),
        "spacing": list(scene.scan.spacing),
        "affine": scene.scan.affine[:3].tolist(),
        "cursor": list(cursor),
        "peak": scene.peak,
        "target": scene.target,
        "planes": planes,
        "organs": {str(organ.id): {"title": organ.title, "color": organ.color} for organ in scene.labels.organs},
        "convention": f"{slices.CONVENTION} {KEYS}",
        "legend": None if legend is None else legend.drawn(look.signed),
        "unit": scene.unit,
    }


def stage(data: dict[str, Any], key: str, on_move: Callable[[], None]) -> None:
    """Mount the slices. `on_move` runs when a voxel was chosen; `moved_to(key)` says which."""
    _component()(data=data, key=key, on_move_change=on_move, height="content")


def moved_to(key: str, shape: Voxel) -> Voxel | None:
    """The voxel that the browser chose, if it lies in the scan."""
    return voxel_inside(getattr(st.session_state.get(key), "move", None), shape)


def voxel_inside(given: Any, shape: Voxel) -> Voxel | None:
    """Three indices, as numbers or text, if they name a voxel of the grid."""
    try:
        i, j, k = (int(index) for index in given)
    except (TypeError, ValueError):
        return None
    inside = all(0 <= index < size for index, size in zip((i, j, k), shape, strict=True))
    return (i, j, k) if inside else None


@st.cache_resource
def _component() -> Callable[..., Any]:
    html, css, script = ((_HERE / f"stage.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    return st.components.v2.component("agg2exp_slices", html=html, css=css, js=script)


@st.cache_data(max_entries=240, show_spinner=False)
def _picture(_scene: Scene, key: str, plane: Plane, index: int, window: str, signed: bool) -> dict[str, Any]:
    hu = slices.cut(_scene.scan.array, plane, index)
    picture: dict[str, Any] = {
        **plane.__dict__,
        "index": index,
        "grey": layers.grey_png(layers.grey(hu, _scene.windows[window])),
        "hu": layers.packed(hu),
        "color": None,
        "labels": None,
        "attribution": None,
    }
    if _scene.prediction is not None:
        labels = slices.sample(_scene.prediction, _scene.scan, plane, index, order=0)
        picture["labels"] = layers.packed(labels.astype(np.uint16))
    if _scene.attribution is not None:
        values = slices.sample(_scene.attribution.volume, _scene.scan, plane, index, order=1)
        small = layers.quantised(values, _scene.attribution.end)
        picture["color"] = layers.color_png(small, signed)
        picture["attribution"] = layers.packed(small)
    return picture
