"""Fixtures that several test files share: the real data, the browser, a running dashboard."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is loaded: workers that each start a thread per core only take turns.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real scans and the published table, beside the project; without them the test fails, never skips."""
    if not (SHARED / "README.md").is_file():
        pytest.fail(f"real data for tests must lie in ../shared/data of the project; nothing at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the system's Chromium. Without one a test is skipped and says so; under CI it fails."""
    named = os.environ.get("AGG2EXP_CHROMIUM")
    path = named or next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        how = "no Chromium found: install one (Debian: apt-get install chromium) or name it in AGG2EXP_CHROMIUM"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(how)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], str]]:
    """`server(root)` gives the URL of a dashboard on that data root, started once and ended with the test file."""
    urls: dict[Path, str] = {}
    running: list[subprocess.Popen[bytes]] = []

    def start(root: Path) -> str:
        if root not in urls:
            log = tmp_path_factory.mktemp("server") / "log.txt"
            port = free_port()
            running.append(launch(root, port, log))
            urls[root] = f"http://127.0.0.1:{port}"
            wait_until_healthy(urls[root], running[-1], log)
        return urls[root]

    yield start
    for process in running:
        process.terminate()
    for process in running:
        process.wait(timeout=30)


def launch(root: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
    """The dashboard as its command starts it, writing to `log`."""
    command = [sys.executable, "-m", "agg2exp_core", "dashboard", "--data", str(root), "--port", str(port)]
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 60) -> None:
    """Return when the dashboard answers; fail with its output when it ended or took too long."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        try:
            with urlopen(f"{url}/_stcore/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except URLError:
            time.sleep(0.1)
    pytest.fail(f"the dashboard did not start:\n{log.read_text()}")
