"""Results as DICOM beside the series that was explained: segmentations and parametric maps (highdicom).

They belong to the series' patient and study, as archives and viewers ask, and so carry the patient's identity.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.valuerep import DSfloat

from agg2exp_core.foreign import readable_dicom, series_grid
from agg2exp_core.organs import Organ
from agg2exp_core.records import InputError, Volume

NEEDED = ("StudyInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID", "SOPClassUID")
MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "Modality",
)  # fmt: skip
"""Attributes that the standard has in every image, though without a value at times; some writers leave them out."""

OURS = "99AGG2EXP"
"""Scheme of the codes of organs for which pydicom's dictionary of SNOMED CT has none of the name."""

LONGEST_CODE = 16
"""Characters of a code's value, by the standard."""

SEGMENTATION_NUMBER, MAP_NUMBER = 9001, 9002
"""Of the series that are made, behind those of the scanner."""


@dataclass(frozen=True, eq=False)
class Series:
    """One series: its slices' headers from the first to the last along their normal, and the grid they lie on."""

    slices: Sequence[Dataset]
    grid: Volume


@dataclass(frozen=True)
class Origin:
    """What made the results, as their equipment: the model's name and what tells its weights apart."""

    model: str
    model_hash: str


def read_series(paths: Sequence[Path]) -> Series:
    """The series of these files, without its voxels. InputError: as `foreign.series_grid`, or without its study."""
    grid, slices = series_grid(paths)
    step = float(np.linalg.norm(grid.affine[:3, 2]))
    for header in slices:
        with readable_dicom():
            told = {element.keyword for element in header if element.value}  # takes all apart: highdicom copies some
            lacking = [name for name in NEEDED if name not in told]
        if lacking:
            raise InputError("a series must say its study and its frame of reference", f"a slice without {lacking[0]}")
        for name in MAY_BE_EMPTY:
            if name not in header:
                setattr(header, name, None)
        if not header.get("SliceThickness"):
            header.SliceThickness = DSfloat(step, auto_format=True)
    return Series(slices, grid)


def write_segmentation(
    path: Path, series: Series, labels: np.ndarray, organs: Mapping[Organ, Sequence[int]], origin: Origin
) -> None:
    """A DICOM segmentation with a binary segment for each organ that is there, named and coloured as the label set is.

    labels: (I, J, K) label values on the series' grid. organs: with the label values of each, several where others lie
    in it. InputError: no organ is there.
    """
    there = {organ: own for organ, own in organs.items() if organ.id and np.isin(labels, own).any()}
    if not there:
        raise InputError("a segmentation must hold an organ", "background alone")
    made = hd.seg.Segmentation(
        series.slices, _segments(labels, [*there.values()]), hd.seg.SegmentationTypeValues.BINARY,
        [_segment(number, organ, origin) for number, organ in enumerate(there, 1)],
        **_identity(SEGMENTATION_NUMBER, origin), content_label="SEGMENTATION", series_description=origin.model[:64],
    )  # fmt: skip
    _write(path, made)


def write_map(path: Path, series: Series, values: np.ndarray, title: str, origin: Origin) -> None:
    """A DICOM parametric map of signed values (I, J, K) float32 on the series' grid, in no unit."""
    most = float(np.abs(values).max()) or 1.0
    mapping = hd.pm.RealWorldValueMapping(
        lut_label="attribution", lut_explanation=title[:64], unit=codes.UCUM.NoUnits, value_range=(-most, most),
        slope=1, intercept=0,
    )  # fmt: skip
    made = hd.pm.ParametricMap(
        series.slices, _frames(values.astype(np.float32)), contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping], **_identity(MAP_NUMBER, origin), content_label="ATTRIBUTION",
        voi_lut_transformations=[hd.VOILUTTransformation(window_center=0.0, window_width=2 * most)],
        content_description=title[:64], series_description=title[:64],
    )  # fmt: skip
    _write(path, made)


def _segments(labels: np.ndarray, values: Sequence[Sequence[int]]) -> np.ndarray:
    """Numbers of segments (slices, rows, columns) or, where some overlap, a mask of each (…, segments)."""
    every = [value for own in values for value in own]
    if len(set(every)) < len(every):
        return np.stack([_frames(np.isin(labels, own)) for own in values], axis=-1)
    numbers = np.zeros(max(int(labels.max()), *every) + 1, np.uint16)
    for number, own in enumerate(values, 1):
        numbers[[*own]] = number
    return _frames(numbers[labels])


def _frames(array: np.ndarray) -> np.ndarray:
    """(slices, rows, columns) of (I, J, K), in which I runs along a row."""
    return np.ascontiguousarray(array.transpose(2, 1, 0))


def _identity(series_number: int, origin: Origin) -> dict[str, Any]:
    return {
        "series_instance_uid": hd.UID(), "series_number": series_number, "sop_instance_uid": hd.UID(),
        "instance_number": 1, "manufacturer": "Agg2Exp Explorer", "manufacturer_model_name": origin.model[:64],
        "software_versions": version("agg2exp-explorer"), "device_serial_number": origin.model_hash[:16],
    }  # fmt: skip


def _segment(number: int, organ: Organ, origin: Origin) -> hd.seg.SegmentDescription:
    return hd.seg.SegmentDescription(
        number, organ.title[:64], codes.SCT.AnatomicalStructure, organ_code(organ),
        hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        hd.AlgorithmIdentificationSequence(origin.model[:64], codes.DCM.ArtificialIntelligence, origin.model_hash[:16]),
        display_color=hd.color.CIELabColor.from_rgb(*(int(organ.color[at : at + 2], 16) for at in (1, 3, 5))),
    )  # fmt: skip


def organ_code(organ: Organ) -> Code:
    """The organ in SNOMED CT, where pydicom's dictionary has one of its name, in the singular too; else in OURS."""
    words = [word.capitalize() for word in organ.name.split("_")]
    names = [words]
    if words[-1] in ("Left", "Right"):
        names.append([words[-1], *words[:-1]])
    for name in ("".join(one) for one in names):
        for singular in (name, name.removesuffix("s"), name.removesuffix("es")):
            if (code := getattr(codes.SCT, singular, None)) is not None:
                return code
    digest = hashlib.sha256(organ.name.encode()).hexdigest()[:6]
    # Cut short alone, the left of two organs would have the code of the right.
    value = organ.name if len(organ.name) <= LONGEST_CODE else f"{organ.name[: LONGEST_CODE - 7]}-{digest}"
    return Code(value, OURS, organ.title[:64])


def _write(path: Path, made: Dataset) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        made.save_as(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
