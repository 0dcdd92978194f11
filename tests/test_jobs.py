"""Jobs: what is written survives, what died is said to have died, what is stopped stops."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import command
import numpy as np
import pytest
from tiny import write_bundle, write_cohort

from agg2exp_core import cli, files, pipeline
from agg2exp_core.jobs import progress, queue
from agg2exp_core.jobs.progress import Cancelled, Reporter
from agg2exp_core.jobs.queue import Request
from agg2exp_core.records import InputError, Method
from agg2exp_core.store import results
from agg2exp_core.store.cohorts import Case

REQUEST = Request("reference", "case_001", "model", Method("smoothgrad", 4), ("heart",))
REPORT = """
import sys, time, pathlib
from agg2exp_core.jobs.progress import Reporter
from agg2exp_core.records import InputError
with Reporter(pathlib.Path(sys.argv[1]), sys.argv[2]) as report:
"""


def _runs(monkeypatch: pytest.MonkeyPatch, body: str, header: str = REPORT) -> None:
    """Let the submitted process run `body` inside a Reporter instead of the real computation."""
    script = header + "".join(f"    {line}\n" if header else f"{line}\n" for line in body.split("\n"))
    monkeypatch.setattr(queue, "command", lambda root, job, request: [sys.executable, "-c", script, str(root), job])


def _wait(root: Path, job: str, until: Callable[[queue.JobState], bool]) -> queue.JobState:
    for _ in range(200):
        state = queue.state(root, job)
        if until(state):
            return state
        time.sleep(0.05)
    raise AssertionError(f"never came: {state}")


def test_command_says_everything_the_numbers_depend_on(tmp_path: Path) -> None:
    words = " ".join(queue.command(tmp_path, "j1", REQUEST))
    assert "-m agg2exp_core explain" in words and f"--data {tmp_path}" in words and "--job j1" in words
    assert "--cohort reference --case case_001 --model model" in words
    assert "--method smoothgrad" in words and "--targets heart" in words


@pytest.mark.parametrize(
    "method",
    [
        Method("smoothgrad", 4),
        Method("smoothgrad", 4, sigma=0.2, seed=3, tolerance=0.02, skip=0.01, precision="bfloat16"),
        Method("smoothgrad", 4, estimator="plain"),
        Method("gradient", mask="fn"),
        Method("gradient_x_input", mask="tp"),
        Method("integrated_gradients", 12, baseline="uniform", seed=4, nodes="linear"),
        Method("quantile_gradient", 30, seed=1),
        Method("ablation", value="dice"),
        Method("kernelshap", 50, features="cubes", value="counts", baseline="blurred"),
    ],
    ids=lambda method: method.name,
)
def test_the_command_line_understands_every_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method) -> None:
    folder = tmp_path / "cohorts" / "reference"
    folder.mkdir(parents=True)
    (folder / "cases.csv").write_text("case_id,image,label\ncase_001,,\n")
    plans = []

    def explaining(root: Path, plan: pipeline.Plan) -> None:
        plans.append(plan)
        raise InputError("this is far enough", "a plan")

    monkeypatch.setattr(pipeline, "Explaining", explaining)
    asked = queue.command(tmp_path, "j1", Request("reference", "case_001", "model", method))
    words = asked[asked.index("explain") : asked.index("--job")]
    assert command.run(*words) == 2
    assert plans[0].method.parameters() == method.parameters() and plans[0].method.precision == method.precision


def test_an_unusual_mask_is_on_the_command_line_and_the_usual_one_is_not(tmp_path: Path) -> None:
    request = Request("reference", "case_001", "model", Method("gradient", mask="fn"))
    assert "--mask fn" in " ".join(queue.command(tmp_path, "j1", request))
    assert "--mask" not in queue.command(tmp_path, "j1", REQUEST)


def test_progress_and_result_come_back_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _runs(
        monkeypatch,
        "report.progress(0, 10, 'window 1')\ntime.sleep(0.5)\nreport.progress(5, 10, 'window 6')\n"
        "time.sleep(1)\nreport.finished('reference', 'run', 'case_001')",
    )
    job = queue.submit(tmp_path, REQUEST)
    half = _wait(tmp_path, job, lambda s: s.done == 5)
    assert half.status == "running" and half.total == 10 and half.note == "window 6"
    assert half.seconds_left is not None and 0 <= half.seconds_left < 2
    end = _wait(tmp_path, job, lambda s: s.finished)
    assert end.status == "done" and end.reason == ""
    assert end.result == {"cohort": "reference", "run": "run", "case_id": "case_001"}
    assert [s.request for s in queue.list_jobs(tmp_path)] == [REQUEST]


def test_same_unfinished_request_is_one_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _runs(monkeypatch, "time.sleep(20)")
    job = queue.submit(tmp_path, REQUEST)
    assert queue.submit(tmp_path, REQUEST) == job
    queue.cancel(tmp_path, job)
    _wait(tmp_path, job, lambda s: s.finished)
    again = queue.submit(tmp_path, REQUEST)
    assert again != job
    queue.cancel(tmp_path, again)


def test_one_job_computes_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _runs(monkeypatch, "time.sleep(20)")
    first = queue.submit(tmp_path, REQUEST)
    _wait(tmp_path, first, lambda s: s.status == "running")
    second = queue.submit(tmp_path, Request("reference", "case_002", "model"))
    _wait(tmp_path, second, lambda s: s.note == "waiting for its turn")
    assert queue.state(tmp_path, second).status == "queued"
    queue.cancel(tmp_path, first)
    _wait(tmp_path, second, lambda s: s.status == "running")
    queue.cancel(tmp_path, second)
    assert _wait(tmp_path, second, lambda s: s.finished).status == "cancelled"


def test_jobs_run_and_are_listed_in_the_order_they_were_asked_for(tmp_path: Path, monkeypatch) -> None:
    _runs(monkeypatch, "with open(sys.argv[1] + '/order', 'a') as file:\n    file.write(sys.argv[2] + chr(10))")
    with files.locked(tmp_path / "jobs" / ".turn"):
        jobs = [queue.submit(tmp_path, replace(REQUEST, case_id=f"case_{number}")) for number in range(5)]
        for job in jobs:
            _wait(tmp_path, job, lambda s: s.note == "waiting for its turn")
    for job in jobs:
        _wait(tmp_path, job, lambda s: s.status == "done")
    assert (tmp_path / "order").read_text().split() == jobs == sorted(jobs)
    assert [job.job_id for job in queue.list_jobs(tmp_path)] == jobs[::-1]


def test_a_job_that_lives_is_listed_however_many_came_after_it(tmp_path: Path, job: str) -> None:
    for number in range(5):
        (tmp_path / "jobs" / f"z{number}").mkdir()
        files.write_json(tmp_path / "jobs" / f"z{number}" / "job.json", {"created": 0, "request": asdict(REQUEST)})
    with Reporter(tmp_path, job):
        assert [job.job_id for job in queue.list_jobs(tmp_path, limit=2)] == ["z4", "z3", job]
        assert queue.submit(tmp_path, REQUEST) == job


def test_what_does_not_change_the_result_makes_no_other_job(tmp_path: Path, job: str) -> None:
    request = replace(REQUEST, method=Method("gradient", samples=20))
    files.write_json(tmp_path / "jobs" / job / "job.json", {"created": 0, "request": asdict(request)})
    with Reporter(tmp_path, job):
        assert queue.submit(tmp_path, replace(request, method=Method("gradient", samples=4))) == job


def test_refusal_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _runs(monkeypatch, "raise InputError('scan must be 3D', '4D')")
    end = _wait(tmp_path, queue.submit(tmp_path, REQUEST), lambda s: s.finished)
    assert (end.status, end.reason) == ("failed", "scan must be 3D; got 4D")


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGABRT])
def test_death_without_a_word_is_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: signal.Signals) -> None:
    _runs(monkeypatch, "report.progress(1, 9)\ntime.sleep(20)")
    job = queue.submit(tmp_path, REQUEST)
    _wait(tmp_path, job, lambda s: s.status == "running")
    os.kill(files.read_json(tmp_path / "jobs" / job / "process.json")["pid"], sign)
    end = _wait(tmp_path, job, lambda s: s.finished)
    assert end.status == "failed" and end.reason.startswith("stopped unexpectedly")


@pytest.fixture
def job(tmp_path: Path) -> Iterator[str]:
    """A submitted job whose process is this one."""
    (tmp_path / "jobs" / "one").mkdir(parents=True)
    files.write_json(tmp_path / "jobs" / "one" / "job.json", {"created": 0, "request": asdict(REQUEST)})
    before = signal.getsignal(signal.SIGTERM)
    yield "one"
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("damaged", [("one",), ("one", "two"), ("two",)])
def test_a_job_with_refused_cases_is_not_done(tmp_path: Path, job: str, damaged: tuple[str, ...]) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "jobs").rename(root / "jobs")
    write_bundle(root)
    write_cohort(root, ("one", "two"), np.diag([4.0, 4, 4, 1]), (8, 8, 8))
    for name in damaged:
        scan = tmp_path / "scans" / f"{name}.nii.gz"
        scan.write_bytes(scan.read_bytes()[:-9])
    words = ("--model", "tiny", "--cohort", "c", "--method", "gradient", "--device", "cpu")
    assert command.run("explain", "--data", root, *words, "--job", job) == 2
    end = queue.state(root, job)
    assert end.status == "failed" and f"{len(damaged)} of 2 refused" in end.reason
    done = next((name for name in ("two", "one") if name not in damaged), None)
    assert end.result == (done and {"cohort": "c", "run": "tiny-gradient", "case_id": done})


def test_a_fault_in_one_case_does_not_keep_the_others_from_theirs(capsys: pytest.CaptureFixture) -> None:
    tried = []

    def work(case: Case, report: object) -> None:
        tried.append(case.case_id)
        if case.case_id == "b":
            raise RuntimeError("out of memory")
        if case.case_id == "c":
            raise InputError("a scan must be sound", "another")

    with pytest.raises(RuntimeError, match="2 of 4 refused, the others are done; one of them: RuntimeError: out of"):
        cli._each([Case(name, None, None, {}) for name in "abcd"], lambda *_: None, work)
    assert tried == ["a", "b", "c", "d"]
    told = capsys.readouterr().err
    assert "b: RuntimeError: out of memory" in told and "c: a scan must be sound; got another" in told


def test_cases_that_are_there_say_nothing_of_the_time_left(tmp_path: Path, job: str, monkeypatch) -> None:
    now, left = [1000.0], []
    monkeypatch.setattr(time, "time", lambda: now[0])
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def work(case: Case, report: Callable[[int, int, str], None]) -> None:
        for window in range(200 if case.case_id == "19" else 0):
            report(window, 200, "window")
            now[0] += 1
        now[0] += 0.1

    def noted(path: Path, content: dict[str, object]) -> None:
        files.write_json(path, content)
        left.append(queue._progress(path.parent)["seconds_left"])

    monkeypatch.setattr(progress, "write_json", noted)
    with Reporter(tmp_path, job) as reporter:
        cli._each([Case(str(number), None, None, {}) for number in range(20)], cli.JobReport(reporter), work)
    told = [seconds for seconds in left if seconds is not None]
    assert len(told) == 199 and told == pytest.approx(range(199, 0, -1))


def test_words_before_the_first_report_are_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _runs(monkeypatch, "import sys\nsys.exit('model must exist; got nothing')", header="")
    job = queue.submit(tmp_path, REQUEST)
    end = _wait(tmp_path, job, lambda s: s.finished)
    assert end.reason == "stopped unexpectedly: model must exist; got nothing"
    assert "model must exist" in queue.log(tmp_path, job)


def test_an_unknown_job_cannot_be_stopped(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="job must be one that was submitted"):
        queue.cancel(tmp_path, "20260101-000000-abcdef")


def test_a_process_that_ends_while_it_is_stopped_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "jobs" / "one"
    folder.mkdir(parents=True)
    files.write_json(folder / "job.json", {})
    monkeypatch.setattr(queue, "own_pid", lambda folder: 2**22 + 1)
    queue.cancel(tmp_path, "one")
    assert (folder / "cancel").exists()


def test_cancel_before_the_first_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _runs(monkeypatch, "import time\ntime.sleep(20)", header="")
    job = queue.submit(tmp_path, REQUEST)
    queue.cancel(tmp_path, job)
    assert _wait(tmp_path, job, lambda s: s.finished).status == "cancelled"


def test_cancel_leaves_a_reused_number_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _runs(monkeypatch, "pass")
    job = queue.submit(tmp_path, REQUEST)
    _wait(tmp_path, job, lambda s: s.finished)
    mine = {"pid": os.getpid(), "pid_start": "another process"}
    files.write_json(tmp_path / "jobs" / job / "process.json", mine)
    monkeypatch.setattr(os, "kill", lambda *a: pytest.fail("a stranger was killed"))
    queue.cancel(tmp_path, job)
    assert queue.state(tmp_path, job).status == "done"


def test_the_lock_of_a_process_is_its_sign_of_life(tmp_path: Path, job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # As another container sees it, where this process has another number or none.
    monkeypatch.setattr(progress, "process_start", lambda pid: "")
    monkeypatch.setattr(os, "kill", lambda *a: pytest.fail("a stranger was killed"))
    with pytest.raises(Cancelled), Reporter(tmp_path, job) as report:
        report.progress(1, 9)
        assert queue.state(tmp_path, job).status == "running" and queue.submit(tmp_path, REQUEST) == job
        queue.cancel(tmp_path, job)
        assert queue.state(tmp_path, job).status == "running"
        monkeypatch.setattr(progress, "WRITES_PER_SECOND", 1e9)
        report.progress(2, 9)
    assert queue.state(tmp_path, job).status == "cancelled"


def test_a_job_that_was_stopped_while_it_waited_does_not_begin(tmp_path: Path, job: str) -> None:
    queue.cancel(tmp_path, job)
    with pytest.raises(Cancelled), files.locked(tmp_path / "jobs" / ".turn"), Reporter(tmp_path, job):
        pytest.fail("it began")
    assert queue.state(tmp_path, job).status == "cancelled"


def test_a_process_that_is_known_by_its_own_report_alone_is_stopped(tmp_path: Path, monkeypatch) -> None:
    _runs(monkeypatch, "time.sleep(20)")
    job = queue.submit(tmp_path, REQUEST)
    _wait(tmp_path, job, lambda s: s.status == "running")
    (tmp_path / "jobs" / job / "process.json").unlink()
    assert queue.state(tmp_path, job).status == "running" and queue.submit(tmp_path, REQUEST) == job
    queue.cancel(tmp_path, job)
    assert _wait(tmp_path, job, lambda s: s.finished).status == "cancelled"


def test_a_process_that_does_not_stop_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _runs(monkeypatch, "time.sleep(20)")
    job = queue.submit(tmp_path, REQUEST)
    _wait(tmp_path, job, lambda s: s.status == "running")
    os.kill(files.read_json(tmp_path / "jobs" / job / "process.json")["pid"], signal.SIGSTOP)
    queue.cancel(tmp_path, job)
    assert queue.list_jobs(tmp_path)[0].status == "running"
    os.utime(tmp_path / "jobs" / job / "cancel", (1e9, 1e9))
    queue.cancel(tmp_path, job)
    assert _wait(tmp_path, job, lambda s: s.finished).status == "cancelled"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stop_that_python_swallows_counts_at_the_next_report(tmp_path: Path, job: str) -> None:
    class Noisy:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)

    with pytest.raises(Cancelled), Reporter(tmp_path, job) as report:
        Noisy()
        os.kill(os.getpid(), signal.SIGTERM)  # a second one breaks nothing
        report.progress(1, 9)
    assert queue.state(tmp_path, job).status == "cancelled"


def test_a_free_lock_is_no_sign_of_life(tmp_path: Path) -> None:
    assert not files.is_locked(tmp_path / "none")
    with files.locked(tmp_path / "lock"):
        assert files.is_locked(tmp_path / "lock")
    assert not files.is_locked(tmp_path / "lock")


def test_reporter_writes_at_most_five_times_a_second(tmp_path: Path, job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[dict[str, object]] = []
    monkeypatch.setattr(progress, "write_json", lambda path, content: writes.append(dict(content)))
    with Reporter(tmp_path, job) as report:
        for step in range(10_000):
            report.progress(step, 10_000)
    assert len(writes) <= 12 and writes[-1]["status"] == "done" and writes[-1]["done"] == 10_000


@pytest.mark.parametrize("job", ["..", "../x", "", "nothing-here"])
def test_unknown_job_is_refused(tmp_path: Path, job: str) -> None:
    with pytest.raises(InputError):
        queue.state(tmp_path, job)
    with pytest.raises(InputError):
        Reporter(tmp_path, job)


def _flipped(whole: bytes) -> Iterator[bytes]:
    for place in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << (place % 8)
        yield bytes(damaged)


TOLD = {
    **{"status": "running", "done": 3, "total": 20, "note": "w", "started": 5.0, "first": 0, "pid": 1},
    **{"pid_start": "x", "reason": "", "result": {"cohort": "c", "run": "r", "case_id": "one"}, "updated": 9.0},
}


@pytest.mark.parametrize("name", ["job.json", "progress.json"])
def test_no_flipped_bit_keeps_the_other_jobs_from_view(tmp_path: Path, job: str, name: str) -> None:
    files.write_json(tmp_path / "jobs" / job / "progress.json", TOLD)
    path = tmp_path / "jobs" / job / name
    for damaged in _flipped(path.read_bytes()):
        path.write_bytes(damaged)
        for seen in queue.list_jobs(tmp_path):
            assert seen.status in progress.STATES and queue.command(tmp_path, job, seen.request)
            assert seen.result is None or results.case_path(tmp_path, **seen.result)


@pytest.mark.parametrize(
    "bad", [{"done": None}, {"total": "x"}, {"updated": None}, {"result": "x"}, {"status": "runnhng"}, {"done": 1e999}]
)
def test_damaged_progress_is_none(tmp_path: Path, job: str, bad: dict[str, object]) -> None:
    files.write_json(tmp_path / "jobs" / job / "progress.json", TOLD | bad)
    assert queue.state(tmp_path, job).reason == "stopped unexpectedly"


def test_damaged_job_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "jobs" / "bad").mkdir(parents=True)
    (tmp_path / "jobs" / "bad" / "job.json").write_text("{")
    assert queue.list_jobs(tmp_path) == []
