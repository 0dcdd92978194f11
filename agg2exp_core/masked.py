"""Stored attribution of a run summed over masks of its cases, such as pathologies: region sets beside the organs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agg2exp_core import volumes
from agg2exp_core.aggregation.masks import on_grid
from agg2exp_core.aggregation.regions import count_voxels, region_sums
from agg2exp_core.files import read_json
from agg2exp_core.records import InputError, Volume
from agg2exp_core.settings import checked_id
from agg2exp_core.store import results
from agg2exp_core.store.cohorts import read_cases
from agg2exp_core.store.layouts import scans_of
from agg2exp_core.store.region_sets import MaskedSum, checked_set, write_case
from agg2exp_core.tables import read_table

MOST_REGIONS = 256
"""A map with more labels than these is a scan or an atlas brought by mistake, and no mask."""

EMPTY, NOT_IN_MASK, TOO_SMALL = "the mask is empty", "not in the mask", "too small for the model's grid"
NO_MASK, NOT_EXPLAINED, NO_MAP = "no mask", "not explained in this run", "no stored attribution map"
ONLY_TO_VIEW = "maps only to look at: explain with --saliency-dtype float16"

Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Masks:
    """Masks of a cohort's cases: the region set's name, case → file, and label → region."""

    name: str
    files: dict[str, Path]
    regions: dict[int, str]


@dataclass
class Summary:
    """What was summed and what was not. targets: summed ones, over all cases; without: those that have no map stored.

    left: case → why it is left out. refused: a line a case whose mask or files do not serve.
    """

    cases: list[str] = field(default_factory=list)
    targets: int = 0
    without: int = 0
    left: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


def find_run(root: Path, cohort: str, run: str) -> Path:
    """The folder of a cohort's run. InputError: there is none of that name."""
    base = root / "runs" / checked_id("cohort", cohort)
    if not read_json(base / checked_id("run", run) / "run.json"):
        known = sorted(path.parent.name for path in base.glob("[!.]*/run.json"))
        raise InputError(f"run must be one of cohort {cohort}", repr(run), ", ".join(known) or "none yet")
    return base / run


def find_masks(root: Path, cohort: str, folder: Path, name: str, report: Report) -> Masks:
    """The masks `<case_id>.nii.gz` of a folder, each read once: whole numbers, of cases of the cohort, few labels.

    Regions are named by `names.csv` (id,name) in the folder, which then has to name every label; else a single label
    is NAME and several are NAME 1, NAME 2 … InputError for anything else, before a sum is taken.
    """
    checked_set(name)
    known = set(read_cases(root, cohort)["case_id"])
    files = scans_of(folder)
    strangers = sorted(set(files) - known)
    if strangers:
        raise InputError(f"every mask must be named as a case of cohort {cohort}", ", ".join(strangers[:3]))
    if not files:
        raise InputError("a region set needs masks named <case_id>.nii.gz", f"none in {folder.name}")
    labels: set[int] = set()
    for index, (case_id, path) in enumerate(files.items()):
        report(index, 2 * len(files), f"{case_id}, reading the mask")
        labels |= _labels(path)
    return Masks(name, files, _named(folder / "names.csv", name, sorted(labels)))


def sum_masks(run: Path, masks: Masks, report: Report) -> Summary:
    """Sum the stored attribution of every case over its mask and write the region set. A refused case stops no other.

    InputError: there is no case to sum, and nothing is written.
    """
    summary = Summary()
    explained = sorted(path.parent.name for path in (run / "cases").glob("[!.]*/manifest.json"))
    summary.left = {case_id: NO_MASK for case_id in explained if case_id not in masks.files}
    for index, case_id in enumerate(masks.files):
        report(len(masks.files) + index, 2 * len(masks.files), f"{case_id}, summing")
        try:
            _add_case(run, masks, case_id, summary)
        except InputError as error:
            summary.refused.append(f"{case_id}: {error}")
    if not summary.cases and not summary.refused:
        reasons = ", ".join(dict.fromkeys(summary.left[case_id] for case_id in masks.files))
        raise InputError("a region set needs a case with a mask and a stored attribution map", reasons)
    return summary


def case_sums(folder: Path, masks: Masks, case_id: str, targets: tuple[str, ...]) -> list[MaskedSum]:
    """Sums over each region of the mask, for the targets of a case's folder whose attribution is stored there.

    The attribution on disk is summed in float64, and so are its totals: a mask that covers the scan has all of it.
    Of several input channels the magnitudes of each are summed, as those over the organs are.
    float16 keeps 11 significant bits of it, each value off by 2⁻¹¹ (0.05 %) at most,
    and so a sum too; a mass by twice that at most, in practice far less.
    """
    manifest = results.read_manifest(folder) or {}
    files = manifest.get("files", {})
    mask, digest = volumes.read_labels(masks.files[case_id]), volumes.content_sha256(masks.files[case_id])
    grid, regions, rows = None, np.empty(0), []
    for target in targets:
        name = results.map_name(target)
        split = [file for file in results.map_names(manifest, target) if file != name]
        maps = [volumes.read_volume(folder / file) for file in split or [name]]
        if grid is None:
            grid, regions = maps[0], _numbered(on_grid(mask, maps[0]), masks)
        rows += _target_sums(maps, regions, _reasons(mask, masks), (target, digest, files[name]["sha256"]))
    return rows


# ---- a case ----------------------------------------------------------------------------------------


def _add_case(run: Path, masks: Masks, case_id: str, summary: Summary) -> None:
    folder = run / "cases" / case_id
    manifest = results.read_manifest(folder)
    if manifest is None:
        summary.left[case_id] = NOT_EXPLAINED
        return
    drawn = [name for name in manifest.get("targets", ()) if results.map_name(name) in manifest.get("files", {})]
    stored = results.full_maps(manifest)
    if not stored:
        summary.left[case_id] = ONLY_TO_VIEW if drawn else NO_MAP
        return
    kept = [file for name in stored for file in results.map_names(manifest, name)]
    problems = results.verify(folder, ["importance.csv", *kept])
    if problems:
        raise InputError("a case's results must be as its manifest says", ", ".join(problems))
    write_case(run, masks.name, case_id, case_sums(folder, masks, case_id, tuple(stored)))
    absent = results.read_importance(folder).absent
    summary.cases.append(case_id)
    summary.targets += len(stored)
    summary.without += sum(name not in stored and name not in absent for name in manifest["targets"])


def _numbered(labels: np.ndarray, masks: Masks) -> np.ndarray:
    """Labels as 1, 2 … in the order of the regions; what is none of them is 0."""
    numbers = np.zeros(max(int(labels.max()), *masks.regions) + 1, np.int32)
    numbers[list(masks.regions)] = np.arange(1, len(masks.regions) + 1)
    return numbers[labels]


def _reasons(mask: Volume, masks: Masks) -> dict[str, str]:
    """Region → why it would have no voxel on the attribution's grid."""
    there = set(np.unique(mask.array).tolist()) - {0}
    missing = NOT_IN_MASK if there else EMPTY
    return {region: TOO_SMALL if label in there else missing for label, region in masks.regions.items()}


def _target_sums(
    maps: list[Volume], regions: np.ndarray, reasons: dict[str, str], names: tuple[str, str, str]
) -> list[MaskedSum]:
    """A row a region. maps: of each channel. regions: (I, J, K), 1 … in the order of `reasons`.

    names: target, hashes of mask and saliency.
    """
    target, *digests = names
    count = len(reasons) + 1
    found = [region_sums(one.array[None], regions, count) for one in maps]
    positive, negative = np.sum(found, axis=0)[:, 0]
    voxels = count_voxels(regions, count)
    totals = float(positive.sum()), float(negative.sum())
    rows = []
    for number, (region, reason) in enumerate(reasons.items(), 1):
        there = voxels[number] > 0
        sums: tuple[Any, Any] = (float(positive[number]), float(negative[number])) if there else (None, None)
        rows.append(
            MaskedSum(
                target, region, *sums, int(voxels[number]), *totals, "" if there else reason, digests[0], digests[1]
            )
        )
    return rows


# ---- names -----------------------------------------------------------------------------------------


def _labels(path: Path) -> set[int]:
    """Labels of a mask but 0. InputError: it is none, or has too many."""
    try:
        labels = set(np.unique(volumes.read_labels(path).array).tolist()) - {0}
    except InputError as error:
        raise InputError("every mask must be a sound label map", f"{path.name}: {error}") from None
    if len(labels) > MOST_REGIONS:
        raise InputError("a mask must be binary or hold few labels", f"{path.name}: {len(labels)}", MOST_REGIONS)
    return labels


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
