"""The queue against a plain loop over the same scans, and how a root with many finished cases opens and verifies.

The scans are noise, of which every voxel is explained for one class: what counts is what surrounds the computation.
The loop and each worker have one thread.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from agg2exp_core import pipeline
from agg2exp_core.jobs import queue
from agg2exp_core.jobs.queue import JobState, Request
from agg2exp_core.organs import BACKGROUND
from agg2exp_core.records import Method, Volume
from agg2exp_core.settings import SHIPPED
from agg2exp_core.store import catalog, cohorts, queries
from agg2exp_core.store.checking import check_root
from agg2exp_core.volumes import write_volume
from bench import synthetic
from bench.clock import timed

SCANS, SHAPE, SPACING = 20, (64, 64, 64), 5.0
MODEL = "thorax17_segresnet"
METHOD = Method("gradient", precision="float32")
ASKED = Request("noise", "", MODEL, METHOD, (BACKGROUND,), "cpu:0")
FINISHED = 10_000


def main() -> list[tuple[str, str]]:
    """Rows of figure name and value."""
    with tempfile.TemporaryDirectory() as name:
        rows = _throughput(Path(name))
    with tempfile.TemporaryDirectory() as name:
        return rows + _opening(Path(name))


def _throughput(folder: Path) -> list[tuple[str, str]]:
    threads, variable = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        loop = timed(lambda: _loop(_root(folder / "loop")))[1]
        one = _root(folder / "one")
        job, asked = queue.submit(one, ASKED), time.perf_counter()
        _wait(one, job, lambda state: state.total > 0)
        first = time.perf_counter() - asked
        _wait(one, job, lambda state: state.finished)
        alone = time.perf_counter() - asked
        two = timed(lambda: _halves(_root(folder / "two")))[1]
    finally:
        torch.set_num_threads(threads)
        os.environ.pop("OMP_NUM_THREADS") if variable is None else os.environ.update(OMP_NUM_THREADS=variable)
    return [
        (f"jobs: {SCANS} scans, a plain loop", f"{loop:.1f} s"),
        (f"jobs: {SCANS} scans, one worker", f"{alone:.1f} s, {loop / alone:.2f} times the loop's pace"),
        (f"jobs: {SCANS} scans, two workers", f"{two:.1f} s, {loop / two:.2f} times the loop's pace"),
        ("jobs: from asking to the first progress", f"{first:.1f} s"),
        ("jobs: what the queue adds to each scan, start included", f"{1000 * (alone - loop) / SCANS:.0f} ms"),
    ]


def _opening(root: Path) -> list[tuple[str, str]]:
    synthetic.write_root(root, FINISHED)

    def opened() -> int:
        return len(queries.run_user_query(catalog.connect(root), "SELECT DISTINCT case_id FROM importance"))

    (count, cold), (_, warm) = timed(opened), timed(opened)
    findings, checked = timed(lambda: check_root(root, lambda *_: None))
    assert count == FINISHED and not findings
    what = f"jobs: a root of {FINISHED:,} finished cases"
    return [(f"{what} opens", f"{cold:.1f} s, then {warm:.2f} s"), (f"{what} is checked", f"{checked:.1f} s")]


def _root(root: Path) -> Path:
    """A root with the shipped model and scans of noise."""
    images = root / "cohorts" / ASKED.cohort / "images"
    images.mkdir(parents=True)
    (root / "models").mkdir()
    (root / "models" / MODEL).symlink_to(SHIPPED / "models" / MODEL)
    for seed in range(SCANS):
        noise = np.random.default_rng(seed).normal(-300, 300, SHAPE).astype(np.int16)
        write_volume(images / f"{seed:02}.nii.gz", Volume(noise, np.diag([SPACING, SPACING, SPACING, 1.0])))
        row = {"case_id": f"{seed:02}", "image": f"images/{seed:02}.nii.gz", "label": ""}
        cohorts.append_case(root, ASKED.cohort, row)
    return root


def _loop(root: Path) -> None:
    explaining = pipeline.Explaining(root, pipeline.Plan(MODEL, METHOD, ASKED.targets, "cpu"))
    for case in cohorts.list_cases(root, ASKED.cohort):
        explaining.cohort_case(ASKED.cohort, case, lambda *_: None)


def _halves(root: Path) -> None:
    """A job of every other scan to each of two workers."""
    names = [case.case_id for case in cohorts.list_cases(root, ASKED.cohort)]
    halves = [replace(ASKED, device=f"cpu:{part}", only=tuple(names[part::2])) for part in range(2)]
    for job in [queue.submit(root, half) for half in halves]:
        _wait(root, job, lambda state: state.finished)


def _wait(root: Path, job: str, until: Callable[[JobState], bool]) -> None:
    while not until(state := queue.state(root, job)):
        time.sleep(0.05)
    assert state.status in ("running", "done"), state


if __name__ == "__main__":
    for row in main():
        print(*row, sep="  ", flush=True)
