"""One journey on a real scan, stored LPS: what the viewer says of a place is what nibabel reads there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect
from tiny import threshold_net, write_bundle

from agg2exp_core import cli

TITLES = {0: "Background", 1: "Aorta", 2: "Heart"}  # as the network numbers them, not as the label set does
CASE = "runs/real/tiny-gradient/cases/thorax_cta"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    """The scan as a cohort of one, explained by a network of one convolution at 6 mm."""
    root, scans = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("scans")
    (scans / "thorax_cta.nii.gz").symlink_to(shared_data / "real/thorax_cta/ct.nii.gz")
    write_bundle(root, network=threshold_net(), spacing=6.0)
    _run("cohort", "add", scans, "--name", "real", "--data", root)
    _run("explain", "--data", root, "--cohort", "real", "--model", "tiny", "--method", "gradient")
    return root


def _run(*words: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["agg2exp", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    assert not stopped.value.code


@pytest.fixture
def page(webgl_chromium: Browser, server: Callable[[Path], str], root: Path) -> Iterator[Page]:
    page = webgl_chromium.new_page(viewport={"width": 1440, "height": 1000}, base_url=server(root))
    page.set_default_timeout(60_000)
    yield page
    page.close()


@pytest.mark.browser
def test_a_real_scan_from_the_cohort_to_its_voxels(page: Page, root: Path, shared_data: Path) -> None:
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto("/?cohort=real&target=heart")
    page.locator(".st-key-cohort_boxes .boxlayer path.box").first.wait_for(
        state="attached"
    )  # of one scan, without width
    table = page.locator("[class*=st-key-cohort_table_]").first
    table.scroll_into_view_if_needed()
    page.wait_for_timeout(1000)
    box = table.bounding_box()
    assert box is not None
    for _ in range(5):
        page.mouse.move(box["x"] + 120, box["y"] + 60, steps=5)
        page.mouse.click(box["x"] + 50, box["y"] + 53, delay=100)
        page.wait_for_timeout(3000)
        if "/case" in page.url:  # a table that was just drawn may not answer yet
            break
    page.locator(".viewer[data-state=ready]").wait_for()
    page.get_by_role("button", name="Peak", exact=True).click()
    scan, prediction = (nib.load(path) for path in (
        shared_data / "real/thorax_cta/ct.nii.gz", root / CASE / "prediction.nii.gz",
    ))  # fmt: skip
    saliency = nib.load(root / CASE / "saliency/heart.nii.gz")
    expect(page.locator(".readout")).to_contain_text("100 %")
    assert abs(_at(saliency, _told(page)[0])) == np.abs(saliency.get_fdata()).max()
    for right, down in ((0.5, 0.5), (0.35, 0.6), (0.62, 0.4)):
        for plane in ("axial", "coronal", "sagittal"):
            tile = page.locator(f'.tile[data-plane="{plane}"]')
            size = tile.bounding_box()
            assert size is not None
            tile.click(position={"x": right * size["width"], "y": down * size["height"]})
            page.wait_for_timeout(100)
            place, hu, organ = _told(page)
            assert hu == _at(scan, place) and organ == TITLES[_at(prediction, place)]
    assert said == []


def _told(page: Page) -> tuple[np.ndarray, int, str]:
    """World position in mm, HU and organ under the crosshair, as the viewer says."""
    text = page.locator(".readout").inner_text().replace("−", "-")
    pairs = re.findall(r"([RLAPSI]) ([\d.]+)", text.partition("mm")[0])
    place = np.array([float(mm) * (1 if letter in "RAS" else -1) for letter, mm in pairs])
    hu = re.search(r"(-?\d+) HU", text)
    organ = re.search(r"Organ\s+(.+)", text)
    assert len(place) == 3 and hu and organ
    return place, int(hu[1]), organ[1].strip()


def _at(image: nib.Nifti1Image, place: np.ndarray) -> float:
    voxel = np.rint(nib.affines.apply_affine(np.linalg.inv(image.affine), place)).astype(int)
    inside = (voxel >= 0).all() and (voxel < image.shape).all()
    return np.asanyarray(image.dataobj)[tuple(voxel)] if inside else 0
