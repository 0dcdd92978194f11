"""A run's maps on the scans' own grids, for programs that want all images of a case alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agg2exp_core import volumes
from agg2exp_core.aggregation.masks import on_grid, values_on_grid
from agg2exp_core.dicom import Origin, read_series, write_map, write_segmentation
from agg2exp_core.files import read_json
from agg2exp_core.organs import Organ, load_label_set, made_label_set, numbered
from agg2exp_core.records import InputError, Volume
from agg2exp_core.store import results
from agg2exp_core.store.cohorts import Case
from agg2exp_core.store.layouts import foreign_layout

SAME_PLACE = 1e-3
"""mm by which two grids' affines may differ: NIfTI stores them in 32 bits."""

OF_LABELS = results.PREDICTION.split(".")[0], "segmentation"
"""What the label map's files are called, as NIfTI and as DICOM; a map of a class of that name would replace it."""

Report = Callable[[int, int, str], None]


def export_case(case: Case, folder: Path, out: Path, targets: tuple[str, ...], report: Report) -> int:
    """Write the prediction and the targets' maps of a case's results into `out`, on the scan's grid and orientation.

    Where attribution is told apart by input channels, `<target>/<channel>.nii.gz` as well.

    Maps in float32, interpolated linearly, signed as they are stored; labels by nearest neighbour; both 0 where the
    model's grid does not reach. targets: all that have a map if none is named. Returns how many maps there are.
    InputError: the case has no image, another one than was explained or no sound results, or a target no stored map;
    then nothing is written.
    """
    chosen = _sound(case, folder, targets)
    assert case.image is not None
    scan = volumes.read_volume(case.image)
    prediction = volumes.read_labels(folder / results.PREDICTION)
    out.mkdir(parents=True, exist_ok=True)
    labels = on_grid(prediction, scan).astype(prediction.array.dtype)
    volumes.write_volume(out / results.PREDICTION, Volume(labels, scan.affine))
    for number, (name, files) in enumerate(chosen.items()):
        report(number, len(chosen), f"{name}, on the scan's grid")
        for file in files:
            place = out / Path(file).relative_to("saliency")
            place.parent.mkdir(exist_ok=True)
            drawn = values_on_grid(volumes.read_volume(folder / file), scan)
            volumes.write_volume(place, Volume(drawn, scan.affine))
    return len(chosen)


@dataclass(frozen=True, eq=False)
class Originals:
    """The files of each case's DICOM series, and the organs and the model that are named in what is made of them.

    organs: with the label values of each in a prediction, several where others lie in it.
    """

    series: Mapping[str, Sequence[Path]]
    organs: Mapping[Organ, Sequence[int]]
    origin: Origin


def find_originals(root: Path, run: Path, folder: Path) -> Originals:
    """The DICOM series of a folder, by the names that `cohort add` gave their cases; of the run, its labels and model.

    InputError: no such folder, or no series in it.
    """
    if not folder.is_dir():
        raise InputError("a folder must be there", str(folder))
    series = foreign_layout(folder).foreign
    if not series:
        raise InputError("a folder of DICOM series is needed", f"{folder.name} without any")
    record = read_json(run / "run.json")
    classes, name = record.get("classes") or (), str(record.get("label_set"))
    try:
        labels = load_label_set(name, root)
    except InputError:
        labels = made_label_set(name, classes)
    found = numbered(labels, classes).organs if classes else labels.organs
    members = record.get("members")
    organs = {organ: tuple(members[organ.id]) if members else (organ.id,) for organ in found}
    return Originals(series, organs, Origin(str(record.get("model")), str(record.get("model_hash"))))


def export_dicom(case: Case, folder: Path, out: Path, targets: tuple[str, ...], originals: Originals) -> int:
    """Write the same as DICOM, `segmentation.dcm` and a parametric map a target, on the grid of the case's series.

    targets, and what is returned and refused: as `export_case`; also a case whose series is not there or is another.
    """
    chosen = _sound(case, folder, targets)
    files = originals.series.get(case.case_id)
    if files is None:
        raise InputError("a case needs the DICOM series that it was added from", f"{case.case_id}, not in the folder")
    assert case.image is not None
    series, scan = read_series(files), volumes.read_volume(case.image)
    same = series.grid.array.shape == scan.array.shape and np.allclose(series.grid.affine, scan.affine, atol=SAME_PLACE)
    if not same:
        raise InputError("a case's DICOM series must be the one that was explained", f"{case.case_id}, on another grid")
    out.mkdir(parents=True, exist_ok=True)
    titles = {organ.name: organ.title for organ in originals.organs}
    labels = on_grid(volumes.read_labels(folder / results.PREDICTION), series.grid)
    write_segmentation(out / "segmentation.dcm", series, labels, originals.organs, originals.origin)
    for name in chosen:
        drawn = values_on_grid(volumes.read_volume(folder / results.map_name(name)), series.grid)
        title = f"Attribution of {titles.get(name, name)}"
        write_map(out / f"{name}.dcm", series, drawn, title, originals.origin)
    return len(chosen)


def _sound(case: Case, folder: Path, targets: tuple[str, ...]) -> dict[str, list[str]]:
    """Target → the files of its maps, once all that is written of is known to be as it was."""
    if case.image is None:
        raise InputError("a case needs an image", f"{case.case_id} without one")
    manifest = results.read_manifest(folder)
    if manifest is None or results.verify(folder):
        raise InputError("a case must have sound results in the run", f"{case.case_id} without")
    scanned = volumes.images_sha256(case.images)
    if manifest.get("input_sha256", scanned) != scanned:
        raise InputError("a case's scan must be the one that was explained", f"{case.case_id}, whose file was changed")
    stored = [name for name in manifest["targets"] if results.map_name(name) in manifest["files"]]
    chosen = targets or tuple(stored)
    for name in chosen:
        if name in OF_LABELS:
            raise InputError("a map must not have the name of the label map beside it", name, "--targets, the others")
        if name not in stored:
            raise InputError(
                "a target must have a stored map", f"{name} of {case.case_id}", ", ".join(stored) or "none"
            )
    return {name: results.map_names(manifest, name) for name in chosen}
