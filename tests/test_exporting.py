"""Maps on the scans' own grids: where they lie, what they hold, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from command import run
from tiny import write_bundle, write_cohort

from agg2exp_core import pipeline, volumes
from agg2exp_core.aggregation.masks import values_on_grid
from agg2exp_core.records import Method, Volume
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
