"""Phantoms: the same bits for a seed, organs where they belong, tissue of real HU, and planted findings that show."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from agg2exp_core import phantom
from agg2exp_core.organs import load_label_set
from agg2exp_core.phantom import DEMO, PLANTED, generate, write_cohort
from agg2exp_core.records import InputError, Volume
from agg2exp_core.volumes import read_labels, read_volume, to_ras, write_volume

ORGANS = load_label_set("thorax17")
HU_RANGES = {
    "aorta": (30, 420),
    "lung_upper_lobe_left": (-920, -700),
    "lung_lower_lobe_left": (-920, -700),
    "lung_upper_lobe_right": (-920, -700),
    "lung_middle_lobe_right": (-920, -700),
    "lung_lower_lobe_right": (-920, -700),
    "trachea": (-1000, -600),
    "heart": (30, 300),
    "pulmonary_vein": (0, 350),
    "thyroid_gland": (70, 140),
    "ribs": (200, 600),
    "vertebraes": (150, 500),
    "autochthon_left": (30, 90),
    "autochthon_right": (30, 90),
    "sternum": (120, 450),
    "costal_cartilages": (80, 280),
}

ordinary = cache(generate)


def centre(labels: Volume, *names: str) -> np.ndarray:
    """World centre (RAS mm) of organs, by the affine as stored."""
    index = np.argwhere(np.isin(labels.array, [ORGANS[name].id for name in names])).mean(axis=0)
    return (labels.affine @ [*index, 1])[:3]


@pytest.mark.parametrize("seed", [3, 106])
def test_a_seed_gives_the_same_bits_and_another_one_another_patient(seed):
    first, again = ordinary(seed), generate(seed)
    assert first.image.array.tobytes() == again.image.array.tobytes()
    assert first.labels.array.tobytes() == again.labels.array.tobytes()
    assert first.metadata == again.metadata
    assert first.image.array.tobytes() != ordinary(seed + 1).image.array.tobytes()


@pytest.mark.parametrize("seed", [1, 2, 13, 21, 101, 10_000])
def test_every_organ_is_there_in_tissue_of_its_own(seed):
    case = ordinary(seed)
    assert case.image.array.dtype == np.int16
    assert case.labels.array.dtype == np.uint8
    assert case.labels.array.max() < len(ORGANS.names)
    for name, (low, high) in HU_RANGES.items():
        inside = case.image.array[case.labels.array == ORGANS[name].id]
        assert inside.size * np.prod(case.image.spacing) > 10_000, name
        # The median: in thin organs most voxels are partly something else.
        assert low < np.median(inside) < high, name
    extent = np.array(case.image.array.shape) * case.image.spacing
    assert (extent <= [380, 280, 310]).all()


@pytest.mark.parametrize("seed", [1, 5])
def test_organs_lie_on_their_side_front_and_top_in_the_world(seed):
    labels = ordinary(seed).labels
    assert centre(labels, "lung_upper_lobe_left", "lung_lower_lobe_left")[0] < -30
    assert centre(labels, "lung_upper_lobe_right", "lung_lower_lobe_right")[0] > 30
    assert centre(labels, "autochthon_left")[0] < 0 < centre(labels, "autochthon_right")[0]
    spine, heart = centre(labels, "vertebraes"), centre(labels, "heart")
    assert heart[0] < spine[0]
    assert centre(labels, "sternum")[1] > heart[1] > spine[1]
    assert centre(labels, "thyroid_gland")[2] > centre(labels, "trachea")[2] > heart[2]
    middle = centre(labels, "lung_middle_lobe_right")
    assert centre(labels, "lung_lower_lobe_right")[1] < middle[1]
    assert centre(labels, "lung_upper_lobe_right")[2] > middle[2]


def test_scans_are_stored_in_both_orientations_and_show_the_same_world():
    signs = {tuple(np.sign(np.diag(ordinary(seed).image.affine)[:3])) for seed in range(1, 11)}
    assert signs == {(-1, -1, 1), (1, 1, 1)}
    stored = ordinary(1).labels
    turned = to_ras(stored)
    assert np.allclose(centre(stored, "heart"), centre(turned, "heart"))


@pytest.mark.parametrize("planted", ["pleural effusion", "consolidation", "metal"])
def test_lesions_have_a_mask_where_the_scan_differs(planted):
    plain, ill = ordinary(102), generate(102, planted)
    assert ill.pathology is not None
    mask = ill.pathology.array.astype(bool)
    assert mask.sum() * np.prod(ill.image.spacing) > 5_000
    change = np.abs(ill.image.array.astype(int) - plain.image.array)
    assert change[mask].mean() > 300 > 20 * change[~mask].mean()
    assert (plain.pathology, ill.metadata["planted"]) == (None, planted)


def test_fluid_is_no_lung_and_consolidation_still_is():
    plain = ordinary(102).labels.array
    for planted, keeps in (("pleural effusion", False), ("consolidation", True)):
        ill = generate(102, planted)
        within = ill.pathology.array.astype(bool)
        assert np.array_equal(ill.labels.array[within], plain[within]) == keeps
        assert np.array_equal(ill.labels.array[~within], plain[~within])


def test_a_mirrored_scan_shows_the_left_lung_on_the_right():
    labels = generate(5, "mirrored").labels
    assert centre(labels, "lung_upper_lobe_left")[0] > 30
    assert centre(labels, "lung_upper_lobe_right")[0] < -30
    assert np.array_equal(labels.array[::-1], ordinary(5).labels.array)


def test_a_cut_field_of_view_keeps_its_place_in_the_world():
    plain, cut = to_ras(ordinary(5).labels), to_ras(generate(5, "cropped field of view").labels)
    assert np.prod(cut.array.shape) < 0.6 * np.prod(plain.array.shape)
    first = np.rint(np.linalg.inv(plain.affine) @ cut.affine[:, 3])[:3].astype(int)
    there = tuple(slice(a, a + n) for a, n in zip(first, cut.array.shape, strict=True))
    assert np.array_equal(plain.array[there], cut.array)


def test_low_dose_is_noisier_and_the_contrast_phase_unusual():
    plain, noisy, early = ordinary(5), generate(5, "low dose"), generate(5, "contrast phase")
    muscle = plain.labels.array == ORGANS["autochthon_left"].id
    # Between quartiles, so that the muscle's edges do not count as noise.
    few, many = (np.subtract(*np.percentile(case.image.array[muscle], [75, 25])) for case in (plain, noisy))
    assert many > 3 * few
    aorta = plain.labels.array == ORGANS["aorta"].id
    assert early.image.array[aorta].mean() < 120
    assert early.image.array.max() > 600
    assert np.array_equal(early.labels.array, plain.labels.array)


def test_what_cannot_be_planted_is_refused():
    with pytest.raises(InputError, match="low dose"):
        generate(1, "a fracture")


def test_a_cohort_written_twice_is_left_alone(tmp_path: Path, monkeypatch):
    plan = [("a", 3, ""), ("b", 102, "pleural effusion")]
    counted = []
    write_cohort(tmp_path, plan, workers=2, progress=lambda done, total: counted.append((done, total)))
    files = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*.nii.gz")}
    table = (tmp_path / "cases.csv").read_text()
    write_cohort(tmp_path, plan, workers=1)
    assert files == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*.nii.gz")}
    assert (tmp_path / "cases.csv").read_text() == table
    assert table.splitlines()[0] == "case_id,image,label,pathology_mask,age,sex,scanner,planted"
    assert table.splitlines()[2].startswith("b,images/b.nii.gz,labels/b.nii.gz,pathology/b.nii.gz,")
    names = (tmp_path / "pathology" / "names.csv").read_text().splitlines()
    assert names == ["id,name", "1,pleural effusion", "2,consolidation", "3,metal"]
    assert np.unique(read_labels(tmp_path / "pathology" / "b.nii.gz").array).tolist() == [0, 1]
    (tmp_path / "cases.csv").write_text("mine")
    write_cohort(tmp_path, plan, workers=1)
    assert (tmp_path / "cases.csv").read_text() == "mine"
    assert counted == [(1, 2), (2, 2)]
    assert len(files) == 5


def test_a_mask_that_does_not_say_which_lesion_it_is_is_made_again(tmp_path: Path):
    for part in ("images", "labels", "pathology"):
        (tmp_path / part).mkdir()
        write_volume(tmp_path / part / "b.nii.gz", Volume(np.ones((3, 3, 3), np.uint8), np.eye(4)))
    write_cohort(tmp_path, [("b", 102, "metal")], workers=1)
    assert np.unique(read_labels(tmp_path / "pathology" / "b.nii.gz").array).tolist() == [0, 3]


def test_a_written_case_reads_back(tmp_path: Path):
    write_cohort(tmp_path, [("a", 3, "")], workers=1)
    case, scan = ordinary(3), read_volume(tmp_path / "images" / "a.nii.gz")
    assert np.array_equal(scan.array, case.image.array)
    assert np.allclose(scan.affine, case.image.affine, atol=1e-4)
    assert np.array_equal(read_labels(tmp_path / "labels" / "a.nii.gz", scan).array, case.labels.array)


def test_the_demo_has_everything_planted_and_seeds_of_its_own():
    reference, clinic = DEMO["reference"], DEMO["clinic"]
    assert (len(reference), len(clinic)) == (24, 16)
    assert {planted for _, _, planted in clinic} == {"", *PLANTED}
    seeds = [seed for plan in DEMO.values() for _, seed, _ in plan]
    seeds += [seed for _, seed, _ in phantom.training_plan(100, 10_000)]
    assert len(set(seeds)) == len(seeds)
