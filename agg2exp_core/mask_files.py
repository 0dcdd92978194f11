"""Masks of a cohort's cases in files: label maps, logits, or a file for each region, which may overlap."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agg2exp_core import volumes
from agg2exp_core.records import InputError, Volume
from agg2exp_core.settings import checked_id
from agg2exp_core.store.cohorts import read_cases
from agg2exp_core.store.layouts import scans_of
from agg2exp_core.store.region_sets import checked_set
from agg2exp_core.tables import read_table

MOST_REGIONS = 256
"""A map with more labels than these is a scan or an atlas brought by mistake, and no mask."""

LOGITS = ("exclusive", "overlapping")
NAMES = "names.csv"

Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Reading:
    """How masks are read, and the name of the region set that they make.

    logits: "" for labels; exclusive: the channel with the largest logit has the voxel, the first is none; overlapping:
    each channel has the voxels where its logit is above 0. ids: labels that are wanted, all if none is named.
    joined: whether all of them are one region.
    """

    name: str
    logits: str = ""
    ids: tuple[int, ...] = ()
    joined: bool = False


@dataclass(frozen=True)
class Masks:
    """Masks of a cohort's cases: case → its files by label, and label → region.

    A case has one file with all labels, which is named by 0, or one for each of them.
    """

    reading: Reading
    files: Mapping[str, Mapping[int, Path]]
    regions: Mapping[int, str]

    def layers(self, case_id: str) -> Iterator[Volume]:
        """Label maps of a case, several where its regions may overlap. InputError: a file that does not serve."""
        for label, path in self.files[case_id].items():
            yield from _layers(path, label, self.reading.logits)

    def digest(self, case_id: str) -> str:
        """SHA-256 of what the case's files decompress to."""
        digests = [volumes.content_sha256(path) for path in self.files[case_id].values()]
        return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def find_masks(root: Path, cohort: str, folder: Path, reading: Reading, report: Report) -> Masks:
    """The masks of a folder: `<case_id>.nii.gz`, or `<case_id>/<region>.nii.gz`, a file for each region of a case.

    Label maps are read once: whole numbers, few of them. Labels, and channels of logits, are named by `names.csv`
    (id,name) in the folder, which then has to name every wanted one; else a single one is NAME and several are NAME 1,
    NAME 2 … InputError for anything else, before a sum is taken.
    """
    name = checked_set(reading.name)
    if reading.logits not in ("", *LOGITS):
        raise InputError("logits must be read in a known way", repr(reading.logits), ", ".join(LOGITS))
    found = _region_files(folder) if folder.is_dir() else {}
    whole = {case_id: {0: path} for case_id, path in scans_of(folder).items()}
    if found and whole:
        raise InputError("masks must be a file a case or a folder a case", f"both in {folder.name}")
    strangers = sorted({*found, *whole} - set(read_cases(root, cohort)["case_id"]))
    if strangers:
        raise InputError(f"every mask must be named as a case of cohort {cohort}", ", ".join(strangers[:3]))
    if not found and not whole:
        raise InputError("a region set needs masks named <case_id>.nii.gz", f"none in {folder.name}")
    if found:
        _check_alone(found, reading.logits)
        regions = dict(enumerate(sorted({region for files in found.values() for region in files}), 1))
        labels = {region: label for label, region in regions.items()}
        whole = {case: {labels[region]: path for region, path in files.items()} for case, files in found.items()}
    else:
        regions = _named(folder / NAMES, name, _wanted(_all_labels(whole, reading.logits, report), reading.ids))
    wanted = {label: regions[label] for label in _wanted([*regions], reading.ids)}
    return Masks(reading, whole, dict.fromkeys(wanted, name) if reading.joined else wanted)


# ---- a file ----------------------------------------------------------------------------------------


def _layers(path: Path, label: int, logits: str) -> Iterator[Volume]:
    """label: that of all the file's voxels, 0 for those that it holds itself."""
    if not logits:
        labels = volumes.read_labels(path)
        yield Volume((labels.array > 0) * np.uint16(label), labels.affine) if label else labels
    elif logits == "overlapping":
        for number, channel in enumerate(volumes.read_channels(path), 1):
            yield Volume((channel.array > 0) * np.uint16(label or number), channel.affine)
    else:
        yield _largest(path)


def _largest(path: Path) -> Volume:
    """The channel of the largest logit at each voxel, one in memory at a time; 0 is the first, which is no region."""
    most, found, affine = np.empty(0), np.empty(0, np.uint16), np.eye(4)
    for number, channel in enumerate(volumes.read_channels(path)):
        if not number:
            most, found, affine = channel.array, np.zeros(channel.array.shape, np.uint16), channel.affine
            continue
        found[channel.array > most] = number
        np.maximum(most, channel.array, out=most)
    return Volume(found, affine)


def _region_files(folder: Path) -> dict[str, dict[str, Path]]:
    """case → region → file, of the folder's folders."""
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    return {checked_id("a case's folder", path.name): files for path in inner if (files := scans_of(path))}


def _check_alone(files: Mapping[str, Mapping[str, Path]], logits: str) -> None:
    """InputError: files of single regions with logits of several, of which each voxel would count several times."""
    if logits == "exclusive":
        raise InputError("exclusive logits must be channels of one file", "a file a region", "overlapping")
    for path in [path for own in files.values() for path in own.values()] if logits else ():
        if (count := volumes.count_channels(path)) > 1:
            raise InputError("a region's file must hold one channel", f"{path.parent.name}/{path.name} with {count}")


# ---- labels and names ------------------------------------------------------------------------------


def _all_labels(files: Mapping[str, Mapping[int, Path]], logits: str, report: Report) -> list[int]:
    labels: set[int] = set()
    for index, (case_id, own) in enumerate(files.items()):
        report(index, 2 * len(files), f"{case_id}, reading the mask")
        for path in own.values():
            labels |= set(_channels(path, logits)) if logits else _labels(path)
    return sorted(labels)


def _labels(path: Path) -> set[int]:
    """Labels of a mask but 0. InputError: it is none, or has too many."""
    try:
        labels = set(np.unique(volumes.read_labels(path).array).tolist()) - {0}
    except InputError as error:
        raise InputError(
            "every mask must be a sound label map, or logits with --logits", f"{path.name}: {error}"
        ) from None
    if len(labels) > MOST_REGIONS:
        raise InputError("a mask must be binary or hold few labels", f"{path.name}: {len(labels)}", MOST_REGIONS)
    return labels


def _channels(path: Path, logits: str) -> range:
    """Labels that the channels of logits stand for."""
    count = volumes.count_channels(path)
    if logits == "exclusive" and count < 2:
        raise InputError("exclusive logits need a channel for no region and one for each", f"{path.name}: {count}")
    if count > MOST_REGIONS:
        raise InputError("a mask must be binary or hold few labels", f"{path.name}: {count}", MOST_REGIONS)
    return range(1, count if logits == "exclusive" else count + 1)


def _wanted(labels: list[int], ids: tuple[int, ...]) -> list[int]:
    unknown = [str(one) for one in ids if one not in labels]
    if unknown:
        raise InputError("ids must be labels of the masks", ", ".join(unknown[:5]), ", ".join(map(str, labels[:20])))
    return [label for label in labels if label in ids] if ids else labels


def _named(file: Path, name: str, labels: list[int]) -> dict[int, str]:
    """Label → region, of all masks together, so that a region has one name in every case."""
    if not file.is_file():
        if len(labels) < 2:
            return dict.fromkeys(labels or [1], name)
        return {label: f"{name} {label}" for label in labels}
    rows = read_table(file, ("id", "name")).to_dict("records")
    named = {row["id"].strip(): row["name"].strip() for row in rows}
    if len(set(named.values())) < len(named) or "" in named.values():
        raise InputError("names.csv must name every label, each by a name of its own", ", ".join(named.values()))
    unknown = [str(label) for label in labels if str(label) not in named]
    if unknown:
        raise InputError("names.csv must name every label of the masks", ", ".join(unknown[:5]), ", ".join(named))
    if not all(label.isdecimal() and 0 < int(label) <= volumes.MAX_LABEL for label in named):
        raise InputError("names.csv needs whole numbers as ids", ", ".join(named), f"1 to {volumes.MAX_LABEL}")
    return {int(label): region for label, region in named.items()}
