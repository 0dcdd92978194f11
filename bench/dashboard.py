"""Time to the first chart, and p95 of a filter change on the Cohort page, both measured in the browser."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from agg2exp_core.settings import SHIPPED
from bench import synthetic
from bench.browser import browser, served

CASES = 10_000
CHANGES = 40

WATCH = """() => {
    window.redrawn = {};
    document.addEventListener("click", () => { window.acted = performance.now(); }, true);
    document.addEventListener("keydown", () => { window.acted = performance.now(); }, true);
    for (const chart of ["cohort_boxes", "cohort_matrix"])
        document.querySelector(`.st-key-${chart} .js-plotly-plot`)
            .on("plotly_afterplot", () => { window.redrawn[chart] = performance.now(); });
}"""
"""Notes when the user acted and when each chart was drawn again."""

WAIT = """() => {
    const drawn = [window.redrawn.cohort_boxes, window.redrawn.cohort_matrix];
    return drawn.every((when) => when > window.acted) && Math.max(...drawn) - window.acted;
}"""


def main(root_demo: Path = SHIPPED) -> list[tuple[str, str]]:
    """Rows of figure name and value, for the demo and for a synthetic run of 10,000 cases × 17 × 17."""
    rows = _measured("demo", root_demo)
    with tempfile.TemporaryDirectory() as folder:
        synthetic.write_root(Path(folder), CASES)
        return rows + _measured(f"{CASES:,} × 17 × 17", Path(folder))


def _measured(name: str, root: Path) -> list[tuple[str, str]]:
    with served(root) as url, browser() as chromium:
        page = chromium.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(300_000)
        first = [_first_chart(page, url) for _ in range(2)]
        changes = _filter_changes(page)
    return [
        (f"dashboard, {name}: first chart, first visit after start", f"{first[0]:.2f} s"),
        (f"dashboard, {name}: first chart, next visit", f"{first[1]:.2f} s"),
        (f"dashboard, {name}: filter change, median of {len(changes)}", f"{np.median(changes):.0f} ms"),
        (f"dashboard, {name}: filter change, p95", f"{np.quantile(changes, 0.95):.0f} ms"),
    ]


def _first_chart(page: Any, url: str) -> float:
    started = time.perf_counter()
    page.goto(url)
    page.locator(".st-key-cohort_boxes .boxlayer path.box").first.wait_for()
    return time.perf_counter() - started


def _filter_changes(page: Any) -> list[float]:
    """Milliseconds from choosing a value of `sex`, or removing it, to both charts being drawn again."""
    page.locator(".st-key-cohort_matrix .heatmaplayer image").first.wait_for()
    page.wait_for_timeout(1000)
    page.evaluate(WATCH)
    chooser = page.get_by_role("combobox", name="Sex")
    times = []
    for change in range(CHANGES // 2):
        chooser.click()
        page.get_by_role("option", name="FM"[change % 2], exact=True).click()
        times.append(page.wait_for_function(WAIT).json_value())
        chooser.press("Backspace")
        times.append(page.wait_for_function(WAIT).json_value())
    return times
