"""Time to the first chart, and p95 of a filter change on the Cohort page, both measured in the browser."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from agg2exp_core.settings import SHIPPED
from agg2exp_core.store import cohorts
from bench import synthetic
from bench.browser import browser, served

CASES = 10_000
CHANGES, SETTLED = 40, 500

WATCH = """() => {
    const drawn = {cohort_boxes: ".boxlayer path.box", cohort_matrix: ".heatmaplayer image"};
    const charts = () => Object.keys(drawn).map((key) => document.querySelector(`.st-key-${key} .js-plotly-plot`));
    document.addEventListener("keydown", () => {
        window.acted = performance.now();
        window.before = charts();
    }, true);
    window.redrawn = () => charts().every((chart, index) => chart && chart !== window.before[index]
        && chart.querySelector(Object.values(drawn)[index])) && performance.now() - window.acted;
}"""
"""Milliseconds since the user acted, once both charts are drawn again: Streamlit then puts new ones in their place."""


def main() -> list[tuple[str, str]]:
    """Rows of figure name and value, for the demo and for a synthetic run of 10,000 cases × 17 × 17."""
    rows = _measured("demo", SHIPPED, "reference")
    with tempfile.TemporaryDirectory() as folder:
        synthetic.write_root(Path(folder), CASES)
        return rows + _measured(f"{CASES:,} × 17 × 17", Path(folder), synthetic.COHORT)


def _measured(name: str, root: Path, cohort: str) -> list[tuple[str, str]]:
    ages = set(cohorts.read_cases(root, cohort)["age"].astype(int))
    with served(root) as url, browser() as chromium:
        page = chromium.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(300_000)
        first = [_first_chart(page, f"{url}/?cohort={cohort}") for _ in range(2)]
        changes = _filter_changes(page, ages)
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


def _filter_changes(page: Any, ages: set[int]) -> list[float]:
    """Milliseconds from a step of the age filter's lower end, which leaves cases out, to both charts drawn again.

    No step's cases were asked for before, so that no answer comes from the dashboard's cache.
    """
    page.locator(".st-key-cohort_matrix .heatmaplayer image").first.wait_for()
    page.wait_for_timeout(1000)
    page.evaluate(WATCH)
    lower = page.get_by_role("slider").first
    lower.focus()
    times = []
    for age in range(min(ages), max(ages) - 1):
        lower.press("ArrowRight")
        if age not in ages:
            page.wait_for_timeout(SETTLED)  # nothing is drawn again where no case leaves
        elif len(times) < CHANGES:
            times.append(page.wait_for_function("window.redrawn()").json_value())
            page.wait_for_timeout(SETTLED)
    return times
