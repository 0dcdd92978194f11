"""One device's worker: takes the jobs in their order, and lets a process of its own compute each.

A process that dies takes no worker with it: its job is back in the queue, where `progress.begin` counts the deaths.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from pathlib import Path
from typing import TextIO

from agg2exp_core.files import locked, try_lock
from agg2exp_core.jobs import queue
from agg2exp_core.jobs.progress import ALIVE, CANCEL, begin
from agg2exp_core.jobs.queue import JobState
from agg2exp_core.records import InputError

GRACE_SECONDS = 15.0
"""A window of a large network takes seconds, in which Python sees no signal."""
POLL_SECONDS = 0.1


def work(root: Path, device: str) -> bool:
    """Let every waiting job of the device, or of any, be computed until none is left. False if another worker does."""
    held = try_lock(queue.worker_lock(root, device))
    if held is None:
        return False
    with held:
        while True:
            with locked(root / "jobs" / ".submit"):
                claimed = _claim(root, device)
                if claimed is None:
                    held.close()  # before anyone can submit a job to a worker that is about to go
                    return True
            job, alive = claimed
            with alive:
                _attend(root / "jobs" / job.job_id, queue.command(root, job.job_id, job.request, device), alive)


def _claim(root: Path, device: str) -> tuple[JobState, TextIO] | None:
    """The job that waits longest, and the lock that says it is taken, which the kernel frees when its holders die."""
    for folder in queue.job_folders(root):
        try:
            job = queue.state(root, folder.name)
        except InputError:
            continue
        if job.status != "queued" or job.request.device not in ("auto", device):
            continue
        alive = try_lock(folder / ALIVE)
        if alive is None:
            continue
        # Looked at again: it may have ended in between.
        if queue.state(root, folder.name, alive=False).status == "queued" and begin(folder, _last_line(root, folder)):
            return job, alive
        alive.close()
    return None


def _attend(folder: Path, words: list[str], alive: TextIO) -> None:
    """Run a job's process to its end, which it is brought to when it is asked to stop and does not."""
    with (folder / "log.txt").open("ab") as log:
        # It inherits the lock: the job lives while its process does, whatever becomes of this one.
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[alive.fileno()],
        )
        asked = None
        try:
            while process.poll() is None:
                asked = _stop_if_asked(process, folder / CANCEL, asked)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
        except BaseException:
            _end(process)
            raise
        if process.returncode < 0:
            log.write(f"ended by {signal.Signals(-process.returncode).name}\n".encode())


def _stop_if_asked(process: subprocess.Popen[bytes], cancel: Path, asked: float | None) -> float | None:
    """When it was first seen that the process is to stop, which it is told now: by a clock that nobody sets."""
    if not cancel.exists():
        return None
    now = time.monotonic()
    asked = now if asked is None else asked
    process.send_signal(signal.SIGKILL if now - asked > GRACE_SECONDS else signal.SIGTERM)
    return asked


def _end(process: subprocess.Popen[bytes]) -> None:
    """The worker is told to go: its job's process too, which leaves the job in the queue."""
    process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_line(root: Path, folder: Path) -> str:
    lines = (line.strip() for line in reversed(queue.log(root, folder.name).split("\n")))
    return next(filter(None, lines), "")[:300]
