"""The Case page's viewer: what it sends, and how soon three planes are seen, in a browser without a graphics card."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from agg2exp_core import maps
from agg2exp_core.organs import load_label_set
from agg2exp_core.records import Method, SumTable, Volume
from agg2exp_core.store import results
from agg2exp_core.volumes import write_volume
from bench.browser import browser, served

SIZES = (128, 256)
EXTENT_MM = 384.0
COHORT, RUN, CASE = "viewer", "viewer-smoothgrad-4", "case"
TARGETS = ("heart", "aorta")
VOLUMES = "/viewer/volumes/"
LABELS = load_label_set("thorax17")


def main() -> list[tuple[str, str]]:
    """Rows of figure name and value, for scans of 128³ and 256³ voxels with labels and maps on the same grid."""
    return [row for size in SIZES for row in _measured(size)]


def write_root(root: Path, size: int) -> None:
    """A data root with one explained scan of size³ voxels: noise of a CT in a body, a smooth map of either sign."""
    spacing = EXTENT_MM / size
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -EXTENT_MM / 2
    axes = np.meshgrid(*[(np.arange(size) + 0.5) / size - 0.5] * 3, indexing="ij", sparse=True)
    inside = (axes[0] / 0.42) ** 2 + (axes[1] / 0.3) ** 2 < 1
    noise = np.random.default_rng(0).normal(0, 15, (size, size, size))
    hu = np.where(inside, 40 + noise, -1000 + noise / 3).clip(-1024, 3071).astype(np.int16)
    labels = np.where(inside, 1 + (8 * (axes[2] + 0.5)).astype(int), 0).astype(np.uint8)
    folder = root / "cohorts" / COHORT / "images"
    folder.mkdir(parents=True)
    write_volume(folder / "case.nii.gz", Volume(hu, affine))
    (folder.parent / "cases.csv").write_text(f"case_id,image,label\n{CASE},images/case.nii.gz,\n")
    wave = np.sin(9 * axes[0]) * np.cos(7 * axes[1]) * np.sin(11 * axes[2])
    saliency = (wave**3 * inside + noise / 2000).astype(np.float16)
    _write_results(root, Volume(labels, affine), Volume(saliency.astype(np.float32), affine))


def _write_results(root: Path, labels: Volume, saliency: Volume) -> None:
    method = Method("smoothgrad", 4, estimator="plain")
    info = {"model": "none", "model_hash": "0", "method": method.name, "parameters": method.parameters()}
    results.write_run(root, COHORT, RUN, info | {"label_set": LABELS.name, "values": "sums"})
    count = len(LABELS.names)
    sums = np.random.default_rng(0).random((2, len(TARGETS), count))
    table = SumTable(TARGETS, LABELS.names, sums[0], sums[1], np.full(count, 50, np.int64))
    manifest = {"case_id": CASE, "targets": list(TARGETS)}
    with results.case_folder(root / "runs" / COHORT / RUN / "cases" / CASE, manifest) as folder:
        results.write_importance(folder, table)
        results.write_agreement(folder, LABELS.names, np.full(count, 0.9), np.full(count, 0.8))
        write_volume(folder / "prediction.nii.gz", labels)
        (folder / "saliency").mkdir()
        for target, sign in zip(TARGETS, (1, -1), strict=True):
            levels, step = maps.for_viewing(sign * saliency.array)  # what `explain` keeps unless told otherwise
            write_volume(folder / "saliency" / f"{target}.nii.gz", Volume(levels, saliency.affine), step)


def _measured(size: int) -> list[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_root(root, size)
        with served(root) as url, browser(webgl=True) as chromium:
            warm = chromium.new_page()
            warm.goto(url)  # what every first visit costs is measured by bench/dashboard.py
            warm.locator("[data-testid=stAppViewContainer]").wait_for(timeout=120_000)
            warm.wait_for_timeout(3000)
            warm.close()
            page = chromium.new_page(viewport={"width": 1440, "height": 900})
            return _opened(page, f"{url}/case?cohort={COHORT}&run={RUN}&case={CASE}", f"viewer, {size}³")


def _opened(page: Any, link: str, name: str) -> list[tuple[str, str]]:
    sent: list[int] = []
    asked: list[float] = []
    page.on("response", lambda answer: sent.append(_bytes(answer)) if VOLUMES in answer.url else None)
    page.on("request", lambda request: asked.append(time.perf_counter()) if VOLUMES in request.url else None)
    page.set_default_timeout(120_000)
    started = time.perf_counter()
    page.goto(f"{link}&target={TARGETS[0]}")
    planes = page.locator(".viewer[data-state=planes], .viewer[data-state=ready]")
    planes.wait_for()
    first = time.perf_counter() - started
    page.locator(".viewer[data-state=ready]").wait_for()
    ended = time.perf_counter()
    volumes = sum(sent)
    return [
        (f"{name}: link opened to three planes drawn, software WebGL", f"{first:.2f} s"),
        (f"{name}: … and the 3D picture", f"{ended - started:.2f} s"),
        (f"{name}: of it the viewer's own, from the first volume asked for", f"{ended - asked[0]:.2f} s"),
        (f"{name}: volumes sent (scan, labels, one map)", f"{volumes / 1e6:.2f} MB"),
    ]


def _bytes(answer: Any) -> int:
    return int(answer.headers.get("content-length", 0))
