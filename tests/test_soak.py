"""Work is never lost: not to a kill, a race, a full disk, a flipped bit, a restart or a moved root.

`make test` does a tenth of each, `make soak` all of it.
"""

from __future__ import annotations

import builtins
import errno
import io
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import run
from crew import hire, wait
from tiny import write_bundle, write_cohort

from agg2exp_core import files, pipeline
from agg2exp_core.jobs import progress, queue, worker
from agg2exp_core.jobs.progress import ALIVE
from agg2exp_core.jobs.queue import Request
from agg2exp_core.records import Method
from agg2exp_core.store import catalog, cohorts, queries, results, reviews
from agg2exp_core.store.checking import check_root
from agg2exp_core.store.reviews import Seen, Session, Verdict

FORK = multiprocessing.get_context("fork")
NAMES = tuple(f"case-{number}" for number in range(6))
RUN = "tiny-gradient"
EXPLAIN = ("--model", "tiny", "--cohort", "c", "--method", "gradient", "--device", "cpu")


def times(full: int) -> int:
    """How often."""
    return full if os.environ.get("AGG2EXP_SOAK") else full // 10


def quiet(*_: object) -> None:
    pass


@pytest.fixture
def root(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # so that forked processes can compute
    root = tmp_path / "root"
    write_bundle(root)
    write_cohort(root, NAMES, np.diag([4.0, 4, 4, 1]), (18, 14, 12))
    return root


def explain(root: Path, *more: str) -> None:
    """In a process of its own, which then ends as the command does."""
    sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    os._exit(run("explain", "--data", root, *EXPLAIN, *more))


def started(work: Callable[..., None], *args: Any) -> Any:
    process = FORK.Process(target=work, args=args)
    process.start()
    return process


def cases_of(root: Path) -> Path:
    return root / "runs" / "c" / RUN / "cases"


def finished(root: Path) -> dict[str, tuple[int, str]]:
    """Of what is there under its name, and so must verify: when it was written and its manifest's hash."""
    there = {folder.name: folder for folder in cases_of(root).glob("[!.]*") if folder.is_dir()}
    assert {name: results.verify(folder) for name, folder in there.items()} == {name: [] for name in there}
    return {name: (of.stat().st_ino, str(results.read_manifest(of))) for name, of in there.items()}


def tables(root: Path) -> dict[str, bytes]:
    return {folder.name: (folder / "importance.csv").read_bytes() for folder in cases_of(root).glob("[!.]*")}


# ---- kills and races -----------------------------------------------------------------------------


def test_a_kill_at_any_moment_tears_nothing_and_loses_no_finished_case(root) -> None:
    begun = time.monotonic()
    process = started(explain, root)
    process.join()
    whole, undisturbed = time.monotonic() - begun, tables(root)
    assert process.exitcode == 0 and set(undisturbed) == set(NAMES)
    moments, kills = random.Random(0), 0
    while kills < times(200):
        shutil.rmtree(root / "runs")
        before: dict[str, tuple[int, str]] = {}
        while set(before) != set(NAMES):
            process = started(explain, root)
            process.join(moments.uniform(0, whole))
            kills += process.is_alive()
            process.kill()
            process.join()
            now = finished(root)
            assert before.items() <= now.items()  # none lost, none computed again
            before = now
        process = started(explain, root)
        process.join()
        assert process.exitcode == 0 and tables(root) == undisturbed and finished(root) == before
        assert not list(cases_of(root).glob(".*/"))  # nor is anything left half-made


def _explain_one(root: Path, ready: Any) -> None:
    explaining = pipeline.Explaining(root, pipeline.Plan("tiny", Method("gradient"), device="cpu"))
    ready.wait()
    explaining.cohort_case("c", cohorts.find_case(root, "c", NAMES[0]), quiet)


def test_two_processes_on_one_case_leave_one_result(root) -> None:
    for _ in range(times(100)):
        shutil.rmtree(root / "runs", ignore_errors=True)
        ready = FORK.Barrier(2)
        both = [started(_explain_one, root, ready) for _ in range(2)]
        for process in both:
            process.join()
        assert [process.exitcode for process in both] == [0, 0] and set(finished(root)) == {NAMES[0]}


def test_two_workers_on_one_job_compute_it_once(tmp_path, monkeypatch) -> None:
    hire(monkeypatch, "pathlib.Path(sys.argv[1], f'{sys.argv[2]}.{os.getpid()}').touch()")
    monkeypatch.setattr(queue, "start_worker", lambda *_: None)
    for _ in range(times(100)):
        job, root = queue.submit(tmp_path, Request("c", "one", "tiny")), tmp_path
        with ThreadPool(2) as pool:
            assert pool.starmap(worker.work, [(root, "cuda:0"), (root, "cuda:1")]) == [True, True]
        assert wait(root, job, lambda state: state.finished).status == "done"
        assert len(list(root.glob(f"{job}.*"))) == 1


# ---- a full disk ---------------------------------------------------------------------------------


class Disk:
    """Full from the `room`-th write on, until what was kept free for the last words is given up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ballast: Path, room: int):
        self.room, self.ballast, self.was_full = room, ballast, False
        self._opened, synced, made, unlinked = io.open, os.fsync, os.mkdir, Path.unlink
        monkeypatch.setattr(io, "open", self._open)
        monkeypatch.setattr(builtins, "open", self._open)
        monkeypatch.setattr(os, "fsync", lambda file: (self.write(), synced(file))[1])
        monkeypatch.setattr(os, "mkdir", lambda *args, **named: (self.write(), made(*args, **named))[1])

        def unlink(path: Path, missing_ok: bool = False) -> None:
            if path == ballast and path.exists():
                self.room = 2**30
            unlinked(path, missing_ok)

        monkeypatch.setattr(Path, "unlink", unlink)

    def write(self) -> None:
        self.room -= 1
        if self.room < 0:
            self.was_full = True
            raise OSError(errno.ENOSPC, "No space left on device")

    def _open(self, file: Any, mode: str = "r", *args: Any, **named: Any) -> Any:
        if set(mode) & set("wax") and "/dev/" not in str(file):
            self.write()
        return self._opened(file, mode, *args, **named)


def test_a_full_disk_at_any_write_leaves_what_was_there_and_the_job_goes_on_when_there_is_room(
    root, monkeypatch
) -> None:
    monkeypatch.setattr(queue, "start_worker", lambda *_: None)
    request = Request("c", "", "tiny", Method("gradient"), device="cpu", only=NAMES[:2])
    words = ("--case", NAMES[0], "--case", NAMES[1])
    assert run("explain", "--data", root, *EXPLAIN, "--case", NAMES[0]) == 0
    before, room = finished(root), 0
    while True:
        job = queue.submit(root, request)
        folder = root / "jobs" / job
        with files.locked(folder / ALIVE), monkeypatch.context() as patch:
            assert progress.begin(folder, "")
            disk = Disk(patch, folder / progress.BALLAST, room)
            code = run("explain", "--data", root, *EXPLAIN, *words, "--job", job)
        state = queue.state(root, job)
        assert before.items() <= finished(root).items()
        if not disk.was_full:
            assert code == 0 and state.status == "done"
            break
        if state.finished:  # else it was full before the job could begin, and it waits
            assert state.status == "failed" and state.reason.startswith("disk full"), (room, state)
        assert code == 1
        job = queue.submit(root, request)
        with files.locked(root / "jobs" / job / ALIVE):
            assert progress.begin(root / "jobs" / job, "")
            assert run("explain", "--data", root, *EXPLAIN, *words, "--job", job) == 0
        assert queue.state(root, job).status == "done" and set(finished(root)) == set(NAMES[:2])
        shutil.rmtree(cases_of(root) / NAMES[1])
        room += 1 if times(10) == 10 else 7
    assert room > 20


class Crowded(Disk):
    """Full for one write alone: others, of somebody else's files that went, find room again."""

    def write(self) -> None:
        self.room -= 1
        if self.room == -1:
            self.was_full = True
            raise OSError(errno.ENOSPC, "No space left on device")


def test_one_write_without_room_is_not_taken_for_written(root, monkeypatch) -> None:
    assert run("explain", "--data", root, *EXPLAIN, "--case", NAMES[0]) == 0
    undisturbed, room, full = tables(root), 0, True
    while full:
        shutil.rmtree(root / "runs", ignore_errors=True)
        with monkeypatch.context() as patch:
            disk = Crowded(patch, root / "no-ballast", room)
            code = run("explain", "--data", root, *EXPLAIN, "--case", NAMES[0])
        # The last write is that of the folder in which the case lies by then: told, and nothing is torn.
        assert (code, tables(root)) in ((0, undisturbed), (1, undisturbed), (1, {})), room
        assert finished(root).keys() == tables(root).keys()
        full, room = disk.was_full, room + (1 if times(10) == 10 else 2)
    assert room > 20


class Kill(Disk):
    """Ends this process, by no more than the kernel's own hand, where the disk would be full."""

    def write(self) -> None:
        self.room -= 1
        if self.room < 0:
            os.kill(os.getpid(), signal.SIGKILL)


def _explain_until(root: Path, room: int) -> None:
    Kill(pytest.MonkeyPatch(), root / "no-ballast", room)
    explain(root, "--case", NAMES[0])


def test_a_kill_between_any_two_writes_tears_nothing(root) -> None:
    """At random moments a kill rarely meets the few milliseconds in which a case comes to lie in its place."""
    process = started(explain, root, "--case", NAMES[0])
    process.join()
    undisturbed, room, ended = tables(root), 0, None
    while ended != 0:
        shutil.rmtree(root / "runs", ignore_errors=True)
        process = started(_explain_until, root, room)
        process.join()
        ended, room = process.exitcode, room + (1 if times(10) == 10 else 2)
        assert ended in (0, -signal.SIGKILL)
        left = finished(root)
        if room % 5 == 0 or left:
            process = started(explain, root, "--case", NAMES[0])
            process.join()
            assert process.exitcode == 0 and left.items() <= finished(root).items() and tables(root) == undisturbed
    assert room > 20


# ---- bit rot -------------------------------------------------------------------------------------


def _rows(root: Path) -> set[tuple[object, ...]]:
    sql = "SELECT case_id, target, region, sign, mass, mean, voxels FROM importance WHERE mass IS NOT NULL"
    return set(queries.run_user_query(catalog.connect(root), sql).itertuples(index=False, name=None))


def test_no_flipped_bit_is_used(root) -> None:
    assert run("explain", "--data", root, *EXPLAIN, "--case", NAMES[0], "--case", NAMES[1]) == 0
    cache, places = cases_of(root).parent / "importance.parquet", random.Random(0)
    good = _rows(root)
    case = cases_of(root) / NAMES[0]
    drawn = next((case / "saliency").iterdir())
    rotting = [*(case / name for name in ("importance.csv", results.PREDICTION, results.MANIFEST)), drawn, cache]
    for turn in range(times(300)):
        path = rotting[turn % len(rotting)]
        whole = path.read_bytes()
        damaged, place = bytearray(whole), places.randrange(8 * len(whole))
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        seen = _rows(root)
        assert seen <= good and (path != cache or seen == good), path
        if path != cache:
            means_the_same = path.name == results.MANIFEST and not results.verify(case)
            cache.unlink()
            left = _rows(root)
            assert left <= good and (results.verify(case) or means_the_same), path
            path.write_bytes(whole)
    assert check_root(root, quiet) == [] and _rows(root) == good


# ---- restarts, crowds, clocks and places ---------------------------------------------------------

FOREVER = "for step in range(600):\n    report.progress(step, 600, str(os.getpid()))\n    time.sleep(0.05)"


def _serve(root: Path, asked: Any) -> None:
    """A dashboard's process, which asks for a computation and is then ended with all its threads."""
    queue.submit(root, Request("c", "one", "tiny"))
    started(_work, root)  # not from within, where it would inherit the lock
    asked.set()
    time.sleep(60)


def _work(root: Path) -> None:
    os.setsid()
    worker.work(root, "auto")


def test_a_job_goes_on_when_the_dashboard_is_started_anew_and_is_found_again(tmp_path, monkeypatch) -> None:
    hire(monkeypatch, FOREVER)
    monkeypatch.setattr(queue, "start_worker", lambda *_: None)
    for turn in range(times(20)):
        asked = FORK.Event()
        server = started(_serve, tmp_path, asked)
        assert asked.wait(30)
        job = queue.list_jobs(tmp_path)[0].job_id
        pid = int(wait(tmp_path, job, lambda state: state.note.isdigit()).note)
        server.kill()
        server.join()
        begun = time.monotonic()
        (found,) = [state for state in queue.list_jobs(tmp_path) if not state.finished]
        assert (found.job_id, found.status) == (job, "running") and time.monotonic() - begun < 5
        step = queue.state(tmp_path, job).done
        assert int(wait(tmp_path, job, lambda state, step=step: state.done > step).note) == pid
        queue.cancel(tmp_path, job)
        wait(tmp_path, job, lambda state: state.finished)
        assert len(queue.list_jobs(tmp_path)) == turn + 1


@pytest.mark.parametrize("same", [False, True])
def test_all_that_is_asked_for_at_once_is_kept(tmp_path, monkeypatch, same) -> None:
    monkeypatch.setattr(queue, "start_worker", lambda *_: None)
    monkeypatch.setattr(files, "LOCK_POLL_SECONDS", 0.005)
    requests = [Request("c", "one" if same else f"case-{number}", "tiny") for number in range(50)]
    with ThreadPool(50) as pool:
        jobs = pool.starmap(queue.submit, [(tmp_path, request) for request in requests])
    assert len(set(jobs)) == len(queue.list_jobs(tmp_path)) == (1 if same else 50)
    assert {state.request for state in queue.list_jobs(tmp_path)} == set(requests)


def test_all_verdicts_that_are_given_at_once_are_kept(tmp_path) -> None:
    session = Session("round", "c", "r", ("heart",), tuple(f"case-{number}" for number in range(50)))
    reviews.create_session(tmp_path, session)
    given = [
        Verdict(
            "round",
            "c",
            "r",
            case,
            "heart",
            phase="segmentation",
            reviewer="Ada",
            verdict="accept",
            seen=Seen("1", "2"),
        )
        for case in session.cases
    ]
    with ThreadPool(50) as pool:
        pool.starmap(reviews.give, [(tmp_path, verdict) for verdict in given])
    verdicts = reviews.read_verdicts(tmp_path, session)
    assert len(verdicts.given) == 50 and verdicts.damaged == ()


def test_a_clock_that_is_set_back_loses_no_job(tmp_path, monkeypatch) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, zone: Any = None) -> datetime:
            return datetime(2026, 1, 1, tzinfo=UTC)

    hire(monkeypatch, "report.progress(1, 9)")
    first = queue.submit(tmp_path, Request("c", "one", "tiny"))
    assert wait(tmp_path, first, lambda state: state.finished).status == "done"
    monkeypatch.setattr(queue, "datetime", Clock)
    monkeypatch.setattr(time, "time", lambda: 1e9)
    more = [queue.submit(tmp_path, Request("c", name, "tiny")) for name in ("two", "three")]
    assert [wait(tmp_path, job, lambda state: state.finished).status for job in more] == ["done", "done"]
    assert len({first, *more}) == 3


def test_a_root_that_moved_opens_verifies_and_goes_on(root, monkeypatch) -> None:
    monkeypatch.setattr(queue, "start_worker", lambda *_: None)
    assert run("explain", "--data", root, *EXPLAIN, "--case", NAMES[0]) == 0
    rows, job = _rows(root), queue.submit(root, Request("c", "", "tiny", Method("gradient"), device="cpu"))
    moved = root.with_name("elsewhere")
    root.rename(moved)
    assert check_root(moved, quiet) == [] and _rows(moved) == rows
    before = finished(moved)
    assert [state.job_id for state in queue.list_jobs(moved)] == [job]
    with files.locked(moved / "jobs" / job / ALIVE):
        assert run("explain", "--data", moved, *EXPLAIN, "--job", job) == 0
    assert before.items() <= finished(moved).items() and set(finished(moved)) == set(NAMES) and not root.exists()


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A Reporter of this process takes SIGTERM for its own."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
