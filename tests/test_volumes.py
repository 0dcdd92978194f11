"""Volumes: what is written is read again, and no damaged or impossible file passes as a scan."""

from __future__ import annotations

import gzip
import itertools
import struct
import time
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from agg2exp_core.records import InputError, Volume
from agg2exp_core.volumes import check_scan, read_labels, read_volume, sha256, to_ras, write_volume

AFFINE = np.array([[-1.5, 0, 0, 20], [0, -1.5, 0, 30], [0, 0, 2.5, -40], [0, 0, 0, 1.0]])
# Byte offsets of NIfTI-1 header fields (nifti1.h).
DIM, DATATYPE, PIXDIM, VOX_OFFSET, SCL_SLOPE, SCL_INTER, SROW_X = 40, 70, 76, 108, 112, 116, 280
ORIENTATIONS = [
    np.column_stack([order, signs])
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def noise(shape: tuple[int, ...] = (7, 6, 5), dtype: str = "float32") -> np.ndarray:
    return (np.random.default_rng(0).normal(size=shape) * 50 + 100).astype(dtype)


def saved(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    write_volume(path, Volume(array, affine))
    return path


def patched(path: Path, offset: int, layout: str, *values: float) -> Path:
    """A valid file with header bytes overwritten, as another program's fault would leave them."""
    raw = bytearray(gzip.decompress(saved(path, noise()).read_bytes()))
    struct.pack_into(layout, raw, offset, *values)
    path.write_bytes(gzip.compress(bytes(raw)))
    return path


def refused(path: Path, words: str) -> None:
    """Both ways to open a scan refuse it, in one line that says the rule."""
    for read in (check_scan, read_volume):
        with pytest.raises(InputError, match=words) as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_written_is_read_again_and_as_nibabel_reads_it(tmp_path: Path, name: str, dtype: str) -> None:
    array = noise(dtype=dtype)
    path = saved(tmp_path / name, array)
    volume, header = read_volume(path), check_scan(path)
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, array.astype(np.float32))
    np.testing.assert_array_equal(volume.affine, AFFINE)
    np.testing.assert_array_equal(np.asarray(nib.Nifti1Image.from_filename(path).dataobj), array)
    np.testing.assert_array_equal(nib.Nifti1Image.from_filename(path).affine, AFFINE)
    assert (header.shape, header.spacing, header.dtype) == ((7, 6, 5), (1.5, 1.5, 2.5), np.dtype(dtype))


def test_scaling_big_endian_and_nifti2_are_read_as_nibabel_reads_them(tmp_path: Path) -> None:
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        for endianness in "<>":
            header = kind.header_class(endianness=endianness)
            header.set_data_dtype(np.int16)
            image = kind(noise(), AFFINE, header)  # float values into int16: nibabel chooses slope and intercept
            nib.save(image, tmp_path / "scan.nii.gz")
            expected = kind.from_filename(tmp_path / "scan.nii.gz").get_fdata(dtype=np.float64)
            assert check_scan(tmp_path / "scan.nii.gz").slope != 1
            np.testing.assert_allclose(read_volume(tmp_path / "scan.nii.gz").array, expected, rtol=1e-6)


def test_equal_volumes_give_equal_bytes(tmp_path: Path) -> None:
    first = sha256(saved(tmp_path / "a.nii.gz", noise()))
    # Neither flags (a name) nor a time in the gzip header.
    assert (tmp_path / "a.nii.gz").read_bytes()[3:8] == bytes(5)
    assert sha256(saved(tmp_path / "b.nii.gz", noise())) == first
    assert sha256(saved(tmp_path / "b.nii.gz", noise() + 1)) != first


def test_all_48_orientations_are_one_ras_volume(tmp_path: Path) -> None:
    ras_affine = np.diag([1.5, 2, 3, 1.0])
    ras_affine[:3, 3] = -10, 4, 7
    ras = noise((4, 5, 6))
    for orientation in ORIENTATIONS:
        array = nib.orientations.apply_orientation(ras, orientation)
        affine = ras_affine @ nib.orientations.inv_ornt_aff(orientation, ras.shape)
        back = to_ras(read_volume(saved(tmp_path / "scan.nii", array, affine)))
        np.testing.assert_array_equal(back.array, ras)
        np.testing.assert_allclose(back.affine, ras_affine, atol=1e-6)
    assert len(ORIENTATIONS) == 48


def test_oblique_affine_keeps_its_world_coordinates(tmp_path: Path) -> None:
    turn, tilt = np.radians(25), np.radians(-12)
    about_z = [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    about_x = [[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]
    affine = np.eye(4)
    affine[:3, :3] = np.array(about_z) @ np.array(about_x) @ np.diag([-1.5, -2, 3])
    volume = read_volume(saved(tmp_path / "scan.nii.gz", noise(), affine))
    np.testing.assert_allclose(volume.affine, affine, atol=1e-6)
    ras = to_ras(volume)
    assert ras.array[6, 5, 0] == volume.array[0, 0, 0]
    np.testing.assert_allclose(ras.affine @ [6, 5, 0, 1], volume.affine @ [0, 0, 0, 1], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("scan.nii", b""),
        ("scan.nii", b"case_id,image\n" * 100),
        ("scan.nii.gz", gzip.compress(b"\0" * 4000)),
        ("scan.nii.gz", b"no gzip at all" * 100),
        ("scan.dcm", b"\0" * 128 + b"DICM"),
    ],
    ids=["empty", "text", "gzip of zeros", "no gzip", "DICOM"],
)
def test_what_is_no_nifti_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, "NIfTI file|gzip file")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.nii").mkdir()
    refused(tmp_path / "absent.nii.gz", "readable file")
    refused(tmp_path / "folder.nii", "readable file")


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    whole = saved(tmp_path / name, noise()).read_bytes()
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        (tmp_path / name).write_bytes(whole[:length])
        refused(tmp_path / name, "cut short|gzip file|NIfTI file")


def test_200_flipped_bits_are_refused_or_change_nothing(tmp_path: Path) -> None:
    array = noise((12, 12, 12), "int16")
    path = saved(tmp_path / "scan.nii.gz", array)
    whole = path.read_bytes()
    caught = 0
    for bit in np.random.default_rng(1).choice(len(whole) * 8, 200, replace=False):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        try:
            volume = read_volume(path)
        except InputError:
            caught += 1
        else:
            np.testing.assert_array_equal(volume.array, array)
            np.testing.assert_array_equal(volume.affine, AFFINE)
    assert caught > 190


@pytest.mark.parametrize(
    ("offset", "layout", "values", "words"),
    [
        (DIM, "<5h", (4, 7, 6, 5, 1), "3 dimensions"),
        (DIM, "<4h", (3, 7, 0, 5), "a voxel along every axis"),
        (DIM, "<5h", (3, -1, 1, 1, 1), "how many voxels|a voxel along every axis"),
        (VOX_OFFSET, "<f", (0,), "behind the header"),
        (VOX_OFFSET, "<f", (351,), "too low"),
        (DIM, "<4h", (3, 7, 6, 6), "every voxel that its header declares"),
        (DIM, "<4h", (3, 7, 6, 4), "end with its last voxel"),
        (DATATYPE, "<2h", (32, 64), "real numbers"),  # complex64
        (DATATYPE, "<2h", (128, 24), "real numbers"),  # RGB24
        (DATATYPE, "<2h", (1536, 128), "real numbers|not supported"),  # float128
        (DATATYPE, "<h", (999,), "NIfTI file"),
        (SROW_X, "<f", (np.nan,), "affine must be finite"),
        (SROW_X, "<f", (np.inf,), "affine must be finite"),
        (SROW_X, "<f", (0,), "affine must be invertible"),
        (SROW_X + 16, "<4f", (-1.5, 0, 0, 20), "affine must be invertible"),  # two equal rows
        (SROW_X, "<f", (1e6,), "extent must be plausible"),
        (SCL_SLOPE, "<f", (np.nan,), "scl_slope"),
        (SCL_SLOPE, "<f", (np.inf,), "scl_slope"),
        (SCL_SLOPE, "<2f", (0, 5), "scl_slope"),
        (SCL_INTER, "<f", (np.nan,), "scl_slope"),
        (SCL_SLOPE, "<f", (1e38,), "finite numbers in float32"),
    ],
)
def test_an_impossible_header_is_refused(
    tmp_path: Path, offset: int, layout: str, values: tuple[float, ...], words: str
) -> None:
    refused(patched(tmp_path / "scan.nii.gz", offset, layout, *values), words)


def test_slope_zero_means_unscaled_as_the_standard_says(tmp_path: Path) -> None:
    path = patched(tmp_path / "scan.nii.gz", SCL_SLOPE, "<2f", 0, 0)
    np.testing.assert_array_equal(read_volume(path).array, noise())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_voxels_that_are_no_finite_float32_are_refused(tmp_path: Path, value: float) -> None:
    array = noise(dtype="float64")
    array[6, 5, 4] = value
    refused(saved(tmp_path / "scan.nii.gz", array), "finite numbers in float32")


def test_too_much_memory_is_refused_from_the_header_alone(tmp_path: Path) -> None:
    path = patched(tmp_path / "scan.nii.gz", DIM, "<4h", 3, 20000, 20000, 20000)
    # The gzip stream breaks off behind the header: to go on reading would raise another error.
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:352])[:-8])
    start = time.perf_counter()
    refused(path, "memory allowed")
    assert time.perf_counter() - start < 2


def test_the_memory_allowed_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "scan.nii.gz", noise((64, 64, 64), "uint8"))
    check_scan(path)
    # 64³ voxels are 1 MiB in float32, whatever their type in the file.
    monkeypatch.setenv("AGG2EXP_MAX_GIB", str(0.9 / 1024))
    refused(path, "memory allowed")


def test_a_gzip_bomb_behind_a_small_header_is_not_unpacked(tmp_path: Path) -> None:
    path = saved(tmp_path / "scan.nii.gz", noise())
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(2**27)))
    tracemalloc.start()
    start = time.perf_counter()
    refused(path, "end with its last voxel")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.perf_counter() - start < 2
    assert peak < 2**24


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [([0, 16], "int16", "uint8"), ([0, 255], "float32", "uint8"), ([3, 256], "float64", "uint16")],
)
def test_labels_take_the_smallest_unsigned_type(tmp_path: Path, values: list[int], dtype: str, expected: str) -> None:
    array = np.resize(np.array(values, dtype), (7, 6, 5))
    labels = read_labels(saved(tmp_path / "labels.nii.gz", array))
    assert labels.array.dtype == expected
    np.testing.assert_array_equal(labels.array, array)


@pytest.mark.parametrize("value", [-1, 0.5, 65536, 1e300, np.nan])
def test_what_is_no_label_is_refused(tmp_path: Path, value: float) -> None:
    array = np.zeros((7, 6, 5))
    array[3, 3, 3] = value
    path = saved(tmp_path / "labels.nii.gz", array)
    with pytest.raises(InputError, match="labels must be whole numbers"):
        read_labels(path)


def test_labels_on_another_grid_are_refused(tmp_path: Path) -> None:
    scan = saved(tmp_path / "scan.nii.gz", noise())
    header, volume = check_scan(scan), read_volume(scan)
    labels = np.ones((7, 6, 5), np.uint8)
    rounded, shifted, mirrored = AFFINE.copy(), AFFINE.copy(), AFFINE.copy()
    rounded[0, 3] += 1e-3  # what a program that stores fewer digits leaves
    shifted[0, 3] += 1.5
    mirrored[0] *= -1
    for like in (header, volume):
        read_labels(saved(tmp_path / "labels.nii", labels, rounded), like)
        for affine in (shifted, mirrored):
            with pytest.raises(InputError, match="on the scan's grid"):
                read_labels(saved(tmp_path / "labels.nii", labels, affine), like)
        with pytest.raises(InputError, match="on the scan's grid"):
            read_labels(saved(tmp_path / "labels.nii", labels[:-1]), like)


def test_real_scan_is_read_as_nibabel_reads_it() -> None:
    path = Path(__file__).resolve().parents[2] / "shared/data/real/chest_lowres/ct.nii.gz"
    volume, image = read_volume(path), nib.Nifti1Image.from_filename(path)
    np.testing.assert_array_equal(volume.array, image.get_fdata(dtype=np.float32))
    np.testing.assert_array_equal(volume.affine, image.affine)
    labels = read_labels(path.with_name("labels.nii.gz"), volume)
    assert set(np.unique(labels.array)) == set(range(8))
