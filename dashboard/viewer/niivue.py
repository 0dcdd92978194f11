"""The NiiVue viewer on the page: one scan, one map or several of them side by side, all with one crosshair.

Crosshair, window, opacity, palette and organs change in the browser alone; volumes reach it by address.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import streamlit as st

from agg2exp_core.records import Volume
from dashboard.viewer import addresses, fetch, layers, parcels, slices
from dashboard.viewer.parcels import Parcel
from dashboard.viewer.slices import Voxel
from dashboard.viewer.stage import Legend, Scene, voxel_inside

MOST = 4
"""Maps side by side: each needs a WebGL context of about 16 that a page has, and width to be read."""

KEYS = (
    "Click or drag to move the crosshair; scroll, or use the arrow keys, to step through a plane; "
    "drag with the right button to change the HU window."
)

LACKS = {
    "WebGL": "This browser offers no WebGL, which the 3D viewer needs.",
    "NiiVue": "The 3D viewer’s module could not be loaded.",
    "context": "The browser took back the 3D viewer’s WebGL; reload the page to try again.",
}


@dataclass(frozen=True, eq=False)
class Shown:
    """One map of the scan. legends: the colour bar's words by mode, `signed` and `absolute`; title: which map it is."""

    scene: Scene
    legends: dict[str, Legend] = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True, eq=False)
class Overlays:
    """What lies over a scan: label map and attribution to send, and the attribution in int8 that is sent."""

    labels: Parcel | None = None
    attribution: Parcel | None = None
    quantised: Volume | None = None


def lacking(key: str) -> str | None:
    """Why the viewer cannot be shown here, in a sentence; None if it can.

    A browser that lacks something says so once it was asked to show the viewer `key`.
    """
    if not addresses.shelf().serving:
        return "The 3D viewer needs the dashboard to be started by `agg2exp dashboard`."
    if not fetch.MODULE.is_file():
        return "The 3D viewer has not been fetched; `make dashboard` does so when it can reach npm."
    return LACKS.get(st.session_state.get(_lacks(key), ""))


def viewer(maps: Sequence[Shown], key: str, start: Voxel, on_move: Callable[[Voxel], None] | None = None) -> None:
    """Mount the viewer for one to four maps of one scan, with the crosshair at `start` where it was never moved.

    on_move: called with the voxel, on the scan's own grid, once the crosshair rests; without it, moves ask nothing
    of the server. `point_at` moves the crosshair.
    """

    def lacks() -> None:
        st.session_state[_lacks(key)] = st.session_state[key].lacks

    def moved() -> None:
        voxel = voxel_inside(st.session_state[key].move, maps[0].scene.shape)
        if on_move is not None and voxel is not None:
            on_move(voxel)

    callbacks = {"on_lacks_change": lacks, "on_renew_change": lambda: None, "on_move_change": moved}
    data = viewer_data(maps, key, start) | {"tell": on_move is not None}
    _component()(data=data, key=key, height="content", **callbacks)


def warm() -> None:
    """Let the browser load the viewer's code while the volumes are still being read. It shows nothing."""
    addressed = {"niivue": addresses.niivue_address(), "code": addresses.code_address()}
    _warmer()(data=addressed, key="viewer_warm")


def point_at(key: str, place: np.ndarray) -> None:
    """Move the crosshair of the viewer `key` to a world position (3,) in millimetres, at its next drawing."""
    serial = st.session_state.get(_at(key), {"serial": 0})["serial"] + 1
    st.session_state[_at(key)] = {"serial": serial, "mm": [float(mm) for mm in place]}


def viewer_data(maps: Sequence[Shown], key: str, start: Voxel) -> dict[str, Any]:
    """What the browser needs to know, in JSON; voxels only by address. `start`: a voxel of the scan's own grid."""
    scene = maps[0].scene
    overlays = [_overlays(shown.scene.key, shown.scene) for shown in maps[:MOST]]
    scan = _scan(str([shown.scene.key for shown in maps]), scene, overlays)
    return {
        "key": key,
        "code": addresses.code_address(),
        "niivue": addresses.niivue_address(),
        "scan": _address(scan) | {"origin": list(scan.origin), "source": scene.scan_key},
        "maps": [_map(*pair) for pair in zip(maps[:MOST], overlays, strict=True)],
        "organs": [organ.__dict__ for organ in scene.labels.organs],
        "target": scene.target,
        "start": list(start),
        "at": st.session_state.get(_at(key)),
        "windows": [{"name": name, **window.__dict__} for name, window in scene.windows.items()],
        "window": scene.window,
        "unit": scene.unit,
        "mode": "signed",
        "palettes": {name: layers.stops(name) for name in ("positive", "negative", "absolute")},
        "words": f"{slices.CONVENTION} {KEYS if scene.in_hu else KEYS.replace('HU window', 'grey window')}",
    }


def _map(shown: Shown, overlays: Overlays) -> dict[str, Any]:
    peak = shown.scene.attribution.peak if shown.scene.attribution and shown.scene.peak else None
    return {
        "title": shown.title,
        "labels": _address(overlays.labels) if overlays.labels else None,
        "attribution": _address(overlays.attribution) if overlays.attribution else None,
        "peak": None if peak is None else [float(mm) for mm in peak],
        "legends": {mode: legend.drawn(mode == "signed") for mode, legend in shown.legends.items()},
    }


def _address(parcel: Parcel) -> dict[str, str]:
    return {"id": parcel.id, "url": addresses.volume_address(parcel)}


@st.cache_resource(max_entries=4, show_spinner=False)
def _scan(key: str, _scene: Scene, _overlays: list[Overlays]) -> Parcel:
    return parcels.scan_parcel(_scene.scan, [o.quantised for o in _overlays if o.quantised is not None])


@st.cache_resource(max_entries=12, show_spinner=False)
def _overlays(key: str, _scene: Scene) -> Overlays:
    labels = None if _scene.prediction is None else parcels.labels_parcel(_scene.prediction)
    if _scene.attribution is None:
        return Overlays(labels)
    quantised = parcels.quantised(_scene.attribution.volume, _scene.attribution.end)
    return Overlays(labels, parcels.attribution_parcel(quantised), quantised)


@st.cache_resource
def _component() -> Callable[..., Any]:
    html, css, script = ((fetch.WEB / f"viewer.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    return st.components.v2.component("agg2exp_viewer", html=html, css=css, js=script)


@st.cache_resource
def _warmer() -> Callable[..., Any]:
    return st.components.v2.component("agg2exp_viewer_warm", js=(fetch.WEB / "warm.js").read_text("utf-8"))


def _lacks(key: str) -> str:
    return f"{key}_lacks"


def _at(key: str) -> str:
    return f"{key}_at"
