"""Jobs: what is asked for, what is said of it, and that both survive."""

from __future__ import annotations

import signal
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
from agg2exp_core.jobs.progress import ALIVE, Reporter
from agg2exp_core.jobs.queue import Request
from agg2exp_core.records import InputError, Method
from agg2exp_core.store import results
from agg2exp_core.store.cohorts import Case

REQUEST = Request("reference", "case_001", "model", Method("smoothgrad", 4), ("heart",))


def test_command_says_everything_the_numbers_depend_on(tmp_path: Path) -> None:
    words = " ".join(queue.command(tmp_path, "j1", REQUEST, "cuda:1"))
    assert "-m agg2exp_core explain" in words and f"--data {tmp_path}" in words and "--job j1" in words
    assert "--cohort reference --case case_001 --model model" in words
    assert "--device cuda:1" in words and "--method smoothgrad" in words and "--targets heart" in words


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
    asked = queue.command(tmp_path, "j1", Request("reference", "case_001", "model", method), "auto")
    words = asked[asked.index("explain") : asked.index("--job")]
    assert command.run(*words) == 2
    assert plans[0].method.parameters() == method.parameters() and plans[0].method.precision == method.precision


def test_an_unusual_mask_is_on_the_command_line_and_the_usual_one_is_not(tmp_path: Path) -> None:
    request = Request("reference", "case_001", "model", Method("gradient", mask="fn"))
    assert "--mask fn" in " ".join(queue.asked(request))
    assert "--mask" not in queue.asked(REQUEST)


def test_a_job_that_has_not_ended_is_listed_however_many_came_after_it(tmp_path: Path, job: str) -> None:
    for number in range(5):
        (tmp_path / "jobs" / f"z{number}").mkdir()
        files.write_json(tmp_path / "jobs" / f"z{number}" / "job.json", {"created": 0, "request": asdict(REQUEST)})
        files.write_json(tmp_path / "jobs" / f"z{number}" / "progress.json", TOLD | {"status": "done"})
    with Reporter(tmp_path, job):
        assert [job.job_id for job in queue.list_jobs(tmp_path, limit=2)] == ["z4", "z3", job]
        assert queue.submit(tmp_path, REQUEST) == job


def test_what_does_not_change_the_result_makes_no_other_job(tmp_path: Path, job: str) -> None:
    request = replace(REQUEST, method=Method("gradient", samples=20))
    files.write_json(tmp_path / "jobs" / job / "job.json", {"created": 0, "request": asdict(request)})
    with Reporter(tmp_path, job):
        assert queue.submit(tmp_path, replace(request, method=Method("gradient", samples=4))) == job


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A submitted job whose process is this one."""
    (tmp_path / "jobs" / "one").mkdir(parents=True)
    files.write_json(tmp_path / "jobs" / "one" / "job.json", {"created": 0, "request": asdict(REQUEST)})
    monkeypatch.setattr(queue, "start_worker", lambda *_: None)
    before = signal.getsignal(signal.SIGTERM)
    with files.locked(tmp_path / "jobs" / "one" / ALIVE):  # as the worker of this process would
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


def test_what_is_asked_for_again_while_it_is_stopped_is_another_job(tmp_path: Path, job: str) -> None:
    with Reporter(tmp_path, job):
        queue.cancel(tmp_path, job)
        again = queue.submit(tmp_path, REQUEST)
        assert queue.state(tmp_path, job).status == "running" and again != job
        assert queue.submit(tmp_path, REQUEST) == again


def test_an_unknown_job_cannot_be_stopped(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="job must be one that was submitted"):
        queue.cancel(tmp_path, "20260101-000000-abcdef")


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
    **{"status": "running", "done": 3, "total": 20, "note": "w", "started": 5.0, "first": 0, "failed": {"two": "why"}},
    **{"reason": "", "result": {"cohort": "c", "run": "r", "case_id": "one"}, "updated": 9.0},
}


@pytest.mark.parametrize("name", ["job.json", "progress.json"])
def test_no_flipped_bit_keeps_the_other_jobs_from_view(tmp_path: Path, job: str, name: str) -> None:
    files.write_json(tmp_path / "jobs" / job / "progress.json", TOLD)
    path = tmp_path / "jobs" / job / name
    for damaged in _flipped(path.read_bytes()):
        path.write_bytes(damaged)
        for seen in queue.list_jobs(tmp_path):
            assert seen.status in progress.STATES and queue.command(tmp_path, job, seen.request, "cpu")
            assert queue.worker_lock(tmp_path, seen.request.device).parent == tmp_path / "jobs"
            assert seen.result is None or results.case_path(tmp_path, **seen.result)


@pytest.mark.parametrize(
    "bad",
    [
        {"done": None},
        {"total": "x"},
        {"updated": None},
        {"result": "x"},
        {"status": "runnhng"},
        {"done": 1e999},
        {"failed": "x"},
    ],
)
def test_damaged_progress_is_none(tmp_path: Path, job: str, bad: dict[str, object]) -> None:
    files.write_json(tmp_path / "jobs" / job / "progress.json", TOLD | bad)
    assert queue.state(tmp_path, job) == queue.JobState(job, REQUEST, 0.0, "queued")


def test_damaged_job_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "jobs" / "bad").mkdir(parents=True)
    for damaged in ("{", "[" * 100_000):
        (tmp_path / "jobs" / "bad" / "job.json").write_text(damaged)
        assert queue.list_jobs(tmp_path) == []
