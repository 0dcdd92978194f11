"""How far a computation is: written by the computing process, read by the dashboard.

Everything passes through small JSON files in the job's folder, so a reload of the page, a closed
browser or a restarted dashboard loses nothing.
"""

from __future__ import annotations

import contextlib
import errno
import signal
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from agg2exp_core.files import locked, read_json, write_json
from agg2exp_core.records import InputError
from agg2exp_core.settings import checked_id

FINISHED = ("done", "failed", "cancelled")
STATES = ("queued", "running", *FINISHED)
ALIVE, CANCEL = ".alive", "cancel"
"""In a job's folder: the lock that its worker and its process hold, and what asks it to stop."""
BALLAST, BALLAST_BYTES = ".ballast", 64 * 2**10
"""In a job's folder while it runs: removed on a full disk, so that there is room to say so."""
MOST_DEATHS = 2
WRITES_PER_SECOND = 5.0


class Cancelled(SystemExit):
    """The process is to stop. Unwinds it, so that half-written files are removed."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether there was no room to write, on the disk or in what the user may use of it."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def one_line(error: BaseException) -> str:
    """What a user is told: an InputError's own words, else the kind of fault and its message."""
    kind = "disk full" if is_disk_full(error) else type(error).__name__
    text = str(error) if isinstance(error, InputError) else f"{kind}: {error}"
    return " ".join(text.split())[:500]


def begin(folder: Path, last_words: str) -> bool:
    """Note that a process is about to take up the job, whose lock the caller holds. False if none may: it failed.

    A job that nobody computes and that says it runs lost its process. The case that it lost one on twice in a row is
    not tried again; twice before any case, and the job has failed. last_words: what its process printed last.
    """
    state = _fresh(folder)
    if state["status"] == "running":
        state["deaths"] += 1
    if state["deaths"] >= MOST_DEATHS:
        reason = f"stopped unexpectedly{f': {last_words}' if last_words else ''}"
        if not state["case"]:
            _write(folder, state | {"status": "failed", "reason": reason})
            return False
        state["fatal"][state["case"]] = reason
        state["deaths"] = 0
    _write(folder, state | {"status": "running", "note": "starting"})
    return True


class Reporter:
    """Reports one job's progress from inside the computing process, whose worker holds the job's lock.

    `with Reporter(root, job_id) as report:` then `report.turn(device)`, `report.progress(done, total, note)` as often
    as one likes, `report.begins(case_id)` before a case is computed and `report.finished(cohort, run, case_id)` after
    it. An error inside the block is written down as the reason and raised again; SIGTERM, or the file `cancel`,
    becomes `Cancelled`.
    """

    def __init__(self, root: Path, job_id: str):
        self._folder = root / "jobs" / checked_id("job", job_id)
        if not (self._folder / "job.json").is_file():
            raise InputError("job must have been submitted", repr(job_id))
        self._written, self._told_to_stop = 0.0, False
        self._held = contextlib.ExitStack()
        self._state = _fresh(self._folder) | {"status": "running", "note": "starting"}

    def __enter__(self) -> Reporter:
        signal.signal(signal.SIGTERM, self._cancel)
        try:
            self._check_cancelled()
            (self._folder / BALLAST).write_bytes(bytes(BALLAST_BYTES))
            self._write()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def turn(self, device: str) -> None:
        """Wait until no other job of this root computes on the device, by whatever name its worker knows it."""
        self._state["note"] = "waiting for its turn"
        self._write()
        self._held.enter_context(locked(self._folder.parent / f".turn-{device}", self._may_try))
        self._state["note"] = "starting"
        self._write()

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

    def begins(self, case_id: str) -> None:
        """On which case the process is, should it die. InputError: a case on which it died too often."""
        if case_id in self._state["fatal"]:
            rule = f"a case must not end the process that computes it, as this one did {MOST_DEATHS} times"
            raise InputError(rule, self._state["fatal"][case_id])
        if case_id != self._state["case"]:
            self._state |= {"case": case_id, "deaths": 0}
            self._write()

    def skipped(self) -> None:
        """What went last was there already, and says nothing of how long the rest will take."""
        self._state["started"] = None

    def refused(self, case_id: str, reason: str) -> None:
        """A case that failed, while others go on."""
        self._state["failed"][case_id] = reason

    def finished(self, cohort: str, run: str, case_id: str) -> None:
        """Where the result lies; call it when the case is on disk."""
        self._state["result"] = {"cohort": cohort, "run": run, "case_id": case_id}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._state |= {"status": "done", "done": self._state["total"], "note": ""}
        elif isinstance(error, Cancelled | KeyboardInterrupt):
            # Where nobody asked for it to stop, the machine or its worker does, and the job is there to go on.
            stopped = (self._folder / CANCEL).exists()
            self._state |= {"status": "cancelled" if stopped else "queued", "note": ""}
        else:
            self._state |= {"status": "failed", "reason": one_line(error)}
            if is_disk_full(error):
                self._state["failed"] = {}  # others were not come to: whoever tries again wants them too
        (self._folder / BALLAST).unlink(missing_ok=True)
        self._write()
        self._held.close()

    def _may_try(self) -> bool:
        self._check_cancelled()
        return True

    def _check_cancelled(self) -> None:
        if (self._folder / CANCEL).exists():
            raise Cancelled

    def _cancel(self, number: int, frame: FrameType | None) -> None:
        # A second signal must not break the clean-up that the first one began.
        if not self._told_to_stop:
            self._told_to_stop = True
            raise Cancelled

    def _write(self) -> None:
        _write(self._folder, self._state)
        self._written = time.monotonic()


def _fresh(folder: Path) -> dict[str, Any]:
    """A job's state before its process says anything: what is known of those that died on it is kept."""
    told = read_json(folder / "progress.json")
    status, case, deaths, fatal = (told.get(name) for name in ("status", "case", "deaths", "fatal"))
    return {
        "status": status if status in STATES else "queued",
        **{"done": 0, "total": 0, "note": "", "started": None, "reason": "", "result": None, "failed": {}},
        "case": case if isinstance(case, str) else "",
        "deaths": deaths if isinstance(deaths, int) else 0,
        "fatal": {str(name): str(why) for name, why in fatal.items()} if isinstance(fatal, dict) else {},
    }


def _write(folder: Path, state: dict[str, Any]) -> None:
    write_json(folder / "progress.json", state | {"updated": time.time()})
