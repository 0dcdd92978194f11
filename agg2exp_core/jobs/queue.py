"""Ask for computations, watch and stop them. Knows the command line, nothing of what computes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agg2exp_core.files import is_locked, locked, make_folder, read_json, write_json
from agg2exp_core.jobs.progress import ALIVE, CANCEL, FINISHED, STATES
from agg2exp_core.records import InputError, Method
from agg2exp_core.settings import checked_device, checked_id


@dataclass(frozen=True)
class Request:
    """What to compute: one case, or all of a cohort where none is named, explained by one model and method.

    No targets means all of them. only: of a whole cohort, just these cases, such as those that failed.
    """

    cohort: str
    case_id: str
    model: str
    method: Method = field(default_factory=Method)
    targets: tuple[str, ...] = ()
    device: str = "auto"
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobState:
    """Where a job stands. status: queued | running | done | failed | cancelled.

    seconds_left: None while nothing can be said. reason: one line when it failed.
    result: cohort, run and case_id when it is done. failed: of a cohort, its cases that failed, each with the reason;
    where the job has failed, all that it lacks, or none if that is not known.
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
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.status in FINISHED


def submit(root: Path, request: Request) -> str:
    """Put the computation into the queue, see that a worker takes it, and return its job id.

    A request that asks for just what an unfinished one does is that job, unless that is about to stop.
    """
    with locked(root / "jobs" / ".submit"):
        same = (job.job_id for job in list_jobs(root) if not job.finished and asked(job.request) == asked(request))
        job_id = next((job_id for job_id in same if not (root / "jobs" / job_id / CANCEL).exists()), None)
        if job_id is None:
            job_id = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")  # in whose order they take their turns
            while (root / "jobs" / job_id).exists():  # where the clock was set back
                job_id = f"{job_id}-"
            make_folder(root / "jobs" / job_id)
            write_json(root / "jobs" / job_id / "job.json", {"created": time.time(), "request": asdict(request)})
        _see_to(root, request.device)
    return job_id


def tend(root: Path) -> None:
    """See that waiting jobs have a worker: also those whose worker died, or whose machine was started anew."""
    waiting = {job.request.device for job in list_jobs(root) if job.status == "queued"}
    if waiting:
        with locked(root / "jobs" / ".submit"):
            for device in sorted(waiting):
                _see_to(root, device)


def worker_lock(root: Path, device: str) -> Path:
    """What a device's worker holds while it lives. A device is auto, cpu, cuda or cuda:<number>."""
    return root / "jobs" / f".worker-{device}"


def command(root: Path, job_id: str, request: Request, device: str) -> list[str]:
    """The command line that computes the request on a worker's device; it reports to the job by `--job`."""
    words = [sys.executable, "-m", "agg2exp_core", "explain", "--data", str(root)]
    return [*words, *asked(replace(request, device=device)), "--job", job_id]


def asked(request: Request) -> list[str]:
    """The request as options of `agg2exp explain`: equal where the same would be computed."""
    cases = (request.case_id,) if request.case_id else request.only
    words = ["--cohort", request.cohort, *(word for case in cases for word in ("--case", case))]
    words += ["--model", request.model, *request.method.options(), "--targets", ",".join(request.targets) or "all"]
    return [*words, "--device", request.device]


def state(root: Path, job_id: str, alive: bool | None = None) -> JobState:
    """Where the job stands now. InputError when there is no such job.

    alive: whether it has a process, where that is known; else its lock tells, which other containers see too.
    """
    folder = _folder(root, job_id)
    job = read_json(folder / "job.json")
    try:
        request, created = _request(job["request"]), float(job["created"])
    except (KeyError, TypeError, ValueError):
        raise InputError("job must be one that was submitted", repr(job_id)) from None
    # The lock first, then what was written: a process that ends in between is seen with its last words.
    alive = is_locked(folder / ALIVE) if alive is None else alive
    known = replace(JobState(job_id, request, created, "queued"), **_progress(folder))
    if known.finished or alive:
        return known
    status = "cancelled" if (folder / CANCEL).exists() else "queued"
    return replace(known, status=status, note="waiting for its turn", seconds_left=None)


def list_jobs(root: Path, limit: int = 100) -> list[JobState]:
    """The jobs of this data root, newest first: so many of them, and all that are not finished.

    Folders that hold no job are passed over.
    """
    folders = job_folders(root)[::-1]
    jobs = []
    for folder in [*folders[:limit], *(old for old in folders[limit:] if not _has_ended(old))]:
        try:
            jobs.append(state(root, folder.name))
        except InputError:
            continue
    return jobs


def job_folders(root: Path) -> list[Path]:
    """Of all jobs, in the order they were asked for."""
    return sorted(path.parent for path in (root / "jobs").glob("[!.]*/job.json"))


def cancel(root: Path, job_id: str) -> None:
    """Ask the job to stop; its worker ends a process that does not. InputError when there is no such job."""
    folder = _folder(root, job_id)
    if not (folder / "job.json").is_file():
        raise InputError("job must be one that was submitted", repr(job_id))
    if not (folder / CANCEL).exists():
        (folder / CANCEL).touch()


def log(root: Path, job_id: str, most: int = 20_000) -> str:
    """The end of what the process printed, at most so many bytes of it."""
    try:
        raw = (_folder(root, job_id) / "log.txt").read_bytes()
    except OSError:
        return ""
    return raw[-most:].decode("utf-8", errors="replace")


def _folder(root: Path, job_id: str) -> Path:
    return root / "jobs" / checked_id("job", job_id)


def _has_ended(folder: Path) -> bool:
    return read_json(folder / "progress.json").get("status") in FINISHED


def _see_to(root: Path, device: str) -> None:
    """Start a device's worker if there is none; for `auto` that of any device will do."""
    there = root.glob("jobs/.worker-*") if device == "auto" else [worker_lock(root, device)]
    if not any(map(is_locked, there)):
        start_worker(root, device)


def start_worker(root: Path, device: str) -> None:
    """A process that outlives this one and its terminal."""
    words = [sys.executable, "-m", "agg2exp_core", "worker", "--data", str(root), "--device", device]
    with (root / "jobs" / "worker.log").open("ab") as log_file:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file, start_new_session=True
        )
    # Someone has to take its exit status, else it stays in the process table as a zombie.
    threading.Thread(target=process.wait, daemon=True).start()


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
            "failed": {str(name): str(why) for name, why in told.get("failed", {}).items()},
            "result": result and {name: checked_id(name, result[name]) for name in ("cohort", "run", "case_id")},
        }
    except (LookupError, AttributeError, TypeError, ValueError, ArithmeticError):
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
    several = {name: tuple(saved.get(name, ())) for name in ("targets", "only")}
    request = Request(**{**saved, **several, "method": method})
    for name in (request.cohort, request.model, *filter(None, (request.case_id, *request.only))):
        checked_id("name", name)
    checked_device(request.device)
    return request
