"""What is kept of attribution maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agg2exp_core import maps, volumes
from agg2exp_core.records import Volume
from agg2exp_core.settings import SHIPPED


@pytest.mark.parametrize(
    "name", ["reference/thorax17_swinunetr-smoothgrad-pairs-4/cases/ref-01/saliency/heart.nii.gz",
             "clinic/thorax17_segresnet-smoothgrad-pairs-4/cases/cli-02/saliency/aorta.nii.gz"],
)  # fmt: skip
def test_a_map_for_viewing_is_twenty_times_smaller(tmp_path: Path, name: str) -> None:
    full = volumes.read_volume(SHIPPED / "runs" / name)
    levels, step = maps.for_viewing(full.array)
    volumes.write_volume(tmp_path / "view.nii.gz", Volume(levels, full.affine), step)
    assert (tmp_path / "view.nii.gz").stat().st_size * 20 <= 4 * full.array.size
    kept, (end, _) = volumes.read_volume(tmp_path / "view.nii.gz"), maps.scale_end(full.array)
    off = np.abs(kept.array - full.array) / end
    assert off.max() <= 2 * maps.FAINT + 0.5 / maps.LEVELS and np.sqrt((off**2).mean()) < 0.03
    strong = np.abs(full.array) >= maps.FAINT * end
    assert off[strong].max() <= 0.5 / maps.LEVELS + 1e-3
    assert np.array_equal(kept.affine, full.affine) and kept.array.shape == full.array.shape
    peaks = [np.unravel_index(np.abs(one).argmax(), one.shape) for one in (kept.array, full.array)]
    assert peaks[0] == peaks[1]


def test_faint_blocks_become_their_mean_and_strong_voxels_stay() -> None:
    voxels = np.zeros((3, 3, 3), np.float32)
    voxels[0, 0, 0], voxels[0, 0, 1], voxels[2, 2, 2] = 0.08, 0.08, 1.0
    kept, step = maps.for_viewing(voxels)
    assert kept[2, 2, 2] * step == pytest.approx(1, abs=step / 2)
    assert np.ptp(kept[:2, :2, :2]) == 0
    assert not maps.for_viewing(np.zeros((2, 2, 2), np.float32))[0].any()


def test_one_very_strong_voxel_does_not_overflow() -> None:
    voxels = np.full((12, 12, 12), 1e-6, np.float32)
    voxels[0, 0, 0] = 1e3
    kept, step = maps.for_viewing(voxels)
    assert kept[0, 0, 0] * step == pytest.approx(1e3, rel=1e-3)
