"""The three linked slices on the page: what is sent to the browser, and the voxel that comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from agg2exp_core.organs import LabelSet
from agg2exp_core.records import Volume
from dashboard.viewer import layers, slices
from dashboard.viewer.slices import Plane, Voxel

_HERE = Path(__file__).parent


@dataclass(frozen=True, eq=False)
class Scene:
    """What is to be seen: the scan on its own grid in RAS, the rest on the model's grid.

    key names the files behind it, so that pictures can be cached. end: where the colour scale ends.
    """

    key: str
    scan: Volume
    labels: LabelSet
    prediction: Volume | None = None
    saliency: Volume | None = None
    end: float = 0.0


@dataclass(frozen=True)
class Look:
    """How it is to be seen. outlined: organs drawn, all of them when empty."""

    window: str = "soft"
    signed: bool = True
    opacity: float = 0.7
    outlines: bool = True
    outlined: tuple[str, ...] = ()


@dataclass(frozen=True)
class Legend:
    """The colour bar's words: what is coloured, its two ends, and a note on the scale."""

    title: str
    low: str
    high: str
    note: str


def stage_data(scene: Scene, look: Look, cursor: Voxel, legend: Legend | None) -> dict[str, Any]:
    """Everything that the browser needs to draw the three slices through `cursor`."""
    organs = {
        str(organ.id): {
            "title": organ.title,
            "color": organ.color,
            "outlined": organ.id > 0 and (not look.outlined or organ.name in look.outlined),
        }
        for organ in scene.labels.organs
    }
    return {
        "scene": scene.key,
        "shape": list(scene.scan.array.shape),
        "spacing": list(scene.scan.spacing),
        "affine": scene.scan.affine[:3].tolist(),
        "cursor": list(cursor),
        "planes": {
            plane.name: _picture(scene, scene.key, plane, cursor[plane.across], look.window, look.signed)
            for plane in slices.PLANES
        },
        "organs": organs,
        "opacity": look.opacity,
        "outlines": look.outlines,
        "convention": slices.CONVENTION,
        "legend": _legend(legend, look.signed),
    }


def stage(data: dict[str, Any], key: str, on_move: Callable[[], None]) -> None:
    """Mount the slices. `on_move` runs when a voxel was chosen; `moved_to(key)` says which."""
    _component()(data=data, key=key, on_move_change=on_move, height="content")


def moved_to(key: str, shape: tuple[int, ...]) -> Voxel | None:
    """The voxel that the browser chose, if it lies in the scan."""
    chosen = getattr(st.session_state.get(key), "move", None)
    try:
        i, j, k = (int(index) for index in chosen or ())
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
        "grey": layers.grey_png(layers.grey(hu, layers.WINDOWS[window])),
        "hu": layers.packed(hu),
        "color": None,
        "labels": None,
        "attribution": None,
    }
    if _scene.prediction is not None:
        labels = slices.sample(_scene.prediction, _scene.scan, plane, index, order=0)
        picture["labels"] = layers.packed(labels.astype(np.uint16))
    if _scene.saliency is not None:
        values = slices.sample(_scene.saliency, _scene.scan, plane, index, order=1)
        small = layers.quantised(values, _scene.end)
        picture["color"] = layers.color_png(small, signed)
        picture["attribution"] = layers.packed(small)
    return picture


def _legend(legend: Legend | None, signed: bool) -> dict[str, Any] | None:
    if legend is None:
        return None
    ends = [legend.low, legend.high]
    return {"title": legend.title, "ends": ends, "note": legend.note, "ramp": layers.css_ramp(signed)}
