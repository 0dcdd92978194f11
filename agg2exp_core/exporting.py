"""A run's maps on the scans' own grids, for programs that want all images of a case alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from agg2exp_core import volumes
from agg2exp_core.aggregation.masks import on_grid, values_on_grid
from agg2exp_core.records import InputError, Volume
from agg2exp_core.store import results
from agg2exp_core.store.cohorts import Case

Report = Callable[[int, int, str], None]


def export_case(case: Case, folder: Path, out: Path, targets: tuple[str, ...], report: Report) -> int:
    """Write the prediction and the targets' maps of a case's results into `out`, on the scan's grid and orientation.

    Maps in float32, interpolated linearly, signed as they are stored; labels by nearest neighbour; both 0 where the
    model's grid does not reach. targets: all that have a map if none is named. Returns how many maps there are.
    InputError: the case has no image, another one than was explained or no sound results, or a target no stored map;
    then nothing is written.
    """
    if case.image is None:
        raise InputError("a case needs an image", f"{case.case_id} without one")
    manifest = results.read_manifest(folder)
    if manifest is None or results.verify(folder):
        raise InputError("a case must have sound results in the run", f"{case.case_id} without")
    scanned = volumes.content_sha256(case.image)
    if manifest.get("input_sha256", scanned) != scanned:
        raise InputError("a case's scan must be the one that was explained", f"{case.case_id}, whose file was changed")
    stored = [name for name in manifest["targets"] if results.map_name(name) in manifest["files"]]
    chosen = targets or tuple(stored)
    for name in chosen:
        if name not in stored:
            raise InputError(
                "a target must have a stored map", f"{name} of {case.case_id}", ", ".join(stored) or "none"
            )
    scan = volumes.read_volume(case.image)
    prediction = volumes.read_labels(folder / results.PREDICTION)
    out.mkdir(parents=True, exist_ok=True)
    labels = on_grid(prediction, scan).astype(prediction.array.dtype)
    volumes.write_volume(out / results.PREDICTION, Volume(labels, scan.affine))
    for number, name in enumerate(chosen):
        report(number, len(chosen), f"{name}, on the scan's grid")
        drawn = values_on_grid(volumes.read_volume(folder / results.map_name(name)), scan)
        volumes.write_volume(out / f"{name}.nii.gz", Volume(drawn, scan.affine))
    return len(chosen)
