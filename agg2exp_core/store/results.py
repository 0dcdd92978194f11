"""Results of one case on disk: written whole or not at all, and read back.

A case's folder is finished when its `manifest.json`, written last, verifies. Everything is made in a hidden
folder beside it, flushed to the disk, and renamed into place once.
"""

from __future__ import annotations

import csv
import ctypes
import errno
import hashlib
import io
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from agg2exp_core.files import locked, make_folder, read_json, sync_file, sync_folder, write_json
from agg2exp_core.records import ChannelSums, InputError, SumTable
from agg2exp_core.settings import checked_id
from agg2exp_core.volumes import sha256

OLDER = ("target", "region", "positive", "negative", "voxels", "absent")
IMPORTANCE = (*OLDER, "mass_se", "organ_mass_se")
BY_CHANNEL = (*IMPORTANCE, "channel", "channel_mass_se")
"""Where attribution is split among input channels, a row for each; the other errors are those of all channels."""
SHARES = ("target", "region", "mass", "mean")
AGREEMENT = ("target", "dice", "iou")
COMPLETENESS = ("target", "attribution_sum", "output_difference", "gap")
MANIFEST = "manifest.json"
ASIDE = ".replaced-"
PREDICTION = "prediction.nii.gz"
SAME_RUN = ("model_hash", "method", "parameters", "values")
"""What may not differ between the cases of one run."""


# ---- a case's folder -------------------------------------------------------------------------------


def case_path(root: Path, cohort: str, run: str, case_id: str) -> Path:
    """Where the results of a case in a run lie, whether there are any or not."""
    return root / "runs" / checked_id("cohort", cohort) / checked_id("run", run) / "cases" / checked_id("case", case_id)


def map_name(target: str, channel: str = "") -> str:
    """A target's attribution map in the folder of a case, as its manifest names it. InputError: a name with a path.

    Of several input channels it is their signed sum, and `saliency/<target>/<channel>.nii.gz` that of one.
    """
    for name in (target, channel) if channel else (target,):
        if not name or name != Path(name).name or "\\" in name:
            raise InputError("an organ's name must name a file, not a path", repr(name))
    return f"saliency/{target}/{channel}.nii.gz" if channel else f"saliency/{target}.nii.gz"


def map_names(manifest: dict[str, Any], target: str) -> list[str]:
    """All that is stored of a target's attribution: the map, and those of single channels, as the manifest has them."""
    named = [map_name(target), *(map_name(target, channel) for channel in manifest.get("channels", ()))]
    return [name for name in named if name in manifest.get("files", {})]


def full_maps(manifest: dict[str, Any]) -> list[str]:
    """Targets whose stored map is the attribution itself, to be summed over, and not one made to look at."""
    files, viewing = manifest.get("files", {}), manifest.get("viewing", ())
    return [name for name in manifest.get("targets", ()) if map_name(name) in files and name not in viewing]


@contextmanager
def case_folder(folder: Path, manifest: dict[str, Any]) -> Iterator[Path]:
    """A new folder to write a case into; on leaving, it gets its manifest and takes the place of `folder`.

    manifest: what the numbers depend on; may be filled while writing. Its `files` are added here. When the
    block fails, nothing is left and what was there stays.
    """
    make_folder(folder.parent)
    new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        new.chmod(0o755)
        yield new
        files = [path for path in sorted(new.rglob("*")) if path.is_file()]
        for path in files:
            sync_file(path)
        manifest["files"] = {path.relative_to(new).as_posix(): _fingerprint(path) for path in files}
        write_json(new / MANIFEST, _sealed(manifest))
        for inner in [*(path for path in new.rglob("*") if path.is_dir()), new]:
            sync_folder(inner)
        _replace(folder, new)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def publishing(folder: Path) -> AbstractContextManager[None]:
    """The lock to hold while a case of a run is replaced, or merged with what another process wrote meanwhile."""
    return locked(folder.parent / ".publish")


def recover(cases: Path) -> None:
    """Mend what killed processes left in a run's `cases`: bring back what lies aside, remove what is half-made."""
    if not cases.is_dir():
        return
    with locked(cases / ".publish"):  # so whatever is hidden belongs to no one alive
        for old in cases.glob(f"{ASIDE}*/*"):
            if not (cases / old.name).exists() and not verify(old):
                old.rename(cases / old.name)
                sync_folder(cases)
        for left in cases.glob(".*/"):
            shutil.rmtree(left, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The case's manifest, or None if it has none that is as it was written."""
    return _sound(read_json(folder / MANIFEST))


def verify(folder: Path, only: Iterable[str] | None = None) -> list[str]:
    """What is wrong with a finished case, file by file; empty if all is as the manifest says.

    only: check just these files of it and the manifest. Reads every byte that it checks.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return [f"{MANIFEST} is missing or damaged"]
    files = manifest["files"]
    names = [name for name in (sorted(files) if only is None else only) if name in files and name != MANIFEST]
    found = {name: (folder / name).is_file() for name in names}
    return [f"{name} is missing" for name in names if not found[name]] + [
        f"{name} is damaged" for name in names if found[name] and _fingerprint(folder / name) != files[name]
    ]


def write_run(root: Path, cohort: str, run: str, info: dict[str, Any]) -> None:
    """Write run.json, or check that the run which is there computes the same.

    Where run.json cannot be read, a case's manifest says what the run is. InputError: another model of the same name,
    or other parameters, may not mix into one run.
    """
    path = root / "runs" / checked_id("cohort", cohort) / checked_id("run", run) / "run.json"
    with locked(path.parent / ".publish"):
        known = read_json(path)
        manifests = (read_manifest(case) for case in sorted((path.parent / "cases").glob("[!.]*")))
        different = unlike(known or next(filter(None, manifests), {}), info)
        if different:
            raise InputError(
                f"cases of one run must be computed alike; run {run} is another one",
                f"another {' and '.join(different)}",
                "a new name for the model, or a run of its own",
            )
        if not known:
            write_json(path, info)


def unlike(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """In what two records of a run or of its cases differ that may not. What one of them does not say is no matter."""
    return [key for key in SAME_RUN if key in one and key in other and one[key] != other[key]]


# ---- what is in it ---------------------------------------------------------------------------------


def write_importance(folder: Path, table: SumTable) -> None:
    """importance.csv: Σ max(a, 0), Σ max(−a, 0), voxels and the standard errors of the mass of each (target, region).

    Sums are empty where a target is absent, errors where nothing is known of them. Of several input channels a row for
    each: (target, region, channel).
    """
    rows: list[tuple[object, ...]] = []
    for row, target in enumerate(table.targets):
        absent = table.absent.get(target, "")
        for column, region in enumerate(table.regions):
            errors = _text(table.mass_se[row, column]), _text(table.organ_mass_se[row, column])
            for positive, negative, *channel in _parts(table, row, column):
                sums = ("", "") if absent else (_text(positive), _text(negative))
                rows.append((target, region, *sums, int(table.voxels[column]), absent, *errors, *channel))
    _write(folder / "importance.csv", IMPORTANCE if table.by_channel is None else BY_CHANNEL, rows)


def _parts(table: SumTable, row: int, column: int) -> Iterator[tuple[Any, ...]]:
    """Positive and negative sum of a target's region; channel by channel, with name and error, where they are split."""
    split = table.by_channel
    if split is None:
        yield table.positive[row, column], table.negative[row, column]
        return
    for number, name in enumerate(split.names):
        at = number, row, column
        yield split.positive[at], split.negative[at], name, _text(split.mass_se[at])


def read_importance(folder: Path) -> SumTable:
    """The sums of one case, as `write_importance` wrote them; older files know no standard errors."""
    rows = _read(folder / "importance.csv", IMPORTANCE, OLDER, BY_CHANNEL)
    channels = tuple(dict.fromkeys(row["channel"] for row in rows if "channel" in row))
    targets = tuple(dict.fromkeys(row["target"] for row in rows))
    regions = tuple(dict.fromkeys(row["region"] for row in rows))
    mass_se, organ_mass_se = np.full((2, len(targets), len(regions)), np.nan)
    parts = np.full((3, max(len(channels), 1), len(targets), len(regions)), np.nan)
    voxels, absent = np.zeros(len(regions), np.int64), {}
    for row in rows:
        at = targets.index(row["target"]), regions.index(row["region"])
        voxels[at[1]] = int(row["voxels"])
        if row["absent"]:
            absent[row["target"]] = row["absent"]
        else:
            number = channels.index(row["channel"]) if channels else 0
            stored = float(row["positive"]), float(row["negative"]), float(row.get("channel_mass_se") or "nan")
            parts[(slice(None), number, *at)] = stored
            mass_se[at], organ_mass_se[at] = (float(row.get(name) or "nan") for name in IMPORTANCE[-2:])
    split = ChannelSums(channels, *parts) if channels else None
    positive, negative = parts[:2].sum(axis=1)
    return SumTable(targets, regions, positive, negative, voxels, absent, mass_se, organ_mass_se, split)


def write_agreement(folder: Path, names: Sequence[str], dice: np.ndarray, iou: np.ndarray) -> None:
    """agreement.csv: Dice and IoU by organ; NaN, where an organ is in neither label map, becomes empty."""
    rows = [(name, _text(d), _text(i)) for name, d, i in zip(names, dice, iou, strict=True)]
    _write(folder / "agreement.csv", AGREEMENT, rows)


def write_completeness(folder: Path, gaps: dict[str, tuple[float, float, float]]) -> None:
    """completeness.csv: Σ a, S(x) − S(x₀) and the relative gap of each target of integrated gradients."""
    rows = [(name, *(_text(number) for number in gap)) for name, gap in gaps.items()]
    _write(folder / "completeness.csv", COMPLETENESS, rows)


def read_completeness(folder: Path) -> dict[str, tuple[float, float, float]]:
    """target → (Σ a, S(x) − S(x₀), gap); empty if the method stores none."""
    path = folder / "completeness.csv"
    if not path.is_file():
        return {}
    rows = _read(path, COMPLETENESS)
    try:
        return {row["target"]: tuple(float(row[name]) for name in COMPLETENESS[1:]) for row in rows}  # type: ignore[misc]
    except (TypeError, ValueError):
        raise InputError(f"{path.name} must hold numbers", "something else") from None


# ---- what a model needed last ----------------------------------------------------------------------


def write_latest(root: Path, model: str, manifest: dict[str, Any], extent: float) -> None:
    """What this machine computed last by a model, of a scan of so many mm³: its time and memory hold here."""
    path = _latest(root, model)
    make_folder(path.parent)
    write_json(path, _sealed({"files": {}} | manifest | {"extent": extent, "host": platform.node()}))


def read_latest(root: Path, model: str) -> dict[str, Any] | None:
    """The manifest, and in it `extent`; None where nothing was computed here."""
    manifest = _sound(read_json(_latest(root, model)))
    return manifest if manifest and manifest.get("host") == platform.node() and "extent" in manifest else None


def _latest(root: Path, model: str) -> Path:
    # Not beside the model, which may come from another machine; workers of a cluster, which are others, share jobs/.
    return root / "jobs" / ".latest" / f"{checked_id('model', model)}.json"


# ---- shared ----------------------------------------------------------------------------------------


def _text(number: float | None) -> str:
    """The shortest text that reads back as the same float64; empty where there is no number."""
    return "" if number is None or np.isnan(number) else repr(float(number))


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A new CSV. OSError: what lies there is not what was written, which no error has told."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    content = text.getvalue().encode()
    path.write_bytes(content)
    # The manifest's hash is of the file: of one that was cut it would be the hash of what is left.
    if path.read_bytes() != content:
        raise OSError(errno.EIO, "not all that was written is there", path.name)


def _read(path: Path, *headers: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV whose columns are those of one of the headers."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            if tuple(reader.fieldnames or ()) not in headers:
                raise InputError(f"{path.name} needs the columns {','.join(headers[0])}", reader.fieldnames)
            return list(reader)
    except (OSError, UnicodeError, csv.Error) as error:
        raise InputError("a case's file must be readable", f"{path.name}: {error}") from None


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"sha256": sha256(path), "size": path.stat().st_size}


def _sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest itself, with its own fingerprint in it."""
    manifest["files"] = manifest["files"] | {MANIFEST: _own_fingerprint(manifest)}
    return manifest


def _sound(manifest: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest itself if it is as it was sealed."""
    files = manifest.get("files")
    sound = isinstance(files, dict) and files.get(MANIFEST) in (None, _own_fingerprint(manifest))
    return manifest if sound else None


def _own_fingerprint(manifest: dict[str, Any]) -> dict[str, str]:
    """Of the manifest itself: what it says, whatever the layout, but for this. Older ones have none.

    Among the files, so that a damaged name of this entry is that of a file which is missing.
    """
    files = {name: of for name, of in manifest.get("files", {}).items() if name != MANIFEST}
    text = json.dumps(manifest | {"files": files}, sort_keys=True)
    return {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def _replace(folder: Path, new: Path) -> None:
    """Put `new` at the place of `folder`, and a case that is there in the place of `new`, at once where that can be."""
    if not folder.exists():
        new.rename(folder)
    elif not _exchanged(folder, new):
        old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=ASIDE)) / folder.name
        try:
            folder.rename(old)
            new.rename(folder)
        finally:
            # Also when the user stops the process here: one of the two is then in its place.
            if not folder.exists():
                old.rename(folder)
            shutil.rmtree(old.parent, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Swap two folders at once (renameat2(2), RENAME_EXCHANGE). False where system or filesystem cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2 is not None and renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0
