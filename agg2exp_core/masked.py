"""Stored attribution of a run summed over masks of its cases, such as pathologies: region sets beside the organs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agg2exp_core import volumes
from agg2exp_core.aggregation.masks import on_grid
from agg2exp_core.aggregation.regions import count_voxels, region_sums
from agg2exp_core.files import read_json
from agg2exp_core.mask_files import Masks
from agg2exp_core.records import InputError, Volume
from agg2exp_core.settings import checked_id
from agg2exp_core.store import results
from agg2exp_core.store.region_sets import MaskedSum, check_regions, write_case

EMPTY, NOT_IN_MASK, TOO_SMALL = "the mask is empty", "not in the mask", "too small for the model's grid"
NO_MASK, NOT_EXPLAINED, NO_MAP = "no mask", "not explained in this run", "no stored attribution map"
ONLY_TO_VIEW = "maps only to look at: explain with --saliency-dtype float16"

Report = Callable[[int, int, str], None]


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


def sum_masks(run: Path, masks: Masks, report: Report) -> Summary:
    """Sum the stored attribution of every case over its mask and write the region set. A refused case stops no other.

    InputError: there is no case to sum, or other cases of the set have other regions; nothing is written.
    """
    summary = Summary()
    check_regions(run, masks.reading.name, masks.regions.values(), masks.files)
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

    Totals are of the attribution on disk, too: a mask that covers the scan has all of it.
    Of several input channels the magnitudes of each are summed, as those over the organs are.
    float16 keeps 11 significant bits of it, each value off by 2⁻¹¹ (0.05 %) at most,
    and so a sum too; a mass by twice that at most, in practice far less.
    """
    manifest = results.read_manifest(folder) or {}
    files, digest, on = manifest.get("files", {}), masks.digest(case_id), None
    rows: list[MaskedSum] = []
    for target in targets:
        name = results.map_name(target)
        split = [file for file in results.map_names(manifest, target) if file != name]
        maps = [volumes.read_volume(folder / file) for file in split or [name]]
        on = on or _on_grid(masks, case_id, maps[0])
        rows += _target_sums(maps, on, (target, digest, files[name]["sha256"]))
    return rows


# ---- a case ----------------------------------------------------------------------------------------


def _add_case(run: Path, masks: Masks, case_id: str, summary: Summary) -> None:
    folder = run / "cases" / case_id
    if not folder.is_dir():
        summary.left[case_id] = NOT_EXPLAINED
        return
    with results.publishing(folder):  # else its maps could be thinned between a look at them and their sums
        _add_explained(run, masks, case_id, summary)


def _add_explained(run: Path, masks: Masks, case_id: str, summary: Summary) -> None:
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
    write_case(run, masks.reading.name, case_id, case_sums(folder, masks, case_id, tuple(stored)))
    absent = results.read_importance(folder).absent
    summary.cases.append(case_id)
    summary.targets += len(stored)
    summary.without += sum(name not in stored and name not in absent for name in manifest["targets"])


@dataclass(frozen=True, eq=False)
class _Regions:
    """On the attribution's grid: maps (I, J, K) of numbers, 1 … in the order of `reasons`, each region in one of them.

    reasons: region → why it would have no voxel there.
    """

    layers: list[np.ndarray]
    reasons: dict[str, str]


def _on_grid(masks: Masks, case_id: str, grid: Volume) -> _Regions:
    names = list(dict.fromkeys(masks.regions.values()))
    layers, there = [], set()
    for mask in masks.layers(case_id):
        there |= set(np.unique(mask.array).tolist()) - {0}
        layers.append(_numbered(on_grid(mask, grid), masks.regions, names))
    if masks.reading.joined:
        layers = [np.maximum.reduce(layers)]
    seen = {masks.regions[label] for label in there if label in masks.regions}
    missing = NOT_IN_MASK if there else EMPTY
    return _Regions(layers, {region: TOO_SMALL if region in seen else missing for region in names})


def _numbered(labels: np.ndarray, regions: Mapping[int, str], names: list[str]) -> np.ndarray:
    """Labels as the numbers of their regions, from 1; what is none of them is 0."""
    numbers = np.zeros(max(int(labels.max()), *regions) + 1, np.uint16)
    numbers[list(regions)] = [names.index(region) + 1 for region in regions.values()]
    return numbers[labels]


def _target_sums(maps: list[Volume], regions: _Regions, names: tuple[str, str, str]) -> list[MaskedSum]:
    """A row a region. maps: of each channel. names: target, hashes of masks and saliency."""
    target, masks_digest, map_digest = names
    count = len(regions.reasons) + 1
    positive, negative = sums = np.zeros((2, count))
    voxels, totals = np.zeros(count, np.int64), (0.0, 0.0)
    for layer in regions.layers:
        found = np.sum([region_sums(one.array[None], layer, count) for one in maps], axis=0)[:, 0]
        # All layers have the whole scan, in the regions' voxels and in the rest of it.
        totals = float(found[0].sum()), float(found[1].sum())
        sums += found
        voxels += count_voxels(layer, count)
    rows = []
    for number, (region, reason) in enumerate(regions.reasons.items(), 1):
        there = voxels[number] > 0
        own: tuple[Any, Any] = (float(positive[number]), float(negative[number])) if there else (None, None)
        rows.append(
            MaskedSum(
                target, region, *own, int(voxels[number]), *totals, "" if there else reason, masks_digest, map_digest
            )
        )
    return rows
