"""Folders of scans as the field keeps them: flat, Medical Segmentation Decathlon's, nnU-Net's, TotalSegmentator's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agg2exp_core.records import InputError
from agg2exp_core.settings import checked_id
from agg2exp_core.tables import read_table
from agg2exp_core.volumes import MAX_LABEL

SCANS = (".nii.gz", ".nii")
SUBJECT_SCANS = ("ct.nii.gz", "mri.nii.gz")
"""What TotalSegmentator calls the scan in the folder of a subject."""

PARTS, ABOUT, DATASET = "segmentations", "meta.csv", "dataset.json"
FIRST_CHANNEL = "_0000"
"""What nnU-Net puts behind a scan's name."""

MOST_NUMBERED = 8
"""More numbers behind the names of a flat folder than channels would have."""


@dataclass(frozen=True)
class Layout:
    """Files of each case by its id. parts: in place of a label map, a file for each class by the class's name.

    metadata: rows of text; columns: their names. foreign: scans of other formats, which have to be converted; the
    files of a DICOM series, one of NRRD, or one of NIfTI that holds all channels. further: where each channel has a
    file, those of the channels after the first. channels: how many a scan has. classes: label values by name, if told.
    left_out: why folders are of no case, a line each.
    """

    scans: Mapping[str, Path]
    foreign: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    labels: Mapping[str, Path] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    metadata: Mapping[str, dict[str, str]] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    further: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    channels: int = 1
    classes: Mapping[str, int] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def read_layout(folder: Path) -> Layout:
    """The layout of a folder, told by what lies in it. InputError: no such folder, or a file is missing."""
    if not folder.is_dir():
        raise InputError("a folder must be there", str(folder))
    if (folder / DATASET).is_file():
        return _dataset(folder)
    subjects = {path.parent.name: path for name in SUBJECT_SCANS for path in sorted(folder.glob(f"[!.]*/{name}"))}
    if subjects:
        return _subjects(folder, subjects)
    scans = scans_of(folder)
    if channels := _channels_of(scans):
        return _several(scans, channels)
    return Layout(scans) if scans else foreign_layout(folder)


def _channels_of(scans: Mapping[str, Path]) -> int:
    """How many channels the scans of a flat folder have a file of, by nnU-Net's numbers behind their names.

    0 where they tell none: no scan has two, or there are so many numbers that they are of the names. InputError: of
    one name alone, which may be a case or what many cases are called.
    """
    bases = {name.removesuffix(FIRST_CHANNEL) for name in scans if name.endswith(FIRST_CHANNEL)}
    numbers = {int(name[-4:]) for name in scans if name[-5:-4] == "_" and name[-4:].isdecimal()}
    if len(numbers) > MOST_NUMBERED or not any(f"{base}_0001" in scans for base in bases):
        return 0
    if len(bases) == 1 and all(name.startswith(min(bases)) for name in scans):
        got = f"{', '.join(list(scans)[:2])}: channels or cases?"
        raise InputError("scans must tell which are of one case", got, f"channels named in {DATASET}; other names")
    return max(numbers) + 1


def _several(scans: Mapping[str, Path], channels: int) -> Layout:
    """A flat folder with a file a channel. InputError: a case that lacks one."""
    further = dict[str, Sequence[Path]]()
    first = {name: scan for name, (scan, _) in _by_case(scans, {}, channels, further).items()}
    return Layout(first, further=further, channels=channels)


def scans_of(folder: Path) -> dict[str, Path]:
    """case_id → scan file of a folder, by name."""
    if not folder.is_dir():
        raise InputError("a folder must be there", str(folder))
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        end = ending(path.name)
        if end is None or path.name.startswith(".") or not path.is_file():
            continue
        case_id = checked_id("a scan's name, without its ending,", path.name[: -len(end)])
        if case_id in found:
            raise InputError("every case must have one file", f"{found[case_id].name} and {path.name}")
        found[case_id] = path.resolve()
    return found


def ending(name: str) -> str | None:
    """That of a NIfTI file's name."""
    return next((ending for ending in SCANS if name.lower().endswith(ending)), None)


def foreign_layout(folder: Path) -> Layout:
    """NRRD files by name, and DICOM series, one a folder, by a name that tells nothing of the patient.

    Folders of slices that are none are left out: nearly every archive's export has scouts and pictures of reports.
    """
    from agg2exp_core.foreign import series_id, slices_of  # takes a moment, and few need it

    found: dict[str, Sequence[Path]] = {}
    for path in sorted(folder.glob("*.nrrd")):
        found[checked_id("a scan's name, without its ending,", path.name.removesuffix(".nrrd"))] = [path.resolve()]
    series: dict[str, list[list[Path]]] = {}
    left_out = []
    for inner in sorted({folder, *(path for path in folder.rglob("*") if path.is_dir())}):
        try:
            if slices := slices_of(inner):
                series.setdefault(series_id(slices[:1]), []).append(slices)
        except InputError as error:
            left_out.append(told_left_out(folder, inner, error))
    for name, (slices, *others) in series.items():
        # Whether others are copies or further slices of the same scan is not known before they are read.
        for again in (slices, *others) if others else ():
            twice = InputError("every series must be there once", f"one in {len(others) + 1} folders")
            left_out.append(told_left_out(folder, again[0].parent, twice))
        if not others:
            found[name] = slices
    return Layout({}, found, left_out=tuple(left_out))


def told_left_out(folder: Path, inner: Path, error: InputError) -> str:
    """By its folder, for a series is named by a digest, by which nobody finds it again."""
    place = folder.name if inner == folder else inner.relative_to(folder)
    return f"{place}/ is left out: {error}"


# ---- TotalSegmentator ----------------------------------------------------------------------------


def _subjects(folder: Path, subjects: Mapping[str, Path]) -> Layout:
    """A folder a subject: its scan, and in `segmentations/` a mask for each class."""
    scans = {checked_id("a subject's folder", name): subjects[name].resolve() for name in sorted(subjects)}
    parts = {name: scans_of(folder / name / PARTS) for name in scans if (folder / name / PARTS).is_dir()}
    if not (folder / ABOUT).is_file():
        return Layout(scans, parts=parts)
    table = read_table(folder / ABOUT, ("image_id",), delimiter=";")
    rows = {str(row.pop("image_id")): row for row in table.to_dict("records")}
    columns = tuple(str(name) for name in table.columns if name != "image_id")
    return Layout(scans, parts=parts, metadata=rows, columns=columns)  # type: ignore[arg-type]


# ---- Decathlon and nnU-Net -----------------------------------------------------------------------


def _dataset(folder: Path) -> Layout:
    """`imagesTr`, `labelsTr` and `imagesTs`: nnU-Net's with a number for the channel behind each scan's name."""
    try:
        about = json.loads((folder / DATASET).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{DATASET} must be readable JSON", error) from None
    if not isinstance(about, dict):
        raise InputError(f"{DATASET} must hold an object", type(about).__name__)
    channels = about.get("channel_names") or about.get("modality") or {"0": "CT"}
    if not isinstance(channels, dict):
        raise InputError(f"{DATASET} must name the channels", str(channels)[:80], '{"0": "T1", "1": "T2"}')
    count, further = len(channels), dict[str, Sequence[Path]]()
    split = _numbered(folder, count, further) if "channel_names" in about else _listed(folder, about, count, further)
    scans = {name: scan for cases in split.values() for name, (scan, _) in cases.items()}
    if not scans:
        rule, got = f"{DATASET} must stand beside imagesTr with scans", f"none in {folder.name}"
        raise InputError(rule, got, f"{' and '.join(SCANS)}; without {DATASET}, a folder of .nrrd files")
    labels = {name: label for cases in split.values() for name, (_, label) in cases.items() if label is not None}
    metadata = {name: {"split": kind} for kind, cases in split.items() for name in cases}
    told: dict[str, Any] = {"labels": labels, "metadata": metadata, "columns": ("split",), "channels": count}
    told["classes"] = _classes(about)
    if count > 1 and not further:  # the Decathlon's files hold all channels
        return Layout({}, {name: [scan] for name, scan in scans.items()}, **told)
    return Layout(scans, further=further, **told)


def _classes(about: Mapping[str, Any]) -> dict[str, int]:
    """nnU-Net tells the value by the name, the Decathlon the name by the value.

    None where there are regions of several values: what a single value is has no name then.
    """
    labels = about.get("labels")
    pairs = labels.items() if isinstance(labels, dict) else ()
    named = [(value, key) if str(key).isdecimal() else (key, value) for key, value in pairs]
    if not all(str(number).isdecimal() and int(number) <= MAX_LABEL for _, number in named):
        return {}
    return {str(name): int(number) for name, number in named}


Split = dict[str, dict[str, tuple[Path, Path | None]]]
"""train or test → case → scan and label map."""


def _numbered(folder: Path, channels: int, further: dict[str, Sequence[Path]]) -> Split:
    """nnU-Net's: `imagesTr/<case>_0000.nii.gz`, and a further file, `_0001` …, for each channel after the first.

    further: is given those. InputError: a case without one of its channels, or with one too many.
    """
    split: Split = {}
    for kind, images, labels in (("train", "imagesTr", "labelsTr"), ("test", "imagesTs", "labelsTs")):
        maps = scans_of(folder / labels) if (folder / labels).is_dir() else {}
        scans = scans_of(folder / images) if (folder / images).is_dir() else {}
        split[kind] = {}
        for name, files in _by_case(scans, maps, channels, further).items():
            _add(split, kind, name, files)
    return split


def _by_case(
    scans: Mapping[str, Path], maps: Mapping[str, Path], channels: int, further: dict[str, Sequence[Path]]
) -> dict[str, tuple[Path, Path | None]]:
    """The first channel's scan, and the label map, of each case. further and InputError: as of `_numbered`."""
    ends = [f"_{number:04}" for number in range(channels)]
    if strangers := [name for name in scans if name[-len(FIRST_CHANNEL) :] not in ends]:
        raise InputError(f"scans of nnU-Net's layout must end in {' or '.join(ends)}", strangers[0])
    found = {}
    for name in dict.fromkeys(name[: -len(FIRST_CHANNEL)] for name in scans):
        if lacking := [end for end in ends if name + end not in scans]:
            raise InputError("every case must have a file for each channel", f"{name} without {lacking[0]}")
        if channels > 1:
            further[name] = [scans[name + end] for end in ends[1:]]
        found[name] = scans[name + ends[0]], maps.get(name)
    return found


def _add(split: Split, kind: str, name: str, files: tuple[Path, Path | None]) -> None:
    if any(name in cases for cases in split.values()):
        raise InputError("every case must have one file", f"{name} twice in the dataset")
    split[kind][name] = files


def _listed(folder: Path, about: Mapping[str, Any], channels: int, further: dict[str, Sequence[Path]]) -> Split:
    """The Decathlon's: every file named in `training` and `test`; nnU-Net's first version numbers the files alone.

    further: is given the files of channels after the first, where those are numbered.
    """
    split: Split = {"train": {}, "test": {}}
    for kind, key in (("train", "training"), ("test", "test")):
        rows = about.get(key) or []
        if not isinstance(rows, list):
            raise InputError(f"{DATASET} must list its {key} cases", type(rows).__name__)
        for row in rows:
            image, label = (row.get("image"), row.get("label")) if isinstance(row, dict) else (row, None)
            end = ending(str(image)) or ""
            stem = str(image).removesuffix(end)
            scan = _inside(folder, str(image), f"{stem}{FIRST_CHANNEL}{end}")
            name = checked_id("a scan's name, without its ending,", Path(stem).name)
            if channels > 1 and scan.name == f"{name}{FIRST_CHANNEL}{end}":
                further[name] = [_inside(folder, f"{stem}_{number:04}{end}") for number in range(1, channels)]
            _add(split, kind, name, (scan, None if label is None else _inside(folder, str(label))))
    return split


def _inside(folder: Path, *names: str) -> Path:
    """The first of these files that is there."""
    for name in names:
        with suppress(OSError, ValueError):  # names that no file can have
            path = (folder / name).resolve()
            if path.is_relative_to(folder.resolve()) and path.is_file():
                return path
    raise InputError(f"files of {DATASET} must be there, beside it", names[0][:80])
