"""Scans in other formats than NIfTI, DICOM series and NRRD, as volumes: voxels and affine, and nothing else of them.

What says who the patient is stays behind: neither texts nor names of files come along.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import math
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import nrrd
import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut

from agg2exp_core.records import InputError, Volume
from agg2exp_core.settings import check_volume

PREAMBLE, MAGIC = 128, b"DICM"
FIRST_TAGS = (b"\x02\x00", b"\x08\x00")
"""Groups of tags that a file without them begins with."""

LEAST_SLICES = 2
SAME = 1e-3
"""Directions and spacings that differ by less are the same."""

ROUNDED = 0.05
"""Lengths of directions may differ from 1 by less: they are often rounded, to two digits at times."""

UNEVEN = 0.05
"""Steps between slices may differ by this share of them: positions are often rounded."""

MOST_TILT = 0.5
"""Degrees between the stack's direction and the slices' normal, up to which slices lie straight above each other."""

MOST_APART = 1.0
"""Voxels between a slice and where even steps from the first to the last would put it."""

NUMBERS = {"ImageOrientationPatient": 6, "ImagePositionPatient": 3, "PixelSpacing": 2, "Rows": 1, "Columns": 1}
"""What says where a slice lies, and how many numbers each is."""

RESCALE = ("RescaleSlope", "RescaleIntercept")
READ = ("SeriesInstanceUID", "PatientID", "NumberOfFrames", *NUMBERS, *RESCALE)
MILLIMETRES = ("mm", "millimeter", "millimeters", "")
LARGEST_VOXEL = 8
"""Bytes of the largest number that NRRD knows."""

ENCODINGS: dict[str, Callable[[BinaryIO], Any]] = {
    "raw": lambda file: file, "gzip": gzip.open, "gz": gzip.open, "bzip2": bz2.open, "bz2": bz2.open,
}  # fmt: skip
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From DICOM's world, left and posterior, to ours, right and anterior."""


def is_dicom(path: Path) -> bool:
    """Whether a file says that it is DICOM, or begins as one whose preamble is left out."""
    try:
        with path.open("rb") as file:
            begins = file.read(PREAMBLE + len(MAGIC))
            return begins[PREAMBLE:] == MAGIC or begins.startswith(FIRST_TAGS)
    except OSError:
        return False


def slices_of(folder: Path) -> list[Path]:
    """The DICOM files of a folder. InputError: others that are named as they are, so that slices would be missing."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != "DICOMDIR"]
    slices = [path for path in files if is_dicom(path)]
    endings = {path.suffix for path in slices}
    odd = [path for path in set(files).difference(slices) if path.suffix in endings and not path.name.startswith(".")]
    if odd:
        raise InputError("all files of a series must be DICOM", f"{len(odd)} of {len(files)} that are not")
    return slices


def series_id(files: Sequence[Path]) -> str:
    """A name for a series that tells nothing of the patient, and is the same for the same series."""
    return f"ct-{hashlib.sha256(str(_headers(files)[0].SeriesInstanceUID).encode()).hexdigest()[:12]}"


def read_series(files: Sequence[Path]) -> Volume:
    """The scan of one DICOM series, a file a slice, in HU where it has a rescale slope and intercept.

    InputError: files of several series or patients, a tilted gantry, a missing or doubled slice, uneven steps, slices
    of different grids, fewer than two, more voxels than fit the memory allowed, or such as cannot be decoded.
    """
    headers, affine, order = _series(files)
    shape = int(headers[0].Columns), int(headers[0].Rows), len(order)
    check_volume(math.prod(shape) * np.dtype(np.float32).itemsize, f"{shape} of float32")
    slices = [_pixels(files[index]) for index in order]
    voxels = np.stack(slices, axis=-1)
    if (voxels == np.rint(voxels)).all() and np.abs(voxels).max() < 2**15:
        voxels = voxels.astype(np.int16)
    return Volume(voxels, affine)


def series_grid(files: Sequence[Path]) -> tuple[Volume, list[pydicom.Dataset]]:
    """The grid of one DICOM series, all zeros, and its slices' headers in that order. InputError: as `read_series`."""
    headers, affine, order = _series(files)
    shape = int(headers[0].Columns), int(headers[0].Rows), len(order)
    return Volume(np.broadcast_to(np.int16(0), shape), affine), [headers[index] for index in order]


def _series(files: Sequence[Path]) -> tuple[list[pydicom.Dataset], np.ndarray, list[int]]:
    """The headers of one series, its affine, and the slices' order along their normal."""
    headers = _headers(files)
    for name, what in (("PatientID", "patient"), ("SeriesInstanceUID", "series")):
        count = len({str(header.get(name, "")) for header in headers})
        if count > 1:
            raise InputError(f"a folder must hold one {what}", f"{count} of them")
    if len(headers) < LEAST_SLICES:
        raise InputError("a series must have a file for each slice", f"{len(headers)} file", f"{LEAST_SLICES} or more")
    return headers, *_stacked(headers)


def _headers(files: Sequence[Path]) -> list[pydicom.Dataset]:
    headers: list[pydicom.Dataset] = []
    for path in files:
        with readable_dicom():
            header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            for name in READ:
                header.get(name)  # only now it is taken apart
        lacking = [name for name in ("SeriesInstanceUID", *NUMBERS) if name not in header]
        if lacking or str(header.get("NumberOfFrames") or 1) != "1":
            got = f"a file without {lacking[0]}" if lacking else "a file of several frames"
            raise InputError("a series must have a file for each slice, with its place in space", got)
        for name in RESCALE:
            if name in header and _numbers(header, name, 1) == [0] and name == "RescaleSlope":
                raise InputError("RescaleSlope must not be 0, which gives all voxels one value", "0")
        headers.append(header)
    return headers


@contextmanager
def readable_dicom() -> Iterator[None]:
    """What pydicom raises over damaged files becomes an InputError, which tells nothing of what the file holds."""
    try:
        yield
    except InputError:
        raise
    except Exception:  # pydicom hands on whatever its readers raise
        raise InputError("a slice must be a readable DICOM file", "one that is not") from None


def _numbers(header: pydicom.Dataset, name: str, count: int) -> list[float]:
    """What a header holds under a name. InputError: other than so many finite numbers."""
    try:
        found = np.atleast_1d(np.asarray(header.get(name), float))
    except (TypeError, ValueError):
        found = np.empty(0)
    if found.shape != (count,) or not np.isfinite(found).all():
        raise InputError(
            f"{name} of a slice must be {count} finite number{'s' * (count > 1)}", str(header.get(name))[:80]
        )
    return found.tolist()


def _stacked(headers: Sequence[pydicom.Dataset]) -> tuple[np.ndarray, list[int]]:
    """The affine, and the slices' order along their normal."""
    told = {name: np.array([_numbers(header, name, count) for header in headers]) for name, count in NUMBERS.items()}
    places = told.pop("ImagePositionPatient")
    if any(np.abs(values - values[0]).max() > SAME for values in told.values()):
        raise InputError("slices must have one grid and one direction", "several")
    along_columns, along_rows, normal = _directions(told["ImageOrientationPatient"][0])
    between_rows, between_columns = told["PixelSpacing"][0]
    if min(between_rows, between_columns) <= 0:
        raise InputError("PixelSpacing must be above 0 mm", f"{between_rows:g} and {between_columns:g}")
    heights = places @ normal
    order = [int(index) for index in np.argsort(heights, kind="stable")]
    steps = np.diff(heights[order])
    step = float(np.median(steps))
    if steps.min() < SAME:
        raise InputError("every slice must be there once", "two at one place")
    if np.abs(steps - step).max() > UNEVEN * step:
        got = f"steps from {steps.min():.4g} to {steps.max():.4g} mm"
        raise InputError("slices must be evenly spaced, none missing", got)
    stack = (places[order[-1]] - places[order[0]]) / (len(headers) - 1)
    tilt = np.degrees(np.arccos(min(float(stack @ normal) / float(np.linalg.norm(stack)), 1.0)))
    if tilt > MOST_TILT:
        raise InputError("slices must lie straight above each other", f"a gantry tilted by {tilt:.1f}°")
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along_columns * between_columns, along_rows * between_rows
    affine[:3, 2], affine[:3, 3] = stack, places[order[0]]
    indices = (places[order] - places[order[0]]) @ np.linalg.inv(affine[:3, :3]).T
    apart = np.abs(indices - np.arange(len(order))[:, None] * [0, 0, 1]).max()
    if apart > MOST_APART:
        raise InputError("slices must lie straight above each other", f"one {apart:.3g} voxels from its place")
    return FLIP @ affine, order


def _directions(cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of length 1, which what is rounded in a file is not: along a row, down the rows and the slices' normal."""
    along_columns, along_rows = cosines[:3], cosines[3:]
    vectors = along_columns, along_rows, np.cross(along_columns, along_rows)
    lengths = [float(np.linalg.norm(vector)) for vector in vectors]
    # The normal's length alone would let angles of 72° pass.
    if max(abs(length - 1) for length in lengths) > ROUNDED or abs(float(along_columns @ along_rows)) > ROUNDED:
        got = ", ".join(f"{value:g}" for value in cosines)
        raise InputError("ImageOrientationPatient must be two directions at right angles", got)
    along_columns, along_rows, normal = (vector / length for vector, length in zip(vectors, lengths, strict=True))
    return along_columns, along_rows, normal


def _pixels(path: Path) -> np.ndarray:
    """(columns, rows) float32: I runs along a row, J down the rows."""
    with readable_dicom():
        dataset = pydicom.dcmread(path, force=True)
        try:
            stored = dataset.pixel_array
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise InputError("slices must be decodable", " ".join(str(error).split())[:160]) from None
        if stored.ndim != 2:
            raise InputError("slices must hold one number a pixel", f"shape {stored.shape}")
        return apply_modality_lut(stored, dataset).astype(np.float32).T


def read_nrrd(path: Path) -> Volume:
    """The scan of one NRRD file. InputError: unreadable, too large, not 3D, or without its place in space."""
    with _readable_nrrd(), path.open("rb") as file:
        header = nrrd.read_header(file)
        affine = _nrrd_affine(header)
        return Volume(_nrrd_voxels(header, file), affine)


@contextmanager
def _readable_nrrd() -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except (nrrd.NRRDError, OSError, ValueError, TypeError, EOFError, LookupError, StopIteration, zlib.error) as error:
        raise InputError("a scan must be a readable NRRD file", " ".join(str(error).split())[:160]) from None


def _nrrd_affine(header: Mapping[str, Any]) -> np.ndarray:
    directions, origin = (np.asarray(header.get(key), float) for key in ("space directions", "space origin"))
    if len(header["sizes"]) != 3 or directions.shape != (3, 3) or origin.shape != (3,):
        got = f"{len(header['sizes'])} dimensions, directions {directions.shape}, origin {origin.shape}"
        raise InputError("a NRRD scan must be 3D, with space directions and origin", got)
    if units := sorted({str(unit) for unit in header.get("space units") or ()} - set(MILLIMETRES)):
        raise InputError("a NRRD scan must be in millimetres", ", ".join(units)[:80])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions.T, origin
    return _signs(header.get("space")) @ affine


def _nrrd_voxels(header: Mapping[str, Any], file: BinaryIO) -> np.ndarray:
    """What lies behind the header in its file: a header from elsewhere could name any file, and any size."""
    if "data file" in header or "datafile" in header:
        raise InputError("a NRRD file must hold its voxels itself", "one that names another file")
    sizes = tuple(map(int, header["sizes"]))
    needed = math.prod(sizes) * LARGEST_VOXEL
    check_volume(needed, f"{sizes} of up to {LARGEST_VOXEL} bytes")
    if header["encoding"] not in ENCODINGS:
        raise InputError(
            "voxels of a NRRD file must be packed in a known way", header["encoding"], ", ".join(ENCODINGS)
        )
    data = ENCODINGS[header["encoding"]](file).read(needed + 1)
    voxels = nrrd.read_data({**header, "encoding": "raw"}, BytesIO(data))
    if voxels.nbytes != len(data):
        raise InputError("a scan must end with its last voxel", "more bytes than its header declares")
    return voxels


def _signs(space: Any) -> np.ndarray:
    """From the space that the file names to right, anterior, superior."""
    words = {"RAS": "right-anterior-superior", "LPS": "left-posterior-superior", "LAS": "left-anterior-superior"}
    known = {name: code for code, words in words.items() for name in (code, words)}
    code = known.get(str(space)) or known.get(str(space).upper()) or known.get(str(space).lower())
    if code is None:
        raise InputError("the space of a NRRD scan must be known", repr(space)[:40], ", ".join(words))
    return np.diag([1.0 if code[0] == "R" else -1.0, 1.0 if code[1] == "A" else -1.0, 1.0, 1.0])
