"""Time to the first chart, and p95 of a filter change on the Cohort page, both measured in the browser."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np

from agg2exp_core.settings import SHIPPED
from bench import synthetic

CASES = 10_000
CHANGES = 40
SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]

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
    from playwright.sync_api import sync_playwright

    with _served(root) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(), args=SWITCHES)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(300_000)
        first = [_first_chart(page, url) for _ in range(2)]
        changes = _filter_changes(page)
        browser.close()
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


@contextmanager
def _served(root: Path) -> Iterator[str]:
    """The dashboard as its command starts it; its URL once it answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "agg2exp_core", "dashboard", "--data", str(root), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield _answering(f"http://127.0.0.1:{port}", process)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _answering(url: str, process: subprocess.Popen[bytes]) -> str:
    while process.poll() is None:
        try:
            with urlopen(f"{url}/_stcore/health", timeout=2):
                return url
        except URLError:
            time.sleep(0.1)
    raise RuntimeError("the dashboard ended before it answered")


def _chromium() -> str:
    path = os.environ.get("AGG2EXP_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        raise RuntimeError("install Chromium, or name one in AGG2EXP_CHROMIUM")
    return path
