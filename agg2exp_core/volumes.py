"""Files <-> voxels (I, J, K) + affine, and every check of an incoming NIfTI scan.

A scan is judged by its header before a voxel is decompressed, then streamed once to the end of the file,
so that the gzip checksum is always compared. nibabel reads the header; its loader of voxels is not used,
because it accepts most damaged `.nii.gz` files without a word.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import math
import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from agg2exp_core.records import InputError, Volume
from agg2exp_core.settings import check_volume

CHUNK_VOXELS = 2**21
MAX_LABEL = 2**16 - 1
MAX_EXTENT_MM = 5000.0
GRID_TOLERANCE = 0.1
"""Two grids are the same when no corner of theirs lies further apart than this share of a voxel edge."""

_silent = logging.Logger("nibabel header checks")
_silent.addHandler(logging.NullHandler())


@dataclass(frozen=True, eq=False)
class ScanHeader:
    """What a NIfTI header says, checked: shape (I, J, K), affine (4, 4) to RAS mm, spacing in mm.

    The affine is the sform, else the qform, else (neither has a code) what nibabel and so MONAI assume.
    dtype is that of the stored voxels, which begin `offset` bytes into the decompressed file;
    value = stored · slope + intercept. channels: volumes of a 4D file, where one may be given.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    spacing: tuple[float, float, float]
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float
    channels: int = 1

    @property
    def extent(self) -> float:
        """mm³ that the grid covers."""
        return float(abs(np.linalg.det(self.affine[:3, :3])) * math.prod(self.shape))


def check_scan(path: Path) -> ScanHeader:
    """The header of a scan that was read to its last byte and found whole; holds no more than a chunk of it.

    Raises InputError for anything but one 3D NIfTI-1 or -2 file of finite real numbers on a proper grid
    that fits the memory allowed (settings.max_volume_bytes).
    """
    with _opened(Path(path)) as (header, stream):
        for _ in _finite_chunks(header, stream):
            pass
    return header


def check_header(path: Path) -> ScanHeader:
    """What the header alone tells, in no time; `check_scan` reads the voxels too. InputError as there."""
    with _opened(path) as (header, _):
        return header


def check_channels(images: Sequence[Path]) -> ScanHeader:
    """`check_scan` of each channel's file; the header of the first. InputError unless all lie on its grid."""
    first, *others = [check_scan(image) for image in images]
    for image, other in zip(images[1:], others, strict=True):
        _check_same_grid(other, first, f"channels of a scan must lie on one grid, that of {images[0].name}", image.name)
    return first


def is_stacked(path: Path) -> bool:
    """Whether a file holds several volumes along a fourth axis, as the Decathlon keeps channels. Reads the header."""
    return count_channels(path) > 1


def count_channels(path: Path) -> int:
    """How many volumes a file holds: one, or those of a fourth axis. Reads the header."""
    with _opened(Path(path), stacked=True) as (header, _):
        return header.channels


def read_channels(path: Path) -> Iterator[Volume]:
    """The checked volumes of a 3D or 4D file, one after the other, as `read_volume`; only one is held."""
    with _opened(Path(path), stacked=True) as (header, stream):
        size, at = math.prod(header.shape), 0
        flat = np.empty(size, np.float32)
        for values in _finite_chunks(header, stream):
            while len(values):
                part, values = values[: size - at], values[size - at :]
                flat[at : at + len(part)] = part
                at += len(part)
                if at == size:
                    yield Volume(flat.reshape(header.shape, order="F"), header.affine)
                    flat, at = np.empty(size, np.float32), 0


def split_channels(path: Path, folder: Path) -> list[Path]:
    """Write the volumes of a 4D file as `<name>_0000.nii.gz`, `_0001` … into `folder`; the files, in order.

    InputError as `check_scan`; the memory allowed holds for all volumes together.
    """
    with _opened(Path(path), stacked=True) as (header, stream):
        flat = np.concatenate([*_finite_chunks(header, stream)])
    voxels = flat.reshape((*header.shape, header.channels), order="F")
    # Whole numbers stay what they are; what the header scales is a fraction by then.
    plain = header.dtype.kind in "iu" and (header.slope, header.intercept) == (1, 0) and header.dtype.itemsize <= 2
    stem, files = path.name.removesuffix(".gz").removesuffix(".nii"), []
    for number in range(header.channels):
        files.append(folder / f"{stem}_{number:04}.nii.gz")
        one = voxels[..., number].astype(header.dtype.newbyteorder("=") if plain else np.float32)
        write_volume(files[-1], Volume(one, header.affine))
    return files


def check_grid(labels: Path, scan: Path) -> None:
    """InputError unless the headers alone say that the labels lie on the scan's grid."""
    _check_same_grid(check_header(Path(labels)), check_header(Path(scan)))


def read_volume(path: Path) -> Volume:
    """A checked scan (see check_scan) in float32 and the file's own orientation, rescaled as its header says."""
    with _opened(Path(path)) as (header, stream):
        flat = np.empty(math.prod(header.shape), np.float32)
        at = 0
        for chunk in _finite_chunks(header, stream):
            flat[at : at + chunk.size] = chunk
            at += chunk.size
    return Volume(flat.reshape(header.shape, order="F"), header.affine)


def read_labels(path: Path, like: ScanHeader | Volume | None = None, called: str = "labels") -> Volume:
    """Checked labels, whole numbers 0 to 65535, in uint8 if they fit, else uint16; orientation as stored.

    like: the scan they belong to. called: what they are to the user. InputError if its grid is another one, or a voxel
    is no label.
    """
    with _opened(Path(path)) as (header, stream):
        if like is not None:
            _check_same_grid(header, like, f"{called} must lie on the scan's grid")
        pieces = [_as_labels(chunk) for chunk in _chunks(header, stream)]
    # Each piece already has the smallest type that holds it, so joining them promotes to just what is needed.
    return Volume(np.concatenate(pieces).reshape(header.shape, order="F"), header.affine)


def write_volume(path: Path, volume: Volume, step: float = 1.0) -> None:
    """Write NIfTI-1 (`.nii` or `.nii.gz` by name), whole or not at all; equal volumes give equal bytes.

    step: what one unit of the array is worth; readers multiply by it.

    sform and qform both carry the affine (a sheared one only the sform: a quaternion cannot shear).
    """
    array = volume.array.astype(np.uint8) if volume.array.dtype == bool else volume.array
    header = nib.Nifti1Header(endianness="<")
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_sform(volume.affine, code="scanner")
    header.set_qform(volume.affine, code="scanner", strip_shears=True)
    header.set_xyzt_units("mm")
    header.set_slope_inter(step, 0)
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    little = array.dtype.newbyteorder("<")
    path = Path(path)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with part.open("wb") as file, _compressed(path, file) as stream:
            stream.write(header.binaryblock + bytes(4))
            for k in range(array.shape[2]):
                stream.write(array[:, :, k].astype(little, copy=False).tobytes(order="F"))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def to_ras(volume: Volume) -> Volume:
    """The same voxels with axes flipped and swapped so that I, J, K run closest to right, anterior, superior."""
    orientation = nib.orientations.io_orientation(volume.affine)
    array = nib.orientations.apply_orientation(volume.array, orientation)
    affine = volume.affine @ nib.orientations.inv_ornt_aff(orientation, volume.array.shape)
    # As NIfTI has them in a file: most scans then need no copy, and none needs one to be sent on.
    return Volume(np.asfortranarray(array), affine)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_sha256(path: Path) -> str:
    """SHA-256 of what a NIfTI file decompresses to, so that it tells voxels apart and not the zlib that packed them.

    Raises InputError for a header that check_scan refuses; reads no further than that header declares.
    """
    digest = hashlib.sha256()
    with _opened(Path(path), stacked=True) as (header, stream):
        stream.seek(0)
        left = header.offset + math.prod(header.shape) * header.channels * header.dtype.itemsize
        while left and (block := stream.read(min(left, 2**20))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def images_sha256(images: Sequence[Path]) -> str:
    """`content_sha256` of a scan's only image; of several channels' images, that of all, in their order."""
    digests = [content_sha256(image) for image in images]
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


@contextmanager
def _opened(path: Path, stacked: bool = False) -> Iterator[tuple[ScanHeader, BufferedIOBase]]:
    """The checked header and the decompressed stream behind it; whatever reading raises becomes InputError.

    stacked: a fourth axis, of channels, is allowed.
    """
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise InputError("a scan must be a NIfTI file", path.name, ".nii, .nii.gz")
    try:
        with path.open("rb") as file, _decompressed(path, file) as stream:
            yield _read_header(path.name, stream, stacked), stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError("a .nii.gz must be a whole, undamaged gzip file", f"{path.name}: {error}") from None
    except OSError as error:
        raise InputError("a scan must be a readable file", f"{path.name}: {error.strerror or error}") from None


def _decompressed(path: Path, file: BufferedIOBase) -> BufferedIOBase:
    return gzip.open(file, "rb") if path.name.lower().endswith(".gz") else file


def _compressed(path: Path, file: BufferedIOBase) -> BufferedIOBase:
    # Neither name nor time in the gzip header: the bytes depend on the volume alone.
    if path.name.lower().endswith(".gz"):
        return gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0)
    return file


def _read_header(name: str, stream: BufferedIOBase, stacked: bool) -> ScanHeader:
    """Parse and check the first bytes of the stream; nothing beyond the header is decompressed for it."""
    raw = _parse(name, stream)
    dtype = _real_dtype(raw)
    offset, slope, intercept = float(raw["vox_offset"]), float(raw["scl_slope"]), float(raw["scl_inter"])
    declared = _declared_shape(raw)
    channels = int(declared[3]) if stacked and len(declared) == 4 else 1
    shape = _checked_shape(declared[:3] if stacked and len(declared) == 4 and channels > 0 else declared)
    if not offset >= raw.sizeof_hdr + 4:
        # At 0, readers disagree about where the voxels are.
        raise InputError("vox_offset must lie behind the header", f"{offset:g}", f"{raw.sizeof_hdr + 4} or more")
    _check_memory(shape, dtype, offset, channels)
    if not (math.isfinite(slope) and math.isfinite(intercept)) or (slope == 0 and intercept != 0):
        raise InputError("scl_slope and scl_inter must be finite, or both 0", f"{slope}, {intercept}")
    # The standard's slope of 0 says that the voxels are not scaled.
    slope = slope or 1.0
    try:
        affine = np.asarray(raw.get_best_affine(), np.float64)
    except (ValueError, HeaderDataError) as error:
        raise InputError("the affine must be readable", error) from None
    spacing = checked_spacing(affine, shape)
    return ScanHeader(shape, affine, spacing, dtype, int(offset), slope, intercept, channels)


def _parse(name: str, stream: BufferedIOBase) -> nib.Nifti1Header:
    """The NIfTI-1 or NIfTI-2 header at the start of the stream, with nibabel's own checks passed."""
    block = stream.read(nib.Nifti1Header.sizeof_hdr)
    sizes = {int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big")}
    kind = nib.Nifti2Header if nib.Nifti2Header.sizeof_hdr in sizes else nib.Nifti1Header
    block += stream.read(kind.sizeof_hdr - len(block))
    try:
        if kind.sizeof_hdr not in sizes or len(block) < kind.sizeof_hdr:
            raise HeaderDataError("no NIfTI header at its start")
        raw = kind(block, check=False)
        if bytes(raw["magic"]).rstrip(b"\0") != kind.single_magic.rstrip(b"\0"):
            raise HeaderDataError("its magic bytes are not those of a single-file NIfTI")
        raw.check_fix(logger=_silent, error_level=40)
    except (HeaderDataError, ValueError) as error:
        raise InputError("a scan must be a NIfTI file", f"{name}: {error}") from None
    return raw


def _real_dtype(raw: nib.Nifti1Header) -> np.dtype:
    dtype = raw.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise InputError("voxels must be real numbers", dtype, "integers and floats of 8 to 64 bits")
    return dtype


def _declared_shape(raw: nib.Nifti1Header) -> tuple[int, ...]:
    try:
        return tuple(raw.get_data_shape())
    except HeaderDataError as error:
        raise InputError("a scan must say how many voxels it has", error) from None


def _checked_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise InputError("a scan must have 3 dimensions", f"{len(shape)}: {tuple(map(int, shape))}")
    i, j, k = (int(n) for n in shape)
    if min(i, j, k) < 1:
        raise InputError("a scan must have a voxel along every axis", (i, j, k))
    return i, j, k


def _check_memory(shape: tuple[int, int, int], dtype: np.dtype, offset: float, channels: int) -> None:
    """Both what the file holds and the float32 copy made of it must fit; the offset too is bytes to read."""
    check_volume(math.prod(shape) * channels * max(dtype.itemsize, 4) + offset, f"{shape} of {dtype}")


def checked_spacing(affine: np.ndarray, shape: tuple[int, int, int]) -> tuple[float, float, float]:
    """Voxel edges in mm of an affine that is finite, invertible and spans no more than MAX_EXTENT_MM."""
    if not np.isfinite(affine).all():
        raise InputError("the affine must be finite", affine.tolist())
    edges = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    # On unit columns, so that the rule is about directions and holds at any spacing.
    if not edges.all() or abs(np.linalg.det(affine[:3, :3] / edges)) < 1e-6:
        raise InputError("the affine must be invertible", affine.tolist())
    if (edges * shape).max() > MAX_EXTENT_MM:
        raise InputError("a scan's extent must be plausible", f"{edges * shape} mm", f"to {MAX_EXTENT_MM:g} mm")
    i, j, k = edges
    return float(i), float(j), float(k)


def _chunks(header: ScanHeader, stream: BufferedIOBase) -> Iterator[np.ndarray]:
    """Voxel values in file order, a chunk at a time, and then the proof that the file ends there.

    A byte after the last voxel is refused: the header does not describe such a file, and a stream that
    goes on and on is stopped at its first surplus byte. At the true end gzip compares its checksum.
    """
    _skip(stream, header.offset - stream.tell())
    left = math.prod(header.shape) * header.channels
    while left:
        count = min(left, CHUNK_VOXELS)
        data = stream.read(count * header.dtype.itemsize)
        if len(data) < count * header.dtype.itemsize:
            raise InputError("a scan must hold every voxel that its header declares", "a file cut short")
        yield _rescaled(np.frombuffer(data, header.dtype), header)
        left -= count
    if stream.read(1):
        raise InputError("a scan must end with its last voxel", "more bytes than its header declares")


def _skip(stream: BufferedIOBase, count: int) -> None:
    """Pass over header extensions without keeping them."""
    while count > 0:
        passed = len(stream.read(min(count, 2**20)))
        if not passed:
            raise InputError("a scan must hold every voxel that its header declares", "a file cut short")
        count -= passed


def _rescaled(stored: np.ndarray, header: ScanHeader) -> np.ndarray:
    if header.slope == 1 and header.intercept == 0:
        return stored
    return stored.astype(np.float64) * header.slope + header.intercept


def _finite_chunks(header: ScanHeader, stream: BufferedIOBase) -> Iterator[np.ndarray]:
    """The chunks in float32, in which a number too large for it counts as infinite."""
    for chunk in _chunks(header, stream):
        with np.errstate(over="ignore"):
            values = chunk.astype(np.float32)
        bad = values.size - int(np.isfinite(values).sum())
        if bad:
            raise InputError("voxels must be finite numbers in float32", f"{bad} NaN or infinite")
        yield values


def _as_labels(values: np.ndarray) -> np.ndarray:
    """The chunk in the smallest unsigned type that holds it."""
    low, high = float(values.min()), float(values.max())
    # Compared so that NaN, which is neither below nor above anything, is refused as well.
    in_range = low >= 0 and high <= MAX_LABEL
    if not in_range or (values.dtype.kind == "f" and (values != np.floor(values)).any()):
        got = f"values from {low:g} to {high:g}" if not in_range else "fractions"
        raise InputError("labels must be whole numbers", got, f"0 to {MAX_LABEL}")
    return values.astype(np.min_scalar_type(int(high)))


def _check_same_grid(
    labels: ScanHeader, scan: ScanHeader | Volume, rule: str = "labels must lie on the scan's grid", name: str = ""
) -> None:
    """name: of the file, if it is to be told."""
    shape, named = scan.array.shape if isinstance(scan, Volume) else scan.shape, f"{name}, " if name else ""
    if labels.shape != shape:
        raise InputError(rule, f"{named}shape {labels.shape}", f"shape {shape}")
    corners = np.array([[i, j, k, 1] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])])
    apart = np.linalg.norm(corners @ (labels.affine - scan.affine).T, axis=1).max()
    allowed = GRID_TOLERANCE * min(scan.spacing)
    if not apart <= allowed:
        raise InputError(rule, f"{named}{apart:.3g} mm apart", f"to {allowed:.3g} mm")
