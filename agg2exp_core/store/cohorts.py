"""Cohorts: `cohorts/<cohort>/cases.csv`, one row a case with its scan, its label map and metadata."""

from __future__ import annotations

import csv
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from agg2exp_core import volumes
from agg2exp_core.files import locked, state, write_text
from agg2exp_core.organs import LabelSet, known_label_sets, label_set_of, load_label_set, part_ids, write_label_set
from agg2exp_core.records import InputError, Volume
from agg2exp_core.settings import SHIPPED, checked_id
from agg2exp_core.store.layouts import Layout, ending, read_layout, scans_of, told_left_out
from agg2exp_core.tables import read_table

COLUMNS = ("case_id", "image", "label")
BETWEEN = ";"
"""Between the images of a case's channels, in the model's order of channels."""

Report = Callable[[int, int, str], None]
LABEL_SET = "label_set"
"""A column of the list: in which label set a case's label map is numbered; by default as the model that is asked is."""

CONVERTED, JOINED = "converted_images", "joined_labels"
"""Folders, beside the list, of scans that were no 3D NIfTI files, and of label maps joined from files of classes."""


@dataclass(frozen=True)
class Case:
    """One scan of a cohort. image and label are paths; None where nothing is stored. metadata as text.

    further: images of the channels after the first, such as the other sequences of an MRI, in the model's order.
    """

    case_id: str
    image: Path | None
    label: Path | None
    metadata: dict[str, str]
    further: tuple[Path, ...] = ()

    @property
    def images(self) -> tuple[Path, ...]:
        """An image a channel; none where nothing is stored."""
        return () if self.image is None else (self.image, *self.further)

    @property
    def label_set(self) -> str:
        """That of the label map, where the list tells it; else empty."""
        return self.metadata.get(LABEL_SET, "")


def list_cohorts(root: Path) -> list[str]:
    """Names of the cohorts under `cohorts/`."""
    return sorted(path.parent.name for path in (root / "cohorts").glob("[!.]*/cases.csv"))


def read_cases(root: Path, cohort: str) -> pd.DataFrame:
    """Every row and column of the cohort's cases.csv, as text.

    InputError: no such cohort, a missing column, a row of another length, an id that is unsafe or there twice.
    """
    path = _cases_csv(root, cohort)
    if not path.is_file():
        raise InputError("cohort must exist", repr(cohort), ", ".join(list_cohorts(root)) or "none yet")
    table = read_table(path, COLUMNS)
    for case_id in table["case_id"]:
        checked_id("case", case_id)
    return table


def list_cases(root: Path, cohort: str) -> list[Case]:
    """Every case of a cohort, in the order of its list. InputError: see `read_cases`."""
    base = _cases_csv(root, cohort).parent
    rows = read_cases(root, cohort).to_dict("records")
    return [_case(base, {str(name): value for name, value in row.items()}) for row in rows]


def find_case(root: Path, cohort: str, case_id: str) -> Case:
    """One case of a cohort. InputError if it is not in its list."""
    checked_id("case", case_id)
    known = _by_id(root, cohort, state(_cases_csv(root, cohort)))
    if case_id not in known:
        some = ", ".join(list(known)[:5]) + (", …" if len(known) > 5 else "")
        raise InputError(f"case must be one of cohort {cohort}", repr(case_id), some)
    return known[case_id]


@lru_cache(maxsize=8)
def _by_id(root: Path, cohort: str, of: tuple[int, ...]) -> dict[str, Case]:
    """Kept while the list stays: a page asks for a dozen cases at every drawing, and a list may have thousands."""
    return {case.case_id: case for case in list_cases(root, cohort)}


def _case(base: Path, row: dict[str, str]) -> Case:
    """base: the folder that the row's paths are relative to."""
    images = [base / part.strip() for part in row["image"].split(BETWEEN) if part.strip()]
    label = base / row["label"] if row["label"] else None
    metadata = {name: value for name, value in row.items() if name not in COLUMNS}
    return Case(row["case_id"], images[0] if images else None, label, metadata, tuple(images[1:]))


@dataclass(frozen=True)
class Brought:
    """What comes along with scans. labels: a folder of label maps named as the scans. metadata: a CSV with case_id.

    label_set: into whose classes files of single classes are joined. joins: a CSV (part,organ), where its names differ
    from those of the files.
    """

    labels: Path | None = None
    metadata: Path | None = None
    label_set: str = "thorax17"
    joins: Path | None = None


def add_cohort(
    root: Path, name: str, folder: Path, brought: Brought = Brought(), report: Report = lambda *_: None
) -> tuple[int, list[str]]:
    """List a folder of scans, in any of the known layouts, as a new cohort. NIfTI scans stay where they are.

    Returns how many there are, and a line for each series that is left out and each case that lacks something.
    Beside the list are written: scans of DICOM series and NRRD files, converted; and label maps joined where there is a
    file for each class, as TotalSegmentator has them.
    """
    path = _cases_csv(root, name)
    if path.exists():
        raise InputError("a new cohort needs a name that is free", repr(name))
    layout = read_layout(folder)
    with ExitStack() as unfinished:
        if not path.parent.exists():
            unfinished.callback(_gone_if_empty, path.parent)
        layout = _converted(layout, folder, path.parent, unfinished, report)
        if not layout.scans:
            why = f": {'; '.join(layout.left_out[:3])}{'; …' if len(layout.left_out) > 3 else ''}"
            got = f"none in {folder}{why if layout.left_out else ''}"
            raise InputError("a cohort needs scans", got, ".nii, .nii.gz, .nrrd, DICOM series")
        extra, columns = _metadata(brought.metadata, layout)
        maps = _label_maps(brought, layout)
        notes: list[str] = []
        if maps and not brought.labels and layout.classes and LABEL_SET not in columns:
            label_set, notes = _own_label_set(root, name, layout.classes, unfinished)
            extra, columns = _told_label_set(extra, columns, maps, label_set)
        if not maps:
            maps, notes = _joined(root, path.parent, layout, brought, unfinished, report)
            extra, columns = _told_label_set(extra, columns, maps, brought.label_set)
        further = {(case_id, at): file for case_id, files in layout.further.items() for at, file in enumerate(files)}
        scans, further, maps = (
            _named_folder(files, path.parent, unfinished) for files in (layout.scans, further, maps)
        )
        rows = [
            {
                "case_id": case_id,
                "image": _image(case_id, scan, further, lambda file: _relative(file, path.parent, root)),
            }
            | {"label": _relative(maps[case_id], path.parent, root) if case_id in maps else ""}
            | extra.get(case_id, {})
            for case_id, scan in scans.items()
        ]
        _write_new(path, [*COLUMNS, *columns], rows)
        unfinished.pop_all()
    return len(rows), [*layout.left_out, *notes]


def _told_label_set(
    extra: dict[str, dict[str, str]], columns: list[str], maps: Mapping[str, Path], label_set: str
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Metadata that also tell how label maps are numbered: a model may number the same organs otherwise."""
    if not maps or not label_set:
        return extra, columns
    told = {case_id: extra.get(case_id, {}) | {LABEL_SET: label_set} for case_id in maps}
    return extra | told, list(dict.fromkeys([*columns, LABEL_SET]))


def _image(case_id: str, scan: Path, further: Mapping[Any, Path], written: Callable[[Path], str]) -> str:
    """The cell of a case's images. further: by case and number. InputError: a path that cannot stand in a list."""
    files = [scan, *(file for (owner, _), file in further.items() if owner == case_id)]
    texts = [written(file) for file in files]
    for text in texts:
        if BETWEEN in text:
            raise InputError(f"paths of images must be without {BETWEEN}, which stands between channels", text[-80:])
    return BETWEEN.join(texts)


def _label_maps(brought: Brought, layout: Layout) -> dict[str, Path]:
    """The label maps that are there, each on its scan's grid."""
    maps = dict(scans_of(brought.labels) if brought.labels else layout.labels)
    if brought.labels and not maps:
        raise InputError("a folder of label maps must hold some", f"none in {brought.labels}", ".nii, .nii.gz")
    _check_known("label map", maps, layout.scans)
    for case_id, labelled in maps.items():
        try:
            volumes.check_grid(labelled, layout.scans[case_id])
        except InputError as error:
            rule = "every label map must be sound and lie on its scan's grid"
            raise InputError(rule, f"{case_id}: {error}") from None
    return maps


def _own_label_set(root: Path, name: str, classes: Mapping[str, int], unfinished: ExitStack) -> tuple[str, list[str]]:
    """The label set of a dataset that names its classes, written as the cohort's unless it is known; else what to say.

    InputError: a cohort that is named as another label set is.
    """
    try:
        made = label_set_of(root, name, classes)
    except InputError as error:
        return "", [f"the labels' names are not read: {error}"]
    known = [labels.name for labels in known_label_sets(root)]
    if made.name == name and name in known:
        raise InputError("a cohort with a label set of its own needs a name that no other set has", repr(name))
    if made.name not in known:
        write_label_set(root, made)
        unfinished.callback((root / "label_sets" / f"{made.name}.csv").unlink)
    return made.name, []


def cohort_labels(root: Path, cohort: str, default: str) -> LabelSet:
    """The label set of a cohort's label maps: that of its list, or `default` where it tells none.

    InputError: maps of several, or a set that is not there.
    """
    told = sorted({case.label_set or default for case in list_cases(root, cohort) if case.label})
    if len(told) > 1:
        raise InputError("the label maps of a cohort must be of one label set", ", ".join(told), "a cohort for each")
    return load_label_set(told[0] if told else default, root)


def _gone_if_empty(folder: Path) -> None:
    with suppress(OSError):  # another process may fill it by now
        folder.rmdir()


def _own_folder(folder: Path, unfinished: ExitStack) -> Path:
    """A new folder, hidden until `_named_folder`, which goes again unless the work is finished.

    A process that is killed in between leaves nothing in the way of the next one.
    """
    if folder.exists():
        raise InputError("a new cohort needs a folder that is free", f"{folder.name}, which is there")
    folder.parent.mkdir(parents=True, exist_ok=True)
    hidden = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    unfinished.callback(shutil.rmtree, hidden, ignore_errors=True)
    hidden.chmod(0o755)
    return hidden


def _named_folder(files: Mapping[Any, Path], base: Path, unfinished: ExitStack) -> dict[Any, Path]:
    """The same files after the hidden folder that they were made in, if they were, has got its name."""
    for name in (CONVERTED, JOINED):
        for hidden in {file.parent for file in files.values() if file.parent.name.startswith(f".{name}.")}:
            if hidden.exists():  # others of these files may have been named before
                hidden.rename(base / name)
                unfinished.callback(shutil.rmtree, base / name)
            files = {key: base / name / file.name if file.parent == hidden else file for key, file in files.items()}
    return dict(files)


def _converted(layout: Layout, folder: Path, base: Path, unfinished: ExitStack, report: Report) -> Layout:
    """With 3D NIfTI files in place of series, NRRD files and files of several channels.

    Of the series of an archive those that are no scans are left out; what has a name must be sound.
    """
    if not layout.foreign:
        return layout
    room, left_out = _own_folder(base / CONVERTED, unfinished), list(layout.left_out)
    scans, further = dict(layout.scans), dict(layout.further)
    for number, (case_id, files) in enumerate(layout.foreign.items()):
        report(number, len(layout.foreign), f"{case_id}, converting")
        try:
            scans[case_id], *others = _convert(case_id, files, layout.channels, room)
        except InputError as error:
            if ending(files[0].name) is not None or files[0].suffix == ".nrrd":
                raise InputError("every scan must be sound", f"{case_id}: {error}") from None
            left_out.append(told_left_out(folder, files[0].parent, error))
            (room / f"{case_id}.nii.gz").unlink(missing_ok=True)
        else:
            further |= {case_id: others} if others else {}
    return replace(layout, scans=scans, further=further, left_out=tuple(left_out))


def _convert(case_id: str, files: Sequence[Path], channels: int, room: Path) -> list[Path]:
    """A 3D NIfTI file for each channel of a scan, in `room`."""
    from agg2exp_core.foreign import read_nrrd, read_series  # takes a moment, and few need it

    if ending(files[0].name) is not None:
        images = volumes.split_channels(files[0], room)
        if len(images) != channels:
            got, wanted = f"{len(images)} volumes in {files[0].name}", f"{channels}"
            raise InputError("a file must hold the channels that dataset.json names", got, wanted)
        return list(images)
    volume = read_nrrd(files[0]) if files[0].suffix == ".nrrd" else read_series(files)
    volumes.checked_spacing(volume.affine, volume.array.shape)
    path = room / f"{case_id}.nii.gz"
    volumes.write_volume(path, volume)
    volumes.check_scan(path)
    return [path]


def _joined(
    root: Path, base: Path, layout: Layout, brought: Brought, unfinished: ExitStack, report: Report
) -> tuple[dict[str, Path], list[str]]:
    """A label map written for each case that has files of single classes, and what cases have no file of."""
    if not layout.parts:
        return {}, []
    ids = part_ids(load_label_set(brought.label_set, root), _joins(brought, root))
    folder = _own_folder(base / JOINED, unfinished)
    written: dict[str, Path] = {}
    notes = []
    for number, (case_id, files) in enumerate(layout.parts.items()):
        report(number, len(layout.parts), f"{case_id}, joining its classes")
        written[case_id] = folder / f"{case_id}.nii.gz"
        volumes.write_volume(written[case_id], _join(case_id, layout.scans[case_id], files, ids))
        if lacking := sorted(set(ids) - set(files)):
            more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
            notes.append(f"{case_id} has no file of {', '.join(lacking[:5])}{more}: absent there")
    return written, notes


def _join(case_id: str, scan: Path, files: Mapping[str, Path], ids: Mapping[str, int]) -> Volume:
    """The labels of one case. InputError: a file that is no mask on the scan's grid."""
    header = volumes.check_header(scan)
    labels = np.zeros(header.shape, np.min_scalar_type(max(ids.values())))
    for part in ids:
        if part in files:
            try:
                labels[volumes.read_labels(files[part], like=header).array > 0] = ids[part]
            except InputError as error:
                raise InputError(
                    "every class's file must be a mask on its scan's grid", f"{case_id}, {part}: {error}"
                ) from None
    return Volume(labels, header.affine)


def _joins(brought: Brought, root: Path) -> dict[str, str]:
    """Part → organ, from the file that was named or, for a known label set, the one that comes with the project."""
    name = f"totalsegmentator-{brought.label_set}.csv"
    known = next((base / "joins" / name for base in (root, SHIPPED) if (base / "joins" / name).is_file()), None)
    path = brought.joins or known
    return {} if path is None else dict(read_table(path, ("part", "organ"))[["part", "organ"]].to_numpy().tolist())


def append_case(root: Path, cohort: str, row: dict[str, Any]) -> None:
    """Add a case to a cohort, which begins with it if it is new. A case that is listed already stays as it is."""
    path = _cases_csv(root, cohort)
    checked_id("case", str(row["case_id"]))
    with locked(path.parent / ".cases"):
        known = read_cases(root, cohort) if path.is_file() else pd.DataFrame(columns=pd.Index(COLUMNS))
        if row["case_id"] not in set(known["case_id"]):
            columns = list(dict.fromkeys([*known.columns, *row]))
            _write(path, columns, [*known.to_dict("records"), row])


def write_cases(root: Path, cohort: str, table: pd.DataFrame) -> None:
    """Write a new cohort's cases.csv at once. InputError: another process made one of that name meanwhile."""
    _write_new(_cases_csv(root, cohort), list(table.columns), table.to_dict("records"))


def _write_new(path: Path, columns: list[str], rows: list[dict[Any, Any]]) -> None:
    with locked(path.parent / ".cases"):
        if path.exists():
            raise InputError("a new cohort needs a name that is free", repr(path.parent.name))
        _write(path, columns, rows)


def _cases_csv(root: Path, cohort: str) -> Path:
    return root / "cohorts" / checked_id("cohort", cohort) / "cases.csv"


def _metadata(path: Path | None, layout: Layout) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Metadata by case, and its columns: the layout's own, and behind them those of a file."""
    rows, columns = {name: dict(row) for name, row in layout.metadata.items()}, list(layout.columns)
    if path is not None:
        table = read_table(path, ("case_id",))
        columns += [str(name) for name in table.columns if name not in ("case_id", *columns)]
        for row in table.to_dict("records"):
            case_id = str(row.pop("case_id"))
            rows[case_id] = rows.get(case_id, {}) | {str(name): str(value) for name, value in row.items()}
    for name in COLUMNS:
        if name in columns:
            raise InputError("metadata may not name the scans", f"a column {name}")
    _check_known("metadata row", rows, layout.scans)
    return rows, columns


def _check_known(what: str, given: Mapping[str, Any], scans: Mapping[str, Path]) -> None:
    unknown = sorted(set(given) - set(scans))
    if unknown:
        raise InputError(
            f"every {what} must belong to a scan", ", ".join(unknown[:3]), f"{', '.join(list(scans)[:3])}, …"
        )


def _relative(path: Path, base: Path, root: Path) -> str:
    """Relative to the list while inside the root, so that a moved root still works; else the full path."""
    return os.path.relpath(path, base) if path.is_relative_to(root) else str(path)


def _write(path: Path, columns: list[str], rows: list[dict[Any, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
