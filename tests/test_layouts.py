"""Datasets as the field keeps them become cohorts; `cohort check` tells what is wrong or odd in one."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pandas as pd
import pydicom
import pytest
from command import run
from series import dicom

from agg2exp_core import foreign, volumes
from agg2exp_core.organs import load_label_set
from agg2exp_core.records import InputError, Volume
from agg2exp_core.store import cohorts
from agg2exp_core.store.cohort_check import check_cohort, holding_all
from agg2exp_core.store.cohorts import Brought
from agg2exp_core.store.lists import list_lists

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "real"
THORAX = load_label_set("thorax17")
CLASSES = {
    "thorax_cta": {"aorta": [1], "heart": [8]},
    "chest_lowres": {"rib_left_1": [1], "vertebrae_C7": [2], "vertebrae_T1": [3], "vertebrae_L1": [4]},
}
"""TotalSegmentator's classes, and the values that make them up in the real label maps."""


def silent(done: int, total: int, note: str) -> None: ...


def total_segmentator(folder: Path) -> Path:
    """`s0000/ct.nii.gz`, a file a class, and `meta.csv` with semicolons."""
    for case_id, classes in CLASSES.items():
        parts = folder / case_id / "segmentations"
        parts.mkdir(parents=True)
        (folder / case_id / "ct.nii.gz").symlink_to(REAL / case_id / "ct.nii.gz")
        labels = volumes.read_labels(REAL / case_id / "labels.nii.gz")
        for name, values in classes.items():
            mask = np.isin(labels.array, values).astype(np.uint8)
            volumes.write_volume(parts / f"{name}.nii.gz", Volume(mask, labels.affine))
    (folder / "meta.csv").write_text("image_id;age;gender\nthorax_cta;61;m\nchest_lowres;;f\n")
    return folder


def numbered(folder: Path) -> Path:
    """nnU-Net's layout, with one training case and one to be tested on."""
    for case_id, end in (("thorax_cta", "Tr"), ("chest_lowres", "Ts")):
        for kind, name in (("images", f"{case_id}_0000.nii.gz"), ("labels", f"{case_id}.nii.gz")):
            (folder / f"{kind}{end}").mkdir(parents=True, exist_ok=True)
            source = "ct" if kind == "images" else "labels"
            (folder / f"{kind}{end}" / name).symlink_to(REAL / case_id / f"{source}.nii.gz")
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "aorta": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(about | {"numTraining": 1}))
    return folder


def decathlon(folder: Path) -> Path:
    for kind, source in (("imagesTr", "ct"), ("labelsTr", "labels")):
        (folder / kind).mkdir(parents=True)
        shutil.copy(REAL / "chest_lowres" / f"{source}.nii.gz", folder / kind / "chest_1.nii.gz")
    (folder / "imagesTs").mkdir()
    shutil.copy(REAL / "chest_lowres" / "ct.nii.gz", folder / "imagesTs" / "chest_2.nii.gz")
    training = [{"image": "./imagesTr/chest_1.nii.gz", "label": "./labelsTr/chest_1.nii.gz"}]
    about = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "ribs"}, "training": training}
    (folder / "dataset.json").write_text(json.dumps(about | {"test": ["./imagesTs/chest_2.nii.gz"]}))
    return folder


def test_a_file_a_class_is_joined_into_one_label_map(tmp_path, capsys) -> None:
    source, root = total_segmentator(tmp_path / "dataset"), tmp_path / "root"
    assert run("cohort", "add", source, "--name", "mine", "--data", root) == 0
    told = capsys.readouterr().err
    assert "thorax_cta has no file of " in told and "absent there" in told
    one, other = cohorts.list_cases(root, "mine")
    told = {"age": "", "gender": "f", "label_set": "thorax17"}
    assert (one.case_id, one.metadata) == ("chest_lowres", told) and one.label_set == other.label_set == "thorax17"
    assert other.image.resolve() == (REAL / "thorax_cta" / "ct.nii.gz").resolve() and other.metadata["age"] == "61"
    for case in (one, other):
        found, given = (volumes.read_labels(path) for path in (case.label, REAL / case.case_id / "labels.nii.gz"))
        for name, values in CLASSES[case.case_id].items():
            organ = {"rib": "ribs", "vertebrae": "vertebraes"}.get(name.split("_")[0], name)
            inside = found.array[np.isin(given.array, values)]
            assert (inside == THORAX[organ].id).all()
        assert set(np.unique(found.array)) <= {
            0,
            *(THORAX[name].id for name in ("aorta", "heart", "ribs", "vertebraes")),
        }
        np.testing.assert_allclose(found.affine, given.affine)


def test_other_label_sets_and_joins(tmp_path) -> None:
    source, root = total_segmentator(tmp_path / "dataset"), tmp_path / "root"
    shutil.rmtree(source / "chest_lowres")
    (source / "meta.csv").unlink()
    cohorts.add_cohort(root, "all", source, Brought(label_set="totalsegmentator"))
    labels = volumes.read_labels(cohorts.find_case(root, "all", "thorax_cta").label)
    assert set(np.unique(labels.array)) == {0, 51, 52}
    joins = tmp_path / "joins.csv"
    joins.write_text("part,organ\naorta,heart\nheart,heart\n")
    cohorts.add_cohort(root, "joined", source, Brought(joins=joins))
    labels = volumes.read_labels(cohorts.find_case(root, "joined", "thorax_cta").label)
    assert set(np.unique(labels.array)) == {0, THORAX["heart"].id}


@pytest.mark.parametrize("layout", [numbered, decathlon])
def test_datasets_with_a_description_keep_their_split(tmp_path, layout) -> None:
    assert cohorts.add_cohort(tmp_path / "root", "mine", layout(tmp_path / "dataset")) == (2, [])
    train, test = cohorts.list_cases(tmp_path / "root", "mine")
    assert [case.metadata["split"] for case in (train, test)] == ["train", "test"]
    volumes.check_grid(train.label, train.image)
    assert train.case_id == ("thorax_cta" if layout is numbered else "chest_1")
    assert (test.label is None) == (layout is decathlon)


def named_labels(folder: Path, labels: dict[str, Any]) -> Path:
    decathlon(folder)
    about = json.loads((folder / "dataset.json").read_text()) | {"labels": labels}
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder


NAMED = {"background": 0, "Ribs": 1, "Lung <Tumour>": 2} | {f"vertebra {number}": number for number in range(3, 8)}


def test_a_dataset_that_names_its_labels_brings_their_label_set(tmp_path, capsys) -> None:
    """`cohort check` told a cohort of tumours which lobes it had not."""
    root, source = tmp_path / "root", named_labels(tmp_path / "dataset", NAMED)
    cohorts.add_cohort(root, "mine", source)
    assert [case.label_set for case in cohorts.list_cases(root, "mine")] == ["mine", ""]
    organs = load_label_set("mine", root).organs
    assert [(organ.id, organ.name) for organ in organs][:3] == [(0, "background"), (1, "ribs"), (2, "lung_tumour")]
    assert (organs[1].color, organs[2].title) == (THORAX["ribs"].color, "Lung Tumour")
    assert run("cohort", "check", "mine", "--require", "ribs", "--format", "csv", "--data", root) == 0
    printed = capsys.readouterr()
    assert "lobe" not in printed.out and "1 of 2 cases hold ribs: chest_1" in printed.err
    assert run("cohort", "check", "mine", "--require", "aorta", "--data", root) == 2
    cohorts.add_cohort(root, "again", source)
    assert cohorts.list_cases(root, "again")[0].label_set == "mine"  # which is known by now


def test_the_label_set_of_metadata_comes_first(tmp_path) -> None:
    table = tmp_path / "about.csv"
    table.write_text("case_id,label_set\nchest_1,totalsegmentator\n")
    cohorts.add_cohort(tmp_path / "root", "mine", decathlon(tmp_path / "dataset"), Brought(metadata=table))
    assert cohorts.cohort_labels(tmp_path / "root", "mine", "thorax17").name == "totalsegmentator"


@pytest.mark.parametrize(
    ("labels", "notes"),
    [({"background": 0, "whole": [1, 2], "core": 2}, 0), ({"background": 0, "肿瘤": 1}, 1), ({}, 0)],
)
def test_labels_without_names_of_their_own_are_of_no_label_set(tmp_path, labels, notes) -> None:
    count, told = cohorts.add_cohort(tmp_path / "root", "mine", named_labels(tmp_path / "dataset", labels))
    assert (count, len(told)) == (2, notes)
    assert not any(case.label_set for case in cohorts.list_cases(tmp_path / "root", "mine"))
    assert cohorts.cohort_labels(tmp_path / "root", "mine", "thorax17").name == "thorax17"


def test_a_cohort_named_as_another_label_set_is_refused_and_leaves_no_label_set(tmp_path, monkeypatch) -> None:
    source = named_labels(tmp_path / "dataset", NAMED)
    with pytest.raises(InputError, match="no other set has"):
        cohorts.add_cohort(tmp_path / "root", "thorax17", source)
    monkeypatch.setattr(cohorts, "_write_new", lambda *_: (_ for _ in ()).throw(InputError("taken", "x")))
    with pytest.raises(InputError, match="taken"):
        cohorts.add_cohort(tmp_path / "root", "mine", source)
    assert not list((tmp_path / "root").rglob("*.csv"))


def test_label_maps_of_two_label_sets_are_no_cohort_to_check(tmp_path) -> None:
    for name, labels in (("a", "thorax17"), ("b", "totalsegmentator")):
        cohorts.append_case(tmp_path, "c", {"case_id": name, "image": "", "label": "x.nii", "label_set": labels})
    with pytest.raises(InputError, match="of one label set; got thorax17, totalsegmentator"):
        cohorts.cohort_labels(tmp_path, "c", "thorax17")


def test_the_first_nnunet_layout_lists_its_cases_and_numbers_its_files(tmp_path) -> None:
    folder = decathlon(tmp_path / "dataset")
    for path in [*folder.glob("images*/*.nii.gz")]:
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    cohorts.add_cohort(tmp_path / "root", "mine", folder)
    train, test = cohorts.list_cases(tmp_path / "root", "mine")
    assert (train.case_id, test.case_id) == ("chest_1", "chest_2") and train.label is not None


def flat(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        volumes.write_volume(folder / f"{name}.nii.gz", Volume(np.zeros((4, 4, 4), np.int16), np.eye(4)))
    return folder


def test_numbered_files_of_a_flat_folder_are_channels(tmp_path) -> None:
    """They became two cases."""
    names = "p1_0000", "p1_0001", "p2_0000", "p2_0001"
    source, labels = flat(tmp_path / "scans", *names), flat(tmp_path / "labels", "p1", "p2")
    assert cohorts.add_cohort(tmp_path / "root", "mine", source, Brought(labels)) == (2, [])
    one, two = cohorts.list_cases(tmp_path / "root", "mine")
    assert (one.case_id, two.case_id) == ("p1", "p2") and one.label == labels / "p1.nii.gz"
    assert [path.name for path in two.images] == ["p2_0000.nii.gz", "p2_0001.nii.gz"]
    with pytest.raises(InputError, match="p3 without _0001"):
        cohorts.add_cohort(tmp_path / "root", "other", flat(tmp_path / "more", *names, "p3_0000"))


@pytest.mark.parametrize(
    ("names", "told"),
    [(("p_0000", "p_0001"), "channels or cases"), (("p_0000", "p_0001", "q_0000", "q_0001", "r"), "got r")],
)
def test_numbers_that_may_be_channels_or_names_are_refused(tmp_path, names, told) -> None:
    with pytest.raises(InputError, match=told):
        cohorts.add_cohort(tmp_path / "root", "mine", flat(tmp_path / "scans", *names))


MANY = tuple(f"case_{number:04}" for number in range(9))


@pytest.mark.parametrize("names", [("p_0000", "q_0000"), ("p_0001", "p_0002"), MANY])
def test_numbers_that_tell_no_channels_are_of_the_names(tmp_path, names) -> None:
    cohorts.add_cohort(tmp_path / "root", "mine", flat(tmp_path / "scans", *names))
    assert [case.case_id for case in cohorts.list_cases(tmp_path / "root", "mine")] == [*names]


def _described(**about: Any) -> Any:
    def made(folder: Path) -> None:
        decathlon(folder)
        (folder / "dataset.json").write_text(json.dumps(about))

    return made


def _in_both_parts(folder: Path) -> None:
    numbered(folder)
    shutil.copy(folder / "imagesTr" / "thorax_cta_0000.nii.gz", folder / "imagesTs")


def _names_of_its_own(folder: Path) -> None:
    total_segmentator(folder)
    (folder / "meta.csv").write_text("image_id;case_id\nthorax_cta;chest_lowres\nchest_lowres;thorax_cta\n")


def _stray_metadata(folder: Path) -> None:
    total_segmentator(folder)
    (folder / "meta.csv").write_text("image_id;age\ns9999;5\n")


def _a_mask_elsewhere(folder: Path) -> None:
    total_segmentator(folder)
    mask = Volume(np.zeros((3, 3, 3), np.uint8), np.eye(4))
    volumes.write_volume(folder / "thorax_cta" / "segmentations" / "aorta.nii.gz", mask)


def _two_channels(folder: Path) -> None:
    numbered(folder)
    about = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {}}
    (folder / "dataset.json").write_text(json.dumps(about))


def _an_escape(folder: Path) -> None:
    decathlon(folder)
    (folder.parent / "secret.nii.gz").write_bytes(b"")
    (folder / "dataset.json").write_text(json.dumps({"training": [{"image": "../secret.nii.gz"}]}))


def _nothing_listed(folder: Path) -> None:
    folder.mkdir()
    (folder / "dataset.json").write_text("{}")


def _no_json(folder: Path) -> None:
    folder.mkdir()
    (folder / "dataset.json").write_text("[")


def _deep_json(folder: Path) -> None:
    folder.mkdir()
    (folder / "dataset.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (_stray_metadata, "metadata row must belong"), (_a_mask_elsewhere, "thorax_cta, aorta: labels must lie"),
        (_described(modality="CT"), "name the channels"), (_described(modality=["T1", "T2"]), "name the channels"),
        (_described(modality=3), "name the channels"), (_described(training=3), "list its training cases"),
        (_in_both_parts, "thorax_cta twice"), (_names_of_its_own, "a column case_id"),
        (_described(training=["\0"]), "beside it"), (_described(training=["x" * 300]), "beside it"),
        (_two_channels, "thorax_cta without _0001"), (_an_escape, "beside it"), (_nothing_listed, "imagesTr"),
        (_no_json, "readable JSON"), (_deep_json, "readable JSON"),
    ],
)  # fmt: skip
def test_a_dataset_that_does_not_serve_is_refused_and_leaves_nothing(tmp_path, capsys, made, told) -> None:
    made(tmp_path / "dataset")
    assert run("cohort", "add", tmp_path / "dataset", "--name", "mine", "--data", tmp_path / "root") == 2
    assert told in capsys.readouterr().err.splitlines()[-1]
    assert cohorts.list_cohorts(tmp_path / "root") == []
    assert not list((tmp_path / "root").rglob("*.nii.gz"))


def test_joins_into_no_organ_are_refused(tmp_path) -> None:
    joins = tmp_path / "joins.csv"
    joins.write_text("part,organ\naorta,liver\n")
    with pytest.raises(InputError, match="aorta into liver"):
        cohorts.add_cohort(tmp_path / "root", "m", total_segmentator(tmp_path / "dataset"), Brought(joins=joins))


# ---- cohort check ------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five cases: sound, the same again, thick without air, damaged, and one with a label that no organ has."""
    folder = tmp_path / "scans"
    (tmp_path / "labels").mkdir()
    folder.mkdir()
    rng = np.random.default_rng(0)
    array, affine = rng.integers(-1000, 1000, (8, 8, 8)).astype(np.int16), np.diag([2.0, 2.0, 2.0, 1.0])
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[2:4], labels[4:6] = THORAX["heart"].id, THORAX["aorta"].id
    for name in ("a", "b", "damaged", "strange"):
        volumes.write_volume(folder / f"{name}.nii.gz", Volume(array + (name == "strange"), affine))
        volumes.write_volume(tmp_path / "labels" / f"{name}.nii.gz", Volume(labels + 90 * (name == "strange"), affine))
    thick = np.diag([2.0, 2.0, 12.0, 1.0])
    volumes.write_volume(folder / "thick.nii.gz", Volume(np.abs(array), thick))
    volumes.write_volume(tmp_path / "labels" / "thick.nii.gz", Volume(np.minimum(labels, 1), thick))
    cohorts.add_cohort(tmp_path / "root", "c", folder, Brought(tmp_path / "labels"))
    content = (folder / "damaged.nii.gz").read_bytes()
    (folder / "damaged.nii.gz").write_bytes(content[: len(content) // 2])
    return tmp_path / "root"


def test_what_is_wrong_or_odd_is_told_case_by_case(root) -> None:
    checked = check_cohort(root, "c", THORAX, silent)
    rows = checked.table.set_index("case_id")
    assert not checked.sound and list(rows.index[rows["wrong"] != ""]) == ["damaged", "strange"]
    assert "90, 91, 98" in rows.loc["strange", "wrong"] and "gzip" in rows.loc["damaged", "wrong"]
    assert rows.loc["a", "odd"].startswith("no Left upper lobe") and rows.loc["a", "organs"] == 2
    assert rows.loc["b", "odd"].startswith("the voxels of a;")
    assert all(
        words in rows.loc["thick", "odd"] for words in ("12 mm", "6.0 times", "without air", "unusual field of view")
    )
    assert holding_all(checked, THORAX, "heart,aorta") == ["a", "b"] and holding_all(checked, THORAX, "all") == []
    with pytest.raises(InputError, match="liver"):
        holding_all(checked, THORAX, "liver")


def test_a_scan_is_the_same_however_it_is_stored(tmp_path) -> None:
    """Along other axes, as other numbers, with another text in its header."""
    array = np.random.default_rng(0).integers(-1000, 1000, (40, 40, 10)).astype(np.int16)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    (tmp_path / "scans").mkdir()
    for name in "abc":
        volumes.write_volume(tmp_path / "scans" / f"{name}.nii.gz", Volume(array + ord(name), affine))
    turned = np.ascontiguousarray(np.transpose(array + ord("a"), (2, 0, 1)))
    volumes.write_volume(tmp_path / "scans" / "d.nii.gz", Volume(turned, affine[:, [2, 0, 1, 3]]))
    again = nib.load(tmp_path / "scans" / "a.nii.gz")
    again.header["descrip"] = b"saved again"
    again.set_data_dtype(np.float32)
    nib.save(again, tmp_path / "scans" / "e.nii.gz")
    cohorts.add_cohort(tmp_path / "root", "c", tmp_path / "scans")
    odd = check_cohort(tmp_path / "root", "c", THORAX, silent).table.set_index("case_id")["odd"]
    assert odd.to_dict() == {"a": "", "b": "", "c": "", "d": "the voxels of a", "e": "the voxels of a"}


def test_the_command_prints_a_table_saves_a_list_and_fails_where_something_is_wrong(root, capsys) -> None:
    words = ("cohort", "check", "c", "--require", "heart,aorta", "--save", "whole", "--format", "csv", "--data", root)
    assert run(*words) == 2
    printed = capsys.readouterr()
    assert list(pd.read_csv(io.StringIO(printed.out))["case_id"]) == ["a", "b", "damaged", "strange", "thick"]
    assert "2 of 5 cases hold heart,aorta: a, b" in printed.err and "2 of 5 that cannot be used" in printed.err
    assert [(saved.name, saved.cases) for saved in list_lists(root, "c")] == [("whole", ("a", "b"))]
    assert run("cohort", "check", "c", "--save", "x", "--data", root) == 2
    assert run("cohort", "check", "gone", "--data", root) == 2


# ---- DICOM and NRRD ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chest() -> Volume:
    """A part of a real thick-slice CT."""
    whole = volumes.read_volume(REAL / "chest_lowres" / "ct.nii.gz")
    return Volume(whole.array[30:90, 40:90, :20].clip(-1024, 3000), whole.affine)


def oblique(volume: Volume) -> Volume:
    turn = np.deg2rad(12)
    rotation = np.eye(4)
    rotation[1:3, 1:3] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    return Volume(volume.array, rotation @ volume.affine)


@pytest.mark.parametrize("turned", [False, True], ids=["straight", "oblique"])
def test_a_dicom_series_becomes_the_scan_that_it_is(tmp_path, chest, turned, capsys) -> None:
    scan = oblique(chest) if turned else chest
    dicom(tmp_path / "dataset" / "Doe_Jane" / "ct", scan)
    dicom(tmp_path / "dataset" / "Roe_Rick", Volume(scan.array + 1, scan.affine), series="2", patient="Roe^Rick")
    assert run("cohort", "add", tmp_path / "dataset", "--name", "mine", "--data", tmp_path / "root") == 0
    found = [volumes.read_volume(case.image) for case in cohorts.list_cases(tmp_path / "root", "mine")]
    one = next(volume for volume in found if volume.array.min() == scan.array.min())
    moved = volumes.to_ras(one), volumes.to_ras(scan)
    np.testing.assert_allclose(moved[0].affine, moved[1].affine, atol=1e-3)
    np.testing.assert_array_equal(moved[0].array, moved[1].array)
    for path in (tmp_path / "root").rglob("*"):
        assert not any(word in str(path.relative_to(tmp_path)) for word in ("Doe", "Roe", "1.2.3"))
        if path.suffix == ".gz":
            assert b"Doe" not in gzip.decompress(path.read_bytes())[:400]
    assert "Doe" not in "".join(capsys.readouterr())


def test_slices_without_a_preamble_are_slices_too(tmp_path, chest) -> None:
    for path in dicom(tmp_path / "dataset", chest)[-3:]:
        path.write_bytes(path.read_bytes()[128 + 4 :])
    (tmp_path / "dataset" / "README").write_text("not a slice")
    cohorts.add_cohort(tmp_path / "root", "mine", tmp_path / "dataset")
    (case,) = cohorts.list_cases(tmp_path / "root", "mine")
    assert volumes.read_volume(case.image).array.shape == chest.array.shape


def test_a_series_that_memory_cannot_hold_is_refused_before_a_voxel_is_read(tmp_path, chest, monkeypatch) -> None:
    files = dicom(tmp_path / "dataset", chest)
    monkeypatch.setenv("AGG2EXP_MAX_GIB", "0.0001")
    monkeypatch.setattr(foreign, "_pixels", lambda path: pytest.fail("read"))
    with pytest.raises(InputError, match=r"fit the memory allowed; got \(60, 50, 20\) of float32"):
        foreign.read_series(files)


def _emptied(folder: Path, chest: Volume) -> None:
    """As a copy that broke off leaves it, at the end of the scan."""
    dicom(folder, chest)[-1].write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("PixelSpacing", None, "2 finite numbers"), ("PixelSpacing", [0, 0], "above 0"),
        ("PixelSpacing", [-1, 1], "above 0"), ("ImageOrientationPatient", None, "6 finite numbers"),
        ("ImageOrientationPatient", [0] * 6, "right angles"),
        ("ImageOrientationPatient", [1, 0, 0] * 2, "right angles"),
        ("ImageOrientationPatient", [1, 0, 0, 0.28, 0.96, 0], "right angles"),
        ("ImagePositionPatient", None, "3 finite numbers"), ("ImagePositionPatient", [0, 0], "3 finite numbers"),
        ("Rows", None, "finite number;"), ("RescaleSlope", None, "RescaleSlope of a slice must be 1"),
        ("NumberOfFrames", 2, "several frames"), ("RescaleSlope", 0, "must not be 0"),
    ],
)  # fmt: skip
def test_headers_that_do_not_say_where_a_slice_lies_are_refused(tmp_path, chest, capsys, name, value, told) -> None:
    for path in dicom(tmp_path / "dataset", Volume(chest.array[:, :, :3], chest.affine)):
        changed = pydicom.dcmread(path)
        setattr(changed, name, value)
        changed.save_as(path)
    assert run("cohort", "add", tmp_path / "dataset", "--name", "mine", "--data", tmp_path / "root") == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("field", "spoiled"),
    [
        (b"\x20\x00\x0e\x00UI", b"\x20\x00\x0e\x00ZZ"), (b"\x10\x00\x20\x00LO", b"\x10\x00\x20\x00ZZ"),
        (b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00FD"), (b"\x28\x00\x30\x00DS", b"\x28\x00\x30\x00\x44\xa9"),
        (b"\x28\x00\x00\x01US", b"\x28\x00\x00\x01FD"), (b"\x02\x00\x00\x00UL", b"\x02\x00\x00\x00BL"),
    ],
)  # fmt: skip
def test_damaged_headers_are_refused_in_one_line_that_tells_nothing_of_them(
    tmp_path, chest, capsys, field, spoiled
) -> None:
    """Kinds of values of series, patient, rows, spacing and bits, and the length of the file's own header."""
    for path in dicom(tmp_path / "dataset", Volume(chest.array[:, :, :3], chest.affine)):
        content = path.read_bytes()
        assert content.count(field) == 1
        path.write_bytes(content.replace(field, spoiled))
    assert run("cohort", "add", tmp_path / "dataset", "--name", "mine", "--data", tmp_path / "root") == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "DICOM" in told or "decodable" in told
    assert "Doe" not in told and "Traceback" not in told


@pytest.mark.parametrize("digits", [4, 2])
def test_directions_that_are_rounded_are_directions(tmp_path, chest, digits) -> None:
    scan = oblique(chest)
    for path in dicom(tmp_path / "dataset", scan):
        rounded = pydicom.dcmread(path)
        rounded.ImageOrientationPatient = [round(float(part), digits) for part in rounded.ImageOrientationPatient]
        rounded.NumberOfFrames = None
        rounded.save_as(path)
    cohorts.add_cohort(tmp_path / "root", "mine", tmp_path / "dataset")
    (case,) = cohorts.list_cases(tmp_path / "root", "mine")
    np.testing.assert_allclose(volumes.read_volume(case.image).spacing, scan.spacing, rtol=1e-4)


def _gap(folder: Path, chest: Volume) -> None:
    dicom(folder, chest)[5].unlink()


def _doubled(folder: Path, chest: Volume) -> None:
    dicom(folder, Volume(chest.array[:, :, :1], chest.affine))
    shutil.copy(next(folder.iterdir()), folder / "again.dcm")


def _two_patients(folder: Path, chest: Volume) -> None:
    for path in dicom(folder / "other", chest, patient="Roe^Rick")[:3]:
        shutil.move(path, folder / f"other-{path.name}")
    shutil.rmtree(folder / "other")
    dicom(folder, chest)


def _two_series(folder: Path, chest: Volume) -> None:
    dicom(folder, chest)
    for path in dicom(folder / "other", chest, series="2"):
        shutil.move(path, folder / f"other-{path.name}")
    shutil.rmtree(folder / "other")


def _tilted(folder: Path, chest: Volume) -> None:
    dicom(folder, chest, tilt=0.5)


def _beside(folder: Path, chest: Volume) -> None:
    """Some slices in the middle, from where the table was moved aside: the first and the last say nothing of them."""
    for path in dicom(folder, chest)[5:9]:
        moved = pydicom.dcmread(path)
        moved.ImagePositionPatient[0] += 40
        moved.save_as(path)


def _alone(folder: Path, chest: Volume) -> None:
    dicom(folder, Volume(chest.array[:, :, :1], chest.affine))


def _cut(folder: Path, chest: Volume) -> None:
    path = dicom(folder, chest)[3]
    path.write_bytes(path.read_bytes()[:-2000])


def _uneven(folder: Path, chest: Volume) -> None:
    paths = dicom(folder, chest)
    moved = pydicom.dcmread(paths[-1])
    moved.ImagePositionPatient[2] += 4
    moved.save_as(paths[-1])


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (_emptied, "must be DICOM; got 1 of 20"),
        (_gap, "dataset/ is left out: slices must be evenly spaced, none missing"),
        (_doubled, "two at one place"), (_two_patients, "one patient"),
        (_two_series, "one series"), (_tilted, "tilted by"), (_alone, "a file for each slice"), (_cut, "decodable"),
        (_uneven, "evenly spaced"), (_beside, "straight above each other"),
    ],
)  # fmt: skip
def test_a_series_that_is_no_scan_is_refused_and_leaves_nothing(tmp_path, chest, capsys, made, told) -> None:
    made(tmp_path / "dataset", chest)
    assert run("cohort", "add", tmp_path / "dataset", "--name", "mine", "--data", tmp_path / "root") == 2
    assert told in capsys.readouterr().err.splitlines()[-1]
    assert not [*(tmp_path / "root").rglob("mine*")]


def _without_place(folder: Path, chest: Volume) -> None:
    """A picture of a report."""
    for path in dicom(folder, Volume(chest.array[:, :, :1], chest.affine)):
        picture = pydicom.dcmread(path)
        del picture.PixelSpacing
        picture.save_as(path)


@pytest.mark.parametrize(
    ("made", "told"),
    [(_alone, "a file for each slice"), (_gap, "evenly spaced"), (_two_patients, "one patient"),
     (_emptied, "must be DICOM"), (_without_place, "a file without PixelSpacing")],
)  # fmt: skip
def test_a_series_that_is_no_scan_is_left_out_of_an_archives_export_and_told(
    tmp_path, chest, capsys, made, told
) -> None:
    """One scout refused the whole cohort."""
    made(tmp_path / "dataset" / "one" / "bad", chest)
    dicom(tmp_path / "dataset" / "one" / "good", chest, series="3")
    assert run("cohort", "add", tmp_path / "dataset", "--name", "mine", "--data", tmp_path / "root") == 0
    printed = capsys.readouterr()
    assert "one/bad/ is left out: " in printed.err and told in printed.err and "1 cases added" in printed.out
    (case,) = cohorts.list_cases(tmp_path / "root", "mine")
    assert [*case.image.parent.iterdir()] == [case.image]


def test_a_series_in_two_folders_is_left_out(tmp_path, chest) -> None:
    """Each may hold a half."""
    for name, series in (("a", "1"), ("b", "1"), ("c", "2")):
        dicom(tmp_path / "dataset" / name, chest, series=series)
    count, told = cohorts.add_cohort(tmp_path / "root", "mine", tmp_path / "dataset")
    assert count == 1 and [line.split("/")[0] for line in told] == ["a", "b"] and "there once" in told[0]


@pytest.mark.parametrize("space", ["left-posterior-superior", "right-anterior-superior", "LAS"])
def test_nrrd_scans(tmp_path, chest, space) -> None:
    signs = np.diag([1.0 if "right" in space else -1.0, -1.0 if "posterior" in space else 1.0, 1, 1])
    affine = signs @ chest.affine
    header = {"space": space if space != "LAS" else "left-anterior-superior"}
    header |= {"space directions": affine[:3, :3].T, "space origin": affine[:3, 3]}
    (tmp_path / "dataset").mkdir()
    nrrd.write(str(tmp_path / "dataset" / "chest.nrrd"), chest.array.astype(np.int16), header)
    cohorts.add_cohort(tmp_path / "root", "mine", tmp_path / "dataset")
    found = volumes.read_volume(cohorts.find_case(tmp_path / "root", "mine", "chest").image)
    np.testing.assert_array_equal(found.array, chest.array)
    np.testing.assert_allclose(found.affine, chest.affine, atol=1e-4)


def test_a_kill_while_scans_are_converted_leaves_the_name_free(tmp_path, chest, monkeypatch) -> None:
    (tmp_path / "dataset").mkdir()
    header = {"space": "RAS", "space directions": chest.affine[:3, :3].T, "space origin": chest.affine[:3, 3]}
    nrrd.write(str(tmp_path / "dataset" / "chest.nrrd"), chest.array.astype(np.int16), header)

    def adding() -> None:
        volumes.check_scan = lambda path: os.kill(os.getpid(), signal.SIGKILL)
        cohorts.add_cohort(tmp_path / "root", "mine", tmp_path / "dataset")

    killed = multiprocessing.get_context("fork").Process(target=adding)
    killed.start()
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    cohorts.add_cohort(tmp_path / "root", "mine", tmp_path / "dataset")
    scan = cohorts.find_case(tmp_path / "root", "mine", "chest").image
    assert scan == tmp_path / "root" / "cohorts" / "mine" / "converted_images" / "chest.nii.gz" and scan.is_file()


@pytest.mark.parametrize("content", [b"", b"NRRD0004\nencoding: raw\n\n", b"no nrrd"])
def test_a_damaged_nrrd_is_refused(tmp_path, capsys, content) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "chest.nrrd").write_bytes(content)
    assert run("cohort", "add", tmp_path / "dataset", "--name", "mine", "--data", tmp_path / "root") == 2
    assert "readable NRRD" in capsys.readouterr().err


NRRD = (b"NRRD0005\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 6 6 6\nendian: little\n"
        b"space directions: (2,0,0) (0,2,0) (0,0,2)\nspace origin: (0,0,0)\nencoding: raw\n\n")  # fmt: skip
VOXELS = np.arange(216, dtype="<i2").tobytes()


def added_nrrd(folder: Path, content: bytes) -> int:
    (folder / "dataset").mkdir()
    (folder / "dataset" / "chest.nrrd").write_bytes(content)
    return run("cohort", "add", folder / "dataset", "--name", "mine", "--data", folder / "root")


@pytest.mark.parametrize(("encoding", "pack"), [(b"raw", bytes), (b"gzip", gzip.compress), (b"bzip2", bz2.compress)])
def test_nrrd_voxels_are_unpacked(tmp_path, encoding, pack) -> None:
    told = NRRD.replace(b"encoding", b'space units: "mm" "mm" "mm"\nencoding')
    assert added_nrrd(tmp_path, told.replace(b"raw", encoding) + pack(VOXELS)) == 0
    found = volumes.read_volume(cohorts.find_case(tmp_path / "root", "mine", "chest").image).array
    np.testing.assert_array_equal(found, np.frombuffer(VOXELS, "<i2").reshape((6, 6, 6), order="F"))


@pytest.mark.parametrize("field", [b"data file", b"datafile"])
def test_a_nrrd_header_that_names_another_file_is_refused(tmp_path, capsys, field) -> None:
    (tmp_path / "secret.bin").write_bytes(VOXELS)
    named = field + b": " + bytes(tmp_path / "secret.bin")
    assert added_nrrd(tmp_path, NRRD.replace(b"\n\n", b"\n" + named + b"\n\n")) == 2
    assert "names another file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (NRRD.replace(b"6 6 6", b"60000 60000 60000") + VOXELS, "memory allowed"),
        (NRRD.replace(b"raw", b"gzip") + gzip.compress(VOXELS + bytes(10**6)), "more bytes"),
        (NRRD + VOXELS[:-2], "readable NRRD"), (NRRD + VOXELS + b"x", "more bytes"),
        (NRRD.replace(b"raw", b"gzip") + gzip.compress(VOXELS)[:-9], "readable NRRD"),
        (NRRD.replace(b"encoding", b'space units: "um" "um" "um"\nencoding') + VOXELS, "in millimetres; got um"),
        (NRRD.replace(b"raw", b"txt"), "packed in a known way"),
        (NRRD.replace(b"(2,0,0)", b"(0,2,0)") + VOXELS, "invertible"),
        (NRRD.replace(b"(2,0,0)", b"(nan,0,0)") + VOXELS, "finite"),
        (NRRD.replace(b"(2,0,0)", b"none") + VOXELS, "scan"),
        (NRRD.replace(b"(0,0,0)\n", b"(0,0)\n") + VOXELS, "with space directions and origin"),
    ],
)  # fmt: skip
def test_nrrd_voxels_are_as_many_as_the_header_declares(tmp_path, capsys, content, told) -> None:
    assert added_nrrd(tmp_path, content) == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_no_more_is_unpacked_than_a_nrrd_header_declares(tmp_path, monkeypatch) -> None:
    read, asked = gzip.GzipFile.read, []
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: asked.append(size) or read(self, size))
    (tmp_path / "chest.nrrd").write_bytes(NRRD.replace(b"raw", b"gzip") + gzip.compress(bytes(10**7)))
    with pytest.raises(InputError, match="more bytes"):
        foreign.read_nrrd(tmp_path / "chest.nrrd")
    assert asked == [6**3 * 8 + 1]
