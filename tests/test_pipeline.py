"""A case end to end: geometry, files, what is computed again and what is not, and the command line's refusals."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from command import run
from nibabel.processing import resample_from_to
from tiny import CLASSES, threshold_net, write_bundle

from agg2exp_core import maps, pipeline, volumes
from agg2exp_core.aggregation.regions import mass
from agg2exp_core.attribution.attribute import Explanation
from agg2exp_core.organs import load_label_set, made_label_set, write_label_set
from agg2exp_core.records import InputError, Method, SumTable, Volume
from agg2exp_core.settings import checked_id
from agg2exp_core.store import results
from agg2exp_core.store.cohorts import Case

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "real"
GRADIENT = Method("gradient")
IDS = np.array([load_label_set("thorax17")[name].id for name in CLASSES], np.uint8)
"""What label maps call the classes that `tiny` has as 0, 1 and 2."""


def silent(done: int, total: int, note: str) -> None: ...


@pytest.fixture
def root(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    write_bundle(tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """18 × 14 × 12 voxels, anisotropic and oblique, with a bright blob in one corner."""
    rng = np.random.default_rng(0)
    array = rng.normal(-300, 200, (18, 14, 12)).astype(np.int16)
    array[10:16, 3:8, 2:7] += 600
    affine = np.diag([4.0, 4.0, 5.0, 1.0])
    turn = np.deg2rad(8)
    affine[:2, :2] = 4 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    affine[:3, 3] = (-40, 25, 300)
    volumes.write_volume(tmp_path / "scan.nii.gz", Volume(array, affine))
    return tmp_path / "scan.nii.gz"


def explain(root: Path, image: Path, out: Path, plan: pipeline.Plan, label: Path | None = None) -> Path:
    return pipeline.Explaining(root, plan).case(Case("case", image, label, {}), out, silent)


def test_masses_sum_to_one_and_all_files_are_there(root, scan, tmp_path):
    out = explain(root, scan, tmp_path / "out", pipeline.Plan("tiny", Method(samples=2)))
    table = results.read_importance(out)
    assert table.targets == CLASSES and not table.absent
    assert mass(table, "abs").sum(axis=1) == pytest.approx(1, abs=1e-6)
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files == {"importance.csv", "agreement.csv", "prediction.nii.gz", "manifest.json"} | {
        f"saliency/{name}.nii.gz" for name in CLASSES
    }
    assert results.verify(out) == []


def test_sums_are_those_of_the_saliency_on_disk(root, scan, tmp_path):
    out = explain(root, scan, tmp_path / "out", pipeline.Plan("tiny", GRADIENT, saliency="float32"))
    table = results.read_importance(out)
    prediction = np.asarray(nib.load(out / "prediction.nii.gz").dataobj)
    for row, name in enumerate(table.targets):
        saliency = np.asarray(nib.load(out / "saliency" / f"{name}.nii.gz").dataobj, dtype=np.float64)
        for column in range(len(CLASSES)):
            inside = saliency[prediction == column]
            assert table.positive[row, column] == pytest.approx(inside[inside > 0].sum(), rel=1e-6)
            assert table.negative[row, column] == pytest.approx(-inside[inside < 0].sum(), rel=1e-6)


def test_48_orientations_give_the_same_table(root, scan, tmp_path):
    original = nib.load(scan)
    tables = []
    explaining = pipeline.Explaining(root, pipeline.Plan("tiny", GRADIENT, saliency="none"))
    for index, (axes, flips) in enumerate(
        itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))
    ):
        turned = original.as_reoriented(np.stack([axes, flips], axis=1))
        image = tmp_path / f"{index}.nii.gz"
        nib.save(turned, image)
        folder = explaining.case(Case("case", image, None, {}), tmp_path / f"out{index}", silent)
        tables.append(mass(results.read_importance(folder), "abs"))
    assert len(tables) == 48
    for table in tables[1:]:
        assert table == pytest.approx(tables[0], abs=1e-4)


@pytest.mark.parametrize("case", ["thorax_cta", "chest_lowres"])
def test_results_lie_on_the_real_scan_in_world_space(tmp_path, case):
    """A model that looks at grey values only: its prediction and saliency must lie where the scan is bright."""
    root, image = tmp_path / "root", REAL / case / "ct.nii.gz"
    write_bundle(root, network=threshold_net(), spacing=6.0)
    out = explain(root, image, tmp_path / "out", pipeline.Plan("tiny", GRADIENT, ("heart",)))
    prediction, saliency = nib.load(out / "prediction.nii.gz"), nib.load(out / "saliency" / "heart.nii.gz")
    assert np.allclose(prediction.affine, saliency.affine)
    on_model_grid = resample_from_to(nib.load(image), prediction, order=1, cval=-1024).get_fdata()
    expected = on_model_grid.clip(-1024, 1024) > -24
    found = prediction.get_fdata() == CLASSES.index("heart")
    assert (found == expected).mean() > 0.995
    assert np.array_equal(saliency.get_fdata() > 0, found)
    table = results.read_importance(out)
    assert mass(table, "abs")[0, CLASSES.index("heart")] == pytest.approx(1)


def test_what_is_finished_is_not_computed_again(root, scan, tmp_path):
    plan, out = pipeline.Plan("tiny", Method(samples=2)), tmp_path / "out"
    explain(root, scan, out, plan)
    before = (out / "manifest.json").stat().st_mtime_ns
    explain(root, scan, out, plan)
    assert (out / "manifest.json").stat().st_mtime_ns == before


def test_a_second_target_is_added_and_the_first_kept(root, scan, tmp_path):
    out, method = tmp_path / "out", Method(samples=2)
    explain(root, scan, out, pipeline.Plan("tiny", method, ("heart",)))
    explain(root, scan, out, pipeline.Plan("tiny", method, ("aorta",)))
    together = explain(root, scan, tmp_path / "all", pipeline.Plan("tiny", method, ("aorta", "heart")))
    assert results.read_manifest(out)["targets"] == ["aorta", "heart"]
    assert results.verify(out) == []
    one, other = results.read_importance(out), results.read_importance(together)
    assert one.positive == pytest.approx(other.positive, rel=1e-5)


def test_a_case_tells_how_many_pairs_each_target_took(root, scan, tmp_path):
    """Of the 20 that were allowed: without noise four are sure, and targets explained later stand beside the others."""
    explain(root, scan, tmp_path / "out", pipeline.Plan("tiny", Method(sigma=0.0), ("heart",)))
    out = explain(root, scan, tmp_path / "out", pipeline.Plan("tiny", Method(sigma=0.0)))
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["pairs"] == dict.fromkeys(CLASSES, 4)
    plain = explain(root, scan, tmp_path / "plain", pipeline.Plan("tiny", GRADIENT))
    assert "pairs" not in json.loads((plain / "manifest.json").read_text())


def test_saliency_is_added_to_a_case_that_has_only_its_table(root, scan, tmp_path):
    out, method = tmp_path / "out", Method(samples=2)
    explain(root, scan, out, pipeline.Plan("tiny", method, saliency="none"))
    table = (out / "importance.csv").read_bytes()
    explain(root, scan, out, pipeline.Plan("tiny", method, ("heart",)))
    assert [path.name for path in (out / "saliency").iterdir()] == ["heart.nii.gz"]
    assert (out / "importance.csv").read_bytes() == table


def test_a_changed_scan_is_computed_anew(root, scan, tmp_path):
    plan, out = pipeline.Plan("tiny", GRADIENT), tmp_path / "out"
    explain(root, scan, out, plan)
    hash_before = results.read_manifest(out)["input_sha256"]
    changed = volumes.read_volume(scan)
    volumes.write_volume(scan, Volume((changed.array + 100).astype(np.int16), changed.affine))
    explain(root, scan, out, plan)
    assert results.read_manifest(out)["input_sha256"] != hash_before


def test_a_scan_packed_anew_is_the_same_scan(root, scan, tmp_path):
    plan, out = pipeline.Plan("tiny", GRADIENT), tmp_path / "out"
    explain(root, scan, out, plan)
    before = (out / "manifest.json").read_bytes()
    scan.write_bytes(gzip.compress(gzip.decompress(scan.read_bytes()), 1))
    explain(root, scan, out, plan)
    assert (out / "manifest.json").read_bytes() == before


def listed(root: Path, cohort: str, *images: Path) -> None:
    rows = [f"case{number},{image},\n" for number, image in enumerate(images)]
    (root / "cohorts" / cohort).mkdir(parents=True)
    (root / "cohorts" / cohort / "cases.csv").write_text("case_id,image,label\n" + "".join(rows))


def test_a_cohort_is_explained_by_the_command_line(root, scan):
    listed(root, "c", scan, scan)
    words = ["explain", "--model", "tiny", "--cohort", "c", "--method", "gradient", "--saliency-dtype", "none"]
    assert run(*words, "--data", root) == 0
    folder = root / "runs" / "c" / "tiny-gradient"
    assert results.verify(folder / "cases" / "case0") == results.verify(folder / "cases" / "case1") == []
    assert set(json.loads((folder / "run.json").read_text())["versions"]) == set(pipeline.VERSIONED)


def test_a_refused_case_of_a_cohort_writes_nothing(root, tmp_path, capsys):
    (tmp_path / "scan.nii.gz").write_text("not a scan")
    listed(root, "c", tmp_path / "scan.nii.gz")
    assert run("explain", "--model", "tiny", "--cohort", "c", "--data", root) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (root / "runs").exists()


def test_out_never_takes_the_place_of_anything_else(root, scan, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["explain", "--model", "tiny", "--image", scan, "--out", out, "--data", root]
    assert run(*words, "--method", "gradient", "--targets", "heart") == 0
    assert run(*words, "--method", "gradient", "--targets", "aorta") == 0
    assert run(*words, "--method", "smoothgrad", "--samples", "1") == 2
    assert results.read_manifest(out)["targets"] == ["aorta", "heart"]
    (out / "thesis.txt").write_text("mine")
    assert run(*words, "--method", "gradient") == 2
    assert (out / "thesis.txt").read_text() == "mine" and "--out must be" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_targets_that_another_process_added_meanwhile_are_kept(root, scan, monkeypatch):
    case = Case("case", scan, None, {})
    other = pipeline.Explaining(root, pipeline.Plan("tiny", GRADIENT, ("aorta",)))
    attribute = pipeline.attribute

    def meanwhile(*words):
        monkeypatch.setattr(pipeline, "attribute", attribute)
        other.cohort_case("c", case, silent)
        return attribute(*words)

    monkeypatch.setattr(pipeline, "attribute", meanwhile)
    folder = pipeline.Explaining(root, pipeline.Plan("tiny", GRADIENT, ("heart",))).cohort_case("c", case, silent)
    assert results.read_manifest(folder)["targets"] == ["aorta", "heart"]


def test_a_header_that_places_the_scan_in_two_ways_is_refused(root, scan, tmp_path):
    raw = gzip.decompress(scan.read_bytes())
    header = nib.Nifti1Header(raw[:348])
    header["pixdim"][1:4] = 1
    header["qform_code"] = 0
    scan.write_bytes(gzip.compress(header.binaryblock + raw[348:]))
    with pytest.raises(InputError, match="must agree"):
        explain(root, scan, tmp_path / "out", pipeline.Plan("tiny", GRADIENT))


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x10\0\0\0\0\0\0\0{}"])
def test_weights_that_cannot_be_read_are_refused_in_one_line(root, scan, tmp_path, capsys, content):
    (root / "models" / "tiny" / "models" / "model.safetensors").write_bytes(content)
    assert run("explain", "--model", "tiny", "--image", scan, "--out", tmp_path / "o", "--data", root) == 2
    printed = capsys.readouterr().err
    assert "weights must be readable" in printed and printed.count("\n") == 1


@pytest.mark.parametrize("name", ["../../escaped", "left/right heart", "heart"])
def test_class_names_must_be_names_of_files_and_differ(root, scan, tmp_path, name):
    metadata = root / "models" / "tiny" / "configs" / "metadata.json"
    metadata.write_text(metadata.read_text().replace('"aorta"', json.dumps(name)))
    with pytest.raises(InputError, match="class"):
        explain(root, scan, tmp_path / "out", pipeline.Plan("tiny", GRADIENT))


def test_air_has_a_value_only_where_every_scan_is_scaled_alike(root, scan, tmp_path):
    config = root / "models" / "tiny" / "configs" / "inference.json"
    chain = json.loads(config.read_text())
    chain["preprocessing"]["transforms"][-1] = {"_target_": "NormalizeIntensityd", "keys": "image"}
    config.write_text(json.dumps(chain))
    with pytest.raises(InputError, match="baseline air"):
        explain(root, scan, tmp_path / "out", pipeline.Plan("tiny", Method("integrated_gradients", 2)))


def test_maps_to_look_at_give_way_to_maps_to_sum(root, scan, tmp_path):
    """And not the other way: what is finer is never thrown away."""
    out, plan = tmp_path / "out", pipeline.Plan("tiny", GRADIENT, ("heart",))
    kept = []
    for quality in ("view", "float16", "view"):
        explain(root, scan, out, replace(plan, saliency=quality))
        viewing = json.loads((out / "manifest.json").read_text())["viewing"]
        kept.append((viewing, nib.load(out / "saliency" / "heart.nii.gz").get_data_dtype()))
    assert kept == [(["heart"], np.int16), ([], np.float32), ([], np.float32)]


def test_half_precision_keeps_small_gradients():
    values = np.array([1e-12, -3.3e-7, 0.1, 65536.5, 1e30, 0.0, 2047.9999], dtype=np.float32)
    kept = maps.half_precision(values)
    assert np.abs(kept - values).max(initial=0, where=values != 0) <= np.abs(values).max() * 2**-11
    assert kept == pytest.approx(values, rel=2**-11)
    assert maps.half_precision(kept).tolist() == kept.tolist()


def test_prediction_on_the_scans_own_grid(root, scan, tmp_path):
    assert run("predict", "--model", "tiny", "--image", scan, "--out", tmp_path / "out", "--data", root) == 0
    written, original = nib.load(tmp_path / "out" / "prediction.nii.gz"), nib.load(scan)
    assert written.shape == original.shape and np.allclose(written.affine, original.affine)
    labels = np.asarray(written.dataobj)
    assert len(np.unique(labels)) > 1
    there = explain(root, scan, tmp_path / "explained", pipeline.Plan("tiny", GRADIENT)) / "prediction.nii.gz"
    model_grid = nib.load(there)
    voxels = np.argwhere(np.ones_like(labels))
    at = nib.affines.apply_affine(np.linalg.inv(model_grid.affine) @ original.affine, voxels)
    clear = (np.abs(at - np.floor(at) - 0.5) > 1e-3).all(axis=1)  # not half-way between two of the model's voxels
    i, j, k = np.clip(np.rint(at[clear]).astype(int), 0, np.array(model_grid.shape) - 1).T
    np.testing.assert_array_equal(labels[tuple(voxels[clear].T)], np.asarray(model_grid.dataobj)[i, j, k])
    assert clear.mean() > 0.7
    sizes = (tmp_path / "out" / "volumes.csv").read_text().splitlines()
    edges = np.prod(np.linalg.norm(original.affine[:3, :3], axis=0)) / 1000
    heart = CLASSES.index("heart")
    assert sizes[0] == "case_id,organ,millilitres" and f"scan,heart,{(labels == heart).sum() * edges:.3f}" in sizes


def test_predict_wants_a_folder_and_says_what_it_wrote(root, scan, tmp_path, capsys):
    words = ["predict", "--model", "tiny", "--image", scan, "--data", root, "--out"]
    assert run(*words, tmp_path / "pred.nii.gz") == 2
    assert "--out must name a folder; got pred.nii.gz" in capsys.readouterr().err
    assert not (tmp_path / "pred.nii.gz").exists()
    assert run(*words, tmp_path / "out") == 0
    assert capsys.readouterr().out == f"label map written as {tmp_path / 'out' / 'prediction.nii.gz'}\n"


@pytest.mark.parametrize("what", ["cohort", "model", "review"])
def test_an_empty_list_says_so_beside_the_output(tmp_path, capsys, what):
    assert run(what, "list", "--data", tmp_path / "nothing") == 0
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("agg2exp: no ") and "nothing" in said.err


def test_dice_of_a_label_that_equals_the_prediction_is_one(root, tmp_path):
    """On a scan that already is the model's grid, the prediction is a label map, but for how it numbers organs."""
    image, plan = tmp_path / "iso.nii.gz", pipeline.Plan("tiny", GRADIENT)
    array = np.random.default_rng(1).normal(-300, 300, (18, 16, 14)).astype(np.int16)
    volumes.write_volume(image, Volume(array, np.diag([4.0, 4, 4, 1])))
    out = explain(root, image, tmp_path / "out", plan)
    prediction = volumes.read_labels(out / "prediction.nii.gz")
    volumes.write_volume(tmp_path / "label.nii.gz", Volume(IDS[prediction.array], prediction.affine))
    scored = explain(root, image, tmp_path / "scored", plan, tmp_path / "label.nii.gz")
    rows = (scored / "agreement.csv").read_text().splitlines()[1:]
    assert len(rows) == len(CLASSES)
    assert all(row.split(",")[1:] == ["1.0", "1.0"] for row in rows)


def test_organs_that_the_model_does_not_have_are_background_to_it(root, tmp_path):
    image, label = labelled(tmp_path)
    out = explain(root, image, tmp_path / "out", pipeline.Plan("tiny", GRADIENT), label)
    given = volumes.read_labels(label)
    other = np.where(given.array == 0, load_label_set("thorax17")["ribs"].id, given.array).astype(np.uint8)
    volumes.write_volume(tmp_path / "other.nii.gz", Volume(other, given.affine))
    again = explain(root, image, tmp_path / "again", pipeline.Plan("tiny", GRADIENT), tmp_path / "other.nii.gz")
    assert (again / "agreement.csv").read_text() == (out / "agreement.csv").read_text()


def test_a_label_map_is_read_by_the_label_set_that_its_list_names(root, tmp_path):
    image, label = labelled(tmp_path)
    explaining = pipeline.Explaining(root, pipeline.Plan("tiny", GRADIENT))
    out = explaining.case(Case("case", image, label, {}), tmp_path / "out", silent)
    known, names = load_label_set("totalsegmentator"), {IDS[1]: "aorta", IDS[2]: "spleen"}
    given = volumes.read_labels(label)
    other = np.vectorize(lambda value: known[names.get(value, "background")].id)(given.array).astype(np.uint8)
    volumes.write_volume(label, Volume(other, given.affine))
    case = Case("case", image, label, {"label_set": "totalsegmentator"})
    again = explaining.case(case, tmp_path / "again", silent)
    found = [dict(line.split(",", 1) for line in (one / "agreement.csv").read_text().split()) for one in (out, again)]
    assert found[1]["aorta"] == found[0]["aorta"] and found[1]["heart"] == "0.0,0.0"
    with pytest.raises(InputError, match="label set must exist; got 'nowhere'"):
        explaining.case(Case("case", image, label, {"label_set": "nowhere"}), tmp_path / "no", silent)


@pytest.mark.parametrize("mask", ["prediction", "label"])
def test_labels_that_are_read_otherwise_are_computed_anew(root, tmp_path, mask):
    """The same files: what their values mean was put right in the list after the case had been explained."""
    image, label = labelled(tmp_path)
    explaining = pipeline.Explaining(root, pipeline.Plan("tiny", replace(GRADIENT, mask=mask)))
    cases = [Case("case", image, label, {"label_set": name} if name else {}) for name in ("", "totalsegmentator")]
    for case in cases:
        out = explaining.case(case, tmp_path / "out", silent)
    anew = explaining.case(cases[1], tmp_path / "anew", silent)
    for name in ("importance.csv", "agreement.csv"):
        assert (out / name).read_text() == (anew / name).read_text()


def test_a_label_map_of_other_things_says_nothing_of_the_models_classes(root, tmp_path):
    image, label = labelled(tmp_path)
    write_label_set(root, made_label_set("tumours", ("background", "lesion")))
    case = Case("case", image, label, {"label_set": "tumours"})
    out = pipeline.Explaining(root, pipeline.Plan("tiny", GRADIENT)).case(case, tmp_path / "out", silent)
    assert (out / "agreement.csv").read_text().split() == ["target,dice,iou"]
    with pytest.raises(InputError, match="mask tp needs a label map; got case case without one of the model's classes"):
        pipeline.Explaining(root, pipeline.Plan("tiny", replace(GRADIENT, mask="tp"))).case(case, out, silent)


def test_without_its_label_set_a_models_outputs_number_the_labels(root, tmp_path):
    image, label = labelled(tmp_path)
    out = explain(root, image, tmp_path / "out", pipeline.Plan("tiny", GRADIENT), label)
    given, path = volumes.read_labels(label), root / "models" / "tiny" / "configs" / "metadata.json"
    volumes.write_volume(label, Volume(np.searchsorted(IDS, given.array).astype(np.uint8), given.affine))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"label_set": "unknown"}))
    again = explain(root, image, tmp_path / "again", pipeline.Plan("tiny", GRADIENT), label)
    assert (again / "agreement.csv").read_text() == (out / "agreement.csv").read_text()


def test_a_label_map_on_another_grid_is_refused_before_the_work(root, scan, tmp_path, capsys):
    label = tmp_path / "label.nii.gz"
    volumes.write_volume(label, Volume(np.zeros((5, 5, 5), np.uint8), np.eye(4)))
    words = ["explain", "--model", "tiny", "--image", scan, "--label", label, "--out", tmp_path / "o", "--data", root]
    assert run(*words) == 2
    assert "grid" in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_run_ids_name_what_differs():
    assert pipeline.run_id("net", Method(samples=4, estimator="plain")) == "net-smoothgrad-4"
    assert pipeline.run_id("net", Method(samples=8, tolerance=0.02)) == "net-smoothgrad-pairs-8-tolerance0.02"
    assert pipeline.run_id("net", Method(samples=4, seed=7, estimator="plain")) == "net-smoothgrad-4-seed7"
    assert pipeline.run_id("net", GRADIENT) == "net-gradient"
    assert pipeline.run_id("net", Method("integrated_gradients", 8, baseline="ones")).endswith("-8-baselineones")
    assert (
        pipeline.run_id("net", Method(samples=4, seed=7, mask="fp", estimator="plain")) == "net-smoothgrad-4-seed7-fp"
    )


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Method("ablation", value="dice"), "ablation-valuedice"),
        (Method("integrated_gradients", samples=24, baseline="uniform"), "integrated_gradients-24-baselineuniform"),
        (Method("gradient", skip=0.005, mask="file-cyst"), "gradient-skip0.005-file-cyst"),
        (Method("kernelshap", samples=9, features="cubes", seed=2), "kernelshap-9-seed2-featurescubes"),
    ],
)
def test_run_ids_tell_what_is_not_usual(method, words):
    assert pipeline.run_id("net", method) == f"net-{words}"


def test_a_run_id_is_never_too_long_and_stays_its_own():
    long = Method(
        "kernelshap", samples=256, baseline="blurred", features="supervoxels", value="counts", mask="file-nodule"
    )
    ids = [pipeline.run_id(model, long) for model in ("m" * 64, "thorax17", "thorax18")]
    assert all(checked_id("run", one) == one for one in ids) and len(set(ids)) == 3
    assert ids[1].startswith("thorax17-kernelshap-256-baselineblurred")


def sums_of(target: str, heart: int, absent: str = "") -> SumTable:
    sums = np.full((1, 3), np.nan if absent else 2.0)
    return SumTable((target,), CLASSES, sums, sums, np.array([900, 50, heart]), {target: absent} if absent else {})


def test_targets_of_two_predictions_do_not_mix():
    merged = pipeline._merged(sums_of("aorta", 1000), sums_of("heart", 1005), CLASSES)
    assert merged.targets == ("aorta", "heart") and merged.voxels.tolist() == [900, 50, 1005]
    with pytest.raises(InputError, match="must be explained on one prediction"):
        pipeline._merged(sums_of("aorta", 1000), sums_of("heart", 800), CLASSES)


def test_a_target_that_is_there_now_is_absent_no_more():
    assert pipeline._merged(sums_of("heart", 50, "not predicted"), sums_of("heart", 50), CLASSES).absent == {}
    assert pipeline._merged(sums_of("heart", 50), sums_of("heart", 50, "gone"), CLASSES).absent == {"heart": "gone"}


def test_maps_that_another_process_kept_in_full_meanwhile_stay(root, scan, tmp_path):
    plan = pipeline.Plan("tiny", Method("gradient"), ("heart",), saliency="float32")
    out = explain(root, scan, tmp_path / "out", plan)
    viewing = pipeline.Explaining(root, replace(plan, saliency="view"))
    mean = torch.zeros((2, 2, 2))
    explained = Explanation(mean, {}, {"heart": mean, "aorta": mean}, {})
    known = results.read_manifest(out)
    assert list(viewing._without_worse_maps(known, explained).saliency) == ["aorta"]
    seen = known | {"viewing": ["heart"]}
    assert list(viewing._without_worse_maps(seen, explained).saliency) == ["heart", "aorta"]


def test_the_usual_mask_leaves_runs_as_they_were(root, scan):
    """Ids, parameters and hashes of runs made before there were other masks; see the shipped manifests."""
    method = Method(samples=4, mask="prediction", estimator="plain")
    assert pipeline.run_id("net", method) == "net-smoothgrad-4"
    assert method.parameters() == {"samples": 4, "sigma": 0.1, "seed": 0}
    explaining = pipeline.Explaining(root, pipeline.Plan("tiny", method))
    identity = explaining._identity(Case("case", scan, None, {}))
    assert identity["parameters_hash"] == "c1a2be0c4ff6ecf879c5b2daab4ab06257272e265dfa0ed97c902705c7ff2647"
    assert "mask" not in identity and Method("gradient").parameters() == {}


def labelled(tmp_path: Path) -> tuple[Path, Path]:
    """A scan that already is the model's grid, and a label map that `tiny` meets in part."""
    rng = np.random.default_rng(1)
    affine = np.diag([4.0, 4, 4, 1])
    files = tmp_path / "iso.nii.gz", tmp_path / "iso-label.nii.gz"
    volumes.write_volume(files[0], Volume(rng.normal(-300, 300, (18, 16, 14)).astype(np.int16), affine))
    volumes.write_volume(files[1], Volume(IDS[rng.integers(0, 3, (18, 16, 14))], affine))
    return files


def test_the_sums_of_a_masks_parts_are_those_of_the_whole(root, tmp_path):
    """A linear network: with one sign of weights, sums over regions add up as the masks do."""
    network = torch.nn.Conv3d(1, 3, 3, padding=1)
    with torch.no_grad():
        network.weight.abs_()
    write_bundle(root, "linear", network)
    image, label = labelled(tmp_path)
    tables = {}
    for mask in ("prediction", "label", "tp", "fp", "fn"):
        plan = pipeline.Plan("linear", Method("gradient", mask=mask))
        out = explain(root, image, tmp_path / mask, plan, label)
        tables[mask] = results.read_importance(out)
        usual = (tmp_path / "prediction" / "prediction.nii.gz").read_bytes()
        assert (out / "prediction.nii.gz").read_bytes() == usual
        assert results.read_manifest(out)["parameters"] == ({} if mask == "prediction" else {"mask": mask})

    def total(mask: str) -> np.ndarray:
        """Sums of the classes that have the mask; the others count as 0 here, and only here."""
        return np.nan_to_num(tables[mask].positive)

    assert tables["prediction"].positive[~np.isnan(tables["prediction"].positive)].sum() > 0
    assert total("tp") + total("fp") == pytest.approx(total("prediction"), rel=1e-5)
    assert total("tp") + total("fn") == pytest.approx(total("label"), rel=1e-5)


def test_a_run_of_false_positives_is_another_run_and_needs_a_label(root, scan, tmp_path, capsys):
    image, label = labelled(tmp_path)
    (root / "cohorts" / "c").mkdir(parents=True)
    (root / "cohorts" / "c" / "cases.csv").write_text(f"case_id,image,label\na,{image},{label}\nb,{scan},\n")
    words = ["explain", "--model", "tiny", "--cohort", "c", "--method", "gradient", "--data", root]
    assert run(*words, "--mask", "fp", "--case", "b") == 2
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith("mask fp needs a label map; got case b without one; allowed: prediction")
    )
    assert not (root / "runs").exists()
    assert run(*words, "--mask", "fp", "--case", "a") == run(*words, "--case", "a") == 0
    info = json.loads((root / "runs" / "c" / "tiny-gradient-fp" / "run.json").read_text())
    assert info["parameters"] == {"mask": "fp"}
    assert json.loads((root / "runs" / "c" / "tiny-gradient" / "run.json").read_text())["parameters"] == {}


def test_a_mask_from_a_file_is_another_run_and_another_file_is_computed_anew(root, tmp_path):
    image, label = labelled(tmp_path)
    heart, drawn = volumes.read_labels(label), tmp_path / "heart.nii.gz"
    volumes.write_volume(drawn, Volume((heart.array == IDS[1]).astype(np.uint8), heart.affine))
    words = ["explain", "--model", "tiny", "--method", "gradient", "--image", image, "--data", root]
    assert run(*words, "--out", tmp_path / "drawn", "--mask", drawn) == 0
    assert run(*words, "--out", tmp_path / "label", "--mask", "label", "--label", label) == 0
    manifest = results.read_manifest(tmp_path / "drawn")
    assert manifest["parameters"] == {"mask": "file-heart"} and len(manifest["mask_sha256"]) == 64
    both = [results.read_importance(tmp_path / name) for name in ("drawn", "label")]
    rows = [table.positive[table.targets.index(CLASSES[1])] for table in both]
    assert rows[0] == pytest.approx(rows[1], rel=1e-6)
    volumes.write_volume(drawn, Volume((heart.array == IDS[2]).astype(np.uint8), heart.affine))
    assert run(*words, "--out", tmp_path / "drawn", "--mask", drawn) == 2  # the folder holds another mask's results


def test_masks_of_a_cohort_come_from_a_folder_named_by_case(root, tmp_path, capsys):
    image, label = labelled(tmp_path)
    (root / "cohorts" / "c").mkdir(parents=True)
    (root / "cohorts" / "c" / "cases.csv").write_text(f"case_id,image,label\na,{image},\nb,{image},\n")
    (tmp_path / "lesions").mkdir()
    shutil.copy(label, tmp_path / "lesions" / "a.nii.gz")
    words = ["explain", "--model", "tiny", "--cohort", "c", "--method", "gradient", "--data", root]
    assert run(*words, "--mask", tmp_path / "lesions") == 2
    assert "a mask must be there as <case_id>.nii.gz in lesions; got none of b" in capsys.readouterr().err
    made = root / "runs" / "c" / "tiny-gradient-file-lesions" / "cases"
    assert [path.name for path in made.glob("[!.]*")] == ["a"]
    assert run(*words, "--mask", label) == 2
    assert "mask must be a known one or a folder" in capsys.readouterr().err
    volumes.write_volume(tmp_path / "lesions" / "b.nii.gz", Volume(np.ones((5, 5, 5), np.uint8), np.eye(4)))
    assert run(*words, "--mask", tmp_path / "lesions", "--case", "b") == 2
    assert [path.name for path in made.glob("[!.]*")] == ["a"]


def test_the_integrated_gap_is_stored(root, scan, tmp_path):
    out = explain(root, scan, tmp_path / "out", pipeline.Plan("tiny", Method("integrated_gradients", samples=4)))
    header, *rows = (out / "completeness.csv").read_text().splitlines()
    assert header == "target,attribution_sum,output_difference,gap"
    assert len(rows) == len(CLASSES) and all(float(row.split(",")[-1]) < 1e-3 for row in rows)


def test_same_seed_same_bytes(root, scan, tmp_path):
    plan = pipeline.Plan("tiny", Method(samples=2))
    one, two = (explain(root, scan, tmp_path / name, plan) for name in ("one", "two"))
    for name in ("importance.csv", "prediction.nii.gz", "saliency/heart.nii.gz"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--targets", "spleen"), "target must be a class of the model"),
        (("--model", "none"), "model must exist"),
        (("--method", "gradcam"), "method must be a known one"),
        (("--samples", "0"), "samples must be"),
        (("--device", "tpu"), "device must be one of"),
        (("--mask", "border"), "mask must be a known one"),
        (("--saliency-dtype", "int4"), "saliency dtype must be known"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(root, scan, tmp_path, capsys, words, said):
    out = tmp_path / "out"
    options = {"--model": "tiny", "--image": scan, "--out": out, "--data": root, words[0]: words[1]}
    assert run("explain", *itertools.chain.from_iterable(options.items())) == 2
    printed = capsys.readouterr().err.strip()
    assert said in printed and "\n" not in printed and "Traceback" not in printed
    assert not out.exists()


def test_a_case_that_climbs_out_is_refused(root, scan, capsys):
    assert run("explain", "--model", "tiny", "--cohort", "../..", "--data", root) == 2
    listed(root, "c", scan)
    assert run("explain", "--model", "tiny", "--cohort", "c", "--case", "../../etc", "--data", root) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 2 and "'../../etc'" in printed
    assert not (root / "runs").exists()


def test_a_file_that_is_no_scan_is_refused(root, tmp_path, capsys):
    (tmp_path / "scan.nii.gz").write_text("not a scan")
    assert (
        run("explain", "--model", "tiny", "--image", tmp_path / "scan.nii.gz", "--out", tmp_path / "o", "--data", root)
        == 2
    )
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "o").exists()


def test_manifest_says_what_the_numbers_depend_on(root, scan, tmp_path):
    out = explain(root, scan, tmp_path / "out", pipeline.Plan("tiny", Method(samples=2, seed=9)))
    manifest = json.loads((out / "manifest.json").read_text())
    pairs = {"estimator": "antithetic", "tolerance": 0.005}
    assert manifest["parameters"] == {"samples": 2, "sigma": 0.1, "seed": 9} | pairs
    assert manifest["input_sha256"] == hashlib.sha256(gzip.decompress(scan.read_bytes())).hexdigest()
    assert set(manifest["versions"]) == {"torch", "monai", "numpy", "nibabel"}
