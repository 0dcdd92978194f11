"""The viewer's geometry and grey values: left is left, a millimetre is a millimetre, HU are HU."""

from __future__ import annotations

import base64
import io
import itertools
import zlib
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from agg2exp_core import maps
from agg2exp_core.organs import load_label_set, made_label_set
from agg2exp_core.records import Volume
from agg2exp_core.volumes import to_ras
from dashboard.viewer import layers, slices, stage
from dashboard.viewer.slices import PLANES
from dashboard.views.legend import legend

AXIAL, CORONAL, SAGITTAL = PLANES
SHAPE = (7, 8, 9)


def _volume() -> Volume:
    affine = np.diag([2.0, 3.0, 5.0, 1.0])
    affine[:3, 3] = [-10, 20, -30]
    return Volume(np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), affine)


def _orientations() -> list[str]:
    axes = ["RL", "AP", "SI"]
    return ["".join(c) for order in itertools.permutations(axes) for c in itertools.product(*order)]


@pytest.mark.parametrize("codes", _orientations())
def test_every_orientation_gives_the_same_pictures(codes: str) -> None:
    original = _volume()
    turn = nib.orientations.axcodes2ornt(codes)
    stored = nib.orientations.apply_orientation(original.array, turn)
    affine = original.affine @ nib.orientations.inv_ornt_aff(turn, original.array.shape)
    shown = to_ras(Volume(stored, affine))
    for plane in PLANES:
        expected = slices.cut(original.array, plane, 2)
        assert np.array_equal(slices.cut(shown.array, plane, 2), expected)
    assert np.allclose(shown.affine, original.affine)


@pytest.mark.parametrize(
    ("plane", "toward", "side"),
    [
        (AXIAL, "R", "left"), (AXIAL, "L", "right"), (AXIAL, "A", "top"), (AXIAL, "P", "bottom"),
        (CORONAL, "R", "left"), (CORONAL, "L", "right"), (CORONAL, "S", "top"), (CORONAL, "I", "bottom"),
        (SAGITTAL, "A", "left"), (SAGITTAL, "P", "right"), (SAGITTAL, "S", "top"), (SAGITTAL, "I", "bottom"),
    ],
)  # fmt: skip
def test_a_mark_in_the_world_appears_at_its_side(plane: slices.Plane, toward: str, side: str) -> None:
    """Mark the voxel nearest to a point far to one side of the patient, and look where it lights up."""
    axis, sign = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}[toward]
    volume = Volume(np.zeros(SHAPE), _volume().affine)
    centre = slices.world(volume.affine, (3, 4, 4))
    centre[axis] += sign * 1000
    voxel = slices.nearest_voxel(volume.affine, centre, SHAPE)
    volume.array[voxel] = 1
    picture = slices.cut(volume.array, plane, voxel[plane.across])
    (row,), (column,) = np.nonzero(picture)
    assert getattr(plane, side) == toward
    assert (row, column) == slices.pixel(plane, voxel, SHAPE)
    last = {"left": column, "right": picture.shape[1] - 1 - column, "top": row, "bottom": picture.shape[0] - 1 - row}
    assert last[side] == 0


def test_a_step_on_the_screen_is_its_millimetres() -> None:
    volume = _volume()
    for plane in PLANES:
        here, there = [2, 2, 2], [2, 2, 2]
        there[plane.horizontal] += 3
        apart = np.linalg.norm(slices.world(volume.affine, there) - slices.world(volume.affine, here))
        columns = abs(slices.pixel(plane, tuple(there), SHAPE)[1] - slices.pixel(plane, tuple(here), SHAPE)[1])
        assert apart == pytest.approx(columns * volume.spacing[plane.horizontal])


def test_nearest_voxel_undoes_world_and_stays_inside() -> None:
    affine = _volume().affine
    assert slices.nearest_voxel(affine, slices.world(affine, (1, 5, 8)), SHAPE) == (1, 5, 8)
    assert slices.nearest_voxel(affine, np.array([1e6, -1e6, 0]), SHAPE)[:2] == (6, 0)


@pytest.mark.parametrize("plane", PLANES, ids=lambda plane: plane.name)
def test_sampling_the_own_grid_is_cutting(plane: slices.Plane) -> None:
    volume = Volume(_volume().array.astype(np.float32), _volume().affine)
    for order in (0, 1):
        sampled = slices.sample(volume, volume, plane, 3, order)
        assert np.allclose(sampled, slices.cut(volume.array, plane, 3))


@pytest.mark.parametrize("plane", PLANES, ids=lambda plane: plane.name)
def test_sampling_follows_the_world_not_the_index(plane: slices.Plane) -> None:
    """A field that is linear in world millimetres reads the same through a rotated, coarser grid."""
    shown = Volume(np.zeros((11, 12, 13)), np.diag([2.0, 2.0, 2.0, 1.0]))
    angle = np.deg2rad(12)
    turned = np.eye(4)
    turned[:2, :2] = 3.1 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned[2, 2], turned[:3, 3] = 2.7, (-20, -25, -8)
    grid = np.stack(np.meshgrid(*[np.arange(24)] * 3, indexing="ij")).reshape(3, -1)
    slope = np.array([0.3, -0.2, 0.5])
    field = (slope @ (turned[:3, :3] @ grid + turned[:3, 3:])).reshape(24, 24, 24)
    sampled = slices.sample(Volume(field, turned), shown, plane, 5, order=1)
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in (11, 12, 13)], indexing="ij"), axis=-1)
    expected = slices.cut((2.0 * voxels) @ slope, plane, 5)
    assert np.allclose(sampled, expected)


def test_outside_the_model_grid_there_is_nothing() -> None:
    shown = Volume(np.zeros((6, 6, 6)), np.eye(4))
    affine = np.eye(4)
    affine[:3, 3] = 2
    small = Volume(np.ones((2, 2, 2), np.uint8), affine)
    sampled = slices.sample(small, shown, AXIAL, 2, order=0)
    assert sampled.sum() == 4 and not slices.sample(small, shown, AXIAL, 5, order=0).any()


def test_peak_is_the_strongest_of_either_sign() -> None:
    saliency = Volume(np.zeros(SHAPE, np.float32), _volume().affine)
    saliency.array[1, 2, 3], saliency.array[4, 4, 4] = 2, -5
    assert np.allclose(slices.peak(saliency), slices.world(saliency.affine, (4, 4, 4)))


def test_the_peak_on_an_organ_is_found_on_labels_finer_than_the_map() -> None:
    coarse, fine = np.diag([4.0, 4, 4, 1]), np.diag([2.0, 2, 2, 1])
    saliency, labels = (Volume(np.zeros((size,) * 3, np.float32), affine) for size, affine in ((5, coarse), (10, fine)))
    labels.array[2:5, 2:5, 2:5], labels.array[6:8, 6:8, 6:8] = 1, 2
    saliency.array[1, 1, 1], saliency.array[3, 3, 3], saliency.array[4, 4, 4] = 2, -3, 9
    assert np.allclose(slices.peak_on(saliency, labels, [1]), 4) and np.allclose(
        slices.peak_on(saliency, labels, [2]), 12
    )
    assert np.allclose(slices.peak_on(saliency, labels, [1, 2]), 12) and np.allclose(slices.peak(saliency), 16)
    assert slices.peak_on(saliency, labels, [3]) is None


def test_tilt_is_the_angle_to_the_patient_axes() -> None:
    angle = np.deg2rad(10)
    affine = np.eye(4)
    affine[:2, :2] = 2 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    assert slices.tilt(affine) == pytest.approx(10)
    assert slices.tilt(_volume().affine) == 0


@pytest.mark.parametrize(
    ("window", "black", "middle", "white"),
    [("lung", -1350, -600, 150), ("soft", -160, 40, 240), ("bone", -770, 480, 1730)],
)
def test_presets_map_hu_to_grey(window: str, black: int, middle: int, white: int) -> None:
    hu = np.array([[-3024, black, middle, white, 3000]], np.int16)
    assert layers.grey(hu, layers.WINDOWS[window]).tolist() == [[0, 0, 128, 255, 255]]


def test_colors_are_clear_at_zero_and_grow_lighter_with_strength() -> None:
    for signed in (True, False):
        table = layers.palette(signed).astype(int)
        assert table[128, 3] == 0 and table[255, 3] == 255 and table[1, 3] == 255
        light = table[:, :3] @ [0.299, 0.587, 0.114]
        assert (np.diff(light[128:]) >= -1).all() and (np.diff(light[1:128]) <= 1).all()
    assert np.array_equal(layers.palette(False)[1:], layers.palette(False)[1:][::-1])
    assert not np.array_equal(layers.palette(True)[1], layers.palette(True)[255])


def test_quantised_clips_at_the_scale_end_and_keeps_signs() -> None:
    values = np.array([-9.0, -1.0, 0.0, 0.5, 1.0, 9.0])
    assert layers.quantised(values, 1.0).tolist() == [-127, -127, 0, 64, 127, 127]
    assert not layers.quantised(values, 0.0).any()


def test_scale_end_of_a_sparse_map_is_its_peak() -> None:
    sparse = np.zeros(10_000)
    sparse[3] = -4
    assert maps.scale_end(sparse) == (4, True) and maps.scale_end(np.zeros(5)) == (0, True)
    assert maps.scale_end(np.ones(5000)) == (1, False)


@pytest.mark.parametrize(
    ("organ", "hu", "window"),
    [
        ("trachea", -850, "lung"), ("heart", 50, "soft"), ("heart", 420, "soft"), ("ribs", 700, "bone"),
        ("ribs", 180, "bone"),
    ],
)  # fmt: skip
def test_an_organ_opens_in_the_window_that_shows_it(organ: str, hu: int, window: str) -> None:
    """Blood with contrast is as dense as bone, and is no bone; a label set without groups has only density to go by."""
    known = load_label_set("thorax17")
    target, affine, labels = known.by_name[organ].id, np.eye(4), np.zeros((9, 9, 9), np.uint8)
    labels[2:7, 2:7, 2:7] = target
    scan = Volume(np.where(labels, hu, -1000).astype(np.int16), affine)
    scene = stage.Scene("test", scan, known, target, Volume(labels, affine))
    assert scene.window == window
    plain = replace(scene, labels=made_label_set("plain", known.names))
    assert plain.window == ("lung" if hu < -280 else "bone" if hu > 260 else "soft")
    assert stage.Scene("test", scan, load_label_set("thorax17"), 8).window == "soft"  # nothing is segmented


def test_what_is_sent_is_what_was_cut() -> None:
    scan = _volume()
    affine = scan.affine
    scene = stage.Scene(
        "test",
        scan,
        load_label_set("thorax17"),
        8,
        Volume(np.full(SHAPE, 8, np.uint8), affine),
        stage.Attribution(Volume(np.full(SHAPE, -1.0, np.float32), affine), 2.0, slices.world(affine, (3, 2, 1))),
    )
    data = stage.stage_data(scene, stage.Look("soft"), (1, 2, 3), None)
    sagittal = data["planes"]["sagittal"]
    assert sagittal["index"] == 1 and data["spacing"] == [2.0, 3.0, 5.0]
    expected = slices.cut(scan.array, SAGITTAL, 1)
    assert np.array_equal(_unpacked(sagittal["hu"], "<i2").reshape(expected.shape), expected)
    assert set(_unpacked(sagittal["labels"], "<u2")) == {8}
    assert set(_unpacked(sagittal["attribution"], "i1")) == {-64}
    picture = _png(sagittal["grey"])
    assert np.array_equal(np.asarray(picture), layers.grey(expected, layers.WINDOWS["soft"]))
    assert data["peak"] == (3, 2, 1) and data["organs"][str(data["target"])]["title"] == "Heart"


def test_the_colour_bar_ends_in_plain_words_and_in_exact_ones_on_hover() -> None:
    map_ = Volume(np.ones((2, 2, 2), np.float32), np.eye(4))
    for sparse, plain in ((False, "Colours end at 35: one voxel in a thousand is stronger."),
                          (True, "Colours end at 35: the strongest voxel.")):  # fmt: skip
        told = legend("Heart", "smoothgrad", stage.Attribution(map_, 35.214, np.zeros(3), sparse), True).drawn(True)
        assert told["note"] == plain
        assert "35.21" in told["exact"] and ("percentile" in told["exact"]) != sparse


@pytest.mark.parametrize("sent", [None, [1, 2], ["a", 0, 0], [0, 0, 9], [-1, 0, 0], 5])
def test_a_voxel_that_is_not_in_the_scan_is_ignored(sent: object, monkeypatch: pytest.MonkeyPatch) -> None:
    class Result:
        move = sent

    monkeypatch.setattr(stage.st, "session_state", {"viewer": Result})
    assert stage.moved_to("viewer", SHAPE) is None
    Result.move = [6, 7, 8]
    assert stage.moved_to("viewer", SHAPE) == (6, 7, 8)


def test_attribution_is_painted_in_the_palette() -> None:
    values = np.array([[-127, -1, 0], [5, 64, 127]], np.int8)
    for signed in (True, False):
        painted = np.asarray(_png(layers.color_png(values, signed)).convert("RGBA"))
        assert np.array_equal(painted, layers.palette(signed)[values.astype(int) + 128])


def _png(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def _unpacked(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)
