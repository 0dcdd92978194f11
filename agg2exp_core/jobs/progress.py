"""How far a computation is: written by the computing process, read by the dashboard.

Everything passes through small JSON files in the job's folder, so a reload of the page, a closed
browser or a restarted dashboard loses nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from agg2exp_core.files import is_locked, locked, read_json, write_json
from agg2exp_core.records import InputError
from agg2exp_core.settings import checked_id

FINISHED = ("done", "failed", "cancelled")
STATES = ("queued", "running", *FINISHED)
ALIVE, CANCEL = ".alive", "cancel"
"""In a job's folder: the lock that its process holds, and what asks it to stop."""
WRITES_PER_SECOND = 5.0


class Cancelled(SystemExit):
    """The user stopped the job. Unwinds the process, so that half-written files are removed."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


def process_start(pid: int) -> str:
    """When this process began, as a text that no later process of the same number has; "" when it is gone.

    Linux: the boot's id and field 22 of /proc/<pid>/stat (proc(5)). Elsewhere: what `ps` says.
    """
    stat, boot = Path(f"/proc/{pid}/stat"), Path("/proc/sys/kernel/random/boot_id")
    if not Path("/proc/self/stat").exists():
        asked = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
        return asked.stdout.strip()
    try:
        # The name in parentheses may itself hold spaces and parentheses.
        fields = stat.read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    if fields[0] in "ZX":
        return ""
    return f"{boot.read_text().strip()}:{fields[19]}"


def own_pid(folder: Path) -> int | None:
    """The process of a job, while it still is the one that was started and no later one of the same number."""
    told = read_json(folder / "process.json") or read_json(folder / "progress.json")
    try:
        pid, start = int(told["pid"]), str(told["pid_start"])
    except (KeyError, TypeError, ValueError):
        return None
    return pid if start and process_start(pid) == start else None


def is_alive(folder: Path) -> bool:
    """Whether a job's process lives: by its lock, which other containers see too, or by its number while it starts."""
    return is_locked(folder / ALIVE) or own_pid(folder) is not None


def one_line(error: BaseException) -> str:
    """What a user is told: an InputError's own words, else the kind of fault and its message."""
    text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:500]


class Reporter:
    """Reports one job's progress from inside the computing process.

    `with Reporter(root, job_id) as report:` waits for its turn (one job computes at a time in one
    data root), then `report.progress(done, total, note)` as often as one likes and
    `report.finished(cohort, run, case_id)` before the block ends. An error inside the block is
    written down as the reason and raised again; SIGTERM, or the file `cancel`, becomes `Cancelled`.
    """

    def __init__(self, root: Path, job_id: str):
        self._folder = root / "jobs" / checked_id("job", job_id)
        if not (self._folder / "job.json").is_file():
            raise InputError("job must have been submitted", repr(job_id))
        self._written, self._told_to_stop = 0.0, False
        self._held = contextlib.ExitStack()
        older = self._folder.parent.glob("[!.]*/job.json")
        self._before = [path.parent for path in older if path.parent.name < self._folder.name]
        self._state: dict[str, Any] = {
            "status": "queued",
            "done": 0,
            "total": 0,
            "note": "waiting for its turn",
            "started": None,
            "pid": os.getpid(),
            "pid_start": process_start(os.getpid()),
            "reason": "",
            "result": None,
        }

    def __enter__(self) -> Reporter:
        signal.signal(signal.SIGTERM, self._cancel)
        try:
            self._held.enter_context(locked(self._folder / ALIVE))
            self._write()
            self._held.enter_context(locked(self._folder.parent / ".turn", self._may_try))
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        self._state |= {"status": "running", "note": "starting"}
        self._write()
        return self

    def progress(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps; time left is judged from the first call on, or from the last `skipped`."""
        if self._state["started"] is None:
            self._state |= {"started": time.time(), "first": done / max(total, 1)}
        self._state |= {"done": int(done), "total": int(total), "note": note}
        if self._told_to_stop:
            raise Cancelled  # which Python swallows where the signal comes amid a __del__
        if time.monotonic() - self._written >= 1 / WRITES_PER_SECOND:
            self._check_cancelled()
            self._write()

    def skipped(self) -> None:
        """What went last was there already, and says nothing of how long the rest will take."""
        self._state["started"] = None

    def finished(self, cohort: str, run: str, case_id: str) -> None:
        """Where the result lies; call it when the case is on disk."""
        self._state["result"] = {"cohort": cohort, "run": run, "case_id": case_id}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._state |= {"status": "done", "done": self._state["total"], "note": ""}
        elif isinstance(error, Cancelled | KeyboardInterrupt):
            self._state |= {"status": "cancelled", "note": ""}
        else:
            self._state |= {"status": "failed", "reason": one_line(error)}
        self._write()
        self._held.close()

    def _may_try(self) -> bool:
        """Whether to ask for the turn: when no job that was asked for earlier lives. Their names are in that order."""
        self._check_cancelled()
        self._before = [folder for folder in self._before if is_alive(folder)]
        return not self._before

    def _check_cancelled(self) -> None:
        if (self._folder / CANCEL).exists():
            raise Cancelled

    def _cancel(self, number: int, frame: FrameType | None) -> None:
        # A second signal must not break the clean-up that the first one began.
        if not self._told_to_stop:
            self._told_to_stop = True
            raise Cancelled

    def _write(self) -> None:
        self._state["updated"] = time.time()
        write_json(self._folder / "progress.json", self._state)
        self._written = time.monotonic()
