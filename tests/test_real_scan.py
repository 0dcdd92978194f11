"""Journeys on a real scan, stored LPS: what the pages draw and say of it is what nibabel reads there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
import pytest
from command import run
from pages import cells, drawn, watched
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from tiny import threshold_net, write_bundle

from agg2exp_core.volumes import read_volume, to_ras
from dashboard.viewer.layers import WINDOWS

TITLES = {0: "Background", 1: "Aorta", 2: "Heart"}  # as the network numbers them, not as the label set does
METHODS = ("gradient", "gradient_x_input")
CASE = "runs/real/tiny-gradient/cases/thorax_cta"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    """The scan as a cohort of one, explained by a network of one convolution at 6 mm."""
    root, scans = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("scans")
    (scans / "thorax_cta.nii.gz").symlink_to(shared_data / "real/thorax_cta/ct.nii.gz")
    write_bundle(root, network=threshold_net(), spacing=6.0)
    assert not run("cohort", "add", scans, "--name", "real", "--data", root)
    for method in METHODS:
        assert not run("explain", "--data", root, "--cohort", "real", "--model", "tiny", "--method", method)
    return root


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
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    hosts: set[str | None] = set()
    page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    page.goto("/?cohort=real&target=heart")
    boxes = page.locator(".st-key-cohort_boxes .boxlayer path.box")
    boxes.first.wait_for(state="attached")  # that of one scan has no width, so it is never visible
    table = page.locator("[class*=st-key-cohort_table_]").first
    table.scroll_into_view_if_needed()
    page.locator("[data-test-script-state=notRunning]").wait_for()
    box = table.bounding_box()
    assert box is not None
    # As a hand comes: the table answers only where it saw the pointer move.
    page.mouse.move(box["x"] + 300, box["y"] + 150)
    page.mouse.move(box["x"] + 50, box["y"] + 53, steps=12)
    page.mouse.click(box["x"] + 50, box["y"] + 53, delay=100)
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
    assert said == [] and hosts <= {"127.0.0.1", None}  # None: what the page made itself


@pytest.mark.browser
def test_the_other_pages_show_what_there_is_of_one_real_scan(page: Page, root: Path, shared_data: Path) -> None:
    noted = watched(page)
    _runs_and_query(page, root)
    _compare_and_outliers(page)
    _reviews(page, shared_data)
    assert noted == []


def _runs_and_query(page: Page, root: Path) -> None:
    page.goto("/runs")
    page.get_by_text("Explained so far").wait_for()
    assert cells(page).count("1 of 1") == len(METHODS)
    page.goto("/query?cohort=real&run=tiny-gradient&target=heart")
    (bars,) = drawn(page, "query_chart")
    prediction, saliency = (nib.load(root / CASE / name) for name in ("prediction.nii.gz", "saliency/heart.nii.gz"))
    strength, labels = np.abs(saliency.get_fdata()), np.asanyarray(prediction.dataobj)
    shares = {title: strength[labels == label].sum() / strength.sum() for label, title in TITLES.items()}
    shown = {title: share for title, share in zip(bars["x"], bars["y"], strict=True) if share is not None}
    assert shown.keys() >= {"Heart", "Background"}
    assert {title: shown[title] for title in ("Heart", "Background")} == pytest.approx(
        {title: shares[title] for title in ("Heart", "Background")}, abs=1e-4
    )


def _compare_and_outliers(page: Page) -> None:
    """One scan is too few for either, which both say; the difference of its two runs is drawn all the same."""
    page.goto(
        "/compare?"
        + "&".join(f"{side}.cohort=real&{side}.run=tiny-{run}" for side, run in zip("ab", METHODS, strict=True))
    )
    expect(page.get_by_role("heading", name="Too few scans to tell")).to_be_visible()
    (boxes, *_) = drawn(page, "compare_boxes")
    assert "Heart" in page.locator(".st-key-compare_boxes").inner_text() and boxes["y"]
    page.goto("/outliers?cohort=real&run=tiny-gradient")
    expect(page.get_by_text("outliers need more than 8 cases to fit on; got 1")).to_be_visible()
    expect(page.get_by_text("learn from a cohort that the same model explains")).to_be_visible()


def _reviews(page: Page, shared_data: Path) -> None:
    """The slice that a reviewer sees is that of the scan, the patient's right at the left."""
    page.goto("/review?cohort=real")
    expect(page.get_by_text("1 case has a scan and a segmentation")).to_be_visible()
    page.get_by_role("button", name="Create, 1 to judge").click()
    page.get_by_role("textbox", name="Your name").fill("Ada")
    page.get_by_role("button", name="Start").click()
    page.get_by_role("radio", name="Soft tissue").click()
    page.locator("[data-test-script-state=notRunning]").wait_for()
    tile = page.locator('[data-plane="axial"]')
    number = int(re.search(r"(\d+)\s*/", tile.locator(".title").inner_text())[1])
    scan = to_ras(read_volume(shared_data / "real/thorax_cta/ct.nii.gz")).array[:, :, number - 1]
    low = WINDOWS["soft"].level - WINDOWS["soft"].width / 2
    grey = np.clip((scan[::-1, ::-1].T - low) / WINDOWS["soft"].width, 0, 1)
    expected = np.asarray(Image.fromarray(grey.astype(np.float32)).resize((32, 32), Image.Resampling.BOX))
    seen = tile.locator("canvas").evaluate(SMALL)
    assert np.corrcoef(expected.ravel(), seen)[0, 1] > 0.95


SMALL = """canvas => {
    const small = new OffscreenCanvas(32, 32).getContext("2d");
    small.imageSmoothingQuality = "high";
    small.drawImage(canvas, 0, 0, 32, 32);
    const { data } = small.getImageData(0, 0, 32, 32);
    return Array.from({ length: 32 * 32 }, (_, n) => data[4 * n] + data[4 * n + 1] + data[4 * n + 2]);
}"""


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
