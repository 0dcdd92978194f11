"""Maps on the scans' own grids: where they lie, what they hold, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from command import run
from series import dicom
from tiny import CLASSES, write_bundle, write_cohort

from agg2exp_core import pipeline, volumes
from agg2exp_core.aggregation.masks import values_on_grid
from agg2exp_core.dicom import Origin, organ_code, read_series, write_segmentation
from agg2exp_core.organs import known_label_sets, load_label_set, made_label_set
from agg2exp_core.records import Method, Volume
from agg2exp_core.settings import SHIPPED
from agg2exp_core.store import cohorts, results

OBLIQUE = np.array([[-2.9, 0.5, 0, 60], [0.5, 2.9, 0.1, -40], [0, -0.1, 6, 10], [0, 0, 0, 1.0]])
"""Anisotropic, tilted, its first axis towards the left."""


def test_a_linear_field_comes_out_as_it_is_in_the_world() -> None:
    def field(volume: Volume) -> np.ndarray:
        points = np.stack(np.meshgrid(*map(np.arange, volume.array.shape), indexing="ij"), -1) @ volume.affine[:3, :3].T
        return (points + volume.affine[:3, 3]) @ np.array([0.3, -0.2, 0.1])

    coarse = Volume(np.zeros((40, 40, 40)), np.diag([5.0, 5, 5, 1]) - np.array([[0, 0, 0, 100]] * 3 + [[0] * 4]))
    scan = Volume(np.zeros((14, 12, 8)), OBLIQUE)
    found = values_on_grid(Volume(field(coarse), coarse.affine), scan)
    np.testing.assert_allclose(found, field(scan), atol=1e-4)
    same = values_on_grid(Volume(field(scan), OBLIQUE), scan)
    np.testing.assert_allclose(same, field(scan), atol=1e-4)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two explained cases of an oblique scan, the second without maps."""
    torch.manual_seed(0)
    root = tmp_path / "root"
    write_bundle(root)
    write_cohort(root, ("one", "two"), OBLIQUE, (20, 18, 12))
    for case, saliency in zip(cohorts.list_cases(root, "c"), ("float32", "none"), strict=True):
        plan = pipeline.Plan("tiny", Method("gradient"), saliency=saliency)
        pipeline.Explaining(root, plan).cohort_case("c", case, lambda *_: None)
    return root


@pytest.mark.parametrize("name", ["prediction", "segmentation"])
def test_a_class_named_as_the_label_maps_file_does_not_replace_it(root, tmp_path, capsys, name) -> None:
    words = ("export", "saliency", "--cohort", "c", "--run", "tiny-gradient", "--data", root, "--case", "one")
    assert run(*words, "--targets", name, "--out", tmp_path / "out") == 2
    assert "name of the label map beside it" in capsys.readouterr().err and not [*(tmp_path / "out").rglob("*.nii.gz")]


def test_maps_lie_on_the_scans_grid(root, tmp_path, capsys) -> None:
    words = ("export", "saliency", "--cohort", "c", "--run", "tiny-gradient", "--data", root)
    assert run(*words, "--case", "one", "--targets", "heart", "--out", tmp_path / "out") == 0
    assert "1 maps of 1 cases" in capsys.readouterr().out
    scan = volumes.read_volume(cohorts.find_case(root, "c", "one").image)
    folder = results.case_path(root, "c", "tiny-gradient", "one")
    drawn, labels = (volumes.read_volume(tmp_path / "out" / "one" / f"{n}.nii.gz") for n in ("heart", "prediction"))
    for exported in (drawn, labels):
        np.testing.assert_allclose(exported.affine, scan.affine, atol=1e-4)
        assert exported.array.shape == scan.array.shape
    stored = volumes.read_volume(folder / "saliency" / "heart.nii.gz")
    peak = np.array(np.unravel_index(np.abs(drawn.array).argmax(), drawn.array.shape))
    there = np.linalg.inv(stored.affine) @ drawn.affine @ np.array([*peak, 1])
    i, j, k = np.rint(there[:3]).astype(int)
    near = np.abs(stored.array[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2, max(k - 1, 0) : k + 2])
    assert near.max() >= np.abs(drawn.array).max() > 0


def test_maps_are_not_laid_over_another_scan(root, tmp_path, capsys) -> None:
    case = cohorts.find_case(root, "c", "one")
    scan = volumes.read_volume(case.image)
    volumes.write_volume(case.image, Volume(scan.array[::-1].copy(), scan.affine))
    words = ("export", "saliency", "--cohort", "c", "--run", "tiny-gradient", "--case", "one", "--data", root)
    assert run(*words, "--out", tmp_path / "out") == 2
    assert "the one that was explained" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--case", "two", "--targets", "heart"), "stored map"),
        (("--case", "one", "--targets", "liver"), "stored map"),
        (("--case", "three"), "case must be one of"), (("--run", "gone"), "run must be one of"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_refused(root, tmp_path, capsys, more, told) -> None:
    words = ("export", "saliency", "--cohort", "c", "--run", "tiny-gradient", "--data", root)
    assert run(*words, "--out", tmp_path / "out", *more) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()


# ---- DICOM ---------------------------------------------------------------------------------------


@pytest.fixture
def added(tmp_path: Path) -> tuple[Path, str]:
    """A root with one explained case that was added from the DICOM series in `series`, and the case's name."""
    torch.manual_seed(0)
    root = tmp_path / "root"
    write_bundle(root)
    noise = np.random.default_rng(0).integers(-900, 900, (20, 18, 12)).astype(np.int16)
    tilted = Volume(noise, np.array([[-2.9, 0.5, 0, 60], [0.5, 2.9, 0, -40], [0, 0, 6, 10], [0, 0, 0, 1.0]]))
    dicom(tmp_path / "series" / "ct", tilted)
    assert run("cohort", "add", tmp_path / "series", "--name", "c", "--data", root) == 0
    (case,) = cohorts.list_cases(root, "c")
    plan = pipeline.Plan("tiny", Method("gradient"), saliency="float32")
    pipeline.Explaining(root, plan).cohort_case("c", case, lambda *_: None)
    return root, case.case_id


def export_words(root: Path, tmp_path: Path, *more: object) -> tuple[object, ...]:
    words = ("export", "saliency", "--cohort", "c", "--run", "tiny-gradient", "--data", root)
    return *words, "--out", tmp_path / "out", "--dicom", tmp_path / "series", *more


def frames(dataset: pydicom.Dataset) -> Iterator[tuple[pydicom.Dataset, np.ndarray, np.ndarray]]:
    """Of each frame its attributes, its pixels and the world (RAS) of their centres, by the standard's own formula."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    spacing = np.array(shared.PixelMeasuresSequence[0].PixelSpacing, float)
    along = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    rows, columns = np.mgrid[: dataset.Rows, : dataset.Columns]
    for own, pixels in zip(dataset.PerFrameFunctionalGroupsSequence, dataset.pixel_array, strict=True):
        place = np.array(own.PlanePositionSequence[0].ImagePositionPatient, float)
        world = place + columns[..., None] * spacing[1] * along[0] + rows[..., None] * spacing[0] * along[1]
        yield own, pixels, world * [-1, -1, 1]


def at(volume: Volume, world: np.ndarray) -> np.ndarray:
    points = world @ np.linalg.inv(volume.affine)[:3, :3].T + np.linalg.inv(volume.affine)[:3, 3]
    assert np.abs(points - np.rint(points)).max() < 1e-2
    return volume.array[tuple(np.moveaxis(np.rint(points).astype(int), -1, 0))]


def test_dicom_holds_in_the_world_what_nifti_holds(added, tmp_path) -> None:
    root, case_id = added
    assert run(*export_words(root, tmp_path)) == 0
    out = tmp_path / "out" / case_id
    labels = volumes.read_volume(out / "prediction.nii.gz")
    segmentation = pydicom.dcmread(out / "segmentation.dcm")
    names = {segment.SegmentNumber: segment.SegmentLabel for segment in segmentation.SegmentSequence}
    ids = {number: CLASSES.index(title.lower()) for number, title in names.items()}
    voxels = dict.fromkeys(ids, 0)
    for own, pixels, world in frames(segmentation):
        number = own.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        np.testing.assert_array_equal(pixels, at(labels, world) == ids[number])
        voxels[number] += int(pixels.sum())
    assert voxels == {number: int((labels.array == label).sum()) for number, label in ids.items()} and min(ids) == 1
    for name in ("aorta", "heart"):
        drawn, stored = pydicom.dcmread(out / f"{name}.dcm"), volumes.read_volume(out / f"{name}.nii.gz")
        seen = [(pixels, at(stored, world)) for _, pixels, world in frames(drawn)]
        assert len(seen) == stored.array.shape[2] and any(pixels.min() < 0 < pixels.max() for pixels, _ in seen)
        for pixels, expected in seen:
            np.testing.assert_allclose(pixels, expected, atol=1e-5)  # NIfTI keeps affines in 32 bits
    for made in (segmentation, drawn):
        assert (made.PatientID, made.StudyInstanceUID, made.FrameOfReferenceUID) == ("Doe^Jane", "1.2.3", "1.2.4")
        sources = made.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        assert {source.ReferencedSOPInstanceUID for source in sources} == {f"1.2.3.1.{n}" for n in range(1, 13)}


def test_a_segment_holds_the_regions_that_lie_in_it(added, tmp_path) -> None:
    """As if the heart were a region in the aorta: a tumour's segment without its core would be a ring."""
    root, case_id = added
    path = root / "runs" / "c" / "tiny-gradient" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"members": [[0], [1, 2], [2]]}))
    assert run(*export_words(root, tmp_path)) == 0
    labels = volumes.read_labels(tmp_path / "out" / case_id / "prediction.nii.gz")
    segmentation = pydicom.dcmread(tmp_path / "out" / case_id / "segmentation.dcm")
    names = {segment.SegmentNumber: segment.SegmentLabel for segment in segmentation.SegmentSequence}
    voxels = dict.fromkeys(names.values(), 0)
    for own, pixels, world in frames(segmentation):
        name = names[own.SegmentIdentificationSequence[0].ReferencedSegmentNumber]
        inside = {"Aorta": [1, 2], "Heart": [2]}[name]
        np.testing.assert_array_equal(pixels, np.isin(at(labels, world), inside))
        voxels[name] += int(pixels.sum())
    assert voxels == {"Aorta": int((labels.array > 0).sum()), "Heart": int((labels.array == 2).sum())}
    assert 0 < voxels["Heart"] < voxels["Aorta"]


def _another_grid(folder: Path) -> None:
    for path in (folder / "ct").iterdir():
        slice_ = pydicom.dcmread(path)
        slice_.PixelSpacing = [4.0, 4.0]
        slice_.save_as(path)


def _without_study(folder: Path) -> None:
    path = next((folder / "ct").iterdir())
    slice_ = pydicom.dcmread(path)
    del slice_.StudyInstanceUID
    slice_.save_as(path)


def _damaged_study(folder: Path) -> None:
    path = next((folder / "ct").iterdir())
    path.write_bytes(path.read_bytes().replace(b"\x20\x00\x0d\x00UI", b"\x20\x00\x0d\x00ZZ"))


def _other_series(folder: Path) -> None:
    shutil.rmtree(folder / "ct")
    dicom(folder / "ct", Volume(np.zeros((20, 18, 12), np.int16), OBLIQUE), series="2")


@pytest.mark.parametrize(
    ("spoil", "more", "told"),
    [
        (_another_grid, (), "must be the one that was explained"),
        (_without_study, (), "must say its study and its frame of reference; got a slice without StudyInstanceUID"),
        (_damaged_study, (), "must be a readable DICOM file; got one that is not"),
        (_other_series, (), "the DICOM series that it was added from"),
        (lambda folder: shutil.rmtree(folder / "ct"), (), "a folder of DICOM series is needed; got series without any"),
        (shutil.rmtree, (), "a folder must be there"),
        (lambda _: None, ("--pseudonyms", "key"), "goes without pseudonyms"),
    ],
)
def test_what_does_not_belong_to_the_series_is_not_written(added, tmp_path, capsys, spoil, more, told) -> None:
    spoil(tmp_path / "series")
    assert run(*export_words(added[0], tmp_path, *more)) == 2
    assert told in capsys.readouterr().err and not list((tmp_path / "out").rglob("*.*"))


def test_organs_have_their_codes_where_snomed_has_their_names() -> None:
    labels = load_label_set("thorax17")
    codes = {name: organ_code(labels[name]) for name in ("heart", "ribs", "thyroid_gland", "lung_upper_lobe_left")}
    assert [(codes[name].scheme_designator, codes[name].value) for name in ("heart", "ribs")] == [
        ("SCT", "80891009"), ("SCT", "113197003"),
    ]  # fmt: skip
    own = codes["lung_upper_lobe_left"]
    assert (own.scheme_designator, own.meaning) == ("99AGG2EXP", "Left upper lobe")


@pytest.mark.parametrize("labels", known_label_sets(SHIPPED), ids=lambda labels: labels.name)
def test_no_two_organs_have_one_code(labels) -> None:
    codes = {(code.scheme_designator, code.value) for code in map(organ_code, labels.organs)}
    assert len(codes) == len(labels.organs) and max(len(value) for _, value in codes) <= 16


def test_more_organs_than_a_byte_counts_have_segments_of_their_own(tmp_path) -> None:
    series = read_series(dicom(tmp_path / "series", Volume(np.zeros((20, 15, 2), np.int16), np.diag([-2.0, -2, 3, 1]))))
    labels = np.arange(600, dtype=np.int32).reshape(20, 15, 2) % 301
    organs = made_label_set("many", [f"organ_{number}" for number in range(1, 301)]).organs
    alone = {organ: [organ.id] for organ in organs}
    write_segmentation(tmp_path / "segmentation.dcm", series, labels, alone, Origin("model", "0"))
    made = pydicom.dcmread(tmp_path / "segmentation.dcm")
    names = {segment.SegmentNumber: segment.SegmentLabel for segment in made.SegmentSequence}
    voxels = dict.fromkeys(names.values(), 0)
    for own, pixels, _ in frames(made):
        voxels[names[own.SegmentIdentificationSequence[0].ReferencedSegmentNumber]] += int(pixels.sum())
    assert voxels == {organ.title: int((labels == organ.id).sum()) for organ in organs[1:]}
