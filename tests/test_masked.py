"""Attribution summed over masks: by hand, against the organs' own sums, in the views, and what is refused."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from command import run

from agg2exp_core import maps, masked, thinning, volumes
from agg2exp_core.aggregation.masks import on_grid
from agg2exp_core.aggregation.regions import count_voxels, region_sums
from agg2exp_core.mask_files import Masks, Reading
from agg2exp_core.records import Condition, InputError, Selection, SumTable, Volume
from agg2exp_core.store import catalog, cohorts, queries, region_sets, results

AFFINE = np.diag([-4.0, 4, 5, 1])
SHAPE = (6, 5, 4)
ORGANS = ("background", "aorta", "heart")
CASES = ("a", "b", "c", "d")
INFO = {
    "model": "m",
    "model_hash": "0",
    "method": "gradient",
    "parameters": {},
    "label_set": "thorax17",
    "values": "sums",
}


def silent(done: int, total: int, note: str) -> None: ...


def grid(array: object, affine: np.ndarray = AFFINE) -> Volume:
    return Volume(np.asarray(array), affine)


def explained(root: Path, case_id: str, saliency: np.ndarray, organs: np.ndarray, drawn: tuple[str, ...]) -> None:
    """A case of the run `r` whose targets aorta and heart have one and the same attribution."""
    positive, negative = region_sums(np.stack([saliency, saliency]), organs, 3)
    table = SumTable(("aorta", "heart"), ORGANS, positive, negative, count_voxels(organs, 3))
    manifest = {"case_id": case_id, "targets": ["aorta", "heart"]}
    with results.case_folder(root / "runs" / "c" / "r" / "cases" / case_id, manifest) as folder:
        results.write_importance(folder, table)
        results.write_agreement(folder, (), np.empty(0), np.empty(0))
        (folder / "saliency").mkdir()
        for target in drawn:
            volumes.write_volume(folder / "saliency" / f"{target}.nii.gz", grid(saliency.astype(np.float32)))


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(SHAPE).astype(np.float32), rng.integers(0, 3, SHAPE).astype(np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Cohort `c` of four cases: a and b have maps, c has sums alone, d is not explained. Masks: the aorta's voxels."""
    root = tmp_path / "root"
    (root / "cohorts" / "c").mkdir(parents=True)
    rows = "".join(f"{case_id},,,{30 + 10 * index}\n" for index, case_id in enumerate(CASES))
    (root / "cohorts" / "c" / "cases.csv").write_text(f"case_id,image,label,age\n{rows}")
    results.write_run(root, "c", "r", INFO)
    (tmp_path / "masks").mkdir()
    for seed, case_id in enumerate(CASES):
        saliency, organs = random_case(seed)
        if case_id != "d":
            explained(root, case_id, saliency, organs, ("heart",) if case_id in "ab" else ())
        volumes.write_volume(tmp_path / "masks" / f"{case_id}.nii.gz", grid(organs == 1))
    return root


def aggregate(root: Path, name: str = "lesion", **others: object) -> int:
    words = {"cohort": "c", "run": "r", "masks": root.parent / "masks", "data": root} | others
    said = (word for option, value in words.items() for word in (f"--{option}", value) if word != "")
    return run("aggregate", "--name", name, *said)


def test_maps_are_not_made_small_while_they_are_summed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at a case's maps and their sums, another process thins it: it waits for its turn."""
    folder = root / "runs" / "c" / "r" / "cases" / "a"
    sums = "SELECT sign, mass, mean FROM importance WHERE region_set = $name AND case_id = 'a' ORDER BY sign"
    assert aggregate(root, "alone") == 0
    verify, others = results.verify, list[threading.Thread]()

    def verify_and_be_thinned(of: Path, only: Iterable[str] | None = None) -> list[str]:
        found = verify(of, only)
        if of == folder and only is not None and not others:
            others.append(threading.Thread(target=thinning.thin_case, args=(folder,)))
            others[0].start()
            others[0].join(0.5)
        return found

    monkeypatch.setattr(results, "verify", verify_and_be_thinned)
    assert aggregate(root, "amid") == 0
    others[0].join()
    con = catalog.connect(root)
    alone, amid = (con.execute(sums, {"name": name}).fetchall() for name in ("alone", "amid"))
    assert len(alone) == 3 and alone == amid
    assert not results.full_maps(results.read_manifest(folder)) and not region_sets.complaints(folder.parents[1])


# ---- sums ------------------------------------------------------------------------------------------


def test_three_voxels_by_hand(tmp_path: Path) -> None:
    """Attribution 2, −1, 1; the mask holds the first two voxels: all of |a| is 4, on the mask 3."""
    root = tmp_path / "root"
    explained(root, "a", np.array([[[2.0, -1.0, 1.0]]]), np.array([[[1, 1, 0]]], np.uint8), ("heart",))
    volumes.write_volume(tmp_path / "a.nii.gz", grid(np.array([[[1, 1, 0]]], np.uint8)))
    masks = Masks(Reading("lesion"), {"a": {0: tmp_path / "a.nii.gz"}}, {1: "lesion"})
    (row,) = masked.case_sums(root / "runs" / "c" / "r" / "cases" / "a", masks, "a", ("heart",))
    assert (row.positive, row.negative, row.voxels) == (2, 1, 2)
    assert (row.positive_total, row.negative_total, row.absent) == (3, 1, "")


def test_the_views_give_shares_of_the_whole_and_means_per_voxel(tmp_path: Path) -> None:
    root = tmp_path / "root"
    cohorts.append_case(root, "c", {"case_id": "a", "image": "", "label": ""})
    results.write_run(root, "c", "r", INFO)
    explained(root, "a", np.array([[[2.0, -1.0, 1.0]]]), np.array([[[1, 1, 0]]], np.uint8), ("heart",))
    (tmp_path / "masks").mkdir()
    volumes.write_volume(tmp_path / "masks" / "a.nii.gz", grid(np.array([[[1, 1, 0]]], np.uint8)))
    assert aggregate(root) == 0
    sql = "SELECT target, region, sign, mass, mean, voxels, organ_mass FROM importance WHERE region_set = 'lesion'"
    found = sorted(catalog.connect(root).execute(sql).fetchall())
    assert found == [
        ("heart", "lesion", "abs", 0.75, 1.5, 2, None),
        ("heart", "lesion", "neg", 1.0, 0.5, 2, None),
        ("heart", "lesion", "pos", 2 / 3, 1.0, 2, None),
    ]


@pytest.mark.parametrize(("rounded", "tolerance"), [(True, 1e-3), (False, 1e-6)], ids=["float16", "float32"])
def test_a_mask_like_an_organ_has_the_organs_mass(root: Path, rounded: bool, tolerance: float) -> None:
    for seed, case_id in enumerate("ab"):
        saliency = random_case(seed)[0]
        folder = root / "runs" / "c" / "r" / "cases" / case_id
        with results.case_folder(folder, results.read_manifest(folder)) as new:
            results.write_importance(new, results.read_importance(folder))
            (new / "saliency").mkdir()
            kept = maps.half_precision(saliency) if rounded else saliency
            volumes.write_volume(new / "saliency" / "heart.nii.gz", grid(kept))
    assert aggregate(root) == 0
    sql = """
        SELECT m.mass, o.mass, m.mean / o.mean FROM importance m
        JOIN importance o USING (cohort, run, case_id, target, sign)
        WHERE m.region_set = 'lesion' AND o.region_set = 'organs' AND o.region = 'aorta'"""
    pairs = catalog.connect(root).execute(sql).fetchall()
    assert len(pairs) == 2 * 3
    for own, organs_own, ratio in pairs:
        assert own == pytest.approx(organs_own, abs=tolerance) and ratio == pytest.approx(1, abs=tolerance)


def test_overlapping_masks_and_organs_leave_the_partition_alone(root: Path) -> None:
    manifest = root / "runs" / "c" / "r" / "cases" / "a" / "manifest.json"
    before = manifest.read_bytes()
    assert aggregate(root) == aggregate(root, "again") == 0
    assert manifest.read_bytes() == before and results.verify(manifest.parent) == []
    con = catalog.connect(root)
    sums = con.execute("SELECT sum(mass) FROM importance WHERE region_set = 'organs' GROUP BY case_id, target, sign")
    assert np.allclose([row[0] for row in sums.fetchall()], 1)
    assert set(queries.box_stats(con, Selection("c", "r"), "heart")["region"]) == set(ORGANS)


def test_labels_on_another_grid_are_found_by_their_place_in_the_world() -> None:
    """Stored with flipped and swapped axes, twice as fine: each voxel of the grid lies in the block made of it."""
    labels = np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.uint8)
    fine = labels.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    affine = AFFINE.copy()
    affine[:3, :3] /= 2
    affine[:3, 3] = AFFINE[:3, :3] @ [-0.25, -0.25, -0.25]
    flipped = affine @ np.array([[-1, 0, 0, 11], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    swapped = flipped @ np.eye(4)[[1, 0, 2, 3]]
    mask = Volume(fine[::-1].transpose(1, 0, 2), swapped)
    assert np.array_equal(on_grid(mask, grid(np.zeros(SHAPE))), labels)


def test_a_mask_shifted_by_less_than_half_a_voxel_keeps_its_border() -> None:
    labels, affine = np.ones(SHAPE, np.uint8), AFFINE.copy()
    affine[:3, 3] = AFFINE[:3, :3] @ [0.4, -0.4, 0.4]
    assert on_grid(grid(labels, affine), grid(np.zeros(SHAPE))).all()


# ---- names, what is absent, what is left out -------------------------------------------------------


def write_masks(root: Path, *arrays: np.ndarray) -> Path:
    folder = root.parent / "masks"
    for path in folder.iterdir():
        path.unlink()
    for case_id, array in zip(CASES, arrays, strict=False):
        volumes.write_volume(folder / f"{case_id}.nii.gz", grid(array.astype(np.uint8)))
    return folder


def rows_of(root: Path, name: str = "lesion") -> dict[tuple[str, str], tuple[int, str | None]]:
    """(case, region) → voxels and reason, of the heart."""
    sql = "SELECT case_id, region, voxels, absent FROM importance WHERE region_set = $1 AND sign = 'abs'"
    return {row[:2]: row[2:] for row in catalog.connect(root).execute(sql, [name]).fetchall()}


def test_labels_are_named_by_number_or_by_names_csv(root: Path) -> None:
    one, two = np.zeros(SHAPE), np.zeros(SHAPE)
    one[0, 0], two[0, 0, :2], two[1] = 1, 1, 7
    folder = write_masks(root, one, two)
    assert aggregate(root) == 0
    assert set(rows_of(root)) == {(case, f"lesion {label}") for case in "ab" for label in (1, 7)}
    (folder / "names.csv").write_text("id,name\n1,effusion\n7,nodule\n9,metal\n")
    assert aggregate(root) == 0
    found = rows_of(root)
    assert found["a", "effusion"] == (4, None) and found["b", "nodule"] == (20, None)
    assert found["a", "nodule"] == (0, "not in the mask") and found["b", "metal"] == (0, "not in the mask")


def shares_of(root: Path, name: str = "lesion") -> dict[str, tuple[float, int]]:
    """Of the heart's attribution in case a: mass and voxels of each region that is there."""
    sql = """
        SELECT region, mass, voxels FROM importance
        WHERE region_set = $1 AND case_id = 'a' AND sign = 'abs' AND absent IS NULL"""
    return {row[0]: row[1:] for row in catalog.connect(root).execute(sql, [name]).fetchall()}


def by_hand(inside: np.ndarray) -> tuple[float, int]:
    saliency = np.abs(random_case(0)[0].astype(np.float64))
    return pytest.approx(float(saliency[inside].sum() / saliency.sum()), abs=1e-6), int(inside.sum())


def boxes() -> tuple[np.ndarray, np.ndarray]:
    """Two regions that overlap."""
    one, two = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    one[1:4], two[2:6, :3] = True, True
    return one, two


def write_logits(root: Path, *channels: np.ndarray) -> None:
    """Of case a, in the place of all masks; one channel is a 3D file."""
    for path in (root.parent / "masks").iterdir():
        path.unlink()
    array = np.stack(channels, axis=-1).astype(np.float32)
    nib.save(nib.Nifti1Image(array[..., 0] if len(channels) == 1 else array, AFFINE), root.parent / "masks/a.nii.gz")


def test_regions_of_files_of_their_own_may_overlap(root: Path) -> None:
    one, two = boxes()
    for path in (root.parent / "masks").iterdir():
        path.unlink()
    (root.parent / "masks" / "a").mkdir()
    for name, inside in (("effusion", one), ("nodule", two)):
        volumes.write_volume(root.parent / "masks" / "a" / f"{name}.nii.gz", grid(inside.astype(np.uint8)))
    assert aggregate(root) == 0
    assert shares_of(root) == {"effusion": by_hand(one), "nodule": by_hand(two)}
    assert aggregate(root, "both", joined="") == 0
    assert shares_of(root, "both") == {"both": by_hand(one | two)}  # what lies in both counts once
    assert aggregate(root, "nodules", ids="2") == 0 and shares_of(root, "nodules") == {"nodule": by_hand(two)}
    volumes.write_volume(root.parent / "masks" / "a" / "nodule.nii.gz", grid(np.where(two, 0.5, -2).astype(np.float32)))
    assert aggregate(root, "logits", logits="overlapping") == 0
    assert shares_of(root, "logits") == {"effusion": by_hand(one), "nodule": by_hand(two)}


def test_logits_are_masks_by_the_largest_or_each_above_zero(root: Path) -> None:
    one, two = boxes()
    write_logits(root, np.zeros(SHAPE), np.where(one, 2.0, -1.0), np.where(two, 3.0, -1.0))
    (root.parent / "masks" / "names.csv").write_text("id,name\n1,effusion\n2,nodule\n")
    assert aggregate(root, logits="exclusive") == 0
    assert shares_of(root) == {"effusion": by_hand(one & ~two), "nodule": by_hand(two)}
    assert aggregate(root, "nodules", logits="exclusive", ids="2") == 0
    assert shares_of(root, "nodules") == {"nodule": by_hand(two)}
    write_logits(root, np.where(one, 0.1, -0.1), np.where(two, 3.0, 0.0))
    assert aggregate(root, "split", logits="overlapping") == 0
    assert shares_of(root, "split") == {"split 1": by_hand(one), "split 2": by_hand(two)}
    write_logits(root, np.where(one, 0.1, -0.1))
    assert aggregate(root, "alone", logits="overlapping") == 0 and shares_of(root, "alone") == {"alone": by_hand(one)}


def _both_kinds(root: Path) -> None:
    (root.parent / "masks" / "b").mkdir()
    volumes.write_volume(root.parent / "masks" / "b" / "nodule.nii.gz", grid(np.ones(SHAPE, np.uint8)))


def _several_channels_of_a_region(root: Path) -> None:
    write_logits(root, *np.ones((2, *SHAPE)))
    (root.parent / "masks" / "a").mkdir()
    (root.parent / "masks" / "a.nii.gz").rename(root.parent / "masks" / "a" / "nodule.nii.gz")


@pytest.mark.parametrize(
    ("spoil", "more", "told"),
    [
        (_several_channels_of_a_region, {"logits": "overlapping"}, "must hold one channel; got a/nodule.nii.gz with 2"),
        (_several_channels_of_a_region, {"logits": "exclusive"}, "exclusive logits must be channels of one file"),
        (_both_kinds, {}, "masks must be a file a case or a folder a case"),
        (lambda root: write_logits(root, np.ones(SHAPE)), {"logits": "exclusive"}, "a channel for no region"),
        (lambda root: write_logits(root, np.full(SHAPE, 0.5)), {}, "or logits with --logits"),
        (lambda root: write_logits(root, *np.ones((2, *SHAPE))), {}, "sound label map"),
        (lambda root: write_logits(root, np.full(SHAPE, np.nan)), {"logits": "overlapping"}, "finite"),
        (lambda _: None, {"logits": "sigmoid"}, "got 'sigmoid'; allowed: exclusive, overlapping"),
        (lambda _: None, {"ids": "3"}, "ids must be labels of the masks; got 3; allowed: 1"),
        (lambda _: None, {"ids": "-1"}, "--ids must be whole numbers"),
    ],
)
def test_masks_that_are_not_what_was_said_are_refused(root: Path, capsys, spoil, more, told) -> None:
    spoil(root)
    assert aggregate(root, **more) == 2
    assert told in capsys.readouterr().err and nothing_written(root)


def test_a_set_of_other_regions_in_some_cases_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = np.zeros(SHAPE)
    both[0, 0], both[1] = 1, 7
    folder = write_masks(root, both, both)
    assert aggregate(root) == 0
    before = rows_of(root)
    (folder / "a.nii.gz").unlink()
    assert aggregate(root, ids="7") == 2
    told = "the same regions in every case; got lesion, where a has lesion 1, lesion 7; allowed: another --name"
    assert told in capsys.readouterr().err and rows_of(root) == before
    assert aggregate(root) == 0 and aggregate(root, "one", ids="7") == 0


def test_an_empty_mask_is_absent_and_never_zero(root: Path) -> None:
    write_masks(root, np.zeros(SHAPE), np.ones(SHAPE))
    assert aggregate(root) == 0
    con = catalog.connect(root)
    sql = "SELECT mass, mean, absent FROM importance WHERE region_set = 'lesion' AND case_id = $1"
    assert set(con.execute(sql, ["a"]).fetchall()) == {(None, None, "the mask is empty")}
    assert {row[0] for row in con.execute(sql, ["b"]).fetchall()} == {1.0}  # all of the scan has all of it
    table = queries.case_masked(con, Selection("c", "r"), "a", "heart")
    assert table[["region", "absent"]].to_numpy().tolist() == [["lesion", "the mask is empty"]]


def test_a_mask_that_falls_between_the_voxels_says_so(root: Path) -> None:
    speck = np.zeros((24, 20, 16), np.uint8)
    speck[2, 2, 2] = 1
    affine = AFFINE.copy()
    affine[:3, :3] /= 4
    volumes.write_volume(root.parent / "masks" / "a.nii.gz", Volume(speck, affine))
    assert aggregate(root) == 0
    assert rows_of(root)["a", "lesion"] == (0, "too small for the model's grid")


def test_maps_that_are_only_to_look_at_are_not_summed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = results.case_path(root, "c", "r", "a") / "manifest.json"
    path.write_text(json.dumps(results._sealed(json.loads(path.read_text()) | {"viewing": ["heart"]})))
    assert aggregate(root) == 0
    said = capsys.readouterr().out
    assert "left out, maps only to look at: explain with --saliency-dtype float16: 1 cases (a)" in said
    assert {case for case, _ in rows_of(root)} == {"b"}


def test_sums_hold_when_their_maps_are_made_small(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And no longer once the attribution is another; a damaged case is refused and stays as it is."""
    assert aggregate(root) == 0
    folder = root / "runs" / "c" / "r"
    before, full = region_sets.read(folder), volumes.read_volume(folder / "cases" / "a" / "saliency" / "heart.nii.gz")
    broken = folder / "cases" / "b" / "agreement.csv"
    broken.write_text("")
    assert run("thin", "--cohort", "c", "--run", "r", "--data", root) == 2
    said = capsys.readouterr()
    assert "1 maps made small" in said.out and "b: a case's results must be as its manifest says" in said.err
    assert region_sets.read(folder).equals(before) and results.verify(folder / "cases" / "a") == []
    manifest = results.read_manifest(folder / "cases" / "a") or {}
    assert manifest["viewing"] == ["heart"] and results.full_maps(manifest) == []
    drawn = volumes.read_volume(folder / "cases" / "a" / "saliency" / "heart.nii.gz")
    assert np.abs(drawn.array - full.array).max() <= 0.5 * np.abs(full.array).max()
    assert "heart" in (results.read_manifest(folder / "cases" / "b") or {})["targets"]
    explained(root, "a", *random_case(7), ("heart",))
    assert set(region_sets.read(folder)["case_id"].to_pylist()) == {"b"}


def test_what_is_left_out_is_counted_with_its_reason(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root.parent / "masks" / "b.nii.gz").unlink()
    assert aggregate(root) == 0
    assert capsys.readouterr().out.splitlines() == [
        "region set lesion (lesion): 1 cases, 1 targets of them summed",
        "left out, no stored attribution map: 1 targets of these cases",
        "left out, no mask: 1 cases (b)",
        "left out, no stored attribution map: 1 cases (c)",
        "left out, not explained in this run: 1 cases (d)",
    ]
    assert set(rows_of(root)) == {("a", "lesion")}


def test_rows_name_what_they_were_made_of(root: Path) -> None:
    aggregate(root)
    header, row = (root / "runs/c/r/regions/lesion/a.csv").read_text().splitlines()
    assert header.split(",") == list(region_sets.COLUMNS)
    manifest = json.loads((root / "runs/c/r/cases/a/manifest.json").read_text())
    assert row.split(",")[-2:] == [
        volumes.content_sha256(root.parent / "masks" / "a.nii.gz"),
        manifest["files"]["saliency/heart.nii.gz"]["sha256"],
    ]


def test_sums_of_an_attribution_computed_anew_are_left_out(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    aggregate(root)
    before = catalog.refresh(root)
    explained(root, "a", *random_case(9), ("heart",))
    with caplog.at_level(logging.WARNING):
        assert set(rows_of(root)) == {("b", "lesion")}
    assert "lesion of a: its attribution was computed anew" in caplog.text and catalog.refresh(root) != before
    assert aggregate(root) == 0 and len(rows_of(root)) == 2


def test_a_damaged_file_of_a_region_set_hides_no_other(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    aggregate(root)
    (root / "runs/c/r/regions/lesion/a.csv").write_text("target,region\nheart\n")
    assert set(rows_of(root)) == {("b", "lesion")} and "lesion of a" in caplog.text


# ---- what pages ask --------------------------------------------------------------------------------


def test_what_pages_ask(root: Path) -> None:
    con = catalog.connect(root)
    empty = Selection("c", "r")
    assert queries.region_sets(con, "c", "r").empty and queries.masked_values(con, empty, "heart").empty
    before = catalog.refresh(root)
    aggregate(root)
    assert catalog.refresh(root) != before
    con = catalog.connect(root)
    (only,) = queries.region_sets(con, "c", "r").to_dict("records")
    assert only == {"region_set": "lesion", "regions": ["lesion"], "cases": 2}
    values = queries.masked_values(con, empty, "heart").set_index("case_id")["value"]
    own = queries.case_importance(con, empty, "a", "heart").set_index("region").at["aorta", "value"]
    assert list(values.index) == ["a", "b"] and values["a"] == pytest.approx(own, abs=1e-6)
    old = Selection("c", "r", background=False, where=(Condition("age", low=35.0),))
    assert queries.masked_values(con, old, "heart")["case_id"].tolist() == ["b"]
    (row,) = queries.case_masked(con, old, "a", "heart").to_dict("records")
    assert (row["region_set"], row["value"]) == ("lesion", values["a"])
    assert row["median"] == pytest.approx(values.median()) and row["percentile"] == 100 * (values["b"] < values["a"])
    assert queries.case_masked(con, empty, "c", "heart").empty
    assert queries.case_masked(con, empty, "a", "aorta").empty
    with pytest.raises(InputError, match="case must be known"):
        queries.case_masked(con, empty, "z", "heart")
    with pytest.raises(InputError, match="target must be known"):
        queries.masked_values(con, empty, "liver")


# ---- refusals --------------------------------------------------------------------------------------


def nothing_written(root: Path) -> bool:
    return not (root / "runs" / "c" / "r" / "regions").exists()


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"run": "gone"}, "run must be one of cohort c; got 'gone'; allowed: r"),
        ({"cohort": "gone"}, "run must be one of cohort gone"),
        ({"masks": "/nowhere"}, "a folder must be there"),
        ({"name": "organs"}, "a region set of masks needs a name of its own"),
        ({"name": "../up"}, "region set must be 1 to 64"),
    ],
)
def test_wrong_names_are_refused_in_one_line(
    root: Path, capsys: pytest.CaptureFixture[str], others: dict[str, str], said: str
) -> None:
    assert aggregate(root, **others) == 2
    printed = capsys.readouterr().err.strip()
    assert said in printed and "\n" not in printed and nothing_written(root)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.where(np.arange(120).reshape(SHAPE) == 3, np.nan, 1.0), "a.nii.gz: labels must be whole numbers"),
        (np.full(SHAPE, 0.5), "labels must be whole numbers; got fractions"),
        (np.full(SHAPE, -1.0), "labels must be whole numbers"),
        (np.arange(7 * 7 * 7).reshape(7, 7, 7), "a mask must be binary or hold few labels"),
    ],
    ids=["NaN", "fractions", "negative", "a scan"],
)
def test_what_is_no_mask_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str], array: np.ndarray, said: str
) -> None:
    volumes.write_volume(root.parent / "masks" / "a.nii.gz", grid(array.astype(np.float32)))
    assert aggregate(root) == 2
    printed = capsys.readouterr().err.strip()
    assert said in printed and "\n" not in printed and nothing_written(root)


def test_a_mask_of_no_case_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volumes.write_volume(root.parent / "masks" / "stranger.nii.gz", grid(np.ones(SHAPE, np.uint8)))
    assert aggregate(root) == 2
    assert "every mask must be named as a case of cohort c; got stranger" in capsys.readouterr().err
    assert nothing_written(root)


def test_a_mask_beside_the_scan_is_refused_and_stops_no_other(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    affine = AFFINE.copy()
    affine[:3, 3] = 5000
    volumes.write_volume(root.parent / "masks" / "a.nii.gz", grid(np.ones(SHAPE, np.uint8), affine))
    assert aggregate(root) == 2
    printed = capsys.readouterr().err
    assert "a: a mask must lie on its case's scan" in printed and "1 of 4 refused, the others are done" in printed
    assert set(rows_of(root)) == {("b", "lesion")}


def test_a_damaged_map_is_not_summed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = root / "runs/c/r/cases/a/saliency/heart.nii.gz"
    path.write_bytes(path.read_bytes()[:-9])
    assert aggregate(root) == 2
    assert "a: a case's results must be as its manifest says" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("id,name\n2,nodule\n", "names.csv must name every label of the masks; got 1"),
        ("id,name\n1,nodule\n2,nodule\n", "each by a name of its own"),
        ("id,name\n1,nodule\n-2,metal\n", "names.csv needs whole numbers as ids"),
        ("label,name\n1,nodule\n", "a CSV needs the columns id, name"),
    ],
)
def test_names_that_do_not_name_the_labels_are_refused(
    root: Path, capsys: pytest.CaptureFixture[str], names: str, said: str
) -> None:
    (root.parent / "masks" / "names.csv").write_text(names)
    assert aggregate(root) == 2
    assert said in capsys.readouterr().err and nothing_written(root)


def test_masks_without_any_stored_attribution_are_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for case_id in "ab":
        (root.parent / "masks" / f"{case_id}.nii.gz").unlink()
    assert aggregate(root) == 2
    expected = "a region set needs a case with a mask and a stored attribution map; got no stored attribution map, not"
    assert expected in capsys.readouterr().err and nothing_written(root)
