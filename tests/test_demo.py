"""What the project ships: the demo's cohorts, its model, and a run whose numbers come out again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from agg2exp_core import demo, phantom, pipeline, volumes
from agg2exp_core.aggregation.regions import mass
from agg2exp_core.demo import MODEL, RUN, RUNS, SECOND
from agg2exp_core.organs import load_label_set
from agg2exp_core.records import Method
from agg2exp_core.settings import SHIPPED
from agg2exp_core.store import cohorts, region_sets, results

SIZES = {"reference": 24, "clinic": 16}


def silent(done: int, total: int, note: str) -> None: ...


@pytest.mark.parametrize("run", RUNS)
def test_every_case_is_explained_for_every_organ(run: str) -> None:
    names = [organ.name for organ in load_label_set("thorax17").organs]
    for cohort, size in SIZES.items():
        folders = [SHIPPED / "runs" / cohort / run / "cases" / case for case, _, _ in phantom.DEMO[cohort]]
        assert len(folders) == size
        assert list(cohorts.read_cases(SHIPPED, cohort)["case_id"]) == [folder.name for folder in folders]
        for folder in folders:
            assert results.verify(folder) == []
            table = results.read_importance(folder)
            assert list(table.targets) == names
            explained = [name not in table.absent for name in names]
            assert mass(table, "abs")[explained].sum(axis=1) == pytest.approx(1, abs=1e-6)


def test_the_shipped_pathologies_are_what_was_planted() -> None:
    """Sums over the clinic's masks: each case has its own lesion, of maps that are still the ones shipped."""
    planted = {case: lesion for case, _, lesion in phantom.DEMO["clinic"]}
    shipped = {path.parent.name for path in (SHIPPED / "runs" / "clinic").glob("*/regions")}
    assert RUN in shipped
    for run in shipped:
        table = region_sets.read(SHIPPED / "runs" / "clinic" / run).to_pandas()
        there = table[table["voxels"] > 0]
        assert set(there["case_id"]) == {"cli-02", "cli-04", "cli-07", "cli-12"}
        assert set(table["region_set"]) == {"pathology"}
        assert list(there["region"]) == [planted[case] for case in there["case_id"]]
        assert table.loc[table["voxels"] == 0, "positive"].isna().all()
        assert (there["positive"] + there["negative"] > 0).all()
        assert (there["positive"] < there["positive_total"]).all() and len(there) <= 20


@pytest.mark.parametrize("model", [MODEL, SECOND])
def test_the_shipped_models_are_good_enough_and_small_enough(model: str) -> None:
    record = json.loads((SHIPPED / "models" / model / "docs" / "training.json").read_text(encoding="utf-8"))
    dice = record["held_out_dice"]
    assert list(dice) == [organ.name for organ in load_label_set("thorax17").organs][1:]
    assert np.mean(list(dice.values())) >= 0.80 and min(dice.values()) >= 0.5
    assert set(record["cases"]["trained"]).isdisjoint(record["cases"]["held_out"])
    weights = [path for path in (SHIPPED / "models").glob("*/models/*") if path.is_file()]
    assert weights and sum(path.stat().st_size for path in weights) <= 15e6


def test_a_shipped_case_comes_out_again(tmp_path: Path) -> None:
    """Generated anew, explained anew: the same voxels, and the same masses but for another processor's rounding."""
    case_id, seed, planted = phantom.DEMO["clinic"][1]
    phantom.write_cohort(tmp_path / "cohorts" / "clinic", [(case_id, seed, planted)], workers=1)
    case = cohorts.find_case(tmp_path, "clinic", case_id)
    plan = pipeline.Plan(MODEL, Method(samples=4), ("lung_lower_lobe_left",), saliency="none")
    again = pipeline.Explaining(SHIPPED, plan).case(case, tmp_path / "out", silent)
    shipped = SHIPPED / "runs" / "clinic" / RUN / "cases" / case_id
    for key in ("model_hash", "input_sha256", "label_sha256", "parameters_hash"):
        assert results.read_manifest(again)[key] == results.read_manifest(shipped)[key]
    one, other = results.read_importance(again), results.read_importance(shipped)
    row = other.targets.index("lung_lower_lobe_left")
    assert mass(one, "abs")[0] == pytest.approx(mass(other, "abs")[row], abs=1e-3)
    assert one.mass_se[0] == pytest.approx(other.mass_se[row], abs=1e-3) and (other.mass_se[row] > 0).any()
    assert one.voxels == pytest.approx(other.voxels, rel=0.01, abs=2)


def test_two_that_copy_a_file_at_once_leave_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target, copy = tmp_path / "source", tmp_path / "target", shutil.copy2
    source.write_bytes(b"whole")

    def amid(one: str, other: str) -> None:
        copy(one, other)
        monkeypatch.setattr(shutil, "copy2", copy)
        demo._copy_new(str(source), str(target))

    monkeypatch.setattr(shutil, "copy2", amid)
    demo._copy_new(str(source), str(target))
    assert target.read_bytes() == b"whole" and len(list(tmp_path.iterdir())) == 2


def test_making_the_demo_ready_twice_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {cohort: plan[:1] for cohort, plan in phantom.DEMO.items()}
    monkeypatch.setattr(demo, "DEMO", few)
    demo.make_ready(tmp_path, silent)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii.gz")}
    mine = tmp_path / "models" / MODEL / "docs" / "training.json"
    mine.write_text("{}")
    demo.make_ready(tmp_path, silent)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii.gz")} == before
    assert mine.read_text() == "{}"
    assert volumes.check_scan(tmp_path / "cohorts" / "reference" / "images" / "ref-01.nii.gz")


@pytest.mark.parametrize("case", ["thorax_cta", "chest_lowres"])
def test_the_demos_model_explains_a_real_scan(shared_data: Path, tmp_path: Path, case: str) -> None:
    """It may segment poorly; what it gives lies on the scan, is complete, and its masses sum to 1."""
    image = shared_data / "real" / case / "ct.nii.gz"
    targets = ("aorta", "heart")
    plan = pipeline.Plan(MODEL, Method("gradient"), targets)
    out = pipeline.Explaining(SHIPPED, plan).case(cohorts.Case(case, image, None, {}), tmp_path / "out", silent)
    assert results.verify(out) == []
    table = results.read_importance(out)
    explained = [name for name in table.targets if name not in table.absent]
    assert table.targets == targets and explained
    assert mass(table, "abs")[[name in explained for name in targets]].sum(axis=1) == pytest.approx(1, abs=1e-6)
    for path in [out / "prediction.nii.gz", *(out / "saliency" / f"{name}.nii.gz" for name in explained)]:
        found, scan = nib.load(path), nib.load(image)
        assert nib.aff2axcodes(found.affine) == ("R", "A", "S")
        assert np.isfinite(np.asarray(found.dataobj)).all()
        # A resampled grid ends within a voxel of where the scan ends.
        voxel = float(max(*found.header.get_zooms(), *scan.header.get_zooms()))
        assert _box(found) == pytest.approx(_box(scan), abs=voxel)


def _box(image: nib.Nifti1Image) -> np.ndarray:
    """Lowest and highest world coordinates (mm) of the voxels' centres."""
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * (np.array(image.shape) - 1)
    world = nib.affines.apply_affine(image.affine, corners)
    return np.concatenate([world.min(axis=0), world.max(axis=0)])
