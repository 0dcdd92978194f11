"""What is kept of attribution maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from agg2exp_core import maps, volumes
from agg2exp_core.records import Volume
from agg2exp_core.settings import SHIPPED


@pytest.mark.parametrize("model", ["thorax17_segresnet", "thorax17_swinunetr"])
def test_maps_for_viewing_are_twenty_times_smaller(model: str) -> None:
    """As they are stored: what is shipped was made of the full attribution. A single map may be more or less."""
    files = [*(SHIPPED / "runs").glob(f"*/{model}-*/cases/*/saliency/*.nii.gz")]
    full = sum(4 * int(np.prod(volumes.check_header(file).shape)) for file in files)
    assert files and 20 * sum(file.stat().st_size for file in files) <= full


def test_a_map_for_viewing_shows_what_is_strong(tmp_path: Path) -> None:
    """Of heavy tails, as attribution is; through the file."""
    noise = np.random.default_rng(0).standard_t(2, (41, 40, 39))
    full = Volume(gaussian_filter(noise, 1.0).astype(np.float32), np.diag([-4.0, 4, 5, 1]))
    levels, step = maps.for_viewing(full.array)
    volumes.write_volume(tmp_path / "view.nii.gz", Volume(levels, full.affine), step)
    # Strong voxels are all over it, and half as many again as in those of organs.
    assert 10 * (tmp_path / "view.nii.gz").stat().st_size <= 4 * full.array.size
    kept, (end, _) = volumes.read_volume(tmp_path / "view.nii.gz"), maps.scale_end(full.array)
    off = np.abs(kept.array - full.array) / end
    assert 0.5 / maps.LEVELS < off.max() <= 2 * maps.FAINT + 0.5 / maps.LEVELS
    strong = np.abs(full.array) >= maps.FAINT * end
    assert off[strong].max() <= 0.5 / maps.LEVELS + 1e-3
    assert np.array_equal(kept.affine, full.affine) and kept.array.shape == full.array.shape
    peak = np.abs(kept.array).argmax()  # of several on one level it is one
    assert np.abs(full.array).flat[peak] >= np.abs(full.array).max() - step


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
