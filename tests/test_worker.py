"""Workers: jobs in their order, a device each; what dies comes back, and not for ever; what is stopped stops."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import run
from crew import hire, wait
from tiny import write_bundle, write_cohort

from agg2exp_core import files
from agg2exp_core.jobs import progress, queue, worker
from agg2exp_core.jobs.progress import ALIVE, CANCEL, Cancelled, Reporter
from agg2exp_core.jobs.queue import Request
from agg2exp_core.records import InputError, Method
from agg2exp_core.store import results

REQUEST = Request("reference", "case_001", "model", Method("smoothgrad", 4), ("heart",))
OTHER = replace(REQUEST, case_id="case_002")
FOREVER = (
    "report.turn(sys.argv[4])\nfor _ in range(600):\n    report.progress(1, 9, str(os.getpid()))\n    time.sleep(0.05)"
)


def _pid(state: queue.JobState) -> int:
    return int(state.note)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A submitted job whose process is this one."""
    monkeypatch.setattr(queue, "start_worker", lambda *_: None)
    before, name = signal.getsignal(signal.SIGTERM), queue.submit(tmp_path, REQUEST)
    with files.locked(tmp_path / "jobs" / name / ALIVE):
        assert progress.begin(tmp_path / "jobs" / name, "")
        yield name
    signal.signal(signal.SIGTERM, before)


def test_progress_and_result_come_back_from_disk(tmp_path, monkeypatch) -> None:
    hire(
        monkeypatch,
        "report.progress(0, 10, 'window 1')\ntime.sleep(0.4)\nreport.progress(5, 10, 'window 6')\n"
        "time.sleep(0.6)\nreport.finished('reference', 'run', 'case_001')",
    )
    job = queue.submit(tmp_path, REQUEST)
    half = wait(tmp_path, job, lambda s: s.done == 5)
    assert half.status == "running" and half.total == 10 and half.note == "window 6"
    assert half.seconds_left is not None and 0 <= half.seconds_left < 2
    end = wait(tmp_path, job, lambda s: s.finished)
    assert (end.status, end.reason) == ("done", "")
    assert end.result == {"cohort": "reference", "run": "run", "case_id": "case_001"}
    assert [s.request for s in queue.list_jobs(tmp_path)] == [REQUEST]


def test_refusal_is_the_reason(tmp_path, monkeypatch) -> None:
    hire(monkeypatch, "raise InputError('scan must be 3D', '4D')")
    end = wait(tmp_path, queue.submit(tmp_path, REQUEST), lambda s: s.finished)
    assert (end.status, end.reason) == ("failed", "scan must be 3D; got 4D")


def test_jobs_run_one_at_a_time_in_the_order_they_were_asked_for(tmp_path, monkeypatch) -> None:
    hire(monkeypatch, "pathlib.Path(sys.argv[1], sys.argv[3]).mkdir()\npathlib.Path(sys.argv[1], sys.argv[3]).rmdir()")
    told = []
    begin = worker.begin
    monkeypatch.setattr(worker, "begin", lambda folder, last: (told.append(folder.name), begin(folder, last))[1])
    with files.locked(queue.worker_lock(tmp_path, "auto")):
        jobs = [queue.submit(tmp_path, replace(REQUEST, case_id=f"case_{number}")) for number in range(5)]
        assert [state.status for state in queue.list_jobs(tmp_path)] == ["queued"] * 5
    queue.tend(tmp_path)
    for job in jobs:
        assert wait(tmp_path, job, lambda s: s.finished).status == "done"
    assert told == jobs == sorted(jobs) and [job.job_id for job in queue.list_jobs(tmp_path)] == jobs[::-1]


def test_same_unfinished_request_is_one_job(tmp_path, monkeypatch) -> None:
    hire(monkeypatch, FOREVER)
    job = queue.submit(tmp_path, REQUEST)
    assert queue.submit(tmp_path, REQUEST) == job
    queue.cancel(tmp_path, job)
    wait(tmp_path, job, lambda s: s.finished)
    again = queue.submit(tmp_path, REQUEST)
    assert again != job
    queue.cancel(tmp_path, again)
    wait(tmp_path, again, lambda s: s.finished)


# ---- devices -------------------------------------------------------------------------------------


def test_each_device_has_its_worker_and_takes_what_may_go_anywhere(tmp_path, monkeypatch) -> None:
    hire(monkeypatch, FOREVER)
    first, second = (queue.submit(tmp_path, replace(REQUEST, device=f"cuda:{number}")) for number in (0, 1))
    for job in (first, second):
        wait(tmp_path, job, lambda s: s.done == 1)  # both at once
    anywhere = queue.submit(tmp_path, OTHER)
    assert not worker.work(tmp_path, "cuda:1") and not (tmp_path / "jobs" / ".worker-auto").exists()
    assert queue.state(tmp_path, anywhere).status == "queued"
    queue.cancel(tmp_path, second)
    wait(tmp_path, anywhere, lambda s: s.done == 1)
    for job in (first, anywhere):
        queue.cancel(tmp_path, job)
        wait(tmp_path, job, lambda s: s.status == "cancelled")


def test_two_names_of_one_device_take_turns(tmp_path, job, monkeypatch) -> None:
    monkeypatch.setattr(files, "LOCK_POLL_SECONDS", 0.01)
    hire(monkeypatch, "report.turn('cuda:0')")
    with Reporter(tmp_path, job) as mine:
        mine.turn("cuda:0")
        other = queue.submit(tmp_path, replace(OTHER, device="cuda"))
        wait(tmp_path, other, lambda s: s.status == "running" and s.note == "waiting for its turn")
    assert wait(tmp_path, other, lambda s: s.finished).status == "done"


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "../cuda", "cuda:0\n", ""])
def test_what_is_no_device_is_refused(device: str, tmp_path, capsys) -> None:
    assert run("worker", "--data", tmp_path, "--device", device) == 2
    assert "device must be one of auto, cpu, cpu:<number>, cuda, cuda:<number>" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ---- deaths --------------------------------------------------------------------------------------

THREE = """for case in ('one', 'two', 'three'):
    if pathlib.Path(sys.argv[1], case).exists():
        continue
    try:
        report.begins(case)
    except InputError as error:
        report.refused(case, str(error))
        continue
    {dies}
    pathlib.Path(sys.argv[1], case).touch()
    report.finished('reference', 'run', case)"""


def test_a_case_that_kills_its_process_twice_has_failed_and_the_next_is_computed(tmp_path, monkeypatch) -> None:
    hire(monkeypatch, THREE.format(dies="if case == 'two': os.kill(os.getpid(), signal.SIGKILL)"))
    end = wait(tmp_path, queue.submit(tmp_path, REQUEST), lambda s: s.finished)
    assert list(end.failed) == ["two"] and "stopped unexpectedly: ended by SIGKILL" in end.failed["two"]
    assert (tmp_path / "one").exists() and (tmp_path / "three").exists() and not (tmp_path / "two").exists()
    assert queue.log(tmp_path, end.job_id).count("ended by SIGKILL") == 2


def test_one_death_on_each_case_fails_none(tmp_path, monkeypatch) -> None:
    once = (
        "mark = pathlib.Path(sys.argv[1], case + '.died')\n    if not mark.exists():\n"
        "        mark.touch()\n        os.kill(os.getpid(), signal.SIGABRT)"
    )
    hire(monkeypatch, THREE.format(dies=once))
    end = wait(tmp_path, queue.submit(tmp_path, REQUEST), lambda s: s.finished)
    assert (end.status, end.failed) == ("done", {}) and queue.log(tmp_path, end.job_id).count("SIGABRT") == 3


def test_two_deaths_before_any_case_fail_the_job_with_its_last_words(tmp_path, monkeypatch) -> None:
    hire(monkeypatch, "import sys\nsys.exit('model must exist; got nothing')", header="")
    end = wait(tmp_path, queue.submit(tmp_path, REQUEST), lambda s: s.finished)
    assert (end.status, end.reason) == ("failed", "stopped unexpectedly: model must exist; got nothing")
    assert queue.log(tmp_path, end.job_id).count("model must exist") == 2


def _work(root: Path) -> None:
    worker.work(root, "auto")


def test_a_job_outlives_its_worker_and_is_computed_by_no_other(tmp_path, monkeypatch) -> None:
    hire(monkeypatch, FOREVER)
    monkeypatch.setattr(queue, "start_worker", lambda *_: None)
    job = queue.submit(tmp_path, REQUEST)
    process = multiprocessing.get_context("fork").Process(target=_work, args=(tmp_path,))
    process.start()
    pid = _pid(wait(tmp_path, job, lambda s: s.done == 1))
    process.kill()
    process.join()
    assert worker.work(tmp_path, "auto")  # finds nothing that waits
    assert _pid(queue.state(tmp_path, job)) == pid and queue.state(tmp_path, job).status == "running"
    os.kill(pid, signal.SIGKILL)
    back = wait(tmp_path, job, lambda s: s.status == "queued")
    assert back.note == "waiting for its turn" and queue.submit(tmp_path, REQUEST) == job
    hire(monkeypatch, "report.begins('case_001')")
    queue.tend(tmp_path)
    assert wait(tmp_path, job, lambda s: s.finished).status == "done"


def test_a_process_that_is_told_to_go_leaves_its_job_in_the_queue(tmp_path, job) -> None:
    with pytest.raises(Cancelled), Reporter(tmp_path, job) as report:
        report.begins("case_001")
        os.kill(os.getpid(), signal.SIGTERM)
    assert queue.state(tmp_path, job, alive=False).status == "queued"
    told = files.read_json(tmp_path / "jobs" / job / "progress.json")
    assert (told["status"], told["deaths"], told["case"]) == ("queued", 0, "case_001")


# ---- stopping ------------------------------------------------------------------------------------


def test_a_stopped_job_lets_the_next_begin(tmp_path, monkeypatch) -> None:
    hire(monkeypatch, FOREVER)
    first, second, third = (queue.submit(tmp_path, replace(REQUEST, case_id=f"case_{i}")) for i in range(3))
    wait(tmp_path, first, lambda s: s.done == 1)
    queue.cancel(tmp_path, third)
    assert queue.state(tmp_path, third).status == "cancelled"  # while it waited
    queue.cancel(tmp_path, first)
    wait(tmp_path, second, lambda s: s.done == 1)
    queue.cancel(tmp_path, second)
    assert [wait(tmp_path, job, lambda s: s.finished).status for job in (first, second)] == ["cancelled"] * 2
    time.sleep(2 * worker.POLL_SECONDS)
    assert queue.state(tmp_path, third).status == "cancelled" and queue.log(tmp_path, third) == ""


def test_a_process_that_does_not_stop_is_ended(tmp_path, monkeypatch) -> None:
    hire(monkeypatch, FOREVER)
    job = queue.submit(tmp_path, REQUEST)
    os.kill(_pid(wait(tmp_path, job, lambda s: s.done == 1)), signal.SIGSTOP)
    queue.cancel(tmp_path, job)
    time.sleep(3 * worker.POLL_SECONDS)
    assert queue.state(tmp_path, job).status == "running"
    os.utime(tmp_path / "jobs" / job / CANCEL, (4e9, 4e9))  # as where the clock was set back meanwhile
    monkeypatch.setattr(worker, "GRACE_SECONDS", 0.0)
    assert wait(tmp_path, job, lambda s: s.finished).status == "cancelled"


def test_the_file_cancel_stops_where_no_signal_can(tmp_path, job, monkeypatch) -> None:
    monkeypatch.setattr(progress, "WRITES_PER_SECOND", 1e9)
    with pytest.raises(Cancelled), Reporter(tmp_path, job) as report:
        report.progress(1, 9)
        assert queue.state(tmp_path, job).status == "running" and queue.submit(tmp_path, REQUEST) == job
        queue.cancel(tmp_path, job)
        report.progress(2, 9)
    assert queue.state(tmp_path, job).status == "cancelled"


def test_a_job_that_was_stopped_while_it_waited_does_not_begin(tmp_path, job) -> None:
    queue.cancel(tmp_path, job)
    with pytest.raises(Cancelled), Reporter(tmp_path, job):
        pytest.fail("it began")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stop_that_python_swallows_counts_at_the_next_report(tmp_path, job) -> None:
    class Noisy:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)

    with pytest.raises(Cancelled), Reporter(tmp_path, job) as report:
        Noisy()
        os.kill(os.getpid(), signal.SIGTERM)  # a second one breaks nothing
        report.progress(1, 9)
    assert queue.state(tmp_path, job, alive=False).status == "queued"


# ---- a full disk ---------------------------------------------------------------------------------


def test_a_full_disk_is_told_by_what_was_kept_free_for_it(tmp_path, job, monkeypatch) -> None:
    ballast, write = tmp_path / "jobs" / job / progress.BALLAST, progress.write_json

    def full(path: Path, content: dict[str, object]) -> None:
        if ballast.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    with pytest.raises(OSError), Reporter(tmp_path, job) as report:
        assert ballast.stat().st_blocks * 512 >= progress.BALLAST_BYTES
        monkeypatch.setattr(progress, "write_json", full)
        report.begins("case_001")
    end = queue.state(tmp_path, job)
    assert end.status == "failed" and end.reason.startswith("disk full") and not ballast.exists()


def test_after_a_full_disk_no_case_is_asked_for_alone(tmp_path, job) -> None:
    with pytest.raises(OSError), Reporter(tmp_path, job) as report:
        report.refused("case_007", "a scan must be sound")
        raise OSError(errno.ENOSPC, "No space left on device")
    end = queue.state(tmp_path, job)
    assert end.status == "failed" and end.failed == {}  # those behind the seventh were not come to


def test_a_case_that_failed_can_be_asked_for_alone(tmp_path, job) -> None:
    with pytest.raises(InputError), Reporter(tmp_path, job) as report:
        report.refused("case_007", "a scan must be sound")
        raise InputError("every case must be sound", "1 of 2 refused")
    end = queue.state(tmp_path, job)
    again = replace(REQUEST, case_id="", only=tuple(end.failed))
    assert end.failed == {"case_007": "a scan must be sound"} and queue.asked(again)[2:4] == ["--case", "case_007"]


# ---- a whole one ---------------------------------------------------------------------------------


def test_the_command_computes_what_waits_and_goes(tmp_path, capsys) -> None:
    root = tmp_path / "root"
    write_bundle(root)
    write_cohort(root, ("one", "two"), np.diag([4.0, 4, 4, 1]), (8, 8, 8))
    with files.locked(queue.worker_lock(root, "cpu")):
        job = queue.submit(root, Request("c", "", "tiny", Method("gradient"), device="cpu"))
        assert run("worker", "--data", root, "--device", "cpu") == 0
        assert "the worker of cpu runs already" in capsys.readouterr().err
    assert run("worker", "--data", root, "--device", "cpu") == 0
    end = queue.state(root, job)
    assert (end.status, end.result) == ("done", {"cohort": "c", "run": "tiny-gradient", "case_id": "two"})
    assert all(results.verify(results.case_path(root, "c", "tiny-gradient", name)) == [] for name in ("one", "two"))
