"""A running dashboard and the system's Chromium: for the measurements, the README's pictures and the tests."""

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
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from playwright.sync_api import Browser, sync_playwright

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
WEBGL = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
"""WebGL computed by the processor: what a machine without a graphics card gets."""

NO_WEBGL = ["--disable-3d-apis"]

HOW_TO_GET_ONE = "no Chromium found: install one (Debian: apt-get install chromium) or name it in AGG2EXP_CHROMIUM"
START_SECONDS = 60.0
SERVE = [sys.executable, "-m", "agg2exp_core", "dashboard", "--data"]


def find_chromium() -> str | None:
    """Path of the Chromium named in AGG2EXP_CHROMIUM, else the system's, else None."""
    return os.environ.get("AGG2EXP_CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)


@contextmanager
def browser(webgl: bool = False) -> Iterator[Browser]:
    """A headless Chromium, with WebGL or without. RuntimeError, with how to get one, if there is none."""
    path = find_chromium()
    if path is None:
        raise RuntimeError(HOW_TO_GET_ONE)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=SWITCHES + (WEBGL if webgl else NO_WEBGL))
        yield chromium
        chromium.close()


@dataclass(frozen=True)
class Server:
    """A dashboard that runs."""

    url: str
    pid: int

    def cpu_seconds(self) -> float:
        """Processor time that the process has taken so far (Linux)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Bytes of memory that it holds (Linux)."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def served(root: Path) -> Iterator[str]:
    """The dashboard of a data root as its command starts it; gives its URL once it answers, and ends it."""
    with server(root) as running:
        yield running.url


@contextmanager
def server(root: Path) -> Iterator[Server]:
    """As `served`, with the process too."""
    with started([*SERVE, str(root), "--port"]) as running:
        yield running


@contextmanager
def started(command: list[str], port: int | None = None) -> Iterator[Server]:
    """A server of Streamlit's by its command, whose last word, a port, is added here: a free one unless it is given."""
    port = port or free_port()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*command, str(port)], stdout=log, stderr=subprocess.STDOUT)
        try:
            if not _answers(f"http://127.0.0.1:{port}", process):
                log.seek(0)
                raise RuntimeError(f"the server did not start:\n{log.read().decode(errors='replace')}")
            yield Server(f"http://127.0.0.1:{port}", process.pid)
        finally:
            process.terminate()
            process.wait(timeout=30)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            with urlopen(f"{url}/_stcore/health", timeout=2):
                return True
        except OSError:  # not there yet, or too busy to answer
            time.sleep(0.1)
    return False
