"""Fixtures that several test files share: the real data, the browser, a running dashboard."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from bench.browser import HOW_TO_GET_ONE, browser, find_chromium, served

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is loaded: workers that each start a thread per core only take turns.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def main_module() -> Iterator[None]:
    """AppTest leaves a page as the main module, which processes that are spawned later would run again."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real scans and the published table, beside the project; without them the test fails, never skips."""
    if not (SHARED / "README.md").is_file():
        pytest.fail(f"real data for tests must lie in ../shared/data of the project; nothing at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def published_table(shared_data: Path) -> Path:
    """The wide CSV of 32 patients, with Dice."""
    return shared_data / "published" / "tsv2_test_aggregated_sg_explanations_with_dice.csv"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The system's Chromium, without WebGL. Without a Chromium a test is skipped and says so; under CI it fails."""
    yield from _running(webgl=False)


@pytest.fixture(scope="module")
def webgl_chromium() -> Iterator[Browser]:
    """The same with WebGL computed by the processor."""
    yield from _running(webgl=True)


def _running(webgl: bool) -> Iterator[Browser]:
    if find_chromium() is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(HOW_TO_GET_ONE)
    with browser(webgl) as running:
        yield running


@pytest.fixture(scope="module")
def server() -> Iterator[Callable[[Path], str]]:
    """`server(root)` gives the URL of a dashboard on that data root, started once and ended with the test file."""
    urls: dict[Path, str] = {}
    with ExitStack() as running:

        def start(root: Path) -> str:
            if root not in urls:
                urls[root] = running.enter_context(served(root))
            return urls[root]

        yield start
