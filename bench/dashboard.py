"""The Cohort page as its users wait for it: first chart, a filter, another target, a click that opens a scan."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from agg2exp_core.settings import SHIPPED
from agg2exp_core.store import cohorts
from bench import synthetic
from bench.browser import Server, browser, server

SIZES = (1_200, 10_000)
CHANGES, CLICKS = 40, 10
SETTLED = 500
SESSIONS = 10

BOXES, MATRIX = ".st-key-cohort_boxes .boxlayer path.box", ".st-key-cohort_matrix .heatmaplayer image"
WATCH = """() => {
    const drawn = {cohort_boxes: ".boxlayer path.box", cohort_matrix: ".heatmaplayer image"};
    const charts = () => Object.keys(drawn).map((key) => document.querySelector(`.st-key-${key} .js-plotly-plot`));
    document.addEventListener("keydown", () => {
        window.acted = performance.now();
        window.before = charts();
    }, true);
    document.addEventListener("pointerup", () => (window.acted = performance.now()), true);
    const fresh = (chart, index) => chart && chart !== window.before[index];
    const full = (chart, index) => chart.querySelector(Object.values(drawn)[index]);
    window.redrawn = (which = [0, 1]) => which.every((index) => fresh(charts()[index], index)
        && full(charts()[index], index)) && performance.now() - window.acted;
    window.opened = () => document.querySelector(".st-key-case_bars .barlayer path")
        && performance.now() - window.acted;
}"""
"""Milliseconds since the user acted, once charts are drawn again: Streamlit then puts new ones in their place."""


def main() -> list[tuple[str, str]]:
    """Rows of figure name and value, for the demo and for synthetic runs of SIZES cases × 17 × 17."""
    rows = _measured("demo", SHIPPED, "reference")
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            synthetic.write_root(Path(folder), size)
            rows += _measured(f"{size:,} × 17 × 17", Path(folder), synthetic.COHORT)
    return rows


def _measured(name: str, root: Path, cohort: str) -> list[tuple[str, str]]:
    ages = set(cohorts.read_cases(root, cohort)["age"].astype(int))
    with _page(root) as (running, page):
        first = [_first_chart(page, f"{running.url}/?cohort={cohort}") for _ in range(2)]
        page.evaluate(WATCH)
        target, target_cpu = _with_cpu(running, lambda: list(_target_changes(page)))
        filters, filter_cpu = _with_cpu(running, lambda: list(_filter_changes(page, ages)))
        clicks = [_opened(page, running.url, cohort, row) for row in range(CLICKS)]
        sessions = _sessions(page, running, f"{running.url}/?cohort={cohort}")
    return [
        (f"dashboard, {name}: first chart, first visit after start", f"{first[0]:.2f} s"),
        (f"dashboard, {name}: first chart, next visit", f"{first[1]:.2f} s"),
        (f"dashboard, {name}: filter change", _told(filters) + f"; {filter_cpu:.0f} ms of the server's processor each"),
        (f"dashboard, {name}: target change", _told(target) + f"; {target_cpu:.0f} ms of the server's processor each"),
        (f"dashboard, {name}: click in the table to the case's bars", _told(clicks)),
        (f"dashboard, {name}: memory of the server, one session and {SESSIONS}", sessions),
    ]


def _told(times: list[float]) -> str:
    return f"median {np.median(times):.0f} ms, p95 {np.quantile(times, 0.95):.0f} ms of {len(times)}"


@contextmanager
def _page(root: Path) -> Iterator[tuple[Server, Any]]:
    with server(root) as running, browser() as chromium:
        page = chromium.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(300_000)
        yield running, page


def _with_cpu(running: Server, work: Callable[[], list[float]]) -> tuple[list[float], float]:
    """The times, and milliseconds of the server's processor for each."""
    before = running.cpu_seconds()
    times = work()
    return times, 1000 * (running.cpu_seconds() - before) / len(times)


def _first_chart(page: Any, url: str) -> float:
    started = time.perf_counter()
    page.goto(url)
    page.locator(BOXES).first.wait_for()
    took = time.perf_counter() - started
    page.locator(MATRIX).first.wait_for()
    page.wait_for_timeout(1000)
    return took


def _filter_changes(page: Any, ages: set[int]) -> Iterator[float]:
    """Milliseconds from a step of the age filter's lower end, which leaves cases out, to both charts drawn again.

    No step's cases were asked for before, so that no answer comes from the dashboard's cache.
    """
    lower = page.get_by_role("slider").first
    lower.focus()
    changed = 0
    for age in range(min(ages), max(ages) - 1):
        if changed == CHANGES:
            break
        lower.press("ArrowRight")
        if age in ages:
            yield page.wait_for_function("window.redrawn()", timeout=60_000).json_value()
            changed += 1
        page.wait_for_timeout(SETTLED)


def _target_changes(page: Any) -> Iterator[float]:
    """Milliseconds from the choice of the next target to its boxes. The matrix, which shows all, stays."""
    chooser = page.get_by_role("combobox", name="Target organ")
    for organ in synthetic.LABELS.organs[2:]:
        chooser.fill(organ.title)
        page.get_by_role("option").first.wait_for()
        chooser.press("Enter")
        yield page.wait_for_function("window.redrawn([0])", timeout=60_000).json_value()
        page.wait_for_timeout(SETTLED)


def _opened(page: Any, url: str, cohort: str, row: int) -> float:
    """Milliseconds from the release of a click on a scan of the table to the bars of its Case page."""
    page.goto(f"{url}/?cohort={cohort}")
    page.locator(MATRIX).first.wait_for()
    page.wait_for_timeout(2 * SETTLED)
    page.evaluate(WATCH)
    table = page.locator("[class*=st-key-cohort_table_]").first
    table.scroll_into_view_if_needed()
    page.wait_for_timeout(SETTLED)
    at = table.bounding_box()
    page.mouse.click(at["x"] + 150, at["y"] + 53 + 35 * (row % 6), delay=100)
    took = page.wait_for_function("window.opened()").json_value()
    page.wait_for_timeout(SETTLED)
    return took


def _sessions(page: Any, running: Server, url: str) -> str:
    alone = running.memory()
    others = [page.context.browser.new_page() for _ in range(SESSIONS - 1)]
    for other in others:
        other.goto(url)
        other.locator(MATRIX).first.wait_for(timeout=300_000)
    return f"{alone / 1e6:.0f} MB, {running.memory() / 1e6:.0f} MB"
