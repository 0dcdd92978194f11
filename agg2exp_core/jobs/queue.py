"""Start, watch and stop computations from the dashboard. Knows the command line, nothing of what computes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agg2exp_core.files import locked, read_json, write_json
from agg2exp_core.jobs.progress import CANCEL, FINISHED, STATES, is_alive, own_pid, process_start
from agg2exp_core.records import InputError, Method
from agg2exp_core.settings import checked_id

GRACE_SECONDS = 15.0
"""A window of a large network takes seconds, in which Python sees no signal."""


@dataclass(frozen=True)
class Request:
    """What to compute: one case, or all of a cohort where none is named, explained by one model and method.

    No targets means all of them.
    """

    cohort: str
    case_id: str
    model: str
    method: Method = field(default_factory=Method)
    targets: tuple[str, ...] = ()
    device: str = "auto"


@dataclass(frozen=True)
class JobState:
    """Where a job stands. status: queued | running | done | failed | cancelled.

    seconds_left: None while nothing can be said. reason: one line when it failed.
    result: cohort, run and case_id when it is done.
    """

    job_id: str
    request: Request
    created: float
    status: str
    done: int = 0
    total: int = 0
    note: str = ""
    seconds_left: float | None = None
    reason: str = ""
    result: dict[str, str] | None = None

    @property
    def finished(self) -> bool:
        return self.status in FINISHED


def submit(root: Path, request: Request) -> str:
    """Start the computation as a process of its own and return its job id.

    A request that asks for just what an unfinished one does is that job.
    """
    with locked(root / "jobs" / ".submit"):
        for job in list_jobs(root):
            if not job.finished and asked(job.request) == asked(request):
                return job.job_id
        job_id = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")  # in whose order they take their turns
        folder = root / "jobs" / job_id
        folder.mkdir()
        write_json(folder / "job.json", {"created": time.time(), "request": asdict(request)})
        _start(folder, command(root, job_id, request))
    return job_id


def command(root: Path, job_id: str, request: Request) -> list[str]:
    """The command line that computes the request; it reports to the job by `--job`."""
    words = [sys.executable, "-m", "agg2exp_core", "explain", "--data", str(root)]
    return [*words, *asked(request), "--job", job_id]


def asked(request: Request) -> list[str]:
    """The request as options of `agg2exp explain`: equal where the same would be computed."""
    words = ["--cohort", request.cohort, *(["--case", request.case_id] if request.case_id else [])]
    words += ["--model", request.model, *request.method.options(), "--targets", ",".join(request.targets) or "all"]
    return [*words, "--device", request.device]


def state(root: Path, job_id: str) -> JobState:
    """Where the job stands now. InputError when there is no such job."""
    folder = _folder(root, job_id)
    job = read_json(folder / "job.json")
    try:
        request, created = _request(job["request"]), float(job["created"])
    except (KeyError, TypeError, ValueError):
        raise InputError("job must be one that was submitted", repr(job_id)) from None
    # The process first, then what it wrote: one that ends in between is seen with its last words.
    alive = is_alive(folder)
    known = replace(JobState(job_id, request, created, "queued"), **_progress(folder))
    return known if known.finished or alive else _died(folder, known)


def list_jobs(root: Path, limit: int = 100) -> list[JobState]:
    """The jobs of this data root, newest first: so many of them, and all that live.

    Folders that hold no job are passed over.
    """
    folders = [path.parent for path in sorted((root / "jobs").glob("[!.]*/job.json"), reverse=True)]
    jobs = []
    for folder in [*folders[:limit], *filter(is_alive, folders[limit:])]:
        _stop(folder)
        try:
            jobs.append(state(root, folder.name))
        except InputError:
            continue
    return jobs


def cancel(root: Path, job_id: str) -> None:
    """Ask the job to stop; one that has not after GRACE_SECONDS is ended when next the jobs are listed.

    Nothing happens to a process that merely has the same number by now.

    InputError when there is no such job.
    """
    folder = _folder(root, job_id)
    if not (folder / "job.json").is_file():
        raise InputError("job must be one that was submitted", repr(job_id))
    if not (folder / CANCEL).exists():
        (folder / CANCEL).touch()
    _stop(folder)


def log(root: Path, job_id: str, most: int = 20_000) -> str:
    """The end of what the process printed, at most so many bytes of it."""
    try:
        raw = (_folder(root, job_id) / "log.txt").read_bytes()
    except OSError:
        return ""
    return raw[-most:].decode("utf-8", errors="replace")


def _folder(root: Path, job_id: str) -> Path:
    return root / "jobs" / checked_id("job", job_id)


def _start(folder: Path, words: list[str]) -> None:
    with (folder / "log.txt").open("ab") as log_file:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file, start_new_session=True
        )
    start = process_start(process.pid)
    write_json(folder / "process.json", {"pid": process.pid, "pid_start": start})
    # Someone has to take its exit status, else it stays in the process table as a zombie.
    threading.Thread(target=process.wait, daemon=True).start()


def _stop(folder: Path) -> None:
    """Signal a process that was asked to stop: to clean up at first, to end at once when it has not for long."""
    try:
        waited = time.time() - (folder / CANCEL).stat().st_mtime
    except FileNotFoundError:
        return
    if (pid := own_pid(folder)) is not None:
        with contextlib.suppress(ProcessLookupError):  # it may end at this very moment
            os.kill(pid, signal.SIGKILL if waited > GRACE_SECONDS else signal.SIGTERM)


def _died(folder: Path, known: JobState) -> JobState:
    """A process that is gone without having said how it ended."""
    if (folder / CANCEL).exists():
        status, reason = "cancelled", ""
    elif not (folder / "process.json").exists() and time.time() - known.created < 10:
        status, reason = "queued", ""  # it is being started at this very moment
    else:
        lines = log(folder.parents[1], folder.name).split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        status, reason = "failed", f"stopped unexpectedly{f': {last[:300]}' if last else ''}"

    return replace(known, status=status, reason=reason, seconds_left=None)


def _progress(folder: Path) -> dict[str, Any]:
    """What the process reported, as fields of a JobState; nothing where that cannot be read."""
    told = read_json(folder / "progress.json")
    try:
        status, result = told["status"], told["result"]
        if status not in STATES:
            raise ValueError(status)
        return {
            **{"status": status, "done": int(told["done"]), "total": int(told["total"])},
            **{name: str(told[name]) for name in ("note", "reason")},
            "seconds_left": _seconds_left(told) if status == "running" else None,
            "result": result and {name: checked_id(name, result[name]) for name in ("cohort", "run", "case_id")},
        }
    except (LookupError, TypeError, ValueError, ArithmeticError):
        return {}


def _seconds_left(progress: dict[str, Any]) -> float | None:
    """What is left at the pace so far, less the time since the last report. In shares: cases differ in their steps."""
    started, share = progress["started"], progress["done"] / max(progress["total"], 1)
    if started is None or share <= progress["first"]:
        return None
    pace = (progress["updated"] - started) / (share - progress["first"])
    left = pace * (1 - share) - (time.time() - progress["updated"])
    return max(float(left), 0.0)


def _request(saved: dict[str, Any]) -> Request:
    """As it was stored. An error of Python's own where it names what cannot be asked for."""
    # What was asked for before there were other estimators was the published one.
    method = Method(**{"estimator": "plain", **saved["method"]})
    method.parameters()
    request = Request(**{**saved, "method": method, "targets": tuple(saved["targets"])})
    for name in (request.cohort, request.model, *([request.case_id] if request.case_id else [])):
        checked_id("name", name)
    return request
