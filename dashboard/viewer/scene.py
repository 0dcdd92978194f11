"""From a case's files to what the stage shows. Loaded volumes are kept while their files do not change."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import streamlit as st

from agg2exp_core import maps, volumes
from agg2exp_core.organs import LabelSet
from agg2exp_core.records import InputError, Volume
from agg2exp_core.store import results
from dashboard.charts.common import organ_of
from dashboard.viewer import slices
from dashboard.viewer.layers import Window, step_of, windows_of
from dashboard.viewer.stage import Attribution, Scene

Stamp = tuple[str, int, int]
"""Path, time and size of a file: another content has another stamp."""


@dataclass(frozen=True)
class Sources:
    """The files behind a scene. result: the case's folder in a run, None before it was explained.

    channel: of several, whose attribution is shown; of all, if none is named.
    """

    image: Path
    result: Path | None
    target: str
    channel: str = ""


def load_scene(sources: Sources, labels: LabelSet) -> Scene:
    """Read what there is. InputError if the scan cannot be read, or results are damaged."""
    image, prediction, attribution = stamps(sources)
    with ThreadPoolExecutor(1) as meanwhile:
        drawn = meanwhile.submit(_attribution, *attribution) if attribution else None
        (scan, step), organs = _scan(*image), _labels(*prediction) if prediction else None
    return Scene(
        str([image, prediction, attribution]),
        scan,
        labels,
        organ_of(labels, sources.target).id,
        organs,
        drawn.result() if drawn else None,
        hashlib.sha256(str(image).encode()).hexdigest()[:16],
        _windows(*image),
        step,
    )


def stamps(sources: Sources) -> tuple[Stamp, Stamp | None, Stamp | None]:
    """Of the scan, its prediction and its attribution map, as far as these are stored. InputError: there is no scan."""
    image = _stamp(sources.image)
    if sources.result is None:
        return image, None, None
    files = (sources.result / results.PREDICTION, sources.result / results.map_name(sources.target, sources.channel))
    prediction, attribution = (_stamp(file) if file.is_file() else None for file in files)
    return image, prediction, attribution


def _stamp(path: Path) -> Stamp:
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError("a case's file must be there", f"{path.name}: {error.strerror}") from None
    return str(path), stat.st_mtime_ns, stat.st_size


@st.cache_resource(max_entries=4, show_spinner="Reading the scan …")
def _scan(path: str, changed: int, size: int) -> tuple[Volume, float]:
    """The scan in RAS order as int16, half the memory, and what one unit of it is worth: 1 HU, see `step_of`."""
    volume = volumes.read_volume(Path(path))
    limits, step = np.iinfo(np.int16), step_of(volume.array)
    if step != 1:
        np.divide(volume.array, step, out=volume.array)
    np.clip(volume.array, limits.min, limits.max, out=volume.array)
    return volumes.to_ras(Volume(np.rint(volume.array, out=volume.array).astype(np.int16), volume.affine)), step


@st.cache_resource(max_entries=50, show_spinner=False)
def _windows(path: str, changed: int, size: int) -> dict[str, Window]:
    scan, step = _scan(path, changed, size)
    return windows_of(scan.array, step)


@st.cache_resource(max_entries=8, show_spinner=False)
def _labels(path: str, changed: int, size: int) -> Volume:
    return volumes.read_labels(Path(path))


@st.cache_resource(max_entries=12, show_spinner=False)
def _attribution(path: str, changed: int, size: int) -> Attribution:
    volume = volumes.read_volume(Path(path))
    end, sparse = maps.scale_end(volume.array)
    return Attribution(volume, end, slices.peak(volume), sparse)
