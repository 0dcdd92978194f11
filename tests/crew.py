"""Workers without processes of their own, whose jobs run a few lines of Python in place of a network."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agg2exp_core.jobs import queue, worker
from agg2exp_core.jobs.queue import JobState

REPORT = """
import os, pathlib, signal, sys, time
from agg2exp_core.jobs.progress import Reporter
from agg2exp_core.records import InputError
with Reporter(pathlib.Path(sys.argv[1]), sys.argv[2]) as report:
"""


def hire(monkeypatch: pytest.MonkeyPatch, body: str, header: str = REPORT) -> None:
    """Let workers be threads of this process, and jobs run `body` inside a Reporter."""
    script = header + "".join(f"    {line}\n" if header else f"{line}\n" for line in body.split("\n"))

    def words(root: Path, job: str, request: queue.Request, device: str) -> list[str]:
        return [sys.executable, "-c", script, str(root), job, request.case_id, device]

    def start(root: Path, device: str) -> None:
        threading.Thread(target=worker.work, args=(root, device), daemon=True).start()

    monkeypatch.setattr(queue, "command", words)
    monkeypatch.setattr(queue, "start_worker", start)


def wait(root: Path, job: str, until: Callable[[JobState], bool]) -> JobState:
    """The job's state once it is as wanted."""
    deadline = time.monotonic() + 30
    while not until(state := queue.state(root, job)):
        assert time.monotonic() < deadline, f"never came: {state}"
        time.sleep(0.02)
    return state
