"""A case as one small axial slice: through the strongest evidence, the organ outlined. Kept while files stay."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from agg2exp_core.organs import LabelSet
from dashboard.viewer import layers, slices
from dashboard.viewer.scene import Sources, Stamp, load_scene, stamps
from dashboard.viewer.slices import Voxel
from dashboard.viewer.stage import Look, Scene
from dashboard.viewer.still import png, still

HEIGHT = 320
"""Pixels: sharp in a card on a screen of high density, and small."""


@dataclass(frozen=True)
class Thumbnail:
    """png: the picture. at: the scan's voxel that it goes through. place: what that is, in words."""

    png: bytes
    at: Voxel
    place: str


def thumbnail(sources: Sources, labels: LabelSet) -> Thumbnail:
    """The picture of a case. InputError if its files cannot be read."""
    return _kept(stamps(sources), labels.name, sources, labels)


def drawn(scene: Scene) -> Thumbnail:
    """The scene's axial slice through the peak of its attribution, else through its organ's middle or the scan's."""
    at, place = _where(scene)
    # Cards stand side by side: one window for all of them, but that lungs are black in it.
    window = scene.window if scene.window in ("lung", layers.OWN) else "soft"
    return Thumbnail(png(still(scene, slices.PLANES[0], at, Look(window), HEIGHT)), at, place)


def _where(scene: Scene) -> tuple[Voxel, str]:
    if scene.peak is not None:
        return scene.peak, "where its attribution is strongest"
    centre = scene.centre
    at, place = (scene.middle, "middle of the scan") if centre is None else (centre, "middle of the organ")
    return at, place if scene.attribution else f"{place}: no map of this organ is stored"


@st.cache_data(max_entries=200, show_spinner=False)
def _kept(files: tuple[Stamp | None, ...], label_set: str, sources: Sources, _labels: LabelSet) -> Thumbnail:
    return drawn(load_scene(sources, _labels))
